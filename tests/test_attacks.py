"""Attacks on the steps of a window: moments a process, a person or a disk can choose badly, and what they must not cost."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta

import pytest

from assets.steps import STEPS
from assets.steps.adapter import Job, adapter, ledger_of
from assets.steps.evidence import evidence
from assets.steps.version import version
from assets.update_due import UpdatePolicy
from assets.windows.clock import NotDue
from assets.windows.store import StoreDamaged
from models.adapters.lora import AdapterRefused
from models.vault import VaultDamaged
from models.version import VersionRefused
from monitoring.alarms import open_alarms
from pipelines.opening import workspace_of
from pipelines.release_desk import ReleaseDesk
from pipelines.run_window import run_window
from security.journal import Conflict
from security.privacy import Ledger
from tests.worlds import make_world


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path)


def die(*_args, **_kwargs):
    raise KeyboardInterrupt


def run(world, *days):
    for day in days:
        result = run_window(world.window(day), world.workspace)
    return result.steps


def up_to(world, day, count):
    for _, step in STEPS[:count]:
        step(world.window(day), world.workspace)


def killed(world, monkeypatch, day, owner, name):
    """Run a day in a process that dies where `owner.name` is called; the next process takes over."""
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, die)
        with pytest.raises(KeyboardInterrupt):
            run(world, day)
    world.again()


def without_checkpoint(world):
    """What makes an update that was killed a lost one."""
    for file in world.folder.glob("store/*/vault/progress-*"):
        file.unlink()


def states(world, day=1):
    return [charge.state for charge in ledger_of(world.workspace, world.window(day)).charges()]


def alarms(world):
    return {alarm.kind for alarm in open_alarms(world.journal, "blobs")}


# -- a process that dies ----------------------------------------------------------------------------------------------


def test_a_second_death_while_the_first_is_written_down_does_not_stop_learning(world, monkeypatch):
    import models.training

    world.publish(4)
    run(world, 0)
    killed(world, monkeypatch, 1, models.training, "train")
    without_checkpoint(world)
    killed(world, monkeypatch, 1, Job, "append")
    killed(world, monkeypatch, 1, Ledger, "crashed")
    assert "vault" in run(world, 1, 2, 3)["adapter"]
    assert states(world) == ["crashed", "committed"]


def test_a_death_between_the_entry_of_an_update_and_its_settlement_is_made_good(world, monkeypatch):
    world.publish(2)
    run(world, 0)
    killed(world, monkeypatch, 1, Ledger, "settle")
    assert "version" in run(world, 1)["version"] and states(world) == ["committed"]


@pytest.mark.parametrize("lost", [True, False])
def test_an_update_that_was_killed_covers_the_windows_it_reserved_whatever_the_settings_say_now(world, monkeypatch, lost):
    import models.training

    world.publish(5)
    run(world, 0)
    killed(world, monkeypatch, 1, models.training, "train")
    if lost:
        without_checkpoint(world)
    world.workspace.policies = replace(
        world.workspace.policies, update=UpdatePolicy(timedelta(days=3), 300, timedelta(days=7))
    )
    body = run(world, 1, 2)["adapter"]
    assert body["windows"] == [world.window(0), world.window(1)] and ("vault" not in body) == lost
    assert run(world, 3, 4)["adapter"]["windows"] == [world.window(2), world.window(3), world.window(4)]


def test_a_death_between_a_conviction_and_its_alarm_still_alarms(tmp_path, monkeypatch):
    world = make_world(
        tmp_path, privacy={"enabled": False}, update={"every": "1d", "min_examples": 200},
        rollout={"min_blocks": 1, "alpha": 0.6, "shadow_slots": 1},
    )  # fmt: skip
    step, real = sys.modules["assets.steps.evidence"], sys.modules["assets.steps.evidence"]._losses
    worse = {True: 1.0, False: 0.0}
    monkeypatch.setattr(
        step, "_losses", lambda *of: {name: loss + worse[name[0] == "v"] for name, loss in real(*of).items()}
    )
    world.publish(4)
    day = 0
    while "REJECTED" not in {rollout.state for rollout in world.workspace.board().rollouts.values()}:
        with monkeypatch.context() as patched:
            patched.setattr("monitoring.convictions.conviction", die)
            try:
                run(world, day)
            except KeyboardInterrupt:
                break
        day += 1
    world.again()
    assert "quality_drop" not in alarms(world)
    run(world, day)
    assert "quality_drop" in alarms(world)


# -- two at once ------------------------------------------------------------------------------------------------------


def on_two_machines(monkeypatch):
    """The lock of one is not seen by the other, and each takes the other for dead."""
    monkeypatch.setattr("assets.training_lease.LEASE", timedelta(0))
    monkeypatch.setattr("assets.training_lease.lock", lambda *_: nullcontext())


def race(world, monkeypatch, name, owner):
    """Both of two processes make the update of day 1: the second does all of it while the first enters `name`."""
    on_two_machines(monkeypatch)
    world.publish(4)
    run(world, 0)
    up_to(world, 1, 5)
    other, real = workspace_of(world.settings, world.journal, world.log), getattr(owner, name)

    def second(*args, **kwargs):
        monkeypatch.setattr(owner, name, real)
        adapter(world.window(1), other)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, second)
    with pytest.raises(Conflict):
        adapter(world.window(1), world.workspace)
    world.again()
    body = run(world, 1)["adapter"]
    ends = [e.kind for e in world.journal.read("lineage/blobs") if e.kind.startswith("update.")]
    assert len(ends) == 1 and run(world, 2, 3)["version"]["number"] == 2
    return body


def test_two_that_reserve_the_same_update_make_one_and_alarm_nobody(world, monkeypatch):
    body = race(world, monkeypatch, "_reserve", sys.modules["assets.steps.adapter"])
    assert "vault" in body and states(world) == ["committed", "committed"] and not alarms(world)


def test_one_that_finds_another_training_without_a_sign_of_life_takes_its_place_and_the_update_ends_once(world, monkeypatch):
    import models.training

    body = race(world, monkeypatch, "train", models.training)
    assert body["report"]["attempts"] == 2 and states(world) == ["committed", "committed"]
    assert not list(world.folder.glob("store/*/vault/progress-*"))


def test_two_that_train_without_privacy_keep_the_file_of_the_one_that_was_first(tmp_path, monkeypatch):
    import models.training

    world = make_world(tmp_path, privacy={"enabled": False})
    assert "vault" in race(world, monkeypatch, "train", models.training)


def test_a_version_whose_parent_is_aborted_while_it_is_trained_does_not_become_the_lineage_head(world):
    world.publish(6)
    run(world, 0, 1, 2)
    parent, policies = world.workspace.board().head, world.workspace.policies
    up_to(world, 3, 6)
    ReleaseDesk(world.journal, "blobs", policies.rollout, policies.window).act("abort", parent, actor="ann", reason="odd")
    child = version(world.window(3), world.workspace)["version"]
    board = world.workspace.board()
    assert board.rollouts[child].state == "WITHDRAWN" and board.head == board.stable
    grandchild = run(world, 3, 4, 5)["version"]["version"]
    assert world.workspace.board().rollouts[grandchild].state == "SHADOW", "learning goes on from the stable version"


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_candidate_changed_on_disk_is_no_evidence_and_does_not_stop_the_pipeline(world):
    world.publish(4)
    body = run(world, 0, 1)["version"]
    file = world.workspace.store / body["path"] / "adapter.safetensors"
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    world.again()
    run(world, 2)
    assert world.workspace.body("evidence.scored", world.window(2))["pairs"] == [] and "security" in alarms(world)


def test_a_version_in_the_place_of_another_and_a_path_out_of_the_store_are_refused(world):
    world.publish(4)
    first, second = run(world, 0, 1)["version"], run(world, 2, 3)["version"]
    versions = world.workspace.lineage().versions
    for path in (first["path"], f"../{second['path']}", f"/{second['path']}"):
        versions[second["version"]] = second | {"path": path}
        with pytest.raises(VersionRefused, match="not one of the store"):
            world.workspace.open(second["version"])
    versions[second["version"]] = second | {"manifest_digest": first["manifest_digest"]}
    with pytest.raises(VersionRefused, match="not the one the journal registered"):
        world.workspace.open(second["version"])


def test_a_store_that_is_away_rejects_no_version(world):
    world.publish(3)
    body = run(world, 0, 1)["version"]
    store, away = world.workspace.store / "blobs" / "versions", world.folder / "away"
    store.rename(away)
    world.again()
    with pytest.raises(StoreDamaged, match=r"check \[store\] url"):
        run(world, 2)
    away.rename(store)
    run(world, 2)
    assert world.workspace.board().rollouts[body["version"]].state == "SHADOW"


@pytest.mark.parametrize("damage", ["vault", "settings"])
def test_a_parent_that_cannot_be_trained_on_is_refused_before_it_is_paid_for(world, damage):
    world.publish(4)
    body = run(world, 0, 1, 2) and next(iter(world.workspace.lineage().versions.values()))
    file, policies = world.workspace.store / body["vault"], world.workspace.policies
    if damage == "vault":
        file = file.rename(file.with_suffix(".away"))
    else:
        world.workspace.policies = replace(policies, adapter=replace(policies.adapter, r=8))
    with pytest.raises((VaultDamaged, AdapterRefused)):
        run(world, 3)
    assert len(states(world)) == 1
    file.rename(world.workspace.store / body["vault"])
    world.again()
    assert "version" in run(world, 3)["version"]


# -- what is said, and when -------------------------------------------------------------------------------------------


def test_no_figure_taken_from_private_records_is_in_a_manifest(world):
    world.publish(2)
    body = run(world, 0, 1)["version"]
    manifest = json.loads((world.workspace.store / body["path"] / "manifest.json").read_text())
    assert manifest["guard"] == {"blocked": None} and "report" not in manifest
    exact = {repr(body["report"][key]) for key in ("loss_before", "loss_after", "loss_change", "clipped_share")}
    assert not [figure for figure in exact if figure in json.dumps(manifest)]


def test_the_manifest_says_the_law_that_was_executed_not_the_one_of_newer_settings(world):
    world.publish(2)
    run(world, 0)
    up_to(world, 1, 6)
    law = ledger_of(world.workspace, world.window(1)).charges()[0].law
    policies = world.again().policies
    world.workspace.policies = replace(policies, privacy=replace(policies.privacy, target_epsilon=2.0))
    privacy = version(world.window(1), world.workspace)["privacy"]
    assert privacy["noise_multiplier"] == law.noise_multiplier and privacy["epsilon"] <= 0.5


def test_catching_up_by_the_wall_clock_closes_no_block_that_is_not_scored_yet(world):
    world.publish(3)
    run(world, 0, 1)
    up_to(world, 2, 2)
    policies = world.workspace.policies
    world.workspace.policies = replace(policies, window=replace(policies.window, clock="wall"))
    assert evidence(world.window(2), world.workspace)["end"] == "2026-01-04T00:00:00.000000Z"


def test_nothing_is_trained_on_a_window_that_has_judged_nobody(world):
    world.publish(2)
    run(world, 0)
    up_to(world, 1, 2)
    with pytest.raises(NotDue, match=f"evidence of window {world.window(1)}"):
        adapter(world.window(1), world.workspace)
    assert not states(world)


def test_days_without_events_or_labels_are_walked_through(tmp_path):
    world = make_world(tmp_path, update={"every": "2d", "min_examples": 300, "max_age": "20d"})
    world.publish(2)
    world.published = 5
    world.publish(2)
    found = [run(world, day) for day in range(7)]
    assert [body["examples"]["examples"] for body in found] == [240, 240, 2, 0, 0, 240, 240]
    assert [body["drift"]["state"] for body in found[2:5]] == ["TOO_FEW"] * 3
    assert [day for day, body in enumerate(found) if "version" in body["version"]] == [1, 6]
