"""Which arm answers a unit: a salted hash, no state, the same on every replica.

The canary owns the buckets `[0, weight)`, so raising the weight only ever moves units from stable to canary, never
back. It does not know what a unit is (an event id or a subject), nor why the weight has its value.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Arm = Literal["stable", "canary"]


@dataclass(frozen=True, slots=True)
class Routing:
    """Who gets which version in one epoch; body of `routing.set`. `salt` is the rollout's, so rollouts share no
    buckets."""

    epoch: int
    stable: str
    canary: str | None = None
    weight: float = 0.0
    salt: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight <= 1.0:  # also refuses NaN
            raise ValueError(f"routing weight {self.weight} is outside [0, 1] in epoch {self.epoch}")
        if self.weight > 0.0 and self.canary is None:
            raise ValueError(f"routing weight {self.weight} > 0 without a canary in epoch {self.epoch}")


def bucket(salt: str, unit: str) -> float:
    """The unit's place in [0, 1): the first 8 bytes of SHA-256(salt || unit) over 2^64."""
    digest = hashlib.sha256((salt + unit).encode()).digest()
    # 53 bits: a double cannot hold 64, and rounding up would make the largest bucket 1.0
    return (int.from_bytes(digest[:8], "big") >> 11) / 2.0**53


def arm(routing: Routing, unit: str) -> tuple[Arm, float]:
    """The arm of a unit and its propensity: the probability of *canary* at the moment of the decision, whatever arm
    fell."""
    if routing.canary is None or routing.weight == 0.0:
        return "stable", 0.0
    return ("canary" if bucket(routing.salt, unit) < routing.weight else "stable"), routing.weight
