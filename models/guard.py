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

Kind = Literal["gradient_norm", "non_finite", "no_weight_change", "loss_change", "update_norm", "update_direction"]
SIZES, TURNS = 3, 8  # earlier updates from which a usual size, or a usual turn and its spread, can be told
Z = 3.0902323061678132  # 99.9 % quantile of N(0, 1)


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


def noise_deviation(sigma: float, clip: float, q: float, n: float) -> float:
    """Standard deviation of the noise on one coordinate of the mean gradient: sigma C / (q N)."""
    return sigma * clip / (q * n)


def denoised_norm(norm: float, dimensions: int, deviation: float) -> float:
    """The norm with the noise's expected share taken out: sqrt(max(0, |g|^2 - d s^2)).

    Under privacy the raw norm is mostly noise: 57 at 500 examples and 3,201 parameters, whatever the data.
    """
    return math.sqrt(max(0.0, norm**2 - dimensions * deviation**2))


def noisy_limit(limit: float, dimensions: int, deviation: float) -> float:
    """What `denoised_norm` exceeds in one step of a thousand when the true norm is exactly `limit`; >= limit.

    |g|^2 / s^2 is noncentral chi-square with d degrees and (limit / s)^2; its quantile by Sankaran (Biometrika 50,
    1963).
    """
    if deviation == 0.0 or dimensions == 0:
        return limit
    d, shift = float(dimensions), (limit / deviation) ** 2
    if not math.isfinite(shift * shift * d):
        return limit
    h = 1 - 2 / 3 * (d + shift) * (d + 3 * shift) / (d + 2 * shift) ** 2
    p = (d + 2 * shift) / (d + shift) ** 2
    m = (h - 1) * (1 - 3 * h)
    middle = 1 + h * p * (h - 1 - 0.5 * (2 - h) * m * p)
    width = h * math.sqrt(2 * p) * (1 + 0.5 * m * p)
    quantile = (d + shift) * (middle + Z * width) ** (1 / h)
    return max(limit, deviation * math.sqrt(max(0.0, quantile - d)))


def check_gradient_norm(
    norm: float,
    limit: float,
    window: str,
    *,
    dimensions: int = 0,
    deviation: float = 0.0,
    layers: Mapping[str, float] | None = None,
) -> Finding | None:
    """Finding when the norm, with the noise's share removed, exceeds the limit plus its 99.9 % noise quantile.

    `layers`: norms by layer, the largest of which is named.
    """
    figure = denoised_norm(norm, dimensions, deviation)
    allowed = noisy_limit(limit, dimensions, deviation)
    if figure <= allowed:
        return None
    noise = f" ({allowed:.3g} with the 99.9 % quantile of the noise)" if deviation else ""
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
                   f"{before:.4g} -> {after:.4g}) in window {window}: release blocked until a person clears it; "
                   "see docs/alarms.md#loss-change")


def check_update_norm(norm: float, earlier: Sequence[float], limit: float, window: str) -> Finding | None:
    """Finding when the update is more than `limit` times the median of the `earlier` ones' norms, of which it takes three."""
    usual = median(earlier) if len(earlier) >= SIZES else 0.0
    if usual <= 0.0 or norm <= limit * usual:
        return None
    times = norm / usual
    return Finding("update_norm", times, limit, f"update norm {norm:.3g} is {times:.3g} times the median of {len(earlier)} "
                   f"earlier ones ({usual:.3g}), beyond max_update_norm {limit:g} in window {window}: compare the window's "
                   "labels and drift with those before; see docs/training.md#update-norm")


def check_update_direction(cosine: float | None, earlier: Sequence[float], limit: float, window: str) -> Finding | None:
    """Finding when the update turns back along what was learnt, compared with how the `earlier` ones turned, of which it
    takes eight: `limit` deviations (1.48 times the median absolute one, at least 0.05) under their median.

    No fixed limit would do: noise around a base that fits has a cosine of -0.7, turned labels have one of -0.2. Steady
    updates are found by accident five times in a thousand with 8 earlier ones, 0.3 times with 20.
    """
    if cosine is None or len(earlier) < TURNS:
        return None
    usual = median(earlier)
    deviation = max(1.4826 * median(abs(one - usual) for one in earlier), 0.05)
    turn = (usual - cosine) / deviation
    if turn <= limit:
        return None
    return Finding("update_direction", turn, limit, f"cosine {cosine:.3g} of the update with all earlier ones together lies "
                   f"{turn:.3g} deviations under the usual {usual:.3g}, beyond max_update_turn {limit:g} in window {window}: "
                   "it undoes what was learnt; compare the window's labels with those before; see "
                   "docs/training.md#update-direction")
