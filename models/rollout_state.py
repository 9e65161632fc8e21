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
            "approvers": list(self.approvers), "reason": self.reason,
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
            }
        )
