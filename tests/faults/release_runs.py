"""Random histories of a task's releases: drawn by a number, run, cut short when they fail.

Each action is drawn by its own number, so a history with actions taken out of it is a history. A check that fails is reported
with the shortest history found that fails it in the same way. It knows neither the actions' meaning nor the invariants'.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from models.release_board import Board
from models.rollout_state import TRAFFIC
from tests.faults.release_actions import ACTIONS, Do, Plan, abort, abort_beats_promote, burst, days, race, update, window
from tests.faults.release_checks import Broken, Watch, hold
from tests.faults.release_world import POLICIES, Outside, World, desk_clock, opened

TWINS, TURNS = 0.03, 0.3  # shares: of the actions also done by processes that die, and of the races also run in turn
Step = tuple[Plan, int]
POLICIES_FIRST = (
    "grey", "grey", "grey", "strict", "lax", "margin", "blue-green", "phases", "people", "year", "ab", "frozen", "frozen",
)  # fmt: skip


@dataclass(frozen=True)
class History:
    """Where a task begins, and what happens to it."""

    seed: int
    steps: tuple[Step, ...]
    clock: str
    policy: str

    def __str__(self) -> str:
        told = ", ".join(f"{plan.__name__}({n})" for plan, n in self.steps)
        return f"seed {self.seed}, {self.clock} clock, {self.policy}: {told}"


@dataclass
class Tally:
    """What the histories reached."""

    histories: int = 0
    actions: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    raises: int = 0
    deaths: int = 0
    transactions: int = 0


def drawn(seed: int) -> History:
    """Most begin with a version that has had its first days; anything may follow."""
    rng = Random(seed)
    length = rng.choice([6, 10, 14])
    plans = [window, update, days] if rng.random() < 0.8 else []
    plans += rng.choices(list(ACTIONS), list(ACTIONS.values()), k=length - len(plans))
    steps = tuple((plan, rng.randrange(2**31)) for plan in plans)
    return History(seed, steps, rng.choice(["stream", "wall"]), rng.choice(POLICIES_FIRST))


def run(history: History, template: Path, folder: Path, tally: Tally | None = None) -> None:
    """Raises Broken, or whatever the product raises."""
    tally = tally if tally is not None else Tally()
    outside = Outside(clock=history.clock, policy=POLICIES[history.policy])
    outside.replicas["r1"] = None
    with desk_clock():
        world = opened(template, folder, outside, lambda entries: None)
        try:
            watch = Watch(world)
            world.told = watch.transaction
            for plan, number in history.steps:
                _step(world, watch, plan, Random(number), tally)
            watch.end()
            tally.histories += 1
            tally.raises += watch.raises
            tally.transactions += watch.transactions
            tally.states.update(one.state.value for one in watch.board.rollouts.values())
        finally:
            world.close()


def _step(world: World, watch: Watch, plan: Plan, rng: Random, tally: Tally) -> None:
    before = watch.board
    do = plan(world, rng)
    if do is None:
        return
    tally.actions[plan.__name__] += 1
    twin = world.twin("twin.db") if rng.random() < (TURNS if plan is race else TWINS) else None
    try:
        do(world)
        watch.action()
        if plan is burst:
            watch.burst(before)
        if plan in (abort, abort_beats_promote):
            _aborted(before, watch, world.aborted)
        if twin is not None:
            tally.deaths += same_after(world, twin, plan, do, rng)
    finally:
        if twin is not None:
            twin.close()


def _aborted(before: Board, watch: Watch, version: str) -> None:
    """Said by one who has just looked, of a version in any live state; or said while another promotes it."""
    if not before.rollouts[version].live:
        return
    after, routing = watch.board.rollouts[version], watch.board.routing
    stopped = after.state not in TRAFFIC and after.weight == 0.0 and routing is not None and routing.canary != version
    hold("I6 an abort is obeyed and beats a promote", stopped, (version, after.state.value, after.weight))


def same_after(world: World, twin: World, plan: Plan, do: Do, rng: Random) -> int:
    """The twin dies now and then while it does the same, or does in turn what was raced: what is stored is the same."""
    if plan is race:
        twin.turns = True
        do(twin)
        hold("I13 two controllers make one transition", twin.state() == world.state(), "a race differs from taking turns")
        return 0
    moments = itertools.chain((rng.randrange(1, 60) for _ in range(rng.randint(1, 2))), itertools.repeat(0))
    died = twin.surviving(do, moments)
    hold("I7 after a death the history goes on as without", twin.state() == world.state(), f"{plan.__name__} died {died} times")
    return died


def shortest(history: History, template: Path, folder: Path, like: str) -> History:
    """Actions taken out as long as it fails with a text that begins alike."""
    size = len(history.steps) // 2
    while size:
        for start in range(0, len(history.steps), size):
            kept = history.steps[:start] + history.steps[start + size :]
            tried = History(history.seed, kept, history.clock, history.policy)
            if failure(tried, template, folder).startswith(like):
                history = tried
                break
        else:
            size //= 2
    return history


def failure(history: History, template: Path, folder: Path, tally: Tally | None = None) -> str:
    """What went wrong, "" = nothing."""
    try:
        run(history, template, folder, tally)
    except Broken as broken:
        return str(broken)
    except Exception as error:  # noqa: BLE001 - whatever the product raises is a finding
        return f"{type(error).__name__}: {error}"
    return ""
