"""Killed with signal 9 at counted moments, with a second controller beside it, a release ends as an undisturbed one ends.

A fresh process forks the controllers (a fork of a test process would inherit its threads). A moment is the time before a
statement or a commit of the database, and before or after an effect is carried out; the other system is a file.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.forks import finished, fork

DAY = timedelta(days=1)
STAGES = 3
MOST = 45  # moments of a stage's controller are fewer


def run_killed(seed: int, folder: Path, worlds: int) -> dict[str, Any]:
    words = [sys.executable, "-m", "tests.faults.test_controller_kills", str(folder), str(seed), str(worlds)]
    root = Path(__file__).parents[2]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"seed {seed}: {found}")
    return found


def test_kill_9_at_any_moment_doubles_no_decision_and_loses_no_effect(tmp_path):
    found = run_killed(20130603, tmp_path, 1)
    assert found["kills"] >= 5 and found["faults"] == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_hundreds_of_kills_double_no_decision_and_lose_no_effect(tmp_path, seed):
    found = run_killed(seed, tmp_path, 40)
    assert found["kills"] >= 100 and found["faults"] == []


# -- the process that forks -------------------------------------------------------------------------------------------


def main(folder: Path, seed: int, worlds: int) -> None:
    import monitoring.rollout_audit  # noqa: F401 - children find everything imported
    import pipelines.controller
    import pipelines.effects  # noqa: F401
    import tests.dashboards  # noqa: F401

    rng, kills, faults = random.Random(seed), 0, []
    _run(folder / "twin", lambda: None)
    wanted = _told(folder / "twin", folder)
    for number in range(worlds):
        place = folder / f"w{number}"
        kills += _run(place, lambda: rng.randrange(1, MOST) if rng.random() < 0.8 else None)
        found = _told(place, folder)
        faults += [f"world {number}: {fault}" for fault in found["faults"]]
        faults += [f"world {number}: {name} differ" for name in ("entries", "shown") if found[name] != wanted[name]]
    faults += wanted["faults"]
    if "ROLLED_BACK" not in json.dumps(wanted["shown"]) or len(wanted["entries"]) < 10:
        faults.append(f"the undisturbed world decided little: {wanted['shown']}")
    print(json.dumps({"kills": kills, "worlds": worlds, "entries": len(wanted["entries"]), "faults": faults}))


def _run(place: Path, draw: Any) -> int:
    """Every stage until a controller ends it alive; how many were killed."""
    place.mkdir()
    kills = 0
    for stage in range(STAGES):
        assert _wait([fork(lambda s=stage: _prepare(place, s))]) == [0]
        while True:
            moments = [draw(), draw()]
            codes = _wait([fork(lambda s=stage, m=moment: _control(place, s, m)) for moment in moments])
            kills += codes.count(-signal.SIGKILL)
            assert set(codes) <= {0, -signal.SIGKILL}, codes
            if 0 in codes:
                break
    return kills


def _wait(children: list[int]) -> list[int]:
    return [finished(child) for child in children]


def _story(place: Path) -> Any:
    from security.journal import Journal
    from tests.dashboards import START, Story

    return Story(Journal(f"sqlite:///{place}/journal.db"), START)


def _prepare(place: Path, stage: int) -> None:
    """What comes from outside: windows, live counts; the last stage brings errors of the canary."""
    from security.served import LiveCounts
    from tests.dashboards import START, TASK

    if stage == 0:
        story = _story(place)
        first = story.version(1)
        while story.facts().board.canary is None:
            story.days(1, 0.08)
        story.version(2, first)
        (place / "begin").write_text(str(story.day))
        return
    from monitoring import evidence
    from monitoring.evidence import BlockSum, milliseconds
    from pipelines.reading import read_board
    from security.journal import Draft, Journal

    journal = Journal(f"sqlite:///{place}/journal.db")
    board, begin = read_board(journal, TASK), _wall(place, stage) - DAY
    sums = {pair: [BlockSum(milliseconds(begin), 870, 70.0, 6.0)] for pair in board.pairs()}
    body = evidence.entry(f"{begin:%Y-%m-%dT%H:%MZ}", begin + DAY, sums, (), 0.99)
    journal.append(Draft(f"window/{TASK}", "evidence.scored", body), actor="test", at=START)
    failed = 200 if stage == STAGES - 1 else 2
    counts = [(board.epoch, "canary", 500, failed, 0), (board.epoch, "stable", 500, 2, 0)]
    LiveCounts(journal.engine).publish(TASK, "r1", counts, _wall(place, stage))


def _wall(place: Path, stage: int) -> Any:
    from tests.dashboards import START

    return START + (int((place / "begin").read_text()) + stage) * DAY


def _control(place: Path, stage: int, dies_at: int | None) -> None:
    """A controller and its outbox until nothing is left to do, dying at that moment."""
    import sqlalchemy as sa

    from assets.windows.clock import WindowPolicy
    from pipelines.controller import Controller
    from pipelines.effects import Outbox
    from security.journal import Conflict, Journal
    from tests.dashboards import POLICY, START, TASK

    left = dies_at

    def moment(*_: Any) -> None:
        nonlocal left
        if left is not None:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def show(task: str, wanted: Any) -> list[str]:
        moment()
        with (place / "shown").open("a") as file:
            file.write(json.dumps([dict(wanted.states), dict(wanted.aliases)]) + "\n")
        moment()
        return []

    journal = Journal(f"sqlite:///{place}/journal.db")
    sa.event.listen(journal.engine, "before_cursor_execute", moment)
    sa.event.listen(journal.engine, "commit", moment)
    desk = Controller(journal, TASK, POLICY, WindowPolicy(every=DAY, start=START), wall=lambda: _wall(place, stage))
    outbox = Outbox(journal, TASK, show)
    while True:
        try:
            if not desk.look():
                break
        except Conflict:
            time.sleep(0.01)
    outbox.apply()
    journal.close()


def _told(place: Path, folder: Path) -> dict[str, Any]:
    """What the world has to show, found by a child: this process opens no database."""
    assert _wait([fork(lambda: (folder / "told.json").write_text(json.dumps(_find(place))))]) == [0]
    found: dict[str, Any] = json.loads((folder / "told.json").read_text())
    return found


def _find(place: Path) -> dict[str, Any]:
    from assets.board_fold import BoardFold
    from monitoring.registry import releases_of
    from monitoring.rollout_audit import audit
    from security.effects import EffectsDone
    from security.journal import Journal
    from tests.dashboards import POLICY, TASK

    journal = Journal(f"sqlite:///{place}/journal.db")
    faults = [*journal.verify().faults]
    streams = [f"{room}/{TASK}" for room in ("rollout", "routing", "lineage", "window")]
    faults += [fault.text for fault in audit(journal.tail(streams=streams), POLICY).faults.values()]
    told = [entry for entry in journal.tail(streams=[*streams, f"alarm/{TASK}"]) if entry.kind != "served.counted"]
    fold = BoardFold(journal, TASK)
    releases = releases_of(fold.refresh())
    last = json.loads((place / "shown").read_text().splitlines()[-1])
    if last != [dict(releases.states), dict(releases.aliases)]:
        faults.append(f"the effect ends with {last}, the board with {releases}")
    if EffectsDone(journal.engine).of(f"mlflow/{TASK}") != fold.seq:
        faults.append("the mark of the effect is not at the newest entry")
    return {"faults": faults, "entries": [[one.kind, one.body] for one in told], "shown": last}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
