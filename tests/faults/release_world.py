"""A task's releases for fault tests: the journal in a file, the processes that write to it, and the world outside of them.

`Outside` is what no process decides: how good each version is, which replicas live, what the clock on the wall says; it
outlives every death. `World` is one run of the processes over one journal file: the real worker step, two controllers, a
person's desk. `Deaths` ends them (by raising) at a counted moment of input or output; `World.boot` starts them again. It
knows no invariant.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import sqlalchemy as sa

from assets.steps.rollout import decide
from assets.steps.version import _journal, _start
from assets.windows.clock import WindowPolicy, window_id
from assets.workspace import Policies, Workspace
from models import release, split
from models.release_policy import RolloutPolicy
from models.rollout import Decision
from models.split import Routing
from models.version import VersionRefused
from monitoring import evidence
from monitoring.evidence import Exposed, Served
from monitoring.outcome import bets
from monitoring.sample_ratio import SampleRatio
from pipelines import release_desk
from pipelines.controller import Controller
from pipelines.release_desk import ReleaseDesk
from security.journal import Draft, Entry, Journal, stamp
from security.replicas import Replicas
from security.served import LiveCounts

TASK, BASE = "parcels", "base-0011aabb"
DAY = timedelta(days=1)
START = datetime(2026, 3, 2, tzinfo=UTC)  # a Monday
STREAMS = [f"{room}/{TASK}" for room in ("rollout", "routing", "lineage", "window")]
ROWS = 40  # examples a window
SETTLES = 8  # looks of one visit: more than any rollout can move at one moment

QUICK = RolloutPolicy(
    steps=("shadow", 10, 50, 100), alpha=0.5, cap=0.08, shadow_slots=2, min_blocks=2, min_samples=60, min_requests=0,
    min_hold=timedelta(hours=6), bake=timedelta(hours=6), max_age=14 * DAY,
)  # fmt: skip


def policy(**changes: Any) -> RolloutPolicy:
    body = {name: value for name, value in QUICK.to_body().items() if name not in changes}
    return RolloutPolicy.from_body(body | RolloutPolicy.from_body({**body, **changes}).to_body())


POLICIES: Mapping[str, RolloutPolicy] = {
    "grey": QUICK,
    "strict": policy(alpha=0.2, min_hold="1d", bake="1d", min_requests=10),
    "lax": policy(alpha=0.7, shadow_slots=3),
    "margin": policy(margin=0.02),
    "blue-green": policy(strategy="blue-green", steps=["shadow", 100]),
    "phases": policy(strategy="phases", steps=["shadow", 5, 50, 100], bake="2d"),
    "shadow": policy(strategy="shadow", steps=["shadow"]),
    "people": policy(approval="two-person"),
    "year": policy(alpha_per="year", alpha=0.7),
    "frozen": policy(freeze=["2026-03-08 - 2026-03-11"]),
    "signal": policy(pause_on=["errors", "slow"]),
    "ab": policy(strategy="ab", steps=["shadow", 50, 100], min_test="1d"),
}


@dataclass
class Outside:
    """What is so, whatever the processes do."""

    clock: str = "stream"
    true: datetime = START
    offset: timedelta = timedelta(0)  # of the clock on the wall from the truth
    day: int = 0  # windows whose time is over
    skipped: list[int] = field(default_factory=list)  # of these, not scored yet
    versions: int = 0
    gain: dict[str, float] = field(default_factory=dict)  # true mean advantage of each version over the base, nats
    gone: set[str] = field(default_factory=set)  # versions whose artefact was deleted
    replicas: dict[str, int | None] = field(default_factory=dict)  # None: follows; a number: stays at that epoch
    counts: dict[tuple[int, str], list[int]] = field(default_factory=dict)
    sealed: dict[str, list[Served]] = field(default_factory=dict)  # of these, by the window they were sealed in
    policy: RolloutPolicy = QUICK
    dirty: set[str] = field(default_factory=set)  # windows with losses that are no numbers
    share: dict[str, tuple[float | None, dict[str, float]]] = field(default_factory=dict)  # label coverage by window

    def seal(self, window: str) -> None:
        """What was counted since the window before is in this one."""
        before: dict[tuple[int, str], Served] = {}
        for one in (row for rows in self.sealed.values() for row in rows):
            before[one.epoch, one.arm] = before.get((one.epoch, one.arm), Served(one.epoch, one.arm)) + one
        self.sealed[window] = []
        for key, sums in sorted(self.counts.items()):
            old = before.get(key, Served(*key))
            new = Served(*key, sums[0] - old.requests, sums[1] - old.errors, sums[2] - old.slow)
            self.sealed[window] += [new] if new.requests else []

    @property
    def wall(self) -> datetime:
        return self.true + self.offset


class Killed(BaseException):
    """The process ends here."""


class _Wall(datetime):
    """`datetime` for the desk, which reads the clock on the wall itself."""

    outside: ClassVar[Outside]

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return cls.outside.wall


class Shop(Workspace):
    """The worker's workspace, whose versions are loadable or gone and hold no weights."""

    outside: Outside

    def predictor(self, version: str) -> Any:
        if version in self.outside.gone:
            raise VersionRefused(f"{version}: its file is not there")
        return version


