"""Golden sets: what a task supplies, and the rows of production that nobody ever learns from."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from assets import regimes
from assets.lineage import Lineage
from assets.steps.adapter import ledger_of
from assets.windows.golden import GOLDEN, golden_rows, learnable
from models.golden import GoldenRefused, golden_sets
from models.retention import measure
from monitoring.alarms import open_alarms
from pipelines.cli import cli
from pipelines.opening import workspace_of
from pipelines.run_window import run_window
from pipelines.settings import SettingsError, make_settings
from tests.tasks import TwoBlobs, columns
from tests.worlds import EVENTS_A_DAY, Blobs, make_world

PLAIN = {"privacy": {"enabled": False}, "guard": {"max_gradient_norm": 1e3, "max_loss_change": 1e3}}


@pytest.fixture(autouse=True)
def any_stamp_will_do(monkeypatch):
    monkeypatch.delattr(Blobs, "public_inputs")  # the keys are random: a stamp that is felt would be another test's matter


def run(world, *days):
    return [run_window(world.window(day), world.workspace).steps for day in days]


def with_retention(world, **changes):
    """The same installation after a person has edited [retention]."""
    found = world.settings.shown()
    found["retention"] |= changes
    world.settings = make_settings(found)
    return world.again()


def table(world, day):
    return world.workspace.examples(world.window(day))


def test_one_golden_set_is_the_regime_history_and_several_keep_their_names():
    task, rows = TwoBlobs(), columns(10)
    assert golden_sets(task) == {}
    task.golden = lambda: rows
    assert golden_sets(task) == {"history": rows}
    task.golden = lambda: {"day": rows, "night": rows}
    assert list(golden_sets(task)) == ["day", "night"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "empty or no mapping"),
        ({"day": columns(3), "y": np.zeros(3)}, "mixes regimes and columns"),
        ({"Day!": columns(3)}, "names a regime 'Day!'"),
        ({"x": np.zeros(3), "y": np.zeros(2)}, "lengths"),
        ({"x": np.zeros(0)}, "wanted one length above 0"),
    ],
)
def test_what_is_no_golden_set_is_refused_with_the_form(found, message):
    task = TwoBlobs()
    task.golden = lambda: found
    with pytest.raises(GoldenRefused, match=message):
        golden_sets(task)


@pytest.mark.parametrize("subject", [None, "x0"])
def test_golden_events_are_never_learnt_from_and_leave_the_public_count(tmp_path, monkeypatch, subject):
    monkeypatch.setattr(Blobs, "subject", subject)
    world = make_world(tmp_path, retention={"golden_share": 0.2})
    world.publish(2)
    learnt = []
    import models.training

    train = models.training.train
    monkeypatch.setattr("models.training.train", lambda task, base, parent, rows, *rest, **more: (
        learnt.append(rows), train(task, base, parent, rows, *rest, **more))[1])
    [_, last] = run(world, 0, 1)
    golden = {name for day in (0, 1) for name in golden_rows(table(world, day))["event_id"].to_pylist()}
    every = {name for day in (0, 1) for name in table(world, day)["event_id"].to_pylist()}
    assert 50 < len(golden) < 142  # 96 of 480, within 5 deviations
    assert set(learnt[0]["event_id"]) == every - golden and GOLDEN not in learnt[0]
    [charge] = ledger_of(world.workspace, world.window(1)).charges()
    assert charge.count == len(every) - len(golden) == last["version"]["report"]["rows"]
    judged = world.workspace.body("evidence.scored", world.window(1))["examples"]
    assert judged == table(world, 1).num_rows, "the gate sees every example"


def test_another_share_marks_later_windows_only_and_a_lost_file_comes_back_as_it_was(tmp_path):
    world = make_world(tmp_path, **PLAIN)
    world.publish(3)
    run(world, 0)
    with_retention(world, golden_share=0.3)
    run(world, 1)
    first = golden_rows(table(world, 1))["event_id"].to_pylist()
    with_retention(world, golden_share=0.1)
    body = world.workspace.body("examples.joined", world.window(1))
    (world.workspace.store / body["path"]).unlink()
    run_window(world.window(1), world.again())
    assert GOLDEN not in table(world, 0).column_names and learnable(table(world, 0)).num_rows == EVENTS_A_DAY
    assert golden_rows(table(world, 1))["event_id"].to_pylist() == first
    run(world, 2)
    assert body["golden"] == len(first) > world.workspace.body("examples.joined", world.window(2))["golden"] > 0


def test_a_regime_is_held_to_its_anchor_whatever_comes_after(tmp_path):
    world = make_world(tmp_path, **PLAIN, retention={"golden_share": 0.3})
    named = f"storm {world.window(0)} {world.window(1)}"
    with_retention(world, regimes=[named])
    world.publish(4, drift=0.9)
    world.publish(4, drift=-0.6)
    versions = [steps["version"] for steps in run(world, *range(8)) if "version" in steps["version"]]
    assert [list(body["retention"]) for body in versions] == [["history"]] + 3 * [["history", "storm"]]
    base = world.workspace.lineage().registered_base()["version"]
    assert {body["retention"]["history"]["anchor"] for body in versions} == {base}
    assert {body["retention"]["storm"]["anchor"] for body in versions[1:]} == {versions[0]["version"]}
    storm = [body["retention"]["storm"]["value"] for body in versions[1:]]
    assert storm[-1] < min(1.0, storm[0])
    task, last = world.workspace.task, versions[-1]
    rows = regimes.production_rows(world.workspace, (world.window(0), world.window(1)))
    now = regimes.at_birth(world.workspace, last["version"]).answers(rows) >= 0.5
    birth = regimes.at_birth(world.workspace, versions[0]["version"]).answers(rows) >= 0.5
    truth = task.target(rows) == 1
    found = last["retention"]["storm"]
    assert measure(now == truth, birth == truth).as_dict() == {key: found[key] for key in measure(truth, truth).as_dict()}
    with_retention(world, regimes=[f"storm {world.window(2)} {world.window(3)}"])
    later = {regime.name: regime.anchor for regime in regimes.regimes(world.workspace, last["version"])}
    assert later["storm"] == versions[0]["version"], "the name keeps its anchor"


def made_of(*versions):
    """A lineage of (name, parent, windows, what its entry says of retention)."""
    bodies = {name: {"parent": parent, "windows": windows, "retention": told} for name, parent, windows, told in versions}
    return Lineage(base={"version": "base"}, versions=bodies)


def test_a_regime_is_born_with_the_first_version_that_has_learnt_its_last_window():
    lineage = made_of(("v1", "base", "ab", None), ("v2", "v1", "cd", None), ("v3", "v1", "ef", None), ("v4", "v3", "gh", None))
    found = [regimes.first_through(lineage, "v4", window) for window in "bcegi"]
    assert found == ["v1", "v3", "v3", "v4", None], "v2 is not on the line to v4"


def test_an_anchor_once_named_stays_though_its_version_has_left_the_line():
    told = {"storm": {"value": 0.9, "anchor": "v1"}, "fog": {"error": "no golden row", "anchor": "v1"}}
    again = {"storm": {"value": 0.9, "anchor": "v3"}, "fog": {"value": 0.9, "anchor": "v3"}}
    old = {"value": 0.99, "bound": 0.98}  # as it was journalled before there were regimes
    lineage = made_of(("v1", "base", "ab", old), ("v2", "v1", "cd", told), ("v3", "base", "ef", again))
    assert regimes.anchors(lineage) == {"history": "base", "storm": "v1", "fog": "v3"}


def test_golden_rows_of_a_window_that_is_held_back_are_left_out(tmp_path):
    world = make_world(tmp_path, **PLAIN, retention={"golden_share": 0.3})
    world.publish(2)
    body = {"window": world.window(1), "findings": [], "held_back": True}
    world.workspace.history.once("window.screened", body, actor="test", at=world.workspace.now())
    run(world, 0, 1)
    both = world.window(0), world.window(1)
    assert set(regimes.production_rows(world.workspace, both)["event_id"]) == {
        *golden_rows(table(world, 0))["event_id"].to_pylist()}
    assert len(regimes.production_rows(world.workspace, (both[1], both[1]))["event_id"]) == 0


def test_figures_of_private_golden_rows_stay_out_of_the_manifest(tmp_path):
    world = make_world(tmp_path, **PLAIN, retention={"golden_share": 0.3})
    with_retention(world, regimes=[f"storm {world.window(0)} {world.window(1)}"])
    world.publish(4)
    [*_, last] = [steps["version"] for steps in run(world, *range(4))]
    manifest = json.loads((world.workspace.store / last["path"] / "manifest.json").read_text())
    assert set(last["retention"]) == {"history", "storm"} and set(manifest["retention"]) == {"history"}


def test_an_update_that_forgot_a_protected_regime_is_not_released_and_not_learnt_on_from(tmp_path):
    world = make_world(tmp_path, **PLAIN, retention={"protected": ["history"], "floor": 0.98})
    world.publish(4, drift=3.1)
    head = world.workspace.board().head
    [*_, version] = [steps["version"] for steps in run(world, 0, 1)]
    assert version["blocked"] == "retention" and world.workspace.board().head == head
    assert version["version"] not in world.workspace.board().rollouts
    run_window(world.window(1), world.again())
    [alarm] = [alarm for alarm in open_alarms(world.journal, "blobs") if alarm.kind == "retention"]
    assert alarm.figure < alarm.limit == 0.98 and "protected regime 'history'" in alarm.message
    assert "answers lost" in alarm.message
    run(world, 2, 3)
    assert list(world.workspace.lineage().versions.values())[-1]["parent"] == head
    listed = CliRunner().invoke(cli, ["--config", str(tmp_path / "headgate.toml"), "version", "list"])
    assert "blocked: retention" in listed.output and "keeps of history 0." in listed.output
    status = CliRunner().invoke(cli, ["--config", str(tmp_path / "headgate.toml"), "status"])
    assert "retention        history 0." in status.output


def test_a_regime_that_is_not_protected_is_reported_and_goes_on(tmp_path):
    world = make_world(tmp_path, **PLAIN)
    world.publish(2, drift=3.1)
    [*_, version] = [steps["version"] for steps in run(world, 0, 1)]
    assert version["retention"]["history"]["bound"] < 0.995 and version["blocked"] is None
    assert version["retention"]["history"]["refused"] is None


def test_a_protected_regime_that_does_not_exist_refuses_and_says_which_do(tmp_path):
    world = make_world(tmp_path, **PLAIN, retention={"protected": ["histroy"]})
    world.publish(2)
    [*_, version] = [steps["version"] for steps in run(world, 0, 1)]
    assert version["blocked"] == "retention"
    assert "'histroy' is no regime of task blobs; there are history" in version["retention"]["histroy"]["refused"]


def test_a_regime_without_golden_rows_says_why(tmp_path):
    world = make_world(tmp_path, **PLAIN)
    with_retention(world, regimes=[f"storm {world.window(0)} {world.window(1)}"], protected=["storm"])
    world.publish(4)
    [*_, version] = [steps["version"] for steps in run(world, *range(4))]
    assert "joined with [retention] golden_share = 0" in version["retention"]["storm"]["error"]
    assert version["blocked"] == "retention"


def test_a_name_used_twice_is_refused(tmp_path):
    world = make_world(tmp_path, **PLAIN)
    with_retention(world, regimes=[f"history {world.window(0)} {world.window(1)}"])
    with pytest.raises(GoldenRefused, match="'history' is in golden\\(\\) and in \\[retention\\] regimes"):
        list(regimes.regimes(world.workspace, world.workspace.board().head))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"floor": 1.0}, "no finite golden set shows 1"),
        ({"golden_share": 0.7}, "golden_share = 0.7 is not in"),
        ({"regimes": ["summer"]}, "is not like"),
        ({"regimes": ["s 2026-06-02T00:00Z 2026-06-01T00:00Z"]}, "ends before it begins"),
        ({"regimes": ["s 2026-06-01T00:00Z 2026-06-02T00:00Z", "s 2026-06-01T00:00Z 2026-06-02T00:00Z"]}, "repeats a name"),
        ({"regimes": ["s 2026-06-01T00:30Z 2026-06-02T00:00Z"]}, "no window starts at 2026-06-01T00:30Z"),
    ],
)
def test_settings_without_sense_are_refused(changes, message):
    with pytest.raises(SettingsError, match=message):
        make_settings({"task": "t", "retention": changes})


def test_rows_without_a_mark_are_all_learnable():
    rows = pa.table({"event_id": ["a", "b"]})
    assert learnable(rows) is rows and golden_rows(rows).num_rows == 0


def test_a_task_may_have_several_public_regimes(tmp_path, monkeypatch):
    monkeypatch.setattr(Blobs, "golden", lambda self: {"day": columns(400, seed=2), "night": columns(400, seed=3, drift=0.8)})
    world = make_world(tmp_path, **PLAIN)
    world.publish(2)
    [*_, version] = [steps["version"] for steps in run(world, 0, 1)]
    assert set(version["retention"]) == {"day", "night"}
    assert workspace_of(world.settings, world.journal, world.log).lineage().versions
