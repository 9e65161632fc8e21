"""Retention: how much of a version's accuracy at a regime's birth is still there, and how sure that is.

Pure arithmetic on paired right-or-wrong answers to one golden set (declared-public history). It compares with the
anchor at birth, not with the predecessor: 0.995 a step would compound to 0.77 in a year. Whether a loss is enforced is
`RetentionConfig.protected`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Z = 1.6448536269514722  # 95 % quantile of N(0, 1): a one-sided bound


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
