"""Does the canary get the share of units that was planned? A beta-binomial e-process on two counts.

A share that is off means that the split, the record or the join loses units of one arm; whatever is compared then is
not two versions. The evidence is the probability of the arms under a Beta prior around the planned weight, divided by
that under the weight itself: a martingale while each unit is drawn with that weight, so it may be looked at always.
Lindon and Malek, arXiv 2011.03567 (Dirichlet-multinomial with two cells). A concentration of 100 expects a share
within about 3 points of a weight of 10 %: 15 % for 10 % shows after 700 units, 11 % after 15,000.

It knows counts. It does not know why a share is off, nor that a mismatch holds a rollout.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, inf, lgamma, log

from monitoring.sequential import LARGEST_EXPONENT

CONCENTRATION = 100.0
ALPHA = 0.001


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """Units drawn at one planned weight of the canary in [0, 1]. `+` merges the counts of disjoint units."""

    weight: float
    canary: int = 0
    stable: int = 0

    def __post_init__(self) -> None:
        if self.canary < 0 or self.stable < 0 or not 0.0 <= self.weight <= 1.0:
            raise ValueError(
                f"units {self.canary}/{self.stable}, weight {self.weight}: counts >= 0 and a weight in [0, 1] wanted"
            )

    def __add__(self, other: SampleRatio) -> SampleRatio:
        if other.weight != self.weight:
            raise ValueError(f"counts at weights {self.weight} and {other.weight} do not add up: use `together`")
        return SampleRatio(self.weight, self.canary + other.canary, self.stable + other.stable)

    @property
    def log_e(self) -> float:
        """An arm that cannot be drawn at all (weight 0 or 1) and was is proof: infinity."""
        if self.weight in (0.0, 1.0):
            impossible = self.canary if self.weight == 0.0 else self.stable
            return inf if impossible else 0.0
        a, b = CONCENTRATION * self.weight, CONCENTRATION * (1.0 - self.weight)
        drawn = _log_beta(a + self.canary, b + self.stable) - _log_beta(a, b)
        return drawn - self.canary * log(self.weight) - self.stable * log(1.0 - self.weight)

    @property
    def e_value(self) -> float:
        return exp(min(self.log_e, LARGEST_EXPONENT))


def sample_ratio(canary: int, stable: int, weight: float) -> float:
    """Evidence against the planned weight; `1 / ALPHA` = 1,000 or more is a mismatch. ValueError on impossible
    counts."""
    return SampleRatio(weight, canary, stable).e_value


def together(parts: Iterable[SampleRatio]) -> float:
    """Evidence over steps with different weights: each unit is drawn in one of them, so the figures multiply."""
    return exp(min(sum(part.log_e for part in parts), LARGEST_EXPONENT))


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
