"""Tests that stay valid however often they are looked at: the betting e-process and the guardrail on events.

`E = mean_j prod_t (1 + bet_j X_t)` with X in [-1, 1] and bets fixed before the first observation. While the null
holds (`E[X_t | past] <= 0`) E is a nonnegative supermartingale that starts at 1, so it ever reaches 1/alpha with
probability at most alpha (Ville). Bets that never change make log E a sum: observations may come in any order, in
parts, or again from a replay, and the figure is the same. Waudby-Smith and Ramdas, arXiv 2010.09686 (mixture form).

It knows numbers only. It does not know what an observation is, what a version is, nor what follows from a figure.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, log1p

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Wide on purpose: block means of +.04 nats under a cap of .1 are won by the large bets, means of +.005 by the small
# ones; 16 bets decide no earlier than 8 (2,247 against 2,286 samples at the median).
BETS = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)
RELATIVE_RISKS = (1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
LARGEST_EXPONENT = 700.0  # exp(709.8) is the last finite double; the journal holds no infinity


@dataclass(frozen=True, slots=True)
class Betting:
    """The state of one test: 8 log-products, count, sum, sum of squares. `+` merges the states of disjoint
    observations."""

    logs: tuple[float, ...] = (0.0,) * len(BETS)
    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: Betting) -> Betting:
        logs = tuple(a + b for a, b in zip(self.logs, other.logs, strict=True))
        return Betting(logs, self.n + other.n, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        return self.total / self.n if self.n else 0.0

    @property
    def log_e(self) -> float:
        return log_mean_exp(self.logs)

    @property
    def e_value(self) -> float:
        return exp(min(self.log_e, LARGEST_EXPONENT))


def bet(x: ArrayLike) -> Betting:
    """The state after observations x, shape (n,), each in [-1, 1]. ValueError on NaN or outside: clip first,
    knowingly."""
    values = np.asarray(x, dtype=np.float64).ravel()
    if not np.all(np.abs(values) <= 1.0):
        worst = values[~(np.abs(values) <= 1.0)][0]
        raise ValueError(f"observation {worst} is outside [-1, 1]: divide by the cap and clip before the test")
    logs = np.log1p(np.outer(BETS, values)).sum(axis=1)
    return Betting(tuple(logs.tolist()), values.size, float(values.sum()), float(np.square(values).sum()))


def path(x: ArrayLike) -> NDArray[np.float64]:
    """log E after each observation along the last axis of x, shape (..., n): every look at once, for simulations."""
    values = np.asarray(x, dtype=np.float64)
    logs = np.stack([np.cumsum(np.log1p(bet_ * values), axis=-1) for bet_ in BETS])
    top = logs.max(axis=0)
    result: NDArray[np.float64] = top + np.log(np.exp(logs - top).mean(axis=0))
    return result


def largest_e(n: int) -> float:
    """What n observations can reach at best, all of them +1: a policy whose threshold lies above can never promote."""
    return exp(min(log_mean_exp(tuple(n * log1p(b) for b in BETS)), LARGEST_EXPONENT))


def log_mean_exp(logs: tuple[float, ...]) -> float:
    top = max(logs)
    return top + log(sum(exp(v - top) for v in logs) / len(logs))


@dataclass(frozen=True, slots=True)
class Attribution:
    """Given that an event (an error, a slow request) happened: in which arm? One log-ratio for each relative risk.

    Under relative risk r and canary weight w an event falls in the canary with probability r w / (r w + 1 - w),
    whatever the rate of events is, so an incident that hits both arms, or a drift of the rate, cancels. The null is
    risk <= r0. Lindon and Malek, arXiv 2011.03567. Steps with different weights add up: each event carries its own
    weight.
    """

    logs: tuple[float, ...] = (0.0,) * len(RELATIVE_RISKS)
    canary: int = 0
    stable: int = 0

    def __add__(self, other: Attribution) -> Attribution:
        logs = tuple(a + b for a, b in zip(self.logs, other.logs, strict=True))
        return Attribution(logs, self.canary + other.canary, self.stable + other.stable)

    @property
    def e_value(self) -> float:
        return exp(min(log_mean_exp(self.logs), LARGEST_EXPONENT))


def attribute(canary: int, stable: int, weight: float, r0: float = 1.2) -> Attribution:
    """The state after `canary` and `stable` events at one canary weight in [0, 1]. At 0 and at 1 nothing can be
    learnt."""
    if canary < 0 or stable < 0 or not 0.0 <= weight <= 1.0 or r0 <= 0.0:
        raise ValueError(
            f"events {canary}/{stable}, weight {weight}, r0 {r0}: counts >= 0, weight in [0, 1], r0 > 0 wanted"
        )
    if weight in (0.0, 1.0):
        return Attribution(canary=canary, stable=stable)
    null = r0 * weight + 1.0 - weight
    logs = []
    for ratio in RELATIVE_RISKS:
        denominator = ratio * r0 * weight + 1.0 - weight
        logs.append(canary * log(ratio * null / denominator) + stable * log(null / denominator))
    return Attribution(tuple(logs), canary, stable)
