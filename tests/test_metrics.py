"""Metrics: one table of names, a page that says the same, and figures that come from the journal or are absent."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import generate_latest

import pipelines.gateway
from models import release
from models.release_policy import RolloutPolicy
from models.rollout import write
from models.rollout_state import Rollout, State
from models.split import Routing
from monitoring import evidence, metrics
from monitoring.alarms import KINDS, raise_alarm
from monitoring.collector import PipelineFigures, registry_of
from monitoring.drift import DriftConfig, build_reference, test_window
from security.accounting import epsilon_of_mu_squared
from security.journal import Draft, Journal, stamp

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
POLICY = RolloutPolicy()
VERSION = "v000001-1a2b3c4d"


@pytest.fixture
def journal(tmp_path):
    return Journal(f"sqlite:///{tmp_path}/journal.db")


def _append(journal, stream, kind, body):
    journal.append(Draft(stream, kind, body), actor="pipeline", at=START)


def _window(journal, number, task="flights"):
    window = (START + number * DAY).strftime("%Y-%m-%dT%H:%MZ")
    _append(journal, f"window/{task}", "window.sealed", {"window": window, "rows": {"flights": 900}, "rejects": 2})
    joined = {"examples": 850, "coverage": 0.98, "duplicate_events": 1, "duplicate_labels": 3, "late_labels": 4}
    lag = {"p50": 1e4, "p90": 2e4, "p99": None}
    _append(journal, f"window/{task}", "examples.joined", {"window": window, **joined, "lag_seconds": lag})
    return window


def _figures(journal):
    return {(s.name, *s.labels[1:]): s.value for s in PipelineFigures(journal, "flights", POLICY).samples()}


def test_every_name_is_well_formed_and_a_counter_says_so():
    for name, row in metrics.METRICS.items():
        assert name == row.name and metrics.NAME.match(name), name
        assert (row.kind == "counter") == name.endswith("_total"), name
        assert row.help.endswith(".") and row.unit, name
        assert row.source == "gateway" or row.labels[0] == "task", name


def test_the_page_has_the_same_rows_as_the_table():
    page = (Path(metrics.__file__).parents[1] / "docs" / "metrics.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `headgate_")]
    expected = [*metrics.as_markdown("pipeline").splitlines()[2:], *metrics.as_markdown("gateway").splitlines()[2:]]
    assert rows == expected


def test_every_name_in_the_gateways_code_is_in_the_table_and_the_other_way_round():
    folder = Path(pipelines.gateway.__file__).parent
    named = {name for file in folder.glob("*.py") for name in re.findall(r'"(headgate_[a-z_]+)"', file.read_text())}
    rows = {row.name.removesuffix("_total") for row in metrics.METRICS.values() if row.source == "gateway"}
    assert named == rows


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(metrics.UnknownMetric, match="did you mean headgate_canary_weight"):
        metrics.metric("headgate_canary_wait")


def test_what_the_journal_does_not_say_is_absent(journal):
    found = _figures(journal)
    assert set(found) == {("headgate_open_alarms", kind.name, kind.severity) for kind in KINDS.values()}
    assert set(found.values()) == {0.0}


def test_windows_are_counted_and_the_newest_one_shown(journal):
    for number in range(3):
        _window(journal, number)
    _window(journal, 9, task="another")
    found = _figures(journal)
    assert found["headgate_windows_sealed_total",] == 3 and found["headgate_rows_total", "flights"] == 2700
    assert found["headgate_window_rows", "flights"] == 900 and found["headgate_rejects_total",] == 6
    assert found["headgate_label_coverage",] == 0.98 and found["headgate_duplicates_total", "label"] == 9
    assert found["headgate_last_window_timestamp_seconds",] == (START + 2 * DAY).timestamp()
    assert ("headgate_label_lag_seconds", "p99") not in found


def test_an_update_shows_its_loss_norm_and_what_any_event_has_spent(journal):
    report = {"loss_after": 0.51, "gradient_norms": [3.0, 9.5], "clipped_share": 0.02, "weight_delta": 0.7}
    _append(journal, "lineage/flights", "update.trained", {"update": "flights/000001", "report": report})
    law = {"sampling_rate": 0.125, "noise_multiplier": 5.27, "steps": 32, "delta": 1e-5}
    _append(journal, "privacy/cluster/topic", "RESERVE", {"task": "flights", **law})
    _append(journal, "privacy/cluster/topic", "RESERVE", {"task": "another", **law, "noise_multiplier": 1.0})
    _append(journal, "window/flights", "update.skipped", {"window": "w", "reason": "not due"})
    found = _figures(journal)
    assert found["headgate_gradient_norm",] == 9.5 and found["headgate_training_loss",] == 0.51
    assert found["headgate_epsilon_per_event",] == pytest.approx(0.5, abs=0.01)
    assert found["headgate_updates_total", "trained"] == found["headgate_updates_total", "skipped"] == 1


def test_what_a_metered_window_has_spent_adds_up(journal):
    law = {"sampling_rate": 1.0, "noise_multiplier": 20.0, "steps": 1, "m_max": 1, "delta": 1e-5, "metered": True}
    spent = []
    for windows in (["a"], ["b"], ["a", "c"], ["a"]):
        _append(journal, "privacy/cluster/topic", "RESERVE", {"task": "flights", "windows": windows, **law})
        spent.append(_figures(journal)["headgate_epsilon_per_event",])
    assert spent == pytest.approx([epsilon_of_mu_squared(times / 400, 1e-5) for times in (1, 1, 2, 3)])


def test_drift_shows_the_newest_window_and_counts_what_could_not_be_tested(journal):
    rng, config = np.random.default_rng(0), DriftConfig()
    reference = build_reference({"x": rng.normal(size=(5000, 8))}, config)
    for window, columns in (
        ("w1", {"x": rng.normal(size=(1000, 8)) + 1.0}),
        ("w2", {"x": rng.normal(size=(1000, 8)) + np.arange(8) / 8}),
        ("w3", {"x": np.zeros((3, 8))}),
    ):
        body = test_window(reference, columns, config).body()
        _append(journal, "window/flights", "drift.tested", body | {"window": window, "evidently": {"drifted": 4}})
        found = _figures(journal)
        effects = [key for key in found if key[0] == "headgate_drift_effect"]
        assert len(effects) == (0 if window == "w3" else 5)
    assert ("headgate_drift_share",) not in found and found["headgate_drift_untested_total", "TOO_FEW"] == 1
    assert found["headgate_evidently_drifted_columns",] == 4


def test_the_gate_shows_evidence_over_its_threshold_and_the_decided_weight(journal):
    for decision in release.found("base-1a2b3c4d", START):
        _append(journal, f"{decision.room}/flights", decision.kind, decision.body)
    rollout = Rollout(VERSION, 1, "base-1a2b3c4d", "base-1a2b3c4d", State.SHADOW, START, START)
    moved = write("rollout.advanced", rollout, START, **{"from": "PREPARING", "to": "SHADOW"})
    _append(journal, "rollout/flights", moved.kind, moved.body)
    for number in range(1, 21):
        end = START + number * DAY
        matured = np.full(300, evidence.milliseconds(end) - 1)
        blocks = evidence.score(np.full(300, 0.55), np.full(300, 0.5), matured, DAY, evidence.milliseconds(START))
        scored = evidence.entry(f"w{number}", end, {(VERSION, "base-1a2b3c4d"): blocks})
        _append(journal, "window/flights", "evidence.scored", scored)
    found = _figures(journal)
    assert found["headgate_evidence_blocks", VERSION] == 20
    assert found["headgate_evidence_over_threshold", VERSION] > 1 > found["headgate_harm_over_threshold", VERSION]
    assert found["headgate_decided_weight",] == 0
    routing = {"epoch": 7, "stable": "base-1a2b3c4d", "canary": VERSION, "weight": 0.25, "salt": VERSION}
    assert Routing(**routing)
    _append(journal, "routing/flights", "routing.set", {**routing, "clock": stamp(START), "reason": "step"})
    assert _figures(journal)["headgate_decided_weight",] == 0.25


def test_open_alarms_are_counted_by_kind(journal):
    for window in ("w1", "w2"):
        raise_alarm(journal, "flights", kind="gradient_norm", window=window, message="m", figure=14.0, limit=10.0,
                    at=START, actor="pipeline")  # fmt: skip
    found = _figures(journal)
    assert found["headgate_open_alarms", "gradient_norm", "critical"] == 2
    assert found["headgate_open_alarms", "drift", "warning"] == 0


def test_a_scrape_renders_every_sample_and_reads_only_what_is_new(journal):
    registry = registry_of(journal, "flights", POLICY)
    _window(journal, 0)
    text = generate_latest(registry).decode()
    assert 'headgate_windows_sealed_total{task="flights"} 1.0' in text
    assert 'headgate_window_rows{task="flights",topic="flights"} 900.0' in text
    _window(journal, 1)
    assert 'headgate_windows_sealed_total{task="flights"} 2.0' in generate_latest(registry).decode()
    named = set(re.findall(r"^(headgate_[a-z_]+)", text, re.MULTILINE))
    assert named <= set(metrics.METRICS)
