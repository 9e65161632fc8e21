"""Random histories of a task's releases keep the invariants I1 to I13, and each invariant's check finds a planted fault.

A history is a random order of windows (good, bad, without numbers, without labels, late, twice, never), updates, people, two
controllers and a worker that race, replicas that lag and die, clocks that jump, settings that change, artefacts that vanish and
a journal that cannot be written. The processes are the product's own, over a journal in a file; they die at random moments of
input and output. What holds is in release_checks.py, how a history is drawn and cut short in release_runs.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

from tests.faults.release_actions import burst, days, race, update, window, window_again
from tests.faults.release_mutants import MUTANTS
from tests.faults.release_runs import Tally, drawn, failure, shortest
from tests.faults.release_world import DAY, POLICIES, Outside, desk_clock, founded, opened

QUICK, MANY, SEARCH = 200, 10_000, 150  # histories; the last: within which a planted fault has to be found
MEMORY = Path("/dev/shm")  # deaths here are of processes: no disk is waited for


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else tmp_path) as made:
        yield Path(made)


def checked(folder: Path, seeds: range) -> Tally:
    template, tally = founded(folder), Tally()
    for seed in seeds:
        history = drawn(seed)
        found = failure(history, template, folder, tally)
        if found:
            least = shortest(history, template, folder, found.split(":")[0])
            pytest.fail(f"{failure(least, template, folder)}\nshortest history: {least}")
    print(tally)
    return tally


def test_random_histories_keep_every_invariant(folder: Path) -> None:
    tally = checked(folder, range(QUICK))
    assert tally.histories == QUICK and tally.raises > 60 and tally.deaths > 12 and len(tally.states) >= 7, tally


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_random_histories_keep_every_invariant(folder: Path) -> None:
    tally = checked(folder, range(QUICK, QUICK + MANY))
    assert tally.histories == MANY and len(tally.states) >= 10, tally


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_planted_fault_is_found_by_the_invariant_it_breaks(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = MUTANTS[name]
    mutant.plant(monkeypatch)
    template = founded(folder)
    texts = (failure(drawn(number), template, folder) for number in range(SEARCH))
    assert any(text.startswith(mutant.found) for text in texts), f"{name}: not found in {SEARCH} histories"


STORY = (window, update, days, days, days, burst, days, update, days, race, window_again)


@pytest.mark.parametrize("stride", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_a_death_at_any_moment_of_input_or_output_leaves_the_same_journal(folder: Path, stride: int) -> None:
    """I7, one story from founding to a promotion and a roll back: each action once without a death, then with one at each of
    its moments (or every 17th), by processes that start again on the file and do it again."""
    died = 0
    with desk_clock():
        outside = Outside(replicas={"r1": None})
        world = opened(founded(folder), folder, outside, lambda entries: None)
        for number, plan in enumerate(STORY):
            do = plan(world, Random(number))
            assert do is not None
            before = world.twin("before.db")
            world.deaths.moments = 0
            do(world)
            for moment in range(1 + number % stride, world.deaths.moments + 1, stride):
                twin = before.twin("twin.db")
                died += twin.surviving(do, iter([moment]))
                assert twin.state() == world.state(), f"I7: {plan.__name__} died at its moment {moment}"
                twin.close()
            before.close()
        world.close()
    assert died > 500 / stride


def test_a_person_whose_clock_is_slow_does_not_shorten_the_next_step(folder: Path) -> None:
    """I8: shortest history found: a canary is promoted one step by a desk nine days behind, and two steps of two days pass at
    once."""
    slow = replace(POLICIES["grey"], min_hold=2 * DAY, bake=2 * DAY)
    with desk_clock():
        outside = Outside(clock="wall", policy=slow, replicas={"r1": None})
        world = opened(founded(folder), folder, outside, lambda entries: None)
        for number, plan in ((1, window), (6, update), (1, days), (2, days), (3, days)):
            do = plan(world, Random(number))
            assert do is not None
            do(world)
        canary = world.desk.board().canary
        assert canary is not None and canary.weight == 0.1
        outside.offset = timedelta(days=-9)
        world.beat()
        world.desk.write("promote", canary.version, actor="ana", reason="release drill")
        outside.offset = timedelta(0)
        world.settle()
        after = world.desk.board().rollouts[canary.version]
        world.close()
    assert after.weight == 0.5, f"{after.state.value} at {after.weight} seconds after it came to 0.5"
