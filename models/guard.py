"""When training must stop, and what a person must look at: pure functions from figures to findings.

Knows the limits and the arithmetic of removing privacy noise from a norm; takes no tensor, trains nothing and raises
no alarm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Kind = Literal["gradient_norm", "non_finite", "no_weight_change", "loss_change", "update_norm", "update_direction",
               "poisoning"]
SIZES, TURNS = 3, 8  # earlier updates from which a usual size, or a usual turn and its spread, can be told
# Noise alone stops one step in 1e10 at most: with 36 steps an hour, once in 30,000 years.
TAIL = math.log(1e10)


@dataclass(frozen=True, slots=True)
class Finding:
    """A figure beyond its limit; `message` carries both and the place of the cure."""

    kind: Kind
    figure: float
    limit: float
    message: str


class UpdateInterrupted(Exception):
    """The guard stopped this update: nothing may be released, a privacy charge stays spent."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.kind, self.figure, self.limit = finding.kind, finding.figure, finding.limit


def interrupt(finding: Finding | None) -> None:
    """Raise UpdateInterrupted for a finding."""
    if finding is not None:
        raise UpdateInterrupted(finding)


def denoised_norm(norm: float, dimensions: int, deviation: float) -> float:
    """The norm with the noise's expected share taken out: sqrt(max(0, |g|^2 - d s^2)).

    Under privacy the raw norm is mostly noise: 57 at 500 examples and 3,201 parameters, whatever the data.
    """
    return math.sqrt(max(0.0, norm**2 - dimensions * deviation**2))


def noisy_limit(limit: float, dimensions: int, deviation: float) -> float:
    """What `denoised_norm` exceeds at most once in 1e10 steps while the true norm is within `limit`; >= limit.

    |g|^2 / s^2 is noncentral chi-square with d degrees and l = (norm / s)^2, and P(X >= d + l + 2 sqrt((d + 2 l) x) + 2 x)
    <= exp(-x) for all d and l (Birge 2001, Lemma 8.1). Between 0 and 17 % above the exact quantile, 5 % at d = 3,201.
    """
    square, variance = limit * limit, deviation * deviation
    spread = 2.0 * deviation * math.sqrt((dimensions * variance + 2.0 * square) * TAIL)
    return math.sqrt(square + spread + 2.0 * TAIL * variance)


def check_gradient_norm(
    norm: float,
    limit: float,
    window: str,
    *,
    dimensions: int = 0,
    deviation: float = 0.0,
    layers: Mapping[str, float] | None = None,
) -> Finding | None:
    """Finding when the norm, with the noise's share removed, exceeds the limit and what noise may add to it.

    `layers`: norms by layer, the largest of which is named.
    """
    figure = denoised_norm(norm, dimensions, deviation)
    allowed = noisy_limit(limit, dimensions, deviation)
    if figure <= allowed:
        return None
    noise = f" ({allowed:.3g} with what noise may add)" if deviation else ""
    largest = max(layers, key=layers.__getitem__) if layers else None
    where = f", largest in layer {largest!r} ({layers[largest]:.3g})," if layers and largest is not None else ""
    return Finding("gradient_norm", figure, allowed, f"gradient norm {figure:.3g} > max_gradient_norm {limit:g}{noise}{where} "
                   f"in window {window}: update interrupted, nothing released; see docs/alarms.md#gradient-norm")


def check_finite(not_finite: int, what: str, window: str) -> Finding | None:
    """Finding when any value of `what` is NaN or infinite."""
    if not not_finite:
        return None
    return Finding("non_finite", float(not_finite), 0.0, f"{not_finite} non-finite values > 0 allowed in {what} in "
                   f"window {window}: update interrupted, nothing released; see docs/alarms.md#non-finite")


