"""What the replicas have counted between windows: added up, and looked at by people, pages and controllers alike."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from models.release_verbs import VerbRefused
from monitoring.dashboard.page import read_page
from pipelines.release_desk import ReleaseDesk
from security.served import LiveCounts
from tests.controllers import (
    POLICY,
    WALL,
    answered,
    audited,
    canary,
    made,
    of_kind,
    world,
)
from tests.gateways import EVENT, blobs_base, wait_until
from tests.releases import board

__all__ = ["blobs_base", "world"]


def test_replicas_add_up_and_one_that_starts_again_adds_to_what_it_said(world):
    stable, bad = world.version(1), world.version(2, spread=30.0)
    world.route(stable)
    first, client = world.gateway()
    table = LiveCounts(world.journal.engine)
    for number in range(20):
        client.post("/v1/predict", json={**EVENT, "unit": f"u{number}"})
    world.route(stable, bad, 0.5)
    wait_until(lambda: first.follower.serving(time.monotonic())[0].epoch == 2)
    told = [client.post("/v1/predict", json={**EVENT, "unit": f"u{number}"}).status_code for number in range(40)]
    client.post("/v1/predict", content=b"{}")  # refused before the split: nobody's error
    failed = told.count(500)
    assert 0 < failed < 40
    wanted = [(2, "canary", failed, failed, 0), (2, "stable", 40 - failed, 0, 0)]
    wait_until(lambda: table.total(world.task.name) == wanted)
    first.stop()
    again, other = world.gateway(replica=first.config.replica)
    told = [other.post("/v1/predict", json={**EVENT, "unit": f"u{number}"}).status_code for number in range(40)]
    assert told.count(500) == failed, "the same units"
    wait_until(lambda: table.total(world.task.name) == [(e, arm, 2 * n, 2 * bad, 0) for e, arm, n, bad, _ in wanted])
    assert again.config.replica == first.config.replica


def test_slow_answers_are_counted_and_a_lost_lease_is_no_split(world):
    stable, canary = world.version(1), world.version(2)
    world.route(stable, canary, 0.5)
    policy = replace(POLICY, slow_ms=0.0)
    gateway, client = world.gateway(lease_seconds=0.6, rollout=policy)
    assert client.post("/v1/predict", json=EVENT).status_code == 200
    table = LiveCounts(world.journal.engine)
    wait_until(lambda: [row[2:] for row in table.total(world.task.name)] == [(1, 0, 1)])
    with world.without_journal():
        wait_until(lambda: not gateway.follower.health(time.monotonic()).leased)
        assert client.post("/v1/predict", json=EVENT).json()["arm"] == "stable"
    wait_until(lambda: gateway.follower.health(time.monotonic()).leased)
    time.sleep(0.2)
    assert sum(row[2] for row in table.total(world.task.name)) == 1


def test_counts_of_a_week_ago_are_forgotten_on_either_database(journal):
    table, now = LiveCounts(journal.engine), datetime.now(UTC)
    table.publish("blobs", "old", [(1, "stable", 5, 0, 0)], now - timedelta(days=8))
    table.publish("blobs", "new", [(2, "stable", 7, 1, 1)], now)
    table.publish("blobs", "new", [(2, "stable", 9, 1, 1), (2, "canary", 1, 0, 0)], now)
    table.publish("blobs", "newer", [(2, "stable", 1, 0, 0)], now)
    assert table.total("blobs") == [(2, "canary", 1, 0, 0), (2, "stable", 10, 1, 1)] and table.total("another") == []


def test_a_person_cannot_raise_a_canary_whose_errors_are_proven_before_a_controller_has_looked(world):
    version = canary(world)
    answered(world, board(world).epoch, stable=100, canary=100, failed=60)
    desk = ReleaseDesk(world.journal, world.task.name, POLICY, WALL)
    assert "Due: errors: evidence" in desk.explain(board(world).rollouts[version], board(world))
    with pytest.raises(VerbRefused, match="an abort outranks a promote"):
        desk.act("promote", version, actor="ana", reason="in a hurry")
    shown = read_page(world.journal, world.task.name, POLICY, window_start=WALL.start, clock="wall", now=datetime.now(UTC))
    assert shown.releases.body is not None and shown.releases.body[0].verdicts.errors_e > 100
    assert shown.strip.body is not None and shown.strip.body.word == "ALARM"
    assert any("is to be stopped and is not yet: errors" in text for _, text in shown.strip.body.reasons)


def test_a_freeze_in_the_settings_of_today_bars_a_person_at_once(world):
    version = canary(world)
    always = replace(POLICY, freeze=("Mon 00:00 - Sun 23:59", "Sun 23:00 - Mon 01:00"))
    with pytest.raises(VerbRefused, match="no version gets more traffic"):
        ReleaseDesk(world.journal, world.task.name, always, WALL).act("promote", version, actor="ana", reason="in a hurry")


def test_counts_that_a_person_decided_on_stand_before_the_decision(world):
    version = canary(world)
    answered(world, board(world).epoch, stable=100, canary=100, failed=0)
    ReleaseDesk(world.journal, world.task.name, POLICY, WALL).act("promote", version, actor="ana", reason="looks well")
    told = of_kind(world, "rollout", "rollout.advanced")[-1].body["figures"]
    assert (told["requests"], told["canary_requests"]) == (200, 100)
    assert of_kind(world, "window", "served.counted") and audited(world).sound


def test_counts_that_were_forgotten_take_nothing_back(world):
    canary(world)
    desk = made(world)
    while desk.look():
        pass
    answered(world, 2, stable=600, canary=600, failed=0)
    world.note("window", "served.counted", {"served": [[2, "canary", 600, 5, 0], [2, "stable", 600, 5, 0]]})
    answered(world, 2, stable=300, canary=300, failed=100)  # a replica's rows are gone; what is left is no news
    assert desk.look() == [] and board(world).routing.weight == 0.5
