"""What was trained and what it cost: the versions, the updates that made none, the privacy charges; section 6.

Figures are those of the journal: no budget is computed again here. Under privacy the losses and norms read private data
without noise, which is why the page is for the trust zone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.retention import refusal, worst
from monitoring.dashboard.facts import Facts

SHOWN_UPDATES = 20


@dataclass(frozen=True, slots=True)
class UpdateRow:
    """One update. `version` is None when it made none; then `note` says why. `state` is where its release is.
    `retention` is that of the regime that kept least."""

    number: int
    version: str | None
    parent: str | None
    windows: tuple[str, ...]
    report: Mapping[str, Any]
    retention: Mapping[str, Any]
    z: float | None
    bits_right: int | None
    state: str
    note: str

    @property
    def norm(self) -> float | None:
        """The largest gradient norm of the update, the noise's share removed."""
        norms = [norm for norm in self.report.get("gradient_norms") or () if norm is not None]
        return max(norms, default=None)


@dataclass(frozen=True, slots=True)
class Spending:
    """Privacy charges of the task by state, and the largest epsilon any journalled update reports. `private` is false
    when no charge was ever made."""

    private: bool
    epsilon: float | None
    delta: float | None
    budget: float | None
    charges: Mapping[str, int]
    events: int
    refusals: int


@dataclass(frozen=True, slots=True)
class Training:
    rows: tuple[UpdateRow, ...]
    total: int
    spending: Spending
    base: Mapping[str, Any] | None


def training(facts: Facts) -> Training | None:
    """The newest updates, newest first; None before a base is registered."""
    if facts.base is None and not facts.updates:
        return None
    by_number = {body["number"]: body for body in facts.versions.values()}
    updates = sorted(facts.updates.values(), key=lambda body: -body["number"])
    rows = tuple(_row(facts, update, by_number.get(update["number"])) for update in updates[:SHOWN_UPDATES])
    return Training(rows, len(updates), spending(facts), facts.base)


def _row(facts: Facts, update: Mapping[str, Any], version: Mapping[str, Any] | None) -> UpdateRow:
    body = version or {}
    watermark = body.get("watermark") or {}
    state, note = _outcome(facts, update, version)
    return UpdateRow(
        update["number"],
        body.get("version"),
        update.get("parent"),
        tuple(update.get("windows") or ()),
        update.get("report") or {},
        worst(body.get("retention")),
        watermark.get("z"),
        watermark.get("bits_right"),
        state,
        note,
    )


def _outcome(facts: Facts, update: Mapping[str, Any], version: Mapping[str, Any] | None) -> tuple[str, str]:
    if update["outcome"] == "update.interrupted":
        return "INTERRUPTED", str(update.get("message", ""))
    if version is None:
        return "TRAINED", "not registered yet"
    if version.get("blocked"):
        finding = (update.get("report") or {}).get("finding") or refusal(version.get("retention"))
        return "BLOCKED", str(finding or version["blocked"])
    rollout = facts.board.rollouts.get(version["version"])
    return (rollout.state.value, rollout.reason) if rollout else ("REGISTERED", "not queued")


def spending(facts: Facts) -> Spending:
    """What the ledger's entries say of this task."""
    charges = facts.charges()
    reports = [body.get("report") or {} for body in facts.updates.values()]
    figures = [report["epsilon"] for report in reports if report.get("epsilon") is not None]
    policies = [books.policy for books in facts.books.values() if books.policy and _ours(facts, books.charges)]
    policy = policies[-1] if policies else {}
    return Spending(
        private=bool(charges),
        epsilon=max(figures, default=None),
        delta=policy.get("target_delta"),
        budget=policy.get("target_epsilon"),
        charges=Counter(charge.state for charge in charges),
        events=sum(charge.count for charge in charges),
        refusals=sum(r.task == facts.task for books in facts.books.values() for r in books.refusals),
    )


def _ours(facts: Facts, charges: Mapping[str, Any]) -> bool:
    return any(charge.task == facts.task for charge in charges.values())
