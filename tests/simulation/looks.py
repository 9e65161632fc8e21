"""When does a test decide, looked at after every observation? For tens of thousands of long runs at once.

Where an observation has only a few values, the log-products of a test are counts of these values times the logs the
product computes for one of each; `first_looks` goes through long runs in segments, drops those that have decided, and
takes the mean over the bets only where the largest of them can matter. A test holds it against `monitoring`'s own path.
It knows neither what the values mean nor which test they belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray

from monitoring.sequential import BETS

Kinds = NDArray[np.uint8]  # which of a few values each observation has, (rows, length)
Draw = Callable[[np.random.Generator, int, int, int], Kinds]  # rng, rows, begin, end
Table = NDArray[np.float64]  # (tests, values, bets): log(1 + bet x)
LIMIT = log(20.0)  # alpha 5 %
ROWS = 40


def limit(rate: float, runs: int) -> float:
    """The nominal rate and three standard errors."""
    return rate + 3 * sqrt(rate * (1 - rate) / runs)


def kinds(uniform: NDArray[np.float32], *edges: float | NDArray[np.float64]) -> Kinds:
    """0 below the first edge, 1 below the second and so on; an edge may move along the last axis."""
    found = np.zeros(uniform.shape, dtype=np.uint8)
    for edge in edges:
        found += uniform >= np.asarray(edge, dtype=np.float32)
    return found


def first_looks(
    runs: int, n: int, draw: Draw, table: Callable[[int], Table], seed: int, *,
    limits: Sequence[float] = (LIMIT,), segment: int = 1000,
) -> NDArray[np.float64]:  # fmt: skip
    """The observation (from 1) at which each test of each run first reaches its limit, (tests, runs); infinity for
    never within n. `table(begin)` holds for the segment that starts there."""
    rng, found = np.random.default_rng(seed), np.full((len(limits), runs), np.inf)
    for start in range(0, runs, ROWS):
        left = np.arange(start, min(start + ROWS, runs))
        base = np.zeros((len(left), len(limits), len(BETS)))
        for begin in range(0, n, segment):
            end = min(begin + segment, n)
            drawn, logs = draw(rng, len(left), begin, end), table(begin)
            counts = np.empty((len(left), logs.shape[1] + 1, end - begin))
            for value in range(logs.shape[1]):
                np.cumsum(drawn == value, axis=1, dtype=np.float64, out=counts[:, value])
            counts[:, -1] = 1.0
            for test, wanted in enumerate(limits):
                coefficients = np.concatenate([np.broadcast_to(logs[test].T, (len(left), *logs[test].T.shape)),
                                               base[:, test, :, None]], axis=2)  # fmt: skip
                paths = coefficients @ counts  # (rows, bets, length)
                base[:, test] = paths[:, :, -1]
                for row in np.flatnonzero((paths.max(axis=(1, 2)) >= wanted) & np.isinf(found[test, left])):
                    hits = np.exp(np.minimum(paths[row], 600.0)).mean(axis=0) >= np.exp(wanted)
                    if hits.any():
                        found[test, left[row]] = begin + hits.argmax() + 1
            going = np.isinf(found[:, left]).any(axis=0)
            left, base = left[going], base[going]
            if not left.size:
                break
    return found


def share(looks: NDArray[np.float64]) -> float:
    return float(np.isfinite(looks).mean())


def median(looks: NDArray[np.float64]) -> float | None:
    middle = float(np.median(looks))
    return middle if np.isfinite(middle) else None
