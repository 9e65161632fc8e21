"""What a training law costs: epsilon of Poisson-sampled Gaussian steps, and the noise that keeps it within a target.

Privacy-loss distributions (dp-accounting, pessimistic discretisation) under zero-out adjacency: one labelled event's
content is replaced by "absent" while offsets and counts stay public, `REPLACE_SPECIAL` there. The noise is calibrated
with the accountant and the interval that later check it, since another interval disagrees in the fourth digit.

Beside it the Gaussian filter: full-batch steps are mu-Gaussian-DP, their mu^2 adds up, and steps may be chosen one after
the other in the light of all results so far as long as the sum stays within the mu^2 of (epsilon, delta). An "admit while
the PLD's epsilon is within budget" loop is no such filter (Smith & Thakurta 2022, Koskela et al. 2023; arXiv 2602.15815).

It knows no window, no journal and no policy. dp-accounting is imported at the first question: it costs a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

ACCOUNTANT = "PLD"
ADJACENCY = "zero-out"
INTERVAL = 1e-3  # 1e-4 moves epsilon by 1e-4 and costs eight times as much
TOLERANCE = 1e-4
SMALLEST_NOISE = 0.2  # one full-batch step with it has epsilon 33: an update that hides nothing worth the name


ROUNDED_DOWN = 1e-9  # of the filter's budget, so that a search's last digit never makes it larger than the promise


class Law(NamedTuple):
    """`steps` noisy steps, each on a Poisson sample; the noise's deviation is noise_multiplier x clip.

    m_max: how often one event may be in a step, 1 in every sampled law (the accountant knows no other).
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int
    m_max: int = 1


@lru_cache(maxsize=4096)
def epsilon(laws: tuple[Law, ...], delta: float) -> float:
    """Epsilon at `delta` for an event that takes part in all `laws`; 0.0 for none."""
    if not laws:
        return 0.0
    accountant = _accountant()
    for law in laws:
        accountant.compose(_event(law))
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=256)
def noise_multiplier(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The smallest noise (to 1e-4) whose epsilon at `delta` is at most `epsilon`; never above it.

    About 0.7 s for the first question, then remembered. Raises ValueError for arguments out of range.
    """
    check_range(epsilon, delta, sampling_rate, steps)
    import dp_accounting

    def law(noise: float) -> Law:
        return Law(sampling_rate, noise, steps)

    low, high = _bracket(epsilon, delta, sampling_rate, steps)
    noise = dp_accounting.calibrate_dp_mechanism(
        _accountant,
        lambda value: _event(law(value)),
        epsilon,
        delta,
        bracket_interval=dp_accounting.ExplicitBracketInterval(low, high),
        tol=TOLERANCE,
    )
    while _epsilon_of(law(noise), delta) > epsilon:
        noise *= 1 + TOLERANCE
    return float(noise)


def mu_squared(laws: Iterable[Law]) -> float:
    """What an event that takes part in all these full-batch laws has spent: sum of steps x (m_max / noise)^2."""
    costs = []
    for law in laws:
        if law.sampling_rate != 1:
            raise ValueError(f"sampling_rate {law.sampling_rate:g}: the Gaussian filter holds for full batches only, give 1")
        costs.append(law.steps * (law.m_max / law.noise_multiplier) ** 2)
    return math.fsum(costs)


@lru_cache(maxsize=64)
def mu_squared_budget(epsilon: float, delta: float) -> float:
    """The largest sum of mu^2 that is (epsilon, delta)-DP: 0.020224 for (0.5, 1e-5) (Balle & Wang 2018, eq. 6)."""
    import dp_accounting

    return float(dp_accounting.get_sigma_gaussian(epsilon, delta) ** -2 * (1 - ROUNDED_DOWN))


@lru_cache(maxsize=4096)
def epsilon_of_mu_squared(total: float, delta: float) -> float:
    """Epsilon at `delta` of a sum of mu^2; exact, where the PLD of the same steps is a little above."""
    import dp_accounting

    return float(dp_accounting.get_epsilon_gaussian(total**-0.5, delta)) if total else 0.0


def _bracket(target: float, delta: float, sampling_rate: float, steps: int) -> tuple[float, float]:
    """Two noises, a factor of two apart, whose epsilons lie on both sides of the target."""
    import dp_accounting

    # Sampling at rate q and adding noise s is close to full batches with noise s / q (central limit).
    full_batch = dp_accounting.get_sigma_gaussian(target, delta) * math.sqrt(steps)
    high = max(1.1 * full_batch * sampling_rate, 2 * SMALLEST_NOISE)
    while _epsilon_of(Law(sampling_rate, high, steps), delta) > target:
        high *= 2
    while _epsilon_of(Law(sampling_rate, high / 2, steps), delta) <= target:
        high /= 2
        if high < 2 * SMALLEST_NOISE:
            raise ValueError(
                f"target_epsilon {target:g} needs noise below {SMALLEST_NOISE} x clip at sampling rate "
                f"{sampling_rate:g} and {steps} steps: that is no privacy; lower target_epsilon or raise steps"
            )
    return high / 2, high


def _epsilon_of(law: Law, delta: float) -> float:
    return epsilon((law,), delta)


def _accountant() -> Any:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    relation = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    return PLDAccountant(relation, value_discretization_interval=INTERVAL)


def _event(law: Law) -> Any:
    from dp_accounting import dp_event

    step = dp_event.GaussianDpEvent(law.noise_multiplier / law.m_max)
    if law.sampling_rate < 1:
        if law.m_max != 1:
            raise ValueError(f"m_max {law.m_max} at sampling_rate {law.sampling_rate:g}: give 1, or full batches")
        step = dp_event.PoissonSampledDpEvent(law.sampling_rate, step)
    return dp_event.SelfComposedDpEvent(step, law.steps)


def check_range(target: float, delta: float, sampling_rate: float, steps: int) -> None:
    """Raises ValueError naming the number that is out of range."""
    if not (math.isfinite(target) and target > 0):
        raise ValueError(f"target_epsilon {target}: give a finite number above 0")
    if not 0 < delta < 1:
        raise ValueError(f"target_delta {delta}: give a number between 0 and 1, at most 1 / (number of events)")
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"sampling_rate {sampling_rate}: give a number above 0 and at most 1")
    if steps < 1 or steps != int(steps):
        raise ValueError(f"steps {steps}: give a whole number of at least 1")