def check_losses(lost: int, window: str) -> Finding | None:
    """Finding when examples had a finite loss before the update and have none after it."""
    if not lost:
        return None
    return Finding("non_finite", float(lost), 0.0, f"{lost} examples > 0 allowed have no finite loss any more after the "
                   f"update in window {window}: this version is never released; see docs/alarms.md#non-finite")


def check_weight_change(delta: float, what: str, window: str) -> Finding | None:
    """Finding when training moved nothing: private training that silently changes nothing is a known failure."""
    if delta > 0.0:
        return None
    return Finding("no_weight_change", delta, 0.0, f"weight change {delta:g} of {what} is not > 0 in window {window}: "
                   "update interrupted, nothing released; see docs/alarms.md#no-weight-change")


def loss_change(before: float, after: float) -> float:
    """(after - before) / |before|: +0.5 = half as much again. A loss before of 0 counts as 1e-12."""
    return (after - before) / max(abs(before), 1e-12)


def check_loss_change(before: float, after: float, limit: float, window: str) -> Finding | None:
    """Finding when the loss moved by more than `limit` either way: a great gain on one window is as suspicious as a
    loss.
    """
    change = loss_change(before, after)
    if abs(change) <= limit:
        return None
    return Finding("loss_change", change, limit, f"loss change {change:+.3g} beyond max_loss_change {limit:g} (loss "
                   f"{before:.4g} -> {after:.4g}) in window {window}: this version is never released, the next may be; "
                   "see docs/alarms.md#loss-change")


def check_update_norm(
    norm: float, earlier: Sequence[float], limit: float, window: str, *, dimensions: int = 0, deviation: float = 0.0
) -> Finding | None:
    """Finding when the update is more than `limit` times the median of the `earlier` ones' norms, of which it takes three.

    `deviation` of the privacy noise in each of `dimensions` weights: its share is removed, and what it may add is allowed. A
    window with few examples has many times the noise of the one before.
    """
    usual = median(earlier) if len(earlier) >= SIZES else 0.0
    figure, allowed = denoised_norm(norm, dimensions, deviation), noisy_limit(limit * usual, dimensions, deviation)
    if usual <= 0.0 or figure <= allowed:
        return None
    times = figure / usual
    noise = f" ({allowed / usual:.3g} with what noise may add)" if deviation else ""
    return Finding("update_norm", times, allowed / usual, f"update norm {figure:.3g} is {times:.3g} times the median of "
                   f"{len(earlier)} earlier ones ({usual:.3g}), beyond max_update_norm {limit:g}{noise} in window {window}: "
                   "compare the window's labels and drift with those before; see docs/training.md#update-norm")


def check_update_direction(
    cosine: float | None, earlier: Sequence[float], limit: float, window: str, *, dimensions: int = 0
) -> Finding | None:
    """Finding when the update turns back along what was learnt, compared with how the `earlier` ones turned, of which it
    takes eight: `limit` deviations (1.48 times the median absolute one, at least 0.05) under their median.

    No fixed limit would do: noise around a base that fits has a cosine of -0.7, turned labels have one of -0.2. Steady
    updates are found by accident five times in a thousand with 8 earlier ones, 0.3 times with 20. Under privacy, say how many
    `dimensions` there are: turns of pure noise have a deviation of 1 / sqrt(d), and none is taken for smaller.
    """
    if cosine is None or len(earlier) < TURNS:
        return None
    usual, random = median(earlier), 1.0 / math.sqrt(dimensions) if dimensions else 0.0
    deviation = max(1.4826 * median(abs(one - usual) for one in earlier), 0.05, random)
    turn = (usual - cosine) / deviation
    if turn <= limit:
        return None
    return Finding("update_direction", turn, limit, f"cosine {cosine:.3g} of the update with all earlier ones together lies "
                   f"{turn:.3g} deviations under the usual {usual:.3g}, beyond max_update_turn {limit:g} in window {window}: "
                   "it undoes what was learnt; compare the window's labels with those before; see "
                   "docs/training.md#update-direction")
