"""Off-policy estimates: what another policy would have earned, from a log of decisions that were drawn with known probability.

A row is one decision: its reward, the probability with which the logging policy took it (propensity) and the probability
with which the policy in question would have taken it. Their ratio w is clipped, since one row must not speak for hundreds.

* IPS: mean of w r (Horvitz and Thompson 1952). Without clipping unbiased; with it and rewards >= 0 never too high on average.
* clipped SNIPS: sum of w r / sum of w (Swaminathan and Joachims 2015). Keeps the reward's range; what ranks policies.
* doubly robust: mean of m(x, policy) + w (r - m(x, a)) (Dudik, Langford and Li, arXiv 1103.4601). Without clipping unbiased if
  either the propensities or the reward model m are right; the figure to show beside the rank.

State of an estimate = sums: rows may come in any order and in parts. It knows arrays. It does not know versions, where a log
comes from, nor what follows from an order: an estimate picks what is tried next and is never evidence in a rollout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

CLIP = 20.0
LEAST_EFFECTIVE = 200.0
Z = 1.959964  # of a 95 % interval
# The mean weight is 1 where the log supports the policy. Beyond 4 standard errors (by chance once in 16,000 logs) it is not;
# 0.02 is left to propensities that were rounded before they were logged.
SUPPORT_ERRORS, SUPPORT_SLACK = 4.0, 0.02
ADDED = ("n", "clipped", "raw", "raw_squares", "w", "ww", "wr", "wwr", "wwrr", "robust", "robust_squares")

Floats = NDArray[np.float64]


class Refused(ValueError):
    """The log is sound, but cannot carry this estimate."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean reward with its normal 95 % interval, in the reward's unit. `lost` is the share of weight clipping took away."""

    value: float
    low: float
    high: float
    effective: float
    lost: float
    n: int


@dataclass(frozen=True, slots=True)
class Sums:
    """The state of the estimates of one policy: powers of clipped weight w and reward r; `+` merges disjoint rows."""

    clip: float
    modelled: bool
    n: int = 0
    clipped: int = 0
    raw: float = 0.0  # weights before clipping
    raw_squares: float = 0.0
    w: float = 0.0
    ww: float = 0.0
    wr: float = 0.0
    wwr: float = 0.0
    wwrr: float = 0.0
    robust: float = 0.0  # m(x, policy) + w (r - m(x, a)); 0 without a model
    robust_squares: float = 0.0
    least: float = inf  # reward among rows that have weight
    most: float = -inf

    def __add__(self, other: Sums) -> Sums:
        if (self.clip, self.modelled) != (other.clip, other.modelled):
            raise ValueError(
                f"clip {self.clip:g}, model {self.modelled} and clip {other.clip:g}, model {other.modelled} do not add up: "
                "weigh all rows alike"
            )
        added = {name: getattr(self, name) + getattr(other, name) for name in ADDED}
        return replace(self, **added, least=min(self.least, other.least), most=max(self.most, other.most))

    @property
    def effective(self) -> float:
        """Kish's effective sample (sum w)^2 / sum w^2: this many equal weights would be as precise."""
        return self.w * self.w / self.ww if self.ww else 0.0

    def ips(self) -> Estimate:
        """Mean of w r. Raises Refused."""
        return self._mean(self.wr, self.wwrr)

    def snips(self) -> Estimate:
        """Sum of w r over sum of w; its error by the delta method, sum w^2 (r - v)^2 / (sum w)^2. Raises Refused."""
        self._bear()
        value = self.wr / self.w
        spread = self.wwrr - 2.0 * value * self.wwr + value * value * self.ww
        return self._estimate(value, sqrt(max(spread, 0.0)) / self.w)

    def doubly_robust(self) -> Estimate:
        """Raises Refused, and ValueError where the rows were weighed without a reward model."""
        if not self.modelled:
            raise ValueError("doubly robust needs a reward model: give `model` to weigh(), or take snips()")
        return self._mean(self.robust, self.robust_squares)

    def _mean(self, total: float, squares: float) -> Estimate:
        self._bear()
        value = total / self.n
        return self._estimate(value, _error_of_mean(self.n, total, squares))

    def _estimate(self, value: float, error: float) -> Estimate:
        lost = 1.0 - self.w / self.raw
        return Estimate(value, value - Z * error, value + Z * error, self.effective, lost, self.n)

    def _bear(self) -> None:
        """Raises Refused with the reason why these rows carry no estimate."""
        if self.w == 0.0:
            raise Refused(f"the policy takes none of the {self.n} logged actions: the log says nothing about it")
        if self.effective < LEAST_EFFECTIVE:
            raise Refused(
                f"effective sample {self.effective:.0f} of {self.n} rows < {LEAST_EFFECTIVE:.0f}: log more decisions, or more "
                "exploration of what this policy does"
            )
        if self.least == self.most:
            raise Refused(
                f"every row that counts has reward {self.least:g}: an interval of width 0 would be a lie; log more decisions"
            )
        mean, error = self.raw / self.n, _error_of_mean(self.n, self.raw, self.raw_squares)
        if not abs(mean - 1.0) <= max(SUPPORT_ERRORS * error, SUPPORT_SLACK):  # also when a weight overflowed
            raise Refused(
                f"the mean weight is {mean:.3f} +- {error:.3f}, where the log supports the policy it is 1: the policy takes "
                "actions the log never took, or propensities are wrong"
            )


