"""What is known of one rollout at one moment, and its form in the journal.

It knows no rule: what may follow from a state is in `models/rollout.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from security.journal import stamp, unstamp


class State(StrEnum):
    QUEUED = "QUEUED"
    PREPARING = "PREPARING"
    SHADOW = "SHADOW"
    CANARY = "CANARY"
    PROMOTING = "PROMOTING"
    BAKING = "BAKING"
    ROLLING_BACK = "ROLLING_BACK"
    PROMOTED = "PROMOTED"
    REJECTED = "REJECTED"
    ROLLED_BACK = "ROLLED_BACK"
    EXPIRED = "EXPIRED"
    SUPERSEDED = "SUPERSEDED"
    WITHDRAWN = "WITHDRAWN"


TRAFFIC = frozenset({State.CANARY, State.PROMOTING, State.BAKING})
LIVE = TRAFFIC | {State.QUEUED, State.PREPARING, State.SHADOW, State.ROLLING_BACK}


@dataclass(frozen=True, slots=True)
class Taken:
    """A canary step that was entered: its harm test starts here, its guardrails count this routing epoch."""

    step: int
    weight: float
    epoch: int
    since: datetime


@dataclass(frozen=True, slots=True)
class Rollout:
    """One version's release. `step` counts canary steps from 0; -1 before the first. `against` is the stable it is
    tested on."""

    version: str
    number: int
    parent: str | None
    against: str
    state: State
    state_since: datetime
    evidence_since: datetime  # blocks from here on count: entry into SHADOW, or the last promotion of another version
    proposer: str = "pipeline"
    step: int = -1
    weight: float = 0.0
    epoch: int = 0  # routing epoch of the last change of weight
    taken: tuple[Taken, ...] = ()
    outcome: State = State.ROLLED_BACK  # where ROLLING_BACK ends
    paused: bool = False
    holds: tuple[str, ...] = ()
    watched: bool = False
    approvers: tuple[str, ...] = ()
    reason: str = "queued"
    policy: str = ""  # digest of the policy it was started under and keeps; "" before that
    attempt: int = 1  # of this version; `retry` begins the next, on the same evidence
    test: int = 1  # of the task within the calendar year, counted when it starts
    expires_from: datetime | None = None  # `max_age` counts from here; None: from `evidence_since`
    forecast: float | None = None  # mean outcome of stable's units before the first canary step: frozen there
    proven: bool = False  # better, at the last raise of the traffic or when it had baked

    @property
    def ages_from(self) -> datetime:
        return self.expires_from or self.evidence_since

    @property
    def salt(self) -> str:
        """Who is drawn into the canary follows from it: each attempt draws anew, else it would meet only users it had."""
        return self.version if self.attempt == 1 else f"{self.version} attempt {self.attempt}"

    @property
    def live(self) -> bool:
        return self.state in LIVE

    @property
    def scored(self) -> bool:
        """Whether each window is to be scored for this version."""
        return self.watched or self.state in TRAFFIC or self.state is State.SHADOW

    def to_body(self) -> dict[str, Any]:
        return {
            "version": self.version, "number": self.number, "parent": self.parent, "against": self.against,
            "state": self.state.value, "state_since": stamp(self.state_since),
            "evidence_since": stamp(self.evidence_since),
            "proposer": self.proposer, "step": self.step, "weight": self.weight, "epoch": self.epoch,
            "taken": [[t.step, t.weight, t.epoch, stamp(t.since)] for t in self.taken],
            "outcome": self.outcome.value, "paused": self.paused, "holds": list(self.holds), "watched": self.watched,
            "approvers": list(self.approvers), "reason": self.reason, "policy": self.policy, "attempt": self.attempt,
            "test": self.test, "expires_from": stamp(self.expires_from) if self.expires_from else None,
            "forecast": self.forecast, "proven": self.proven,
        }

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Rollout:
        return cls(
            **{
                **body,
                "state": State(body["state"]),
                "state_since": unstamp(body["state_since"]),
                "evidence_since": unstamp(body["evidence_since"]),
                "taken": tuple(Taken(step, weight, epoch, unstamp(at)) for step, weight, epoch, at in body["taken"]),
                "outcome": State(body["outcome"]),
                "holds": tuple(body["holds"]),
                "approvers": tuple(body["approvers"]),
                "expires_from": unstamp(body["expires_from"]) if body.get("expires_from") else None,
            }
        )
