"""The bounds that an audit proves: right at the rate they state, and those of the theorems."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, norm

from models.audit.bound import epsilon_lower_bound, mu_lower_bound


@pytest.mark.parametrize("mu", [0.5, 2.0, 3.0])
def test_the_bound_on_mu_is_wrong_no_more_often_than_it_says(mu):
    """Exact: the chance of a bound above the truth, and of the next count being counted too."""
    guesses, chance = 2000, norm.cdf(-mu / 2)
    wrong = max((w for w in range(guesses) if mu_lower_bound(w, guesses, 0.01) > mu), default=-1)
    assert binom.cdf(wrong, guesses, chance) <= 0.01 < binom.cdf(wrong + 1, guesses, chance)


def test_no_error_at_all_and_nothing_but_errors_have_a_bound():
    assert mu_lower_bound(0, 1000, 0.05) > 4
    assert mu_lower_bound(1000, 1000, 0.05) == mu_lower_bound(500, 1000, 0.05) == 0.0
    with pytest.raises(ValueError, match="5 wrong of 4 guesses"):
        mu_lower_bound(5, 4, 0.05)


def test_the_bound_on_epsilon_is_that_of_the_theorem():
    """Theorem 5.2 by loops, at delta > 0; and at delta 0 the binomial tail."""
    def chance(epsilon, right, guesses, records, delta):
        luck = 1 / (1 + np.exp(-epsilon))
        tail = sum(binom.pmf(k, guesses, luck) for k in range(right, guesses + 1))
        more = max(sum(binom.pmf(right - j, guesses, luck) for j in range(1, i + 1)) / i for i in range(1, right + 1))
        return tail + 2 * records * delta * more

    for right, guesses, records, delta in ((90, 100, 200, 1e-5), (60, 80, 400, 1e-6), (38, 40, 40, 0.0)):
        bound = epsilon_lower_bound(right, guesses, records, delta, 0.01)
        assert bound > 0 and chance(bound, right, guesses, records, delta) == pytest.approx(0.01, rel=1e-3)
    assert epsilon_lower_bound(52, 100, 200, 1e-5, 0.01) == 0.0
    with pytest.raises(ValueError, match="must not decrease"):
        epsilon_lower_bound(5, 10, 9, 0.0, 0.01)


def test_a_right_guess_more_never_lowers_the_bound():
    bounds = [epsilon_lower_bound(right, 100, 200, 1e-5, 1e-3) for right in range(101)]
    assert bounds == sorted(bounds) and bounds[50] == 0.0 < bounds[100]