def _error_of_mean(n: int, total: float, squares: float) -> float:
    return sqrt(max(squares - total * total / n, 0.0) / (n - 1) / n) if n > 1 else inf


def weigh(
    reward: ArrayLike,
    policy: ArrayLike,
    propensity: ArrayLike,
    *,
    model: tuple[ArrayLike, ArrayLike] | None = None,
    clip: float = CLIP,
) -> Sums:
    """The state after n rows; all arrays (n,).

    `policy` and `propensity` are the probabilities of the logged action under the policy in question, in [0, 1], and under
    the one that logged it, in (0, 1]. `model` is what a reward model (learnt on other rows) expects of the logged action and,
    on average over its actions, of the policy. `clip` >= 1; infinite leaves the weights alone. ValueError otherwise.
    """
    if not clip >= 1.0:
        raise ValueError(f"clip {clip} < 1 would shrink the weights of the logging policy itself: 20 is usual")
    columns = {"reward": reward, "policy": policy, "propensity": propensity}
    if model is not None:
        columns |= {"model of the logged action": model[0], "model of the policy": model[1]}
    r, target, logged, *modelled = _sound(columns)
    raw = target / logged
    w = np.minimum(raw, clip)
    robust = modelled[1] + w * (r - modelled[0]) if modelled else np.zeros(0)
    counted = r[raw > 0]
    return Sums(
        clip, model is not None, r.size, int(np.sum(raw > clip)), _sum(raw), _sum(raw * raw),
        _sum(w), _sum(w * w), _sum(w * r), _sum(w * w * r), _sum(w * w * r * r), _sum(robust), _sum(robust * robust),
        float(counted.min(initial=inf)), float(counted.max(initial=-inf)),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ranked:
    """One policy's place. Without estimates `refusal` says why."""

    name: str
    effective: float
    snips: Estimate | None = None
    robust: Estimate | None = None
    refusal: str = ""


def rank(policies: Mapping[str, Sums]) -> list[Ranked]:
    """By clipped SNIPS, most reward first; refused ones last. Estimates of one log err together: the first of many is the
    luckiest as well, so that its figure is too high on average.
    """
    return sorted((_place(*each) for each in policies.items()), key=lambda one: -one.snips.value if one.snips else inf)


def _place(name: str, sums: Sums) -> Ranked:
    try:
        return Ranked(name, sums.effective, sums.snips(), sums.doubly_robust() if sums.modelled else None)
    except Refused as refused:
        return Ranked(name, sums.effective, refusal=str(refused))


def probability_of(action: ArrayLike, policy: ArrayLike) -> Floats:
    """What `policy`, (k,) or (n, k) with rows that sum to 1, gives the logged actions (n,), numbers 0 to k - 1.

    Refused when the policy takes an action that was never logged; ValueError for what is no policy or no action of it.
    """
    chosen, table = np.asarray(action), np.atleast_2d(np.asarray(policy, dtype=np.float64))
    k = table.shape[-1]
    whole = chosen.ndim == 1 and np.issubdtype(chosen.dtype, np.integer)
    if not whole or table.ndim != 2 or len(table) not in (1, chosen.size):
        said = f"actions {chosen.dtype} {chosen.shape}, policy {table.shape}"
        raise ValueError(f"{said}: integers (n,) and probabilities (k,) or (n, k) wanted")
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < k):
        raise ValueError(f"actions from {chosen.min()} to {chosen.max()}: the policy has actions 0 to {k - 1}")
    if not (np.all(table >= 0.0) and np.allclose(table.sum(axis=1), 1.0, atol=1e-6)):
        raise ValueError("each row of the policy is probabilities >= 0 that sum to 1; a row is not")
    alone = np.setdiff1d(np.flatnonzero(table.max(axis=0) > 0.0), chosen)
    if alone.size:
        shown = ", ".join(map(str, alone[:5].tolist())) + (", ..." if alone.size > 5 else "")
        raise Refused(f"{alone.size} of {k} actions of the policy were never logged: {shown}; what they earn is not in the log")
    found: Floats = np.broadcast_to(table, (chosen.size, k))[np.arange(chosen.size), chosen]
    return found


def _sound(columns: dict[str, ArrayLike]) -> list[Floats]:
    found = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    shapes = {values.shape for values in found.values()}
    size = found["reward"].size
    if len(shapes) != 1 or found["reward"].ndim != 1 or not size:
        said = ", ".join(f"{name} {values.shape}" for name, values in found.items())
        raise ValueError(f"{said}: one value a logged decision wanted, at least one decision")
    for name, values in found.items():
        sound, wanted = np.isfinite(values), "a finite number"
        if name == "propensity":
            sound, wanted = (values > 0.0) & (values <= 1.0), "above 0 and at most 1"
        elif name == "policy":
            sound, wanted = (values >= 0.0) & (values <= 1.0), "from 0 to 1"
        if not sound.all():
            first = int(np.argmin(sound))
            raise ValueError(
                f"{name} of row {first} is {values[first]:g}, {wanted} wanted ({(~sound).sum()} of {size} rows): log it as it "
                "was, or leave out every decision of that kind"
            )
    return list(found.values())


def _sum(values: Floats) -> float:
    return float(values.sum())
