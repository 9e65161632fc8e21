"""Two samples of one feature: how far apart, and how surprising. Formulas only, in numpy and scipy's special functions.

It does not know features, windows or limits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from monitoring.reference import Floats

SMALLEST_EXPECTED = 5.0  # the usual floor for a cell of a chi-square test; rarer categories are pooled


def ks_distance(reference: Floats, window: Floats) -> float:
    """The largest gap between two distribution functions; both samples sorted. Exact with ties: between two values of
    the window its function is flat, so the largest gap lies at a value, or just below one."""
    n, m = len(reference), len(window)
    gaps = [
        np.searchsorted(reference, window, side) / n - np.searchsorted(window, window, side) / m
        for side in ("left", "right")
    ]
    return float(np.max(np.abs(gaps)))


def kolmogorov_p(distance: float, n: int, m: int) -> float:
    """p of the two-sample distance by Kolmogorov's law, with Stephens' correction for small samples (1970)."""
    from scipy.special import kolmogorov

    root = math.sqrt(n * m / (n + m))
    return float(kolmogorov((root + 0.12 + 0.11 / root) * distance))


def wasserstein(reference: Floats, window: Floats) -> float:
    """The W1 distance of two sorted samples: mean gap between the window's values and the reference's same quantiles
    (midpoint rule: off by at most the reference's range / rows).

    Its noise floor is about 1.2 standard deviations / sqrt(rows): read it beside p, never alone.
    """
    level = (np.arange(len(window)) + 0.5) / len(window)
    return float(np.mean(np.abs(reference[(level * len(reference)).astype(int)] - window)))


def homogeneity_p(ours: Floats, theirs: Floats) -> float:
    """p of a 2 x k table of counts: Pearson's chi-square with rare categories pooled.

    Where even the pool expects fewer than 5 (a category hardly ever seen before), its count is tested by its binomial
    tail instead, with Bonferroni for the two looks: a chi-square would call one new row in a thousand a wonder.
    """
    total, share = ours + theirs, float(theirs.sum() / (ours.sum() + theirs.sum()))
    rare = total * min(share, 1 - share) < SMALLEST_EXPECTED
    pool = np.array([ours[rare].sum(), theirs[rare].sum()])
    cells = np.stack([ours[~rare], theirs[~rare]])
    if pool.sum() * min(share, 1 - share) >= SMALLEST_EXPECTED:
        return chi_square_p(*chi_square(*np.column_stack([cells, pool])))
    p = chi_square_p(*chi_square(*cells))
    return min(1.0, 2 * min(p, _tail(pool, share))) if pool.any() else p


def _tail(pool: Floats, share: float) -> float:
    """P(the smaller sample holds so many of the pool's rows, or more)."""
    from scipy.special import bdtrc

    count = pool[1] if share <= 0.5 else pool[0]
    return 1.0 if count == 0 else float(bdtrc(count - 1, int(pool.sum()), min(share, 1 - share)))


def chi_square(ours: Floats, theirs: Floats) -> tuple[float, int]:
    """Pearson's statistic and degrees of freedom of a 2 x k table of counts, every column of which has rows."""
    total = ours + theirs
    expected = total * (theirs.sum() / max(total.sum(), 1.0))
    variance = expected * (1 - expected / np.maximum(total, 1.0))
    return float(np.sum((theirs - expected) ** 2 / variance)), max(len(total) - 1, 0)


def cramers_v(ours: Floats, theirs: Floats) -> float:
    """Cramer's V as if both samples had the same size: sqrt(sum (p - q)^2 / (p + q) / 2), 0 (equal) to 1 (disjoint)."""
    p, q = ours / ours.sum(), theirs / theirs.sum()
    return float(np.sqrt(np.sum((p - q) ** 2 / (p + q)) / 2))


def benjamini_hochberg(p: Floats) -> Floats:
    """Adjusted p-values, shape (k,): rejecting those <= q keeps the false discovery rate at q (1995)."""
    order = np.argsort(p)
    raw = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(np.minimum.accumulate(raw[::-1])[::-1], 1.0)
    return adjusted


def aligned(ours: Mapping[str, int], theirs: Mapping[str, int]) -> tuple[Floats, Floats]:
    """Two counts over the union of their categories."""
    names = list(ours) + [name for name in theirs if name not in ours]
    first, second = (np.array([float(counts.get(name, 0)) for name in names]) for counts in (ours, theirs))
    return first, second


def chi_square_p(statistic: float, freedom: int) -> float:
    """p of a chi-square statistic; 1 without a degree of freedom."""
    from scipy.special import chdtrc

    return float(chdtrc(freedom, statistic)) if freedom else 1.0
