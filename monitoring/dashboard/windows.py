"""What the windows say: requests by arm, losses, drift, and what came in; sections 4, 5 and 7 of the page.

Figures are shown as the steps journalled them. Shares are computed here and nothing else; a window without a figure
shows none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from monitoring.dashboard.chart import Chart, line_chart
from monitoring.dashboard.facts import Facts, WindowLoss
from monitoring.evidence import Served
from security.journal import unstamp

SHOWN_WINDOWS = 14
SHOWN_EPOCHS = 8
RECENT = 7  # windows in the means beside the loss chart


@dataclass(frozen=True, slots=True)
class ArmRow:
    """One arm in one routing epoch. `version` is None when the routing of that epoch is not known any more."""

    epoch: int
    since: datetime | None
    arm: str
    version: str | None
    weight: float | None
    served: Served


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean loss over the newest windows that have one, weighted by examples."""

    name: str
    kind: str
    loss: float | None


@dataclass(frozen=True, slots=True)
class Quality:
    """`means` are over the `recent` newest windows of the chart."""

    chart: Chart | None
    means: tuple[Mean, ...]
    recent: int


@dataclass(frozen=True, slots=True)
class Drift:
    """The newest test (body of `drift.tested`), the share of drifted features over windows, and alarms among them."""

    newest: Mapping[str, Any]
    chart: Chart | None
    tested: int
    alarms: int


@dataclass(frozen=True, slots=True)
class Intake:
    """One window as sealed and joined; bodies are empty for a step that has not run."""

    window: str
    sealed: Mapping[str, Any]
    joined: Mapping[str, Any]

    @property
    def rows(self) -> dict[str, int]:
        """Rows by topic."""
        return dict(self.sealed.get("rows") or {})

    @property
    def duplicates(self) -> int | None:
        """Repeated events and repeated labels, together."""
        if not self.joined:
            return None
        return int(self.joined["duplicate_events"]) + int(self.joined["duplicate_labels"])

    @property
    def lag(self) -> Mapping[str, float | None]:
        """Seconds from event to label, at quantiles; empty without labels."""
        return self.joined.get("lag_seconds") or {}


def arms(facts: Facts) -> list[ArmRow]:
    """Requests by epoch and arm, newest epoch first; empty while no prediction was recorded."""
    routings = {body["epoch"]: body for body in facts.routings}
    served = facts.evidence.served
    epochs = sorted({epoch for epoch, _ in served}, reverse=True)[:SHOWN_EPOCHS]
    rows = []
    for epoch in epochs:
        body = routings.get(epoch, {})
        for arm in sorted((a for e, a in served if e == epoch), reverse=True):  # stable above canary
            weight = body.get("weight")
            share = None if weight is None else weight if arm == "canary" else 1.0 - weight
            since = unstamp(body["clock"]) if body.get("clock") else None
            rows.append(ArmRow(epoch, since, arm, body.get(arm), share, served[epoch, arm]))
    return rows


def quality(facts: Facts) -> Quality | None:
    """Mean loss of each window under the frozen base, the stable version and the lineage head."""
    points = list(facts.losses)
    if not points:
        return None
    series = [
        ("frozen base", "frozen", [p.base for p in points]),
        ("lineage head", "head", [p.head for p in points]),
        ("stable", "stable", [p.stable for p in points]),
    ]
    first, last = (p.window[:10] for p in (points[0], points[-1]))
    about = f"mean loss of each window's examples, {first} to {last}: frozen base, stable version, lineage head"
    recent = points[-RECENT:]
    means = tuple(
        Mean(name, kind, _mean(recent, field))
        for name, kind, field in (
            ("frozen base", "frozen", "base"), ("stable", "stable", "stable"), ("lineage head", "head", "head"),
        )
    )  # fmt: skip
    return Quality(line_chart(series, first=first, last=last, about=about), means, len(recent))


def _mean(points: list[WindowLoss], field: str) -> float | None:
    known = [(getattr(p, field), p.examples) for p in points if getattr(p, field) is not None and p.examples]
    total = sum(n for _, n in known)
    return sum(loss * n for loss, n in known) / total if total else None


def drift(facts: Facts) -> Drift | None:
    """The newest drift test and its history; None when no window was tested."""
    tests = list(facts.drifts)
    if not tests:
        return None
    threshold = tests[-1].get("threshold")
    chart = line_chart(
        [("share of drifted features", "head", [body.get("share") for body in tests])],
        first=tests[0]["window"][:10],
        last=tests[-1]["window"][:10],
        about="share of features that left the reference, by window; the dashed line is the newest threshold",
        limits=[("bad", threshold)] if threshold is not None else (),
        least=0.0,
    )
    return Drift(tests[-1], chart, len(tests), sum(bool(body.get("alarm")) for body in tests))


def intake(facts: Facts) -> list[Intake]:
    """The newest windows, newest first."""
    newest = sorted(facts.windows, reverse=True)[:SHOWN_WINDOWS]
    return [
        Intake(name, found.get("window.sealed", {}), found.get("examples.joined", {}))
        for name, found in ((name, facts.windows[name]) for name in newest)
    ]


def topics(rows: list[Intake]) -> list[str]:
    """The topics of these windows, in the order of their names: the columns of the table."""
    return sorted({topic for row in rows for topic in row.rows})