@dataclass
class Deaths:
    """Ends the process at the `left`-th moment: before each statement, before each commit, and after each transaction."""

    left: int = 0
    moments: int = 0

    def moment(self, *_: Any) -> None:
        self.moments += 1
        self.left -= 1
        if self.left == 0:
            raise Killed


class World:
    """The processes of one task over one journal file."""

    def __init__(self, file: Path, outside: Outside, told: Callable[[list[Entry]], None] = lambda entries: None) -> None:
        self.file, self.outside, self.told = file, outside, told
        self.deaths, self.between = Deaths(), list[Callable[[], object]]()
        self.aborted, self.commits, self.turns = "", 0, False  # of the last append; whether races are run one after the other
        self._peek = sqlite3.connect(file, isolation_level=None, timeout=0.01)
        self.boot()

    def boot(self) -> None:
        """The processes start, on what the file holds."""
        if hasattr(self, "journal"):
            self.journal.close()
        self.deaths.left, self._beaten, self._published = 0, {}, []
        self.journal = Journal(f"sqlite:///{self.file}", busy_seconds=0.01)
        sa.event.listen(self.journal.engine, "connect", _no_fsync)
        self.journal.close()  # the connection from before
        sa.event.listen(self.journal.engine, "before_cursor_execute", self.deaths.moment)
        sa.event.listen(self.journal.engine, "commit", self._commits)
        written = self.journal.append_all

        def append_all(*args: Any, **more: Any) -> list[Entry]:
            if self.between:
                self.between.pop()()
            self.commits = 0
            entries = written(*args, **more)
            self.told(entries)
            self.deaths.moment()
            return entries

        self.journal.append_all = append_all  # type: ignore[method-assign]
        self.settings()

    def _commits(self, _: object) -> None:
        self.deaths.moment()
        self.commits += 1

    def settings(self) -> None:
        """The processes again, with the settings of this moment."""
        grid, outside = WindowPolicy(every=DAY, start=START, clock=self.outside.clock), self.outside
        self.shop = Shop(
            SimpleNamespace(name=TASK), self.journal, None, self.file.parent, self.file.parent, None,  # type: ignore[arg-type]
            Policies(window=grid, rollout=outside.policy), wall=lambda: outside.wall,
        )  # fmt: skip
        self.shop.outside = outside
        self.first, self.second = (
            Controller(self.journal, TASK, outside.policy, grid, actor=name, wall=lambda: outside.wall)
            for name in ("controller-a", "controller-b")
        )
        self.desk = ReleaseDesk(self.journal, TASK, outside.policy, grid)
        self.other_desk = ReleaseDesk(self.journal, TASK, outside.policy, grid)
        self.replicas, self.live = Replicas(self.journal.engine), LiveCounts(self.journal.engine)
        _Wall.outside = outside

    def close(self) -> None:
        self._peek.close()
        self.journal.close()

    def twin(self, name: str) -> World:
        """Other processes over a copy of the file as it is now, in the same world."""
        file = self.file.with_name(name)
        for suffix in ("", "-wal", "-shm"):
            file.with_name(name + suffix).unlink(missing_ok=True)
        source, copy = sqlite3.connect(self.file), sqlite3.connect(file)
        source.backup(copy)
        source.close()
        copy.close()
        made = World(file, self.outside)
        made.second.policy = self.second.policy  # which may be the one from before
        return made

    def surviving(self, do: Callable[[World], None], moments: Iterator[int]) -> int:
        """Do it; each time the processes die (at the next of `moments`) they start again and do it again. Deaths."""
        for died in range(20):
            self.deaths.left = next(moments, 0)
            try:
                do(self)
            except Killed:
                self.boot()
                continue
            self.deaths.left = 0
            return died
        raise AssertionError("twenty deaths in a row")

    # -- what processes do, each safe to be done again -----------------------------------------------------------------

    def beat(self) -> None:
        """Replicas say which epoch they serve, and what they have counted."""
        newest, wall = self.first._board.refresh().epoch, self.outside.wall
        for name, held in sorted(self.outside.replicas.items()):
            word = newest if held is None else held
            if self._beaten.get(name) != (word, wall):
                self.replicas.acknowledge(TASK, name, word, wall)
                self._beaten[name] = word, wall
        rows = [(epoch, arm, *counts) for (epoch, arm), counts in sorted(self.outside.counts.items())]
        if rows != self._published:
            self.live.publish(TASK, "r0", rows, wall)
            self._published = rows

    def settle(self, controller: Controller | None = None) -> None:
        """A controller looks until nothing follows."""
        self.beat()
        for _ in range(SETTLES):
            if not (controller or self.first).look():
                return
            self.beat()
        raise AssertionError(f"{SETTLES} looks at one moment and still something follows")

    def score(self, day: int, seed: int) -> None:
        """The window's steps: its evidence, once, then the release step."""
        self.witness(day, seed)
        self.step(day)

    def witness(self, day: int, seed: int) -> None:
        self.beat()
        body = self.scored(day, window_id(START + day * DAY), seed)
        self.shop.history.once(evidence.SCORED, body, actor="pipeline", at=self.shop.now())

    def step(self, day: int) -> None:
        window = window_id(START + day * DAY)
        decide(self.shop, self.shop.clock(window), window)

    def scored(self, day: int, window: str, seed: int) -> dict[str, Any]:
        """The body of the window's evidence, from losses drawn for the pairs on the board."""
        begin, board, outside = START + day * DAY, self.shop.board(), self.outside
        first, last = evidence.milliseconds(begin), evidence.milliseconds(begin + DAY)
        matured, pairs = np.linspace(first, last, ROWS, endpoint=False).astype(int), {}
        for pair in board.pairs():
            rng = np.random.default_rng([seed, *pair[0].encode(), *pair[1].encode()])
            stable = rng.uniform(0.3, 0.7, ROWS)
            candidate = stable - (outside.gain.get(pair[0], 0.0) - outside.gain.get(pair[1], 0.0)) + rng.normal(0, 0.02, ROWS)
            if window in outside.dirty:
                candidate[:3] = np.nan
            pairs[pair] = evidence.score(stable, candidate, matured, board.policy_of(board.rollouts[pair[0]], QUICK).block,
                                         evidence.milliseconds(START))  # fmt: skip
        coverage, arms = outside.share.get(window, (0.99, {}))
        routing, exposed = board.routing, []
        if routing is not None and routing.canary is not None and 0.0 < routing.weight < 1.0:
            exposed = [self.exposed(routing, seed)]
        body = evidence.entry(
            window, begin + DAY, pairs, outside.sealed.get(window, ()), coverage, exposed=exposed, stable_outcome=(50, 20.0),
            arm_coverage=arms,
        )
        return body | {"examples": ROWS}

    def exposed(self, routing: Routing, seed: int) -> Exposed:
        """What 400 units of the day brought about, each by the arm it was drawn into."""
        rng = np.random.default_rng(seed)
        arms = np.array([split.arm(routing, f"{seed}-{k}")[0] == "canary" for k in range(400)], dtype=float)
        rate = 0.4 - 4.0 * self.outside.gain.get(routing.canary or "", 0.0) * arms
        outcome = bets(arms, routing.weight, (rng.uniform(size=400) < rate).astype(float), 0.4)
        drawn = SampleRatio(routing.weight, int(arms.sum()), int(400 - arms.sum()))
        return Exposed(routing.canary or "", routing.epoch, outcome, drawn)

    def register(self, number: int, parent: str | None) -> None:
        """A trained version is registered, queued and started, by the product's own step."""
        version = f"v{number:06d}"
        window = window_id(START + max(self.outside.day - 1, 0) * DAY)
        body = {
            "version": version, "number": number, "window": window, "parent": parent or BASE, "windows": [window],
            "blocked": None, "clock": stamp(self.shop.clock(window)),
        }  # fmt: skip
        self.beat()
        if _journal(self.shop, body)["version"] == version:
            _start(window, self.shop)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody can write to the journal."""
        holder = sqlite3.connect(self.file, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            holder.execute("ROLLBACK")
            holder.close()

    def state(self) -> tuple[Any, ...]:
        """All that is stored: the head of the chain and both tables beside it."""
        asked = (
            "SELECT seq, hash FROM journal_head", "SELECT task, replica, epoch, seen FROM gateway_replicas ORDER BY 1, 2",
            "SELECT replica, epoch, arm, requests, errors, slow FROM gateway_served ORDER BY 1, 2, 3",
        )
        return tuple(tuple(self.stored(text)) for text in asked)

    def stored(self, text: str) -> list[tuple[Any, ...]]:
        """What the file answers, asked past the product."""
        return self._peek.execute(text).fetchall()


def founded(folder: Path) -> Path:
    """The file of a task whose base answers."""
    file = folder / "founded.db"
    world = World(file, Outside())
    world.journal.append(Draft(f"lineage/{TASK}", "base.registered", {"version": BASE, "parent": None}), actor="base", at=START)
    drafts = [Draft(f"{d.room}/{TASK}", d.kind, d.body) for d in release.found(BASE, START)]
    world.journal.append_all(drafts, actor="pipeline", at=START)
    world.beat()
    world.close()
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return file


def opened(template: Path, folder: Path, outside: Outside, told: Callable[[list[Entry]], None]) -> World:
    """A task of its own, founded already."""
    file = folder / "journal.db"
    for suffix in ("-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)
    shutil.copy(template, file)
    return World(file, outside, told)


def drafts_of(world: World, decisions: list[Decision]) -> list[Draft]:
    """Decisions as a writer with the board of this moment would append them."""
    return [
        Draft(f"{one.room}/{TASK}", one.kind, one.body, expected=world.journal.length(f"{one.room}/{TASK}"))
        for one in decisions
    ]


@contextmanager
def desk_clock() -> Iterator[None]:
    """The desk reads the wall of the world that was settled last."""
    kept = release_desk.datetime
    release_desk.datetime = _Wall  # type: ignore[misc]
    try:
        yield
    finally:
        release_desk.datetime = kept  # type: ignore[misc]


def _no_fsync(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=OFF")  # these deaths are of processes, not of machines


def pick(rng: Random, found: list[Any]) -> Any:
    return rng.choice(found) if found else None
