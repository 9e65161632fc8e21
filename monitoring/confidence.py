"""The interval that belongs to the tests, for a page: it may be looked at always, like they.

`interval` inverts the betting test on block means: an m stays while neither "the mean is at most m" nor "at least m" is
refuted at alpha / 2. It lies above 0 exactly when the promote test without margin stands at 2 / alpha or more.
Waudby-Smith and Ramdas, arXiv 2010.09686. It contains the mean at every look with probability 1 - alpha when that mean
stays the same. Where it moves, each single value below (above) the average so far is refuted with probability alpha / 2
at most; the whole interval is then a description, and `effect_interval` the one with a proof.

`effect_interval` needs no more than the sums an `Outcome` keeps: for X in [-1, 1] and 0 < b < 1

    E exp(b (X - EX) - (-log(1 - b) - b) X^2) <= (1 + b EX) exp(-b EX) <= 1

(Fan, Grama and Liu, EJP 20 (2015) no. 1; Howard et al., arXiv 1810.08240), so the mean over b of
exp(b (S - sum EX) - psi(b) V) is a supermartingale of the sum S and the sum of squares V, whatever the means do.

It knows numbers only, and decides nothing.
"""

from __future__ import annotations

from math import log, log1p

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monitoring.outcome import Outcome
from monitoring.sequential import BETS, log_mean_exp

HALVINGS = 22  # of a width of 2: the ends are rounded outwards by less than 1e-6 of the cap


def interval(means: ArrayLike, cap: float, alpha: float = 0.05) -> tuple[float, float]:
    """Two-sided confidence sequence at this look for the mean of `means`, shape (n,), clipped to [-cap, cap], in their
    unit. (-cap, cap) before there is evidence. ValueError on a mean that is no number, a cap <= 0 or alpha outside
    (0, 1)."""
    values = np.asarray(means, dtype=np.float64).ravel()
    if not cap > 0.0 or not 0.0 < alpha < 1.0:
        raise ValueError(f"cap {cap}, alpha {alpha}: a cap above 0 and an alpha in (0, 1) wanted")
    if np.isnan(values).any():
        bad = int(np.isnan(values).sum())
        raise ValueError(f"{bad} of {values.size} block means are no numbers: leave them out, knowingly")
    x = np.clip(values / cap, -1.0, 1.0)
    low, high = _lowest(np.stack([x, -x]), log(2.0 / alpha))
    return float(low * cap), float(-high * cap)


def _lowest(x: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """For each row the least m in [-1, 1] that "the mean is at most m" is not refuted for, rounded down."""
    low, high = np.full(len(x), -1.0), np.full(len(x), 1.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2.0
        refuted = _log_e(x, middle) >= limit
        low, high = np.where(refuted, middle, low), np.where(refuted, high, middle)
    return low


def _log_e(x: NDArray[np.float64], m: NDArray[np.float64]) -> NDArray[np.float64]:
    """log E of the test "mean <= m" on each row, bet on (X - m) / (1 + m): X itself at m = 0, never below -1, so that
    no bet can lose all, and falling in m, so that halving finds the end."""
    shifted = (x - m[:, None]) / (1.0 + m[:, None])
    logs = np.log1p(np.multiply.outer(np.array(BETS), shifted)).sum(axis=2)
    top: NDArray[np.float64] = logs.max(axis=0)
    return top + np.log(np.exp(logs - top).mean(axis=0))


def effect_interval(outcome: Outcome, alpha: float = 0.05) -> tuple[float, float]:
    """Confidence sequence for the average effect of the candidate on the outcome over the units so far, weighted by
    pi (1 - pi); > 0: worse. (-1, 1) before there is evidence. Wider than the tests are sharp: it is for reading."""
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha {alpha} is outside (0, 1): 0.05 leaves the effect out in one rollout of twenty")
    effect = outcome.effect
    if effect is None:
        return -1.0, 1.0
    radius = _radius(outcome.harm.squares, log(2.0 / alpha)) / outcome.overlap
    return max(-1.0, effect - radius), min(1.0, effect + radius)


def _radius(squares: float, limit: float) -> float:
    """The least distance of a sum from its mean that refutes the mean, given the sum of squares."""
    losses = [(-log1p(-b) - b) * squares for b in BETS]
    low, high = 0.0, min((limit + log(len(BETS)) + loss) / b for b, loss in zip(BETS, losses, strict=True))
    for _ in range(60):
        middle = (low + high) / 2.0
        refuted = log_mean_exp(tuple(b * middle - loss for b, loss in zip(BETS, losses, strict=True))) >= limit
        low, high = (low, middle) if refuted else (middle, high)
    return high
