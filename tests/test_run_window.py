"""A window through every step: what is journalled, what a repeat changes (nothing), what a crash costs."""

from __future__ import annotations

import pytest

from assets.steps import STEPS
from assets.steps.adapter import ledger_of
from assets.windows.clock import NotDue
from models.guard import Finding, UpdateInterrupted
from monitoring.alarms import open_alarms
from pipelines.opening import workspace_of
from pipelines.run_window import due_window, run_window
from tests.worlds import EVENTS_A_DAY, Blobs, make_world


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path)


def test_a_window_runs_test_before_train(world):
    world.publish(2)
    first = run_window(world.window(0), world.workspace)
    assert list(first.steps) == ["window", "examples", "evidence", "rollout", "drift", "adapter", "version"]
    assert first.steps["window"]["rows"]["events"] == EVENTS_A_DAY
    assert "not due" in first.steps["adapter"]["reason"] and "no new version" in first.steps["version"]["reason"]
    second = run_window(world.window(1), world.workspace)
    version = second.steps["version"]
    assert version["windows"] == [world.window(0), world.window(1)]
    assert version["privacy"]["epsilon"] <= 0.5 and version["watermark"]["z"] > 6.5
    board = world.workspace.board()
    assert board.head == version["version"] and board.rollouts[version["version"]].state == "SHADOW"


def test_a_version_is_judged_only_on_windows_after_it_was_made(world):
    world.publish(4)
    for day in range(4):
        run_window(world.window(day), world.workspace)
    first = min(world.workspace.board().rollouts.values(), key=lambda r: r.number).version
    judged = [w for w in world.workspace.history.windows("evidence.scored")
              if first in str(world.workspace.body("evidence.scored", w)["pairs"])]
    assert judged == [world.window(2), world.window(3)]


def test_running_a_window_again_changes_nothing(world):
    world.publish(2)
    for day in range(2):
        run_window(world.window(day), world.workspace)
    head = world.journal.head()
    files = {path: path.read_bytes() for path in world.folder.glob("store/**/*") if path.is_file()}
    for day in range(2):
        run_window(world.window(day), world.again())
    assert world.journal.head() == head
    assert {path: path.read_bytes() for path in world.folder.glob("store/**/*") if path.is_file()} == files


def test_the_next_due_window_is_the_earliest_unfinished_one(world):
    assert due_window(world.workspace) is None
    world.publish(2)
    assert due_window(world.workspace) == world.window(0)
    run_window(world.window(0), world.workspace)
    assert due_window(world.workspace) == world.window(1)
    run_window(world.window(1), world.workspace)
    assert due_window(world.workspace) is None
    with pytest.raises(NotDue):
        run_window(world.window(2), world.workspace)


@pytest.mark.parametrize("died_after", range(len(STEPS)))
def test_a_process_that_dies_after_any_step_is_taken_up_by_the_next(tmp_path, died_after, monkeypatch):
    monkeypatch.delattr(Blobs, "public_inputs")  # keys are random: a stamp that is felt in one world would be no fault
    whole, broken = (make_world(tmp_path / name, privacy={"enabled": False}) for name in "ab")
    for world in (whole, broken):
        world.publish(2)
        run_window(world.window(0), world.workspace)
    for _, step in STEPS[: died_after + 1]:
        step(broken.window(1), broken.workspace)
    run_window(broken.window(1), broken.again())
    run_window(whole.window(1), whole.workspace)
    kinds = [[e.kind for e in world.journal.tail() if not e.kind.startswith("attempt")] for world in (whole, broken)]
    assert kinds[0] == kinds[1]
    assert broken.journal.verify().faults == ()


def test_a_process_that_dies_before_anybody_could_go_on_costs_the_learning_not_the_promise(world, monkeypatch):
    world.publish(4)
    run_window(world.window(0), world.workspace)

    def die(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("models.progress.Progress.start", die)  # reserved, and no checkpoint yet
    with pytest.raises(KeyboardInterrupt):
        run_window(world.window(1), world.workspace)
    monkeypatch.undo()
    body = run_window(world.window(1), world.again()).steps["adapter"]
    assert body["kind"] == "crash" and "it has no checkpoint" in body["message"]
    assert "windows stay charged and are not trained on" in body["message"]
    ledger = ledger_of(world.workspace, world.window(1))
    assert [charge.windows for charge in ledger.charges()] == [(world.window(0), world.window(1))]
    assert ledger.epsilon_per_event() <= 0.5
    for day in (2, 3):
        result = run_window(world.window(day), world.workspace)
    assert result.steps["version"]["windows"] == [world.window(2), world.window(3)], "learning goes on with new windows"


def test_a_slow_trainer_is_not_taken_for_a_dead_one(world, monkeypatch):
    world.publish(2)
    run_window(world.window(0), world.workspace)
    seen = []

    def slow(*_args, **_kwargs):  # while it trains, a second driver comes by
        with pytest.raises(NotDue, match="is being trained by another process"):
            run_window(world.window(1), workspace_of(world.settings, world.journal, world.log))
        seen.append(True)
        raise KeyboardInterrupt

    monkeypatch.setattr("models.training.train", slow)
    with pytest.raises(KeyboardInterrupt):
        run_window(world.window(1), world.workspace)
    monkeypatch.undo()
    assert seen and run_window(world.window(1), world.again()).steps["adapter"]["report"]["attempts"] == 2, "now it has ended"


def test_an_interrupted_update_releases_nothing_and_raises_its_alarm(world, monkeypatch):
    world.publish(2)
    run_window(world.window(0), world.workspace)

    def interrupt(*_args, **_kwargs):
        raise UpdateInterrupted(Finding("gradient_norm", 14.2, 10.0, "gradient norm 14.2 > max_gradient_norm 10"))

    monkeypatch.setattr("models.training.train", interrupt)
    result = run_window(world.window(1), world.workspace)
    assert result.steps["adapter"]["figure"] == 14.2 and "version" not in result.steps["version"]
    alarm = next(a for a in open_alarms(world.journal, "blobs") if a.kind == "gradient_norm")
    assert (alarm.figure, alarm.limit, alarm.window) == (14.2, 10.0, world.window(1))
    assert world.workspace.board().head == world.workspace.lineage().registered_base()["version"]


def test_a_changed_byte_in_a_version_is_refused_and_reported(world):
    world.publish(3)
    for day in range(2):
        run_window(world.window(day), world.workspace)
    version = next(iter(world.workspace.lineage().versions.values()))
    file = world.workspace.store / version["path"] / "adapter.safetensors"
    file.chmod(0o600)
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    from models.version import VersionRefused

    with pytest.raises(VersionRefused, match=r"adapter\.safetensors"):
        world.again().predictor(version["version"])


def test_an_update_waits_for_its_interval_and_then_covers_every_window_once(tmp_path):
    world = make_world(tmp_path, update={"every": "3d", "min_examples": 100, "max_age": "3d"})
    world.publish(7)
    made = [run_window(world.window(day), world.workspace).steps["version"].get("windows") for day in range(7)]
    assert [windows is not None for windows in made] == [False, False, True, False, False, True, False]
    covered = [window for windows in made if windows for window in windows]
    assert covered == [world.window(day) for day in range(6)]
