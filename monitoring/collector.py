"""The pipeline's figures for Prometheus, folded from the journal each time somebody asks.

A figure the journal does not have yet is absent, never 0: an alert on a made-up zero is worse than none. It reads the
journal incrementally and keeps one small state a task. It does not serve HTTP.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from models import release_board
from models.release_board import Board
from models.release_policy import RolloutPolicy
from monitoring import alarms, evidence, metrics
from monitoring.evidence import Evidence
from monitoring.metrics import Sample
from monitoring.verdict import judge
from security.accounting import Law, epsilon, epsilon_of_mu_squared, mu_squared
from security.journal import Entry, Journal

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric as Family

TOP_FEATURES = 5  # a label with one value a feature would be as wide as the task
ROOMS = ("window", "lineage", "rollout", "routing", "alarm")


@dataclass
class _State:
    """The fold: newest values and counts by (metric, labels after `task`), and what the gate's figures need.

    metered: mu^2 spent on each metered window (`security/accounting.py`).
    """

    values: dict[tuple[str, ...], float] = field(default_factory=dict)
    board: Board = field(default_factory=Board)
    evidence: Evidence = field(default_factory=Evidence)
    alarms: alarms.Alarms = field(default_factory=dict)
    metered: dict[str, float] = field(default_factory=dict)

    def put(self, value: Any, name: str, *labels: str) -> None:
        """The newest value; None (not measured) takes the old one away."""
        self.values.pop((name, *labels), None)
        if isinstance(value, (int, float)) and math.isfinite(value):
            self.values[name, *labels] = float(value)

    def add(self, value: Any, name: str, *labels: str) -> None:
        """Count on; a missing count adds nothing."""
        self.values[name, *labels] = self.values.get((name, *labels), 0.0) + float(value or 0)


def _sealed(state: _State, body: Mapping[str, Any]) -> None:
    state.add(1, "headgate_windows_sealed_total")
    state.add(body["rejects"], "headgate_rejects_total")
    for topic, rows in body["rows"].items():
        state.put(rows, "headgate_window_rows", topic)
        state.add(rows, "headgate_rows_total", topic)
    start = datetime.strptime(body["window"], "%Y-%m-%dT%H:%MZ").replace(tzinfo=UTC)
    state.put(start.timestamp(), "headgate_last_window_timestamp_seconds")


def _joined(state: _State, body: Mapping[str, Any]) -> None:
    state.add(body["examples"], "headgate_examples_total")
    state.put(body["examples"], "headgate_window_examples")
    state.put(body["coverage"], "headgate_label_coverage")
    state.add(body["duplicate_events"], "headgate_duplicates_total", "event")
    state.add(body["duplicate_labels"], "headgate_duplicates_total", "label")
    state.add(body["late_labels"], "headgate_late_labels_total")
    for quantile, lag in body["lag_seconds"].items():
        state.put(lag, "headgate_label_lag_seconds", quantile)


def _drift(state: _State, body: Mapping[str, Any]) -> None:
    if body["state"] in ("ERROR", "TOO_FEW"):
        state.add(1, "headgate_drift_untested_total", body["state"])
    for key in [key for key in state.values if key[0] == "headgate_drift_effect"]:
        del state.values[key]
    state.put(body["share"], "headgate_drift_share")
    state.put(body["threshold"], "headgate_drift_threshold")
    for feature in body["top"][:TOP_FEATURES]:
        state.put(feature["effect"], "headgate_drift_effect", feature["name"])
    state.put((body.get("evidently") or {}).get("drifted"), "headgate_evidently_drifted_columns")


def _trained(state: _State, body: Mapping[str, Any]) -> None:
    state.add(1, "headgate_updates_total", "trained")
    report = body["report"]
    state.put(report["loss_after"], "headgate_training_loss")
    state.put(max(report["gradient_norms"], default=None), "headgate_gradient_norm")
    state.put(report["clipped_share"], "headgate_clipped_share")
    state.put(report["weight_delta"], "headgate_weight_delta")


def _advanced(state: _State, body: Mapping[str, Any]) -> None:
    if body["from"] == body["to"]:
        return
    if body["to"] == "PROMOTED":
        state.add(1, "headgate_promotions_total")
    elif body["to"] in ("REJECTED", "ROLLED_BACK", "WITHDRAWN", "EXPIRED"):
        state.add(1, "headgate_stopped_versions_total", body["to"])


def _routed(state: _State, body: Mapping[str, Any]) -> None:
    state.put(body["weight"], "headgate_decided_weight")
    state.put(body["epoch"], "headgate_decided_epoch")


def _scored(state: _State, body: Mapping[str, Any]) -> None:
    state.evidence = evidence.fold(state.evidence, body)


def _counted(state: _State, body: Mapping[str, Any]) -> None:
    state.evidence = evidence.fold_entry(state.evidence, evidence.COUNTED, body)


def _reserved(state: _State, body: Mapping[str, Any]) -> None:
    """A sealed window is charged once, so that the largest charge is what any of its events can have spent; those of a metered
    one add up."""
    name, law = "headgate_epsilon_per_event", Law(*(body[field] for field in Law._fields if field in body))
    if body.get("metered"):
        for window in body["windows"]:
            state.metered[window] = state.metered.get(window, 0.0) + mu_squared([law])
        spent = epsilon_of_mu_squared(max(state.metered[window] for window in body["windows"]), body["delta"])
    else:
        spent = epsilon((law,), body["delta"])
    state.put(max(spent, state.values.get((name,), 0.0)), name)


READERS: Mapping[str, Callable[[_State, Mapping[str, Any]], None]] = {
    "window.sealed": _sealed,
    "examples.joined": _joined,
    "drift.tested": _drift,
    evidence.SCORED: _scored,
    evidence.COUNTED: _counted,
    "update.trained": _trained,
    "update.interrupted": lambda state, _: state.add(1, "headgate_updates_total", "interrupted"),
    "update.skipped": lambda state, _: state.add(1, "headgate_updates_total", "skipped"),
    "rollout.advanced": _advanced,
    "rollout.withdrawn": _advanced,
    "routing.set": _routed,
    "RESERVE": _reserved,
    "REFUSE": lambda state, _: state.add(1, "headgate_privacy_refusals_total"),
}


class PipelineFigures:
    """The figures of one task. `policy` is the rollout policy: thresholds are its own, not the journal's."""

    def __init__(self, journal: Journal, task: str, policy: RolloutPolicy) -> None:
        self._journal, self._task, self._policy = journal, task, policy
        self._state = _State()
        self._seq = 0
        self._lock = threading.Lock()

    def samples(self) -> list[Sample]:
        """Every figure as of now, in the order of the table. Raises JournalUnreachable."""
        with self._lock:
            for entry in self._journal.tail(self._seq):
                self._fold(entry)
                self._seq = entry.seq
            values = {**self._state.values, **dict(self._gate()), **self._open_alarms()}
        order = {name: place for place, name in enumerate(metrics.METRICS)}
        found = [Sample(name, (self._task, *labels), value) for (name, *labels), value in values.items()]
        return sorted(found, key=lambda sample: (order[metrics.metric(sample.name).name], sample.labels))

    def _fold(self, entry: Entry) -> None:
        room, _, rest = entry.stream.partition("/")
        if room == "privacy":
            if entry.body.get("task") != self._task:
                return
        elif room not in ROOMS or rest != self._task:
            return
        if room == "alarm":
            self._state.alarms = alarms.fold(self._state.alarms, entry)
        elif room in ("rollout", "routing", "lineage"):
            self._state.board = release_board.fold(self._state.board, entry.kind, entry.body)
        if entry.kind in READERS:
            READERS[entry.kind](self._state, entry.body)

    def _gate(self) -> Iterator[tuple[tuple[str, ...], float]]:
        state = self._state
        for rollout in state.board.rollouts.values():
            if not rollout.scored or state.evidence.processed is None:
                continue
            policy = state.board.policy_of(rollout, self._policy)
            found = judge(rollout, state.evidence, policy, state.evidence.processed, acknowledged=False, prepared=None)
            yield ("headgate_evidence_over_threshold", rollout.version), found.promote_e / policy.promote_limit(rollout.test)
            yield ("headgate_harm_over_threshold", rollout.version), found.harm_e / policy.harm_threshold
            yield ("headgate_evidence_blocks", rollout.version), float(found.blocks)

    def _open_alarms(self) -> dict[tuple[str, ...], float]:
        counts: dict[tuple[str, ...], float] = {
            ("headgate_open_alarms", kind.name, kind.severity): 0.0 for kind in alarms.KINDS.values()
        }
        for alarm in alarms.ordered(self._state.alarms):
            key = ("headgate_open_alarms", alarm.kind, alarm.severity)
            counts[key] = counts.get(key, 0.0) + 1
        return counts

    def collect(self) -> Iterator[Family]:
        """What a Prometheus registry calls at each scrape."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families: dict[str, Family] = {}
        for sample in self.samples():
            row = metrics.metric(sample.name)
            if sample.name not in families:
                make = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
                families[sample.name] = make(sample.name.removesuffix("_total"), row.help, labels=row.labels)
            families[sample.name].add_metric(list(sample.labels), sample.value)  # type: ignore[attr-defined]
        yield from families.values()

    def describe(self) -> Iterable[Family]:
        """Nothing: a registry then does not scrape when it is built."""
        return ()


def registry_of(journal: Journal, task: str, policy: RolloutPolicy) -> CollectorRegistry:
    """A registry that holds just this task's figures, for `prometheus_client.generate_latest`."""
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    registry.register(PipelineFigures(journal, task, policy))
    return registry
