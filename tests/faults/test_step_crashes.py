"""Killed with signal 9 at random points of the steps, a pipeline ends where an undisturbed one ends.

A fresh process forks one child after another (a fork of a test process would inherit torch's threads). Each child runs
windows and kills itself at the n-th write: before or after a journal transaction, a flushed file, a rename.
"""

from __future__ import annotations

import itertools
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

DAYS = 5
SEED = 20130603
# What a child counts, and how far: every write, journal transactions, those of lineage and privacy (few, and costly), and
# records of a private update's progress, one for each of its 32 steps.
KILLS = (("all", 90), ("journal", 14), ("update", 8), ("steps", 60))


def run_killed(seed, folder, seconds):
    with_seed = [sys.executable, "-m", "tests.faults.test_step_crashes", str(folder), str(seed), str(seconds)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        with_seed, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-2000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"seed {seed}: {found}")
    return found


def test_kill_9_between_any_two_writes_loses_doubles_and_undercharges_nothing(tmp_path):
    found = run_killed(SEED, tmp_path, 15)
    assert found["kills"] >= 10 and found["faults"] == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_hundreds_of_kills_lose_double_and_undercharge_nothing(tmp_path, seed):
    found = run_killed(seed, tmp_path, 120)
    assert found["kills"] >= 100 and found["faults"] == []


# -- the process that forks -------------------------------------------------------------------------------------------


def main(folder, seed, seconds):
    import torch

    from assets import training_lease

    torch.set_num_threads(1)  # no pool of threads that a fork would lose
    training_lease.LEASE = timedelta(0)  # a killed trainer is known to be dead here: its lease need not run out
    random_ = random.Random(seed)
    began, kills, faults, rounds = time.monotonic(), 0, [], 0
    twin = _new(folder / "twin", private=True)
    wanted = json.loads(json.dumps(_finish(twin)))  # in this process: children then find every import and figure made
    twin.journal.close()
    twin.log.close()
    for number in itertools.count():
        if time.monotonic() - began > seconds and kills >= 10:
            break
        place, private = folder / f"w{number}", number % 3 != 2
        assert _forked(lambda p=place, q=private: _new(p, private=q).log.close(), folder) == 0
        code = -signal.SIGKILL
        for _ in range(200):
            what, most = random_.choice(KILLS if private else KILLS[:-1])
            at = random_.randrange(2, most)
            code = _forked(lambda p=place, q=private, a=at, w=what: _killed(p, q, a, w), folder)
            kills += code == -signal.SIGKILL
            if code != -signal.SIGKILL:
                break
        rounds += 1
        found = json.loads((folder / "told.json").read_text()) if code == 0 else {"faults": [f"exit code {code}"]}
        faults += [f"world {number}: {fault}" for fault in found.pop("faults")]
        faults += [f"world {number}: {key} differs" for key in ("windows",) if found.get(key) != wanted[key]]
    print(json.dumps({"kills": kills, "worlds": rounds, "faults": faults}))


def _forked(work, folder) -> int:
    """The exit code of a child that does the work; negative: the signal it died of."""
    child = os.fork()
    if not child:
        code = 1
        try:
            told = work()
            if told is not None:
                (folder / "told.json").write_text(json.dumps(told))
            code = 0
        except Exception:  # noqa: BLE001 - printed, and told by the exit code
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _new(folder: Path, private: bool) -> Any:
    from tests.worlds import make_world

    folder.mkdir()
    world = make_world(folder, privacy={"enabled": private})
    world.publish(DAYS)
    return world


def _killed(folder: Path, private: bool, at: int, what: str) -> Any:
    """Run what is due, dying at write number `at`; without a death, what a finished pipeline has to show."""
    from assets.stream.embedded import EmbeddedLog
    from pipelines.opening import workspace_of
    from pipelines.settings import load_settings
    from security.journal import Journal
    from tests.worlds import World

    settings = load_settings(folder / "headgate.toml", {})
    assert settings.privacy.enabled == private
    _die_at(at, what)
    log, journal = EmbeddedLog(folder / "var" / "broker" / "embedded.db"), Journal(settings.journal.url)
    world = World(folder, settings, log, journal, workspace_of(settings, journal, log), DAYS)
    world.workspace.reports = False
    return _finish(world)


