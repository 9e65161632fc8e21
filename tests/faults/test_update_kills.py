"""An update under privacy killed with signal 9 at every step: the next process goes on, and the ledger hears of every step.

This file run as a program forks the processes (a fork of a test process would inherit torch's threads). Each stops itself
where the test wants it, and is killed when its checkpoint says so: no guess at a time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from assets import training_lease
from assets.steps.adapter import ledger_of
from assets.windows.clock import NotDue
from models.private import private_sgd
from models.progress import Progress
from models.vault import read_vault
from pipelines.run_window import run_window
from security.checkpoint import Checkpoint
from security.keys import secret
from tests.forks import finished, fork
from tests.worlds import make_world

STEPS = 6


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    command = [sys.executable, "-m", "tests.faults.test_update_kills", str(tmp_path_factory.mktemp("kills"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_with_signal_9_at_every_step_and_in_the_next_an_update_is_finished_by_the_third_process(told):
    assert [one["at_kill"] for one in told["updates"]] == [[[k - 1, k], [k - 1, k + 1]] for k in range(1, STEPS + 1)]
    for one in told["updates"]:
        assert (one["steps"], one["lost"], one["attempts"]) == (STEPS, 2, 3) and one["finite"]
        assert (one["taken"], one["reserved"], one["state"], one["reserves"]) == (STEPS + 2, STEPS + 4, "committed", 1)


def test_the_kills_cost_no_budget_and_leave_no_file(told):
    assert told["epsilon"] == told["epsilon_undisturbed"] <= 0.5
    assert told["faults"] == [] and told["left_over"] == []


def test_of_two_that_go_on_at_once_one_trains_and_the_other_spends_nothing(told):
    race = told["race"]
    assert race["second"] == "NotDue" and race["attempts"] == 2 and race["taken"] == STEPS + 1


# -- the process that forks -------------------------------------------------------------------------------------------


def main(folder: Path) -> None:
    import torch

    torch.set_num_threads(1)
    training_lease.LEASE = timedelta(0)  # a killed trainer is known to be dead here: its lease need not run out
    new_world(folder / "undisturbed", 1)  # in this process: children then find every import made
    tell(folder / "undisturbed")
    undisturbed = json.loads((folder / "undisturbed" / "told.json").read_text())
    place = folder / "killed"
    assert finished(fork(lambda: new_world(place, STEPS + 1))) == 0
    updates = []
    for day in range(STEPS):
        at_kill = [kill(place, day, day + 1, "begun"), kill(place, day, day + 2, "taken")]
        assert finished(fork(lambda d=day: go(place, d))) == 0
        assert finished(fork(lambda: tell(place))) == 0
        update = json.loads((place / "told.json").read_text())["updates"][-1]
        updates.append({**update, "at_kill": at_kill})
    kill(place, STEPS, 1, "begun")
    first = fork(lambda: go(place, STEPS, 2, "begun"))
    assert stopped(first)
    second = fork(lambda: go(place, STEPS))
    assert finished(second) == 0
    refused = (place / "went.json").read_text()
    os.kill(first, signal.SIGCONT)
    assert finished(first) == 0
    assert finished(fork(lambda: tell(place))) == 0
    found = json.loads((place / "told.json").read_text())
    print(json.dumps({**found, "updates": updates, "epsilon_undisturbed": undisturbed["epsilon"],
                      "race": {"second": refused, **found["updates"][-1]}}))  # fmt: skip


def kill(place: Path, day: int, step: int, where: str) -> list[int]:
    """Kill the update of a day in a step; how many steps it had finished and begun by its checkpoint."""
    child = fork(lambda: go(place, day, step, where))
    assert stopped(child)
    files = sorted(place.glob("store/*/vault/progress-*.a"))
    content = Checkpoint(files[0].with_suffix(""), secret(place / "keys", "vault")).read()
    head = json.loads(content.split(b"\n")[1])
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return [head["run"]["steps"], head["begun"]]


def stopped(child: int) -> bool:
    return os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])


def new_world(folder: Path, days: int) -> None:
    folder.mkdir()
    world = make_world(folder, update={"every": "1d", "min_examples": 200}, privacy={"steps": STEPS})
    world.publish(days)
    if days == 1:
        run_window(world.window(0), world.workspace)
    world.journal.close()
    world.log.close()


def opened(folder: Path):
    from assets.stream.embedded import EmbeddedLog
    from pipelines.opening import workspace_of
    from pipelines.settings import load_settings
    from security.journal import Journal
    from tests.worlds import World

    settings = load_settings(folder / "headgate.toml", {})
    log, journal = EmbeddedLog(folder / "var" / "broker" / "embedded.db"), Journal(settings.journal.url)
    world = World(folder, settings, log, journal, workspace_of(settings, journal, log))
    world.workspace.reports = False
    return world


def go(folder: Path, day: int, step: int = 0, where: str = "") -> None:
    """Run a day; stop as a process, where it is said, in the step that is the `step`-th begun of its update."""
    begin, call = Progress.begin, private_sgd.PrivateStep.__call__
    now = [0]

    def stop(at: str) -> None:
        if (now[0], at) == (step, where):
            os.kill(os.getpid(), signal.SIGSTOP)

    def begins(self, lawful):
        more = begin(self, lawful)
        now[0] = self.begun
        stop("begun")
        return more

    def called(*args):
        found = call(*args)
        stop("taken")
        return found

    Progress.begin, private_sgd.PrivateStep.__call__ = begins, called  # type: ignore[method-assign]
    world = opened(folder)
    try:
        run_window(world.window(day), world.workspace)
        went = "trained"
    except NotDue as error:
        went = type(error).__name__
    (folder / "went.json").write_text(went)


def tell(folder: Path) -> None:
    world = opened(folder)
    ledger, reserves = ledger_of(world.workspace, world.window(0)), [e for e in world.journal.tail() if e.kind == "RESERVE"]
    updates = []
    for charge in ledger.charges():
        body = world.workspace.lineage().updates[charge.update]
        report = body["report"]
        weights = read_vault(world.workspace.store / body["vault"], body["vault_sha256"])
        updates.append({
            "steps": report["steps"], "lost": report["lost_steps"], "attempts": report["attempts"], "taken": charge.taken,
            "reserved": charge.law.steps, "state": charge.state,
            "reserves": sum(entry.body["update"] == charge.update for entry in reserves),
            "finite": all(bool(np.isfinite(value).all()) for value in weights.values()),
        })  # fmt: skip
    files = [path.name for path in folder.glob("store/*/vault/progress-*")]
    text = {"updates": updates, "epsilon": ledger.epsilon_per_event(), "left_over": files,
            "faults": list(world.journal.verify().faults)}  # fmt: skip
    (folder / "told.json").write_text(json.dumps(text))
    world.journal.close()
    world.log.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
