"""`headgate privacy`: shown at once, exported for an outsider, windows retired by a person."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from assets.steps.adapter import ledger_of
from assets.update_due import UpdatePolicy
from pipelines.run_window import run_window
from tests.test_cli import LAST, NEXT, headgate, installed, template  # noqa: F401
from tests.worlds import make_world

ROOT = Path(__file__).parents[1]


def fresh(folder, *words):
    """Output and heavy modules of the command in a new process."""
    code = (
        "import sys\nfrom pipelines.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'numpy', 'scipy', 'pandas', 'dp_accounting') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    out, heavy, _ = done.stdout.rsplit("\n", 2)
    return out, heavy


def test_the_budget_is_shown_at_once_without_a_numerical_library(installed):  # noqa: F811
    """0.4 CPU s then, of which the database library and the settings are the most."""
    out, heavy = fresh(installed, "privacy", "show")
    for words in ("epsilon 0.5 at delta 1e-05", "epsilon_per_event 0.49", "of the 100000", "releases          2"):
        assert words in out
    assert heavy == "[]"


def test_the_export_gives_the_epsilon_and_the_chain_that_the_manifests_hold_on_to(installed, headgate):  # noqa: F811
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/privacy.md").read_text(), re.DOTALL)
    said: dict = {}
    exec(block, said)
    lines = headgate("privacy", "export").out.splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    one = ["WINDOW", "WINDOW", "RESERVE", "COMMIT", "RELEASE"]
    assert kinds == ["POLICY", *one, *one]
    shown = headgate("privacy", "show", "--json").json
    epsilon, chain = said["check"](lines)
    assert epsilon == pytest.approx(shown["epsilon_per_event"], abs=1e-9) and chain == shown["chain"]
    for row in headgate("version", "list", "--json").rows:
        manifest = headgate("version", "show", row["version"]).json
        kept = manifest["privacy"]["ledger"]
        assert said["check"](lines[: kept["entries"]])[1] == kept["chain"]
        assert manifest["privacy"]["steps"] == 36 and manifest["privacy"]["steps_taken"] == 32
    said_of_updates = "\n".join(lines[1:])  # the policy names what is not covered
    assert not any(word in said_of_updates for word in ("loss", "d0-1", "x0")), "no figure, id or column of a record"


def test_a_person_retires_a_window(installed, headgate):  # noqa: F811
    done = headgate("privacy", "retire", NEXT, "--reason", "erased on request", "--actor", "ops")
    assert done.code == 0 and done.out == f"window {NEXT} of blobs is retired\n"
    assert "before" in headgate("privacy", "retire", NEXT, "--reason", "again").out
    assert headgate("privacy", "show", "--json").json["retired"] == [
        {"task": "blobs", "window": NEXT, "reason": "erased on request"}
    ]
    assert "erased on request" in headgate("privacy", "show").out
    wrong = headgate("privacy", "retire", "yesterday", "--reason", "r")
    assert wrong.code == 2 and "not the name of a window" in wrong.err and LAST


def test_updates_leave_retired_windows_out(tmp_path):
    world = make_world(tmp_path)
    world.publish(6)
    run_window(world.window(0), world.workspace)
    ledger = ledger_of(world.workspace, world.window(0))
    ledger.retire(task="blobs", window=world.window(1), reason="erased", actor="ops", at=world.workspace.now())
    found = [run_window(world.window(day), world.workspace).steps for day in (1, 2)]
    assert "version" not in found[0]["version"] and found[1]["version"]["windows"] == [world.window(0), world.window(2)]
    assert ledger.charges()[0].windows == (world.window(0), world.window(2))


def test_a_version_of_an_update_without_privacy_says_that_nobody_charged_it(tmp_path):
    world = make_world(tmp_path, privacy={"enabled": False}, update={"every": "1d", "min_examples": 200})
    world.publish(24)

    def next_version(first):
        """Training has no seed here, and one small adapter of four has no room for the stamp: ten in a row, 1e-6."""
        found = (run_window(world.window(day), world.workspace).steps["version"] for day in range(first, first + 12))
        return next(version for version in found if "version" in version)

    plain = next_version(0)
    policies = world.workspace.policies
    world.workspace.policies = replace(
        policies, privacy=replace(policies.privacy, enabled=True), update=UpdatePolicy(policies.update.every, 200)
    )
    version = next_version(plain["number"])
    manifest = json.loads((world.workspace.store / version["path"] / "manifest.json").read_text())
    free = f"blobs/{plain['number']:06d}"
    assert f"Updates that this ledger never charged, trained with privacy off: {free}." in manifest["not_covered"]
    assert ledger_of(world.workspace, world.window(0)).summary()["releases"][0]["not_charged"] == [free]


def test_privacy_show_tells_what_was_spent(installed, headgate):  # noqa: F811
    found = headgate("privacy", "show", "--json").json
    assert 0 < found["epsilon_per_event"] <= 0.5 and len(found["updates"]) == 2
    assert found["epsilon_per_event"] == headgate("status", "--json").json["epsilon"]
    assert "budget" in headgate("privacy", "show").out


def test_what_was_spent_can_be_read_after_privacy_was_switched_off(installed, monkeypatch, headgate):  # noqa: F811
    monkeypatch.setenv("HEADGATE_PRIVACY__ENABLED", "false")
    assert 0 < headgate("privacy", "show", "--json").json["epsilon_per_event"] <= 0.5
    assert headgate("status", "--json").json["epsilon"] > 0
