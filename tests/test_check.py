"""`headgate check`: the rules of a task, one by one, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from pipelines.cli import cli
from tests.test_conformance import RULES
from tests.worlds import make_world


def test_the_command_lists_the_rules_and_fails_with_the_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = CliRunner().invoke(cli, ["check", "tests.test_conformance:Sound"])
    assert good.exit_code == 0, good.output
    assert "ok    shapes  " in good.output and f"{len(RULES)} rules hold" in good.output
    bad = CliRunner().invoke(cli, ["check", "tests.test_conformance:Mean", "--json"])
    found = json.loads(bad.output)
    assert bad.exit_code == 1 and found["failed"] == 1 and len(found["rules"]) == len(RULES)
    assert CliRunner().invoke(cli, ["check"]).exit_code == 1, "no settings and no task named"


def test_the_command_takes_the_configured_task_and_what_its_journal_measured(tmp_path):
    world = make_world(tmp_path, retention={"floor": 0.9, "protected": ["history"]})
    assert world.settings.task == "tests.worlds:Blobs"
    done = CliRunner().invoke(cli, ["--config", str(tmp_path / "headgate.toml"), "check"])
    assert done.exit_code == 0 and "task blobs, tried on history()" in done.output, done.output


def test_the_demo_task_keeps_every_rule(tmp_path):
    (tmp_path / "headgate.toml").write_text(
        'task = "pipelines.demo.flights:FlightDelay"\n[privacy]\nlabel_derived_public = true\n'
        f'[journal]\nurl = "sqlite:///{tmp_path / "none.db"}"\n'
    )
    done = CliRunner().invoke(cli, ["--config", str(tmp_path / "headgate.toml"), "check"])
    assert done.exit_code == 0, done.output
    shown = (Path(__file__).parents[1] / "docs" / "task.md").read_text()
    lines = [line[:32] for line in done.output.splitlines()]
    assert all(line in shown for line in lines) and len(lines) > len(RULES), "docs/task.md shows this list"
