"""What counted guesses prove about privacy: lower bounds on the Gaussian mu of a step, and on the epsilon of a job.

Pure arithmetic on counts. It knows no model and no attack; whoever guesses better only makes the bound larger. Both bounds
are wrong with at most the probability asked for, whatever the mechanism.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import beta, binom, norm


def mu_lower_bound(wrong: int, guesses: int, false_alarm: float) -> float:
    """The largest mu that is refuted from below, when `wrong` of `guesses` between two neighbours were wrong.

    Half of the guesses are made on either neighbour, the runs are independent, the rule was fixed before. Under mu-GDP the
    two rates of error add up to at least 2 Phi(-mu / 2) (Dong et al. 2022, "Gaussian Differential Privacy"); their mean is
    bounded from above by Clopper & Pearson 1934, which holds for a sum of two binomials as well (Hoeffding 1956).
    """
    if not 0 <= wrong <= guesses or not guesses:
        raise ValueError(f"{wrong} wrong of {guesses} guesses: give 0 <= wrong <= guesses and at least one guess")
    highest = 1.0 if wrong == guesses else float(beta.ppf(1 - false_alarm, wrong + 1, guesses - wrong))
    return max(0.0, -2 * float(norm.ppf(highest)))


def epsilon_lower_bound(right: int, guesses: int, records: int, delta: float, false_alarm: float) -> float:
    """The largest epsilon refuted by one run in which `right` of `guesses` on `records` coin flips were right.

    Each of the records was in the job or not by a fair coin of its own, and the guesser could abstain (Steinke, Nasr &
    Jagielski 2023, "Privacy Auditing with One (1) Training Run", theorem 5.2).
    """
    if not 0 <= right <= guesses <= records:
        raise ValueError(f"{right} right of {guesses} guesses on {records} records: these must not decrease")
    if _chance(0.0, right, guesses, records, delta) > false_alarm:
        return 0.0
    low, high = 0.0, 1.0
    while _chance(high, right, guesses, records, delta) <= false_alarm:
        low, high = high, 2 * high
        if high > 64:
            return low
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _chance(middle, right, guesses, records, delta) <= false_alarm else (low, middle)
    return low


def _chance(epsilon: float, right: int, guesses: int, records: int, delta: float) -> float:
    """Probability of at least `right` right guesses under (epsilon, delta)-DP, from above."""
    luck = 1 / (1 + math.exp(-epsilon))
    alone = float(binom.sf(right - 1, guesses, luck))
    if not right:
        return 1.0
    steps = np.arange(1, right + 1)
    nearly = binom.sf(right - steps - 1, guesses, luck) - alone
    return min(1.0, alone + 2 * records * delta * float(np.max(nearly / steps)))
