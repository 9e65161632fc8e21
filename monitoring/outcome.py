"""Outcomes that depend on the decision: the randomised canary, compared by its assignment and not by its arms.

The increment is `(A - pi)(Y - m)`: A the arm (1 canary), pi the propensity it was drawn with, Y the outcome in [0, 1]
(more is worse), m a forecast of Y frozen before the assignment. Given the past its mean is `pi (1 - pi)` times the
effect, whatever the level of Y does, so weights may rise and levels drift while sums are kept: pooled arms would call
identical versions different. Robinson's score; Waudby-Smith et al., arXiv 2210.10768, times pi (1 - pi), and so in
[-1, 1] for every pi. A forecast that is wrong costs power, never validity; one that has seen the arm costs validity.

It knows arrays and sums. It does not know what an outcome is, whether its label is mature, nor which unit was drawn:
one observation a unit and step, its propensity given that it was not in the canary before, is the caller's part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monitoring.sequential import BETS, Betting, bet

Floats = NDArray[np.float64]
ROW = 6 + 2 * len(BETS)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The two tests on the same units, `promote` at one margin and `harm`, and `overlap`, the sum of pi (1 - pi).
    `+` merges the states of disjoint units; the size never grows."""

    promote: Betting = field(default_factory=Betting)
    harm: Betting = field(default_factory=Betting)
    overlap: float = 0.0

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(self.promote + other.promote, self.harm + other.harm, self.overlap + other.overlap)

    @property
    def n(self) -> int:
        return self.harm.n

    @property
    def effect(self) -> float | None:
        """Estimated effect of the candidate on the outcome (> 0: worse), units weighted by pi (1 - pi); None while
        no unit could have gone either way."""
        return self.harm.total / self.overlap if self.overlap > 0.0 else None

    def to_row(self) -> list[float]:
        """22 numbers for the journal: n, overlap, then total, squares and 8 logs of promote and of harm."""
        sums = [[test.total, test.squares, *test.logs] for test in (self.promote, self.harm)]
        return [float(self.n), self.overlap, *sums[0], *sums[1]]

    @classmethod
    def from_row(cls, row: Sequence[float]) -> Outcome:
        """The state again. ValueError on a row `to_row` cannot have written."""
        if len(row) != ROW:
            raise ValueError(f"a row of {len(row)} numbers where {ROW} are wanted: written by other bets, score anew")
        wrong = [value for value in row if not isfinite(value)]
        if wrong or row[0] < 0 or row[0] != int(row[0]) or not 0.0 <= row[1] <= row[0] * 0.2500001:
            raise ValueError(f"n {row[0]}, overlap {row[1]}, {len(wrong)} not finite: n whole, overlap in [0, n / 4] wanted")
        n, half = int(row[0]), 2 + len(BETS)
        tests = [Betting(tuple(part[2:]), n, part[0], part[1]) for part in (row[2 : 2 + half], row[2 + half :])]
        return cls(tests[0], tests[1], row[1])


def score_form(arm: ArrayLike, propensity: ArrayLike, outcome: ArrayLike, forecast: ArrayLike) -> Floats:
    """(A - pi)(Y - m) for each unit, shape (n,), in [-1, 1]; > 0 speaks against the candidate. Arm is 0 or 1, the
    others lie in [0, 1]; each is one value or n. ValueError names the first value outside its range."""
    a, pi, y, m = _units(arm, propensity, outcome, forecast)
    scores: Floats = (a - pi) * (y - m)
    return scores


def bets(
    arm: ArrayLike, propensity: ArrayLike, outcome: ArrayLike, forecast: ArrayLike, margin: float = 0.0
) -> Outcome:
    """The state after these units. Promote bets that the candidate is worse by less than `margin` (in units of the
    outcome, [0, 1]), harm that it is worse. A unit whose propensity is 0 or 1 adds nothing but its count."""
    if not 0.0 <= margin <= 1.0:
        raise ValueError(f"margin {margin} is outside [0, 1]: it is a difference of outcomes, which lie in [0, 1]")
    a, pi, y, m = _units(arm, propensity, outcome, forecast)
    scores, overlap = (a - pi) * (y - m), pi * (1.0 - pi)
    # in [-1, 1] as well: at A = 1 at most (1 - pi)(1 + pi margin) <= 1, at A = 0 at most pi (1 + (1 - pi) margin) <= 1
    promote = np.clip(overlap * margin - scores, -1.0, 1.0)
    return Outcome(bet(promote), bet(scores), float(overlap.sum()))


def _units(arm: ArrayLike, propensity: ArrayLike, outcome: ArrayLike, forecast: ArrayLike) -> tuple[Floats, ...]:
    names = ("arm", "propensity", "outcome", "forecast")
    given = [np.asarray(values, dtype=np.float64) for values in (arm, propensity, outcome, forecast)]
    sizes = {values.size for values in given if values.ndim}
    if any(values.ndim > 1 for values in given) or len(sizes) > 1:
        shapes = ", ".join(f"{name} {values.shape}" for name, values in zip(names, given, strict=True))
        raise ValueError(f"shapes {shapes}: one value a unit wanted, in the same order, or one for all")
    for name, values in zip(names, given, strict=True):
        wrong = values[~((values >= 0.0) & (values <= 1.0))]
        if wrong.size:
            cure = "divide by its largest value and clip" if name == "outcome" else "take it from the record"
            raise ValueError(f"{name} {wrong.flat[0]} is outside [0, 1]: {cure} before the test")
    a, pi, y, m = (np.atleast_1d(values) for values in np.broadcast_arrays(*given))
    if not np.all((a == 0.0) | (a == 1.0)):
        raise ValueError(f"arm {a[(a != 0.0) & (a != 1.0)][0]} is neither 0 (stable) nor 1 (canary)")
    if np.any(np.abs(a - pi) == 1.0):
        worst = int(np.flatnonzero(np.abs(a - pi) == 1.0)[0])
        raise ValueError(f"arm {a[worst]:g} at propensity {pi[worst]:g} cannot be drawn: leave the unit out and count it")
    return a, pi, y, m
