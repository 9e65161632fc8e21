"""Tier 1 of the audit: one private step against an attacker who knows everything but whether the canary is in.

The attacker knows the module, all examples, the clip and the noiseless answer of either neighbour; he looks at the noised
gradient along the direction that tells most and guesses by a threshold fixed before. At noise multiplier 0.5 his error is
measured within a percent; that the noise is linear in the multiplier is for tier 0 to show (`models/audit/checks.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from models.audit.bound import mu_lower_bound
from models.audit.checks import Bench

FALSE_ALARM = 1e-6  # chance that a step which keeps its promise is said to break it
NOISE = 0.5
CLAIM = 1 / NOISE  # mu of one full-batch Gaussian step
SEEN = 0.9  # of the claim: a bound below it means that the attack is blind. A sound step falls below in 1e-7 of audits
RUNS = 11_000  # steps of either neighbour
MUTANT_RUNS = 2_500  # noise x 0.8 is overlooked in 8e-11 of audits
PILOT = 200  # steps from which the attacker learns how much noise each layer gets


@dataclass(frozen=True, slots=True)
class Bound:
    """What the attacker proved: mu is at least `lower_bound`, except with probability FALSE_ALARM."""

    lower_bound: float
    wrong: int
    guesses: int


def attack(bench: Bench, runs: int = RUNS) -> Bound:
    """`runs` steps without the canary and as many with it, each guessed."""
    step, quiet = bench.make(bench.gradients, bench.law), bench.make(bench.gradients, replace(bench.law, noise_multiplier=0.0))
    without, joined = quiet(*bench.pair.without).gradient, quiet(*bench.pair.joined).gradient
    look = (joined - without) * _trust(bench, np.array([step(*bench.pair.without).gradient for _ in range(PILOT)]))
    threshold = float((without + joined) @ look) / 2
    alarms = sum(float(step(*bench.pair.without).gradient @ look) > threshold for _ in range(runs))
    misses = sum(float(step(*bench.pair.joined).gradient @ look) <= threshold for _ in range(runs))
    return Bound(mu_lower_bound(alarms + misses, 2 * runs, FALSE_ALARM), alarms + misses, 2 * runs)


def _trust(bench: Bench, pilot: np.ndarray) -> np.ndarray:
    """A weight for every coordinate: one over the variance of its tensor's noise (Neyman & Pearson's direction)."""
    variance = pilot.var(axis=0)
    for place in bench.subject.layers.values():
        variance[place] = variance[place].mean()
    loudest = float(variance.max())
    return 1 / (variance / loudest + 1e-12) if loudest > 0 else np.ones(len(variance))
