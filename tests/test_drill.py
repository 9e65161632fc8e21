"""The fire drill: a canary that fails on purpose is rolled back by a controller, on the real gateway and journal."""

from __future__ import annotations

import json
import threading
from itertools import islice

import numpy as np
import pytest

from models.rollout_state import State
from models.task import check
from pipelines.controller import control
from pipelines.drill import NoDrill, documents, drill
from pipelines.gateway.request import RequestReader
from pipelines.settings import make_settings
from tests import tasks
from tests.controllers import audited, canary, made
from tests.gateways import World, blobs_base
from tests.releases import board

__all__ = ["blobs_base"]


class Public(tasks.TwoBlobs):
    """The two blobs with a public history."""

    def history(self) -> dict[str, np.ndarray]:
        return tasks.columns(50, seed=1)


@pytest.fixture
def world(tmp_path, blobs_base):
    made_ = World(tmp_path, blobs_base, task=check(Public(), "tests.test_drill:Public"))
    yield made_
    made_.close()


def settings(world: World):
    return make_settings({
        "task": "tests.test_drill:Public",
        "store": {"url": str(world.store)},
        "keys": {"directory": str(world.keys)},
        "rollout": {"steps": ["shadow", 50, 100], "min_hold": "0s", "min_requests": 0},
    })  # fmt: skip


def drilled(world: World, limit: float = 30.0, share: float = 0.5):
    return drill(settings(world), world.task, world.journal, share=share, rate=200.0, limit=limit)


def test_a_failing_canary_loses_its_traffic_within_seconds_and_the_journal_says_why(world) -> None:
    version, stop = canary(world), threading.Event()
    watching = threading.Thread(target=control, args=(made(world), stop))
    watching.start()
    try:
        found = drilled(world)
    finally:
        stop.set()
        watching.join()
    assert found.version == version and found.silent is not None and found.decided is not None
    assert found.silent < 10.0 and 0 < found.failed <= found.canary
    assert board(world).rollouts[version].state in (State.ROLLING_BACK, State.ROLLED_BACK)
    assert "errors: evidence" in found.reason and audited(world).sound


def test_without_a_controller_the_drill_says_that_nobody_stopped_it(world) -> None:
    version = canary(world)
    found = drilled(world, limit=3.0)
    assert (found.decided, found.silent) == (None, None) and found.failed > 0
    assert board(world).rollouts[version].state is State.CANARY


def test_there_is_no_drill_without_a_canary_a_history_or_a_share(world) -> None:
    canary(world)
    with pytest.raises(NoDrill, match=r"outside \(0, 1\]"):
        drilled(world, share=0.0)
    with pytest.raises(NoDrill, match="public history"):
        documents(tasks.TwoBlobs())


def test_an_event_of_the_history_is_one_the_gateway_takes() -> None:
    reader = RequestReader(Public.event)
    bodies = list(islice(documents(check(Public(), "tests.test_drill:Public")), 60))
    assert len({reader.read(body).event_id for body in bodies}) == 60
    assert json.loads(bodies[0]).keys() == set(Public.event.names)
