"""Labels that come late, out of order or twice, by simulation: what a test makes of them when they enter on arrival.

One prediction a step. Of ten records one is positive; its label comes after about a hundred steps, that of a negative
one only when the horizon is over. The candidate is better on positives and worse overall, by the margin: a candidate
that must not be promoted. It knows pairs of right and wrong answers, no models.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from monitoring.sequential import path
from tests.simulation.looks import LIMIT

MARGIN, HORIZON = 0.01, 2_000
POSITIVE = ((-1, 0, 1), (0.05, 0.55, 0.40))  # of the difference stable wrong - candidate wrong
NEGATIVE = ((-1, 0, 1), (0.06, 0.93, 0.01))  # .1 x .35 - .9 x .05 = -.01 in all


def paired_labels(rng: np.random.Generator, runs: int, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Observations in the order of the predictions, and the step at which each label arrives, (runs, n) both."""
    positive = rng.random((runs, n)) < 0.1
    values = [rng.choice(points, p=chances, size=(runs, n)) for points, chances in (POSITIVE, NEGATIVE)]
    delay = np.where(positive, rng.exponential(100.0, size=(runs, n)), HORIZON)
    return (np.where(positive, *values) + MARGIN) / (1 + MARGIN), np.arange(n) + delay


def delayed_rates(runs: int, n: int, seed: int) -> tuple[float, float, float]:
    """False promotions when labels enter on arrival, with the median of labels then, and when each enters at the end
    of its horizon."""
    rng, arrived, matured, first = np.random.default_rng(seed), 0, 0, []
    for begin in range(0, runs, 50):
        x, at = paired_labels(rng, min(50, runs - begin), n)
        hits = path(np.take_along_axis(x, np.argsort(at, axis=1), axis=1)) >= LIMIT
        arrived += int(hits.any(axis=1).sum())
        first.append(np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf))
        matured += int((path(x) >= LIMIT).any(axis=1).sum())  # every delay is at most the horizon: prediction order
    return arrived / runs, float(np.median(np.concatenate(first))), matured / runs


def repeated_rates(runs: int, n: int, seed: int) -> tuple[float, float]:
    """Labels of a candidate that is worse by the margin, each delivered five times within 500 steps and out of order:
    false promotions when every delivery counts, and when a record counts at its first."""
    rng, every, once = np.random.default_rng(seed), 0, 0
    for _ in range(runs):
        x = (rng.choice([-1, 0, 1], p=[0.055, 0.9, 0.045], size=n) + MARGIN) / (1 + MARGIN)
        delivered = np.repeat(np.arange(n), 5)
        delivered = delivered[np.argsort(delivered + 500 * rng.random(delivered.size))]
        records, first = np.unique(delivered, return_index=True)
        every += float(path(x[delivered]).max()) >= LIMIT
        once += float(path(x[records[np.argsort(first)]]).max()) >= LIMIT
    return every / runs, once / runs
