"""A gateway's world with a canary, and what a controller is asked about it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from assets.windows.clock import WindowPolicy
from models import release, release_verbs
from models.release_policy import RolloutPolicy, Verdicts
from models.rollout_state import State
from models.task import check
from monitoring import evidence
from monitoring.evidence import BlockSum, milliseconds
from monitoring.rollout_audit import Audit, audit
from monitoring.verdict import judge
from pipelines.controller import Controller
from pipelines.reading import read_evidence
from security.served import LiveCounts
from tests.gateways import World
from tests.releases import board, written
from tests.tasks import TwoBlobs

ROOT = Path(__file__).parents[1]
POLICY = RolloutPolicy(steps=("shadow", 50, 100), min_hold=timedelta(0), min_requests=0)
WALL = WindowPolicy(every=timedelta(days=1), start=datetime(2026, 1, 1, tzinfo=UTC))
SETTINGS = """
task = "tests.controllers:Fragile"
[journal]
url = "sqlite:///journal/journal.db"
[store]
url = "store"
[keys]
directory = "keys"
[stream]
bootstrap_servers = "{servers}"
[tracking]
mlflow_url = "{mlflow}"
[rollout]
steps = ["shadow", 50, 100]
min_hold = "0s"
"""


class Fragile(TwoBlobs):
    """Fails on an output that only a broken version gives."""

    def answer(self, output: np.ndarray) -> np.ndarray:
        if np.abs(output).max() > 1e3:
            raise ValueError(f"output {np.abs(output).max():.0f} is no logit")
        return super().answer(output)


@pytest.fixture
def world(tmp_path, blobs_base):
    made = World(tmp_path, blobs_base, task=check(Fragile(), "tests.controllers:Fragile"))
    yield made
    made.close()


@dataclass
class Clock:
    """A wall that a test moves."""

    now: datetime

    def __call__(self) -> datetime:
        return self.now


def canary(world: World, spread: float = 0.1, policy: RolloutPolicy = POLICY) -> str:
    """A version that a person has sent to half of the users; `spread` 30 breaks it."""
    version, now = world.version(1, spread), datetime.now(UTC)
    written(world, release.found(world.base_version, now))
    written(world, release.enqueue(board(world), version, 1, world.base_version, now))
    written(world, release.step_board(board(world), {version: known(world, version, policy, True)}, policy, now))
    promoted(world, version, policy)
    assert board(world).rollouts[version].state is State.CANARY
    return version


def known(world: World, version: str, policy: RolloutPolicy, prepared: bool | None = None) -> Verdicts:
    """What the journal says of a version, with every replica in step."""
    one, found = board(world).rollouts[version], read_evidence(world.journal, world.task.name)
    return judge(one, found, policy, datetime.now(UTC), acknowledged=True, prepared=prepared)


def promoted(world: World, version: str, policy: RolloutPolicy = POLICY, full: bool = False) -> None:
    """A person takes the next step, or all of them."""
    said = {"actor": "ana", "reason": "drill", "full": full}
    verdicts = known(world, version, policy)
    written(world, release_verbs.promote(board(world), version, verdicts, policy, datetime.now(UTC), **said))


def scored(world: World, end: datetime, gain: float = 0.0) -> None:
    """A day's window: 300 examples of each pair."""
    begin = end - timedelta(days=1)
    sums = {pair: [BlockSum(milliseconds(begin), 300, 300 * gain, 300 * gain**2)] for pair in board(world).pairs()}
    world.note("window", "evidence.scored", evidence.entry(f"{begin:%Y-%m-%dT%H:%MZ}", end, sums, (), 0.99))


def made(world: World, policy: RolloutPolicy = POLICY, window: WindowPolicy = WALL, **more) -> Controller:
    return Controller(world.journal, world.task.name, policy, window, **more)


def answered(world: World, epoch: int, stable: int, canary: int, failed: int, replica: str = "r1") -> None:
    counts = [(epoch, "stable", stable, 0, 0), (epoch, "canary", canary, failed, 0)]
    LiveCounts(world.journal.engine).publish(world.task.name, replica, counts, datetime.now(UTC))


def audited(world: World, policy: RolloutPolicy = POLICY) -> Audit:
    rooms = ("rollout", "routing", "lineage", "window")
    found = audit(world.journal.tail(streams=[f"{room}/{world.task.name}" for room in rooms]), policy)
    assert world.journal.verify().faults == ()
    return found


def of_kind(world: World, room: str, kind: str) -> list:
    return [entry for entry in world.journal.read(f"{room}/{world.task.name}") if entry.kind == kind]
