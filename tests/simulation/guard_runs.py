"""Errors of requests by simulation: how soon the guardrail on events sees them, and the rule of thumb it replaces.

A rollout here is 500 hours of 100 requests at a weight of 10 % with .5 % errors; incidents of x20 hit both arms in 2 %
of the hours. The guardrail is looked at after every error. It knows counts, not requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monitoring.sequential import attribute

HOURS, HOURLY, WEIGHT, RATE = 500, 100, 0.1, 0.005


@dataclass(frozen=True)
class Stops:
    """Of each rollout: was it stopped, after how many canary errors and requests (infinity: never)."""

    errors: NDArray[np.float64]
    requests: NDArray[np.float64]

    @property
    def share(self) -> float:
        return float(np.isfinite(self.errors).mean())

    def median(self, name: str) -> float | None:
        middle = float(np.median(getattr(self, name)))
        return middle if np.isfinite(middle) else None


def hours(rng: np.random.Generator, runs: int, risk: float, incidents: bool) -> tuple[NDArray, NDArray, NDArray]:
    """Canary requests, canary errors and stable errors by hour, (runs, HOURS)."""
    rate = RATE * np.where(incidents & (rng.random((runs, HOURS)) < 0.02), 20.0, 1.0)
    requests = rng.binomial(HOURLY, WEIGHT, size=(runs, HOURS))
    return requests, rng.binomial(requests, np.minimum(rate * risk, 1.0)), rng.binomial(HOURLY - requests, rate)


def guarded(runs: int, risk: float, incidents: bool, r0: float = 1.2, alpha: float = 0.01, seed: int = 5) -> Stops:
    """The product's guardrail, looked at after every error; within an hour errors come in random order."""
    rng, errors, requests = np.random.default_rng(seed), [], []
    one, other = np.array(attribute(1, 0, WEIGHT, r0).logs), np.array(attribute(0, 1, WEIGHT, r0).logs)
    for begin in range(0, runs, 250):
        _, canary, stable = hours(rng, min(250, runs - begin), risk, incidents)
        for c, s in zip(canary, stable, strict=True):
            arms = np.repeat(np.tile([1, 0], HOURS), np.stack([c, s], axis=1).ravel())
            at = np.repeat(np.arange(HOURS), c + s) + rng.random(arms.size)
            order = np.argsort(at)
            bad = np.cumsum(arms[order])
            logs = np.outer(one, bad) + np.outer(other, np.arange(1, bad.size + 1) - bad)
            hits = np.exp(np.minimum(logs, 600.0)).mean(axis=0) >= 1 / alpha
            first = int(hits.argmax()) if hits.any() else -1
            errors.append(bad[first] if first >= 0 else np.inf)
            requests.append(np.ceil(at[order][first] * HOURLY) if first >= 0 else np.inf)
    return Stops(np.array(errors, dtype=float), np.array(requests, dtype=float))


def thresholded(runs: int, risk: float, incidents: bool, seed: int = 5) -> Stops:
    """The rule of thumb: more than 2 % of 500 canary requests failed, for the fourth time (three failures allowed)."""
    rng = np.random.default_rng(seed)
    seen, canary, _ = hours(rng, runs, risk, incidents)
    total, bad = seen.cumsum(axis=1), canary.cumsum(axis=1)
    errors, requests = np.full(runs, np.inf), np.full(runs, np.inf)
    for k in range(runs):
        edges = np.searchsorted(total[k], np.arange(500, total[k, -1] + 1, 500))
        failed = np.flatnonzero(np.diff(bad[k, edges], prepend=0) > 10)
        if failed.size > 3:
            hour = edges[failed[3]]
            errors[k], requests[k] = bad[k, hour], (hour + 1) * HOURLY
    return Stops(errors, requests)
