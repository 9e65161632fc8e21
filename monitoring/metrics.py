"""Every metric name Headgate exposes, in one table: what it is, its unit, its labels, who serves it.

A name that is not here is not exposed: collectors look their rows up, and docs/metrics.md is compared with the table.
It does not know where the values come from.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Source = Literal["pipeline", "gateway"]
NAME = re.compile(r"^headgate_[a-z_]+$")
TASK = ("task",)


class UnknownMetric(KeyError):
    """A name that is not in the table."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One row. Every pipeline metric has the label `task`; a counter's name ends in `_total`."""

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = TASK
    source: Source = "pipeline"


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric; `labels` in the order of its row."""

    name: str
    labels: tuple[str, ...]
    value: float


_TABLE = (
    # windows
    Metric("headgate_windows_sealed_total", "counter", "windows", "Windows that were sealed."),
    Metric("headgate_window_rows", "gauge", "rows", "Rows of the newest sealed window.", ("task", "topic")),
    Metric("headgate_rows_total", "counter", "rows", "Rows sealed.", ("task", "topic")),
    Metric("headgate_rejects_total", "counter", "records", "Records that could not be read and lie in reject files."),
    Metric("headgate_examples_total", "counter", "examples", "Events joined with their label."),
    Metric("headgate_window_examples", "gauge", "examples", "Examples of the newest joined window."),
    Metric("headgate_label_coverage", "gauge", "share", "Share of the newest window's mature events with a label."),
    Metric("headgate_label_lag_seconds", "gauge", "seconds", "Label after arrival, last window.", ("task", "quantile")),
    Metric("headgate_duplicates_total", "counter", "records", "Further copies, not used.", ("task", "record")),
    Metric("headgate_late_labels_total", "counter", "labels", "Labels that came after their event was mature."),
    Metric("headgate_last_window_timestamp_seconds", "gauge", "seconds", "Start of the newest sealed window."),
    # training
    Metric("headgate_updates_total", "counter", "updates", "Updates, by how they ended.", ("task", "outcome")),
    Metric("headgate_training_loss", "gauge", "nats", "Loss after the newest update, on its own rows."),
    Metric("headgate_gradient_norm", "gauge", "norm", "Largest gradient norm of the newest update, noise removed."),
    Metric("headgate_clipped_share", "gauge", "share", "Share of examples whose gradient was clipped, newest update."),
    Metric("headgate_weight_delta", "gauge", "norm", "Norm of the weight change of the newest update."),
    Metric("headgate_epsilon_per_event", "gauge", "epsilon", "Largest privacy loss reserved for any labelled event."),
    Metric("headgate_privacy_refusals_total", "counter", "updates", "Updates that the privacy ledger refused."),
    # gate
    Metric("headgate_evidence_over_threshold", "gauge", "ratio",
           "Evidence that a version is better, over what promotion needs.", ("task", "version")),
    Metric("headgate_harm_over_threshold", "gauge", "ratio",
           "Evidence that a version is worse, over what stops it.", ("task", "version")),
    Metric("headgate_evidence_blocks", "gauge", "blocks", "Blocks of evidence of a version.", ("task", "version")),
    Metric("headgate_decided_weight", "gauge", "share", "Share of units the canary was given by the newest decision."),
    Metric("headgate_decided_epoch", "gauge", "epoch", "Routing epoch of the newest decision."),
    Metric("headgate_promotions_total", "counter", "versions", "Versions that were promoted."),
    Metric("headgate_stopped_versions_total", "counter", "versions", "Versions that ended unproven, stopped or withdrawn.",
           ("task", "state")),
    # drift and alarms
    Metric("headgate_drift_share", "gauge", "share", "Share of drifted features in the newest tested window."),
    Metric("headgate_drift_threshold", "gauge", "share", "Share that 95 % of the reference's blocks stay within."),
    Metric("headgate_drift_effect", "gauge", "effect", "Effect of the most drifted features.", ("task", "feature")),
    Metric("headgate_drift_untested_total", "counter", "windows", "Windows without a drift result.", ("task", "state")),
    Metric("headgate_evidently_drifted_columns", "gauge", "columns", "Columns Evidently calls drifted, newest window."),
    Metric("headgate_open_alarms", "gauge", "alarms", "Alarms nobody acknowledged.", ("task", "kind", "severity")),
    # gateway
    Metric("headgate_requests_total", "counter", "requests", "By arm and status.", ("arm", "status"), "gateway"),
    Metric("headgate_predict_seconds", "histogram", "seconds", "Validate, split, predict, queue.", ("arm",), "gateway"),
    Metric("headgate_rate_limited_total", "counter", "requests", "Requests refused with 429.", (), "gateway"),
    Metric("headgate_refused_versions_total", "counter", "versions",
           "Versions that were routed but failed verification.", (), "gateway"),
    Metric("headgate_routing_epoch", "gauge", "epoch", "Routing epoch this gateway serves.", (), "gateway"),
    Metric("headgate_canary_weight", "gauge", "share", "Share of units the canary gets here; 0 without a lease.",
           (), "gateway"),
    Metric("headgate_journal_age_seconds", "gauge", "seconds", "Since the journal was last read.", (), "gateway"),
    Metric("headgate_recorder_waiting", "gauge", "predictions", "In the spool, not in the log yet.", (), "gateway"),
    Metric("headgate_recorder_bytes", "gauge", "bytes", "Of the spool on the disk.", (), "gateway"),
    Metric("headgate_recorder_oldest_seconds", "gauge", "seconds", "Age of the oldest that waits.", (), "gateway"),
    Metric("headgate_recorder_recorded", "gauge", "predictions", "Written to the log.", (), "gateway"),
    Metric("headgate_recorder_dropped", "gauge", "predictions", "Lost.", (), "gateway"),
    Metric("headgate_recorder_failures", "gauge", "writes", "Writes to log or disk that failed.", (), "gateway"),
)  # fmt: skip
METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _TABLE})
if len(METRICS) != len(_TABLE):
    raise AssertionError("monitoring/metrics.py names a metric twice")


def metric(name: str) -> Metric:
    """The row of a name. Raises UnknownMetric with the nearest one."""
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, 1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise UnknownMetric(f"metric {name!r} is not in monitoring/metrics.py{hint}; add its row and docs/metrics.md")
    return METRICS[name]


def as_markdown(source: Source) -> str:
    """The table of docs/metrics.md for one source."""
    lines = ["| name | type | unit | labels | meaning |", "|---|---|---|---|---|"]
    for row in METRICS.values():
        if row.source == source:
            labels = ", ".join(f"`{label}`" for label in row.labels)
            lines.append(f"| `{row.name}` | {row.kind} | {row.unit} | {labels} | {row.help} |")
    return "\n".join(lines) + "\n"
