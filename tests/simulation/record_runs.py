"""Records one by one: right-or-wrong pairs in which a tenth of the answers differ, and the z-test that is peeked at.

It knows what a pair looks like and which rates come out; the limits they are held against are in the tests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from monitoring.sequential import bet
from tests.simulation.looks import LIMIT, Draw, first_looks, kinds

RECORDS, MARGIN, DIFFER = 20_000, 0.01, 0.1
POINTS = np.array([-1.0, 1.0, 0.0])  # stable wrong - candidate wrong: only the candidate, only stable, neither or both


def drawn(better: float, differ: float = DIFFER) -> Draw:
    """Which of POINTS each record is, for a candidate that is right more often by `better`."""

    def draw(rng: np.random.Generator, rows: int, begin: int, end: int) -> NDArray[np.uint8]:
        return kinds(rng.random((rows, end - begin), dtype=np.float32), (differ - better) / 2, differ)

    return draw


def promote_looks(
    runs: int, better: float, seed: int, n: int = RECORDS, limit: float = LIMIT, differ: float = DIFFER
) -> NDArray[np.float64]:
    """The record at which each run promotes, (runs,); the margin makes the observation (D + .01) / 1.01."""
    logs = np.array([[bet([x]).logs for x in (POINTS + MARGIN) / (1 + MARGIN)]])
    looks: NDArray[np.float64] = first_looks(runs, n, drawn(better, differ), lambda begin: logs, seed, limits=(limit,))[0]
    return looks


def harm_looks(runs: int, worse: float, seed: int, n: int = RECORDS, limit: float = LIMIT) -> NDArray[np.float64]:
    """The record at which each run finds harm; no margin."""
    logs = np.array([[bet([x]).logs for x in -POINTS]])
    looks: NDArray[np.float64] = first_looks(runs, n, drawn(-worse), lambda begin: logs, seed, limits=(limit,))[0]
    return looks


def paired(rng: np.random.Generator, runs: int, n: int, better: float) -> NDArray[np.float64]:
    """The observations themselves, (runs, n), with the margin."""
    return (POINTS[drawn(better)(rng, runs, 0, n)] + MARGIN) / (1 + MARGIN)


def peeked_z(x: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The fixed-horizon z-test, looked at after every record from the 30th on: the error to be avoided."""
    n = np.arange(1, x.shape[1] + 1)
    total, squares = np.cumsum(x, axis=1), np.cumsum(x * x, axis=1)
    spread = np.sqrt(np.maximum(squares / n - (total / n) ** 2, 1e-12) / n)
    hits: NDArray[np.bool_] = ((total / n / spread)[:, 29:] > 1.645).any(axis=1)
    return hits


def peeked_rate(runs: int, better: float, seed: int, n: int = RECORDS) -> float:
    rng, rows = np.random.default_rng(seed), min(runs, 50)
    return float(np.mean([peeked_z(paired(rng, rows, n, better)).mean() for _ in range(runs // rows)]))