def _die_at(number: int, what: str) -> None:
    """Die at write `number // 2` of this kind, before it (even numbers) or after it."""
    from security.journal import Journal

    left = [number // 2]

    def fatal(call, counts=lambda *args: True):
        def wrapped(*args, **kwargs):
            left[0] -= counts(*args)
            if left[0] == 0 and number % 2 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            done = call(*args, **kwargs)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return wrapped

    def about_updates(_journal, drafts, *_rest):
        return any(draft.stream.startswith(("privacy/", "lineage/")) for draft in drafts)

    if what == "steps":
        os.pwrite = fatal(os.pwrite)
        return
    if what == "update":
        Journal.append_all = fatal(Journal.append_all, about_updates)  # type: ignore[method-assign]
    else:
        Journal.append_all = fatal(Journal.append_all)  # type: ignore[method-assign]
    if what == "all":
        os.fsync = fatal(os.fsync)
        Path.replace = fatal(Path.replace)  # type: ignore[method-assign]
        Path.rename = fatal(Path.rename)  # type: ignore[method-assign]


def _finish(world) -> dict[str, Any]:
    from pipelines.run_window import due_window, run_window

    while (window := due_window(world.workspace)) is not None:
        run_window(window, world.workspace)
    return _shown(world)


def _shown(world) -> dict[str, Any]:
    """What must be equal in every world (`windows`), and what is wrong in this one."""
    from assets.steps.adapter import ledger_of

    workspace, windows, faults, ids = world.again(), {}, [], []
    for day in range(DAYS):
        window = world.window(day)
        sealed, joined = (workspace.body(kind, window) for kind in ("window.sealed", "examples.joined"))
        own = {"seen_sha256"}  # keyed by the first cut, so another one in each world
        joined = {key: value for key, value in joined.items() if key not in own}
        windows[window] = [[file["sha256"] for file in sealed["files"]], joined]
        ids += workspace.examples(window).column("event_id").to_pylist()
    lineage, charges = workspace.lineage(), []
    ledger = ledger_of(workspace, world.window(0))
    if ledger is not None:
        charges = ledger.charges()
        if ledger.epsilon_per_event() > 0.5:
            faults.append(f"epsilon {ledger.epsilon_per_event()}")
    if len(ids) != len(set(ids)):
        faults.append("an event is an example twice")
    faults += world.journal.verify().faults
    faults += _lineage_faults(world, lineage, {c.update: c for c in charges} if ledger else None)
    return {"windows": windows, "faults": faults}


def _lineage_faults(world, lineage, charges) -> list[str]:
    faults, covered = [], []
    entries = world.journal.read(f"lineage/{world.workspace.task.name}")
    said = [e.body["update"] for e in entries if e.kind in ("update.trained", "update.interrupted")]
    if len(said) != len(set(said)):
        faults.append(f"an update ended twice: {said}")
    numbers = [body["number"] for body in lineage.versions.values()]
    if len(numbers) != len(set(numbers)):
        faults.append(f"two versions of one update: {numbers}")
    for name, body in lineage.updates.items():
        covered += body["windows"]
        trained = body["kind"] == "update.trained"
        if trained and body["number"] not in numbers:
            faults.append(f"{name} was trained and never released")
        if charges is not None:
            charge = charges.get(name)
            if charge is None or list(charge.windows) != body["windows"]:
                faults.append(f"{name} was not charged for what it covers: {charge}")
            elif charge.state != ("committed" if trained else "crashed"):
                faults.append(f"{name} is {body['kind']}, its charge {charge.state}")
            elif trained and charge.taken != body["report"]["steps"] + body["report"]["lost_steps"]:
                faults.append(f"{name} took {charge.taken} steps, its report says {body['report']}")
    if charges is not None and set(charges) - set(lineage.updates):
        faults.append(f"charged, and nobody says what became of it: {set(charges) - set(lineage.updates)}")
    if len(covered) != len(set(covered)):
        faults.append(f"a window in two updates: {covered}")
    if sorted(covered) != [world.window(day) for day in range(4)]:
        faults.append(f"windows in updates: {sorted(covered)}")
    faults += [f"left behind: {path.name}" for path in world.folder.glob("store/*/vault/progress-*")]
    heads = {world.workspace.board().head} - set(lineage.versions) - {lineage.registered_base()["version"]}
    return faults + [f"unknown head {head}" for head in heads]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
