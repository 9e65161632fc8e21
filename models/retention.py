"""Retention: how much of a version's accuracy at a regime's birth is still there, and how sure that is.

Pure arithmetic on paired right-or-wrong answers to one golden set. It compares with the anchor at birth, not with the
predecessor: 0.995 a step would compound to 0.77 in a year. It also knows what a version's report says of its regimes,
{regime: figures}, and not where a golden set or an anchor comes from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Z = 1.6448536269514722  # 95 % quantile of N(0, 1): a one-sided bound
HISTORY = "history"  # the regime of a task with one golden set: what the base was trained on

# What is told of a golden set nobody has measured yet; twelve weekly updates of the flights flipped 5 to 10 %.
ASSUMED_FLIPS, ASSUMED_ACCURACY = 0.08, 0.8


@dataclass(frozen=True, slots=True)
class Retention:
    """`value` = accuracy after / at birth; with 95 % confidence at least `bound`. `lost`, `gained`: answers that
    flipped.
    """

    value: float
    bound: float
    accuracy: float
    accuracy_at_birth: float
    rows: int
    lost: int
    gained: int

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return asdict(self)


def measure(after: np.ndarray, birth: np.ndarray) -> Retention:
    """Retention from two boolean arrays (n,): was row i answered rightly now, and at birth.

    The bound is Bonett & Price's for paired proportions (Statistics in Medicine 31, 2012: one is added to each kind of
    flip, so that no flip at all still leaves doubt), divided by the accuracy at birth. Raises ValueError for unpaired
    or empty arrays, or when nothing was right at birth.
    """
    if after.shape != birth.shape or after.ndim != 1 or not after.size:
        raise ValueError(f"golden answers of shape {after.shape} and {birth.shape}: both must be (n,), n > 0")
    rows, right_then = after.size, int(birth.sum())
    if not right_then:
        raise ValueError(f"0 of {rows} golden answers were right at birth: choose a better golden set")
    lost, gained = int((birth & ~after).sum()), int((~birth & after).sum())
    down, up = (lost + 1) / (rows + 2), (gained + 1) / (rows + 2)
    spread = math.sqrt((down + up - (up - down) ** 2) / (rows + 2))
    then = right_then / rows
    return Retention(
        value=int(after.sum()) / right_then,
        bound=max(0.0, 1 + (up - down - Z * spread) / then),
        accuracy=int(after.sum()) / rows,
        accuracy_at_birth=then,
        rows=rows,
        lost=lost,
        gained=gained,
    )


def rows_needed(flipped_share: float, floor: float, accuracy: float) -> int:
    """Golden rows at which an unchanged accuracy with this share of flipped answers just clears `floor`.

    (1.645 / ((1 - floor) accuracy))^2 x share: about 169,000 x share at 0.995 and accuracy 0.8.
    """
    return math.ceil((Z / ((1 - floor) * accuracy)) ** 2 * flipped_share)


def resolvable(rows: int, flipped_share: float, accuracy: float) -> float:
    """The highest floor that an unchanged accuracy still clears on so many rows: `bound` with as many gained as lost."""
    return max(0.0, 1 - Z * math.sqrt(flipped_share * rows + 2) / (rows + 2) / accuracy)


def size_told(regime: str, rows: int, floor: float, measured: Mapping[str, Any] | None = None) -> tuple[bool, str]:
    """Whether a golden set can show the floor at all, and a sentence of it. `measured`: figures of a version, if any."""
    share, accuracy, known = ASSUMED_FLIPS, ASSUMED_ACCURACY, "assumed"
    if measured and measured.get("rows"):
        share, known = (measured["lost"] + measured["gained"]) / measured["rows"], "measured"
        accuracy = measured["accuracy_at_birth"]
    best = resolvable(rows, share, accuracy)
    found = f"golden set {regime!r}: {rows:,} rows can show a retention of {best:.4f} where {share:.1%} of answers flip"
    about = f"{found} ({known})"
    if best >= floor:
        return True, about
    return False, f"{about}; the floor {floor:g} needs about {rows_needed(share, floor, accuracy):,} rows"


def by_regime(told: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """What a version's entry says, by regime; older entries have the figures of one golden set only."""
    if not told:
        return {}
    return {HISTORY: told} if isinstance(told.get("value"), int | float) else dict(told)


def newest(versions: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """What the newest of these entries, in order of registration, says by regime; {} before the first."""
    return by_regime(list(versions.values())[-1]["retention"]) if versions else {}


def worst(told: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The figures of the regime that kept least; {} when none was measured."""
    measured = [figures for figures in by_regime(told).values() if figures.get("value") is not None]
    return min(measured, key=lambda figures: float(figures["value"]), default={})


def refusal(told: Mapping[str, Any] | None) -> str | None:
    """Why a version must not be released: what its entry says of protected regimes that were lost. None: it may be."""
    lost = [str(figures["refused"]) for figures in by_regime(told).values() if figures.get("refused")]
    return "; ".join(lost) or None


def retention_told(regime: str, figures: Mapping[str, Any]) -> str:
    """One regime in a line."""
    if figures.get("value") is None:
        return f"{regime}: {figures.get('error', 'not measured')}"
    return f"{regime} {figures['value']:.4f}, at least {figures['bound']:.4f} on {figures['rows']:,} rows"


def refused(regime: str, kept: Retention, floor: float) -> str | None:
    """The sentence for a protected regime whose bound is below its floor, else None."""
    if kept.bound >= floor:
        return None
    enough, told = size_told(regime, kept.rows, floor, kept.as_dict())
    size = "" if enough else f"; {told}"
    return (
        f"retention of protected regime {regime!r} {kept.value:.4f}, with 95 % confidence only >= {kept.bound:.4f} < floor "
        f"{floor:g} ({kept.lost} answers lost, {kept.gained} gained of {kept.rows:,}): not released{size}; see "
        "docs/alarms.md#retention"
    )


def correct(answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Which answers (n,) are right, bool (n,): a class equals the truth, a probability is on the truth's side of one
    half.

    Raises ValueError when the truth is neither 0/1 nor a class: retention is defined on accuracy.
    """
    if np.issubdtype(answers.dtype, np.floating):
        if not np.isin(truth, (0, 1)).all():
            raise ValueError(f"answers are numbers and the truth is not 0 or 1 (e.g. {truth[:3]}): retention needs "
                             "classes; leave golden data out for this task")
        return np.asarray((answers >= 0.5) == (truth == 1))
    return np.asarray(answers == truth)
