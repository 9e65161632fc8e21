"""The sample ratio: exact expectation, merging, several weights, a published package, and how soon it sees a gap."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.sample_ratio import ALPHA, CONCENTRATION, SampleRatio, sample_ratio, together


@pytest.mark.parametrize("n", range(1, 13))
@pytest.mark.parametrize("weight", [0.01, 0.1, 0.5, 0.93])
def test_the_exact_expectation_at_the_planned_weight_is_one(n: int, weight: float) -> None:
    expected = sum(
        comb(n, k) * weight**k * (1 - weight) ** (n - k) * sample_ratio(k, n - k, weight) for k in range(n + 1)
    )
    assert expected == pytest.approx(1)


@pytest.mark.parametrize("n", [3, 12])
def test_each_further_unit_leaves_the_expectation_where_it_was(n: int) -> None:
    """A martingale, so that every look is allowed: given any counts, the mean over the next unit is the figure now."""
    for k in range(n + 1):
        after = 0.1 * sample_ratio(k + 1, n - k, 0.1) + 0.9 * sample_ratio(k, n - k + 1, 0.1)
        assert after == pytest.approx(sample_ratio(k, n - k, 0.1))


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=5), st.floats(0.01, 0.99))
def test_counts_at_one_weight_add_up(parts: list[tuple[int, int]], weight: float) -> None:
    merged = sum((SampleRatio(weight, *part) for part in parts), SampleRatio(weight))
    whole = SampleRatio(weight, sum(c for c, _ in parts), sum(s for _, s in parts))
    assert merged == whole and merged.log_e == pytest.approx(whole.log_e, abs=1e-9)


def test_steps_of_different_weights_multiply_and_never_add() -> None:
    steps = [SampleRatio(0.1, 130, 870), SampleRatio(0.5, 300, 250)]
    assert together(steps) == pytest.approx(steps[0].e_value * steps[1].e_value)
    assert together([]) == 1.0
    with pytest.raises(ValueError, match=r"0\.1 and 0\.5 do not add up"):
        steps[0] + steps[1]


@pytest.mark.parametrize(("share", "units"), [(0.11, 19_000), (0.12, 4_500), (0.15, 800)])
def test_a_share_that_is_off_without_any_luck_shows_as_the_docstring_says(share: float, units: int) -> None:
    assert sample_ratio(round(share * units), round((1 - share) * units), 0.1) >= 1 / ALPHA
    assert sample_ratio(round(0.1 * units), round(0.9 * units), 0.1) < 1
    half = units // 2
    assert sample_ratio(round(share * half), round((1 - share) * half), 0.1) < 1 / ALPHA


@pytest.mark.parametrize(("weight", "canary", "stable"), [(0.0, 1, 10**6), (1.0, 10**6, 1)])
def test_a_unit_in_an_arm_that_has_no_share_is_proof(weight: float, canary: int, stable: int) -> None:
    assert 1e300 < sample_ratio(canary, stable, weight) < float("inf")
    assert sample_ratio(0 if weight == 0 else canary, stable if weight == 0 else 0, weight) == 1.0


@pytest.mark.parametrize("arguments", [(-1, 0, 0.1), (0, 0, 1.5), (0, 0, float("nan"))])
def test_impossible_counts_and_weights_are_refused(arguments: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="counts >= 0"):
        sample_ratio(*arguments)


@pytest.mark.parametrize("weight", [0.01, 0.1, 0.5])
def test_the_figure_is_that_of_a_published_package(weight: float) -> None:
    ville = pytest.importorskip("ville", reason="ville is not installed: pip install ville")
    drawn = (np.random.default_rng(1).random(3000) < 1.3 * weight).astype(float)
    prior = (CONCENTRATION * weight, CONCENTRATION * (1 - weight))
    published = ville.BernoulliTest(weight, prior=prior).fit(drawn).log_e_values_
    for n in (1, 10, 100, 3000):
        canary = int(drawn[:n].sum())
        assert SampleRatio(weight, canary, n - canary).log_e == pytest.approx(published[n - 1], abs=1e-8)
