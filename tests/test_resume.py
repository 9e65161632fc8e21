"""An update that was killed is gone on with by the next process of the pipeline, or lost with a sentence that says why."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import pytest

from assets.steps import STEPS as STEPS_OF_A_WINDOW
from assets.steps.adapter import Job, ledger_of
from assets.training_lease import hold, refuse_held
from assets.windows.clock import NotDue
from models.guard import Finding, UpdateInterrupted
from pipelines.cli.status import open_update
from pipelines.run_window import run_window
from security.journal import Draft
from tests.deaths import Deaths, Killed
from tests.worlds import make_world

STEPS = 6


def killed_world(folder, monkeypatch):
    """A day's update, killed when its third step begins, after another day's update."""
    world = make_world(folder, update={"every": "1d", "min_examples": 200}, privacy={"steps": STEPS})
    world.publish(3)
    run_window(world.window(0), world.workspace)
    with monkeypatch.context() as patched:
        deaths = Deaths(patched)
        deaths.left = 3 + 5 * 2 + 4
        with pytest.raises(Killed):
            run_window(world.window(1), world.workspace)
    world.again()
    return world


def charges(world, day=1):
    return ledger_of(world.workspace, world.window(day)).charges()


def left_over(world):
    return list(world.folder.glob("store/*/vault/*progress*"))


def test_the_ledger_hears_of_every_step_begun_and_the_checkpoint_goes(tmp_path, monkeypatch):
    world = killed_world(tmp_path, monkeypatch)
    assert len(left_over(world)) == 2
    said = open_update([ledger_of(world.workspace, world.window(1))], "blobs")
    assert said and said.startswith("blobs/000002, reserved ") and open_update([], "blobs") is None
    body = run_window(world.window(1), world.workspace).steps["adapter"]
    first, second = charges(world)
    assert (body["report"]["steps"], body["report"]["lost_steps"], body["report"]["attempts"]) == (STEPS, 1, 2)
    assert (first.taken, second.taken, second.state) == (STEPS, STEPS + 1, "committed") and second.law == first.law
    assert not left_over(world) and "attempt 2" in body["reason"]
    assert "version" in run_window(world.window(1), world.workspace).steps["version"]


def test_the_end_the_guard_decided_is_not_tried_again(tmp_path, monkeypatch):
    def die(*_args, **_kwargs):
        raise Killed

    def interrupt(*_args, **_kwargs):
        raise UpdateInterrupted(Finding("gradient_norm", 14.2, 10.0, "too long"))

    world = killed_world(tmp_path, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr("models.training.train", interrupt)
        patched.setattr(Job, "append", die)  # killed before it is journalled
        with pytest.raises(Killed):
            run_window(world.window(1), world.workspace)
    assert run_window(world.window(1), world.again()).steps["adapter"]["kind"] == "crash"


def test_a_store_that_is_away_loses_no_update(tmp_path, monkeypatch):
    world = killed_world(tmp_path, monkeypatch)
    store, away = world.workspace.store, tmp_path / "away"
    up_to_adapter = [step for name, step in STEPS_OF_A_WINDOW if name != "version"]
    for step in up_to_adapter[:-1]:
        step(world.window(1), world.workspace)
    store.rename(away)
    with pytest.raises(FileNotFoundError):
        up_to_adapter[-1](world.window(1), world.again())
    shutil.rmtree(store)  # what a lock would be made in
    away.rename(store)
    assert run_window(world.window(1), world.again()).steps["adapter"]["report"]["attempts"] == 2


def test_an_error_that_comes_again_each_time_stops_the_update_and_not_learning(tmp_path, monkeypatch):
    world = killed_world(tmp_path, monkeypatch)

    def fail(*_args, **_kwargs):
        raise ValueError("a bug in the task")

    with monkeypatch.context() as patched:
        patched.setattr("models.training.train", fail)
        for _ in range(5):
            with pytest.raises(ValueError, match="a bug"):
                run_window(world.window(1), world.again())
        assert "5 attempts in a row" in run_window(world.window(1), world.again()).steps["adapter"]["message"]
    assert "vault" in run_window(world.window(2), world.workspace).steps["adapter"]


@pytest.mark.parametrize("change", ["damage", "head", "rate", "adapter", "retired"])
def test_what_no_longer_fits_is_lost_and_says_why(tmp_path, monkeypatch, change):
    world = killed_world(tmp_path, monkeypatch)
    workspace, policies = world.workspace, world.workspace.policies
    lineage = workspace.lineage()
    if change == "damage":
        for file in left_over(world):
            file.write_bytes(file.read_bytes()[:-9])
    elif change == "head":
        body = {"head": lineage.registered_base()["version"]}
        world.journal.append(Draft("lineage/blobs", "head.moved", body), actor="ann", at=workspace.now())
    elif change == "retired":
        ledger = ledger_of(workspace, world.window(1))
        ledger.retire(task="blobs", window=world.window(1), reason="asked", actor="ann", at=workspace.now())
        workspace.policies = replace(policies, update=replace(policies.update, min_examples=1))
    elif change == "rate":
        workspace.policies = replace(policies, training=replace(policies.training, learning_rate=0.001))
    else:
        workspace.policies = replace(policies, adapter=replace(policies.adapter, r=8))
    day = 2 if change == "retired" else 1
    run_window(world.window(1), workspace)
    body = run_window(world.window(day), workspace).steps["adapter"]
    why = {"damage": "its checkpoint is damaged", "head": f"parent was {lineage.head} and is base",
           "retired": "was retired since", "rate": "learning rate was 0.00285 and is 0.00095",
           "adapter": r"\[adapter\] r was 4 and is 8"}[change]  # fmt: skip
    assert body["kind"] == "crash" and re.search(why, body["message"]), body
    assert charges(world)[1].state == "crashed" and not left_over(world)


def test_an_update_whose_privacy_was_turned_off_meanwhile_is_lost_and_never_passes_for_private(tmp_path, monkeypatch):
    """Trained plainly under the same number, it would have been released with the epsilon of its charge."""
    world = killed_world(tmp_path, monkeypatch)
    world.publish(4)
    private = world.workspace.policies
    world.workspace.policies = replace(private, privacy=replace(private.privacy, enabled=False))
    body = run_window(world.window(1), world.workspace).steps["adapter"]
    assert body["kind"] == "crash" and "privacy was turned off since" in body["message"] and not left_over(world)
    world.again()
    world.workspace.policies = private
    for day in (2, 3):
        run_window(world.window(day), world.workspace)
    assert [charge.state for charge in charges(world)] == ["committed", "crashed", "committed", "committed"]
    assert all(not release["not_charged"] for release in ledger_of(world.workspace, world.window(3)).summary()["releases"])


def test_settings_that_do_not_fit_the_base_are_refused_before_anything_is_charged(tmp_path):
    world = make_world(tmp_path, update={"every": "1d", "min_examples": 200})
    world.publish(1)
    policies = world.workspace.policies
    world.workspace.policies = replace(policies, training=replace(policies.training, checkpoint_modules=("nope",)))
    with pytest.raises(ValueError, match=r"checkpoint_modules 'nope' matches no module"):
        run_window(world.window(0), world.workspace)
    assert ledger_of(world.workspace, world.window(0)).charges() == []


def test_two_machines_that_go_on_at_the_same_moment_both_stand_back(tmp_path):
    world = make_world(tmp_path)
    place = (world.workspace, "blobs/000001")
    with hold(*place, locked=False) as one:
        with hold(*place, locked=False) as other:
            for name in (one, other):
                with pytest.raises(NotDue, match="is being trained by another process"):
                    refuse_held(*place, but=name)
        refuse_held(*place, but=one)
        with pytest.raises(NotDue):
            refuse_held(*place)  # who stood back has not taken the other's sign of life with it
    refuse_held(*place)
