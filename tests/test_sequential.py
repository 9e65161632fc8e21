"""The e-processes: exact expectation, order, merging, limits of the input, and the guardrail."""

from __future__ import annotations

from fractions import Fraction
from math import comb
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.sequential import BETS, RELATIVE_RISKS, Betting, attribute, bet, largest_e, path

observations = st.lists(st.floats(-1, 1), max_size=40)


@pytest.mark.parametrize(
    "values", [((-1, Fraction(1, 2)), (1, Fraction(1, 2))), ((-1, Fraction(1, 4)), (Fraction(1, 3), Fraction(3, 4)))]
)
@pytest.mark.parametrize("n", range(1, 13))
def test_the_exact_expectation_under_a_null_is_one(n: int, values: tuple[tuple[Fraction, Fraction], ...]) -> None:
    """All 2^n outcomes of n draws with mean 0, gathered by the number of highs: E[E_n] = 1, so P(E_n >= 20) <= 1/20."""
    (low, p_low), (high, p_high) = values
    expected = Fraction(0)
    exceeding = Fraction(0)
    for ups in range(n + 1):
        probability = comb(n, ups) * p_high**ups * p_low ** (n - ups)
        figure = bet([float(high)] * ups + [float(low)] * (n - ups)).e_value
        expected += probability * Fraction(figure)
        exceeding += probability if figure >= 20 else 0
    assert float(expected) <= 1 + 1e-12
    assert float(expected) == pytest.approx(1)
    assert float(exceeding) <= 0.05


@given(observations, st.randoms(use_true_random=False), st.integers(1, 5))
def test_shuffled_split_merged_observations_give_the_same_figure(x: list[float], random: Random, parts: int) -> None:
    whole = bet(x)
    shuffled = list(x)
    random.shuffle(shuffled)
    merged = sum((bet(shuffled[k::parts]) for k in range(parts)), Betting())
    assert merged.log_e == pytest.approx(whole.log_e, abs=1e-9)
    assert (merged.n, merged.total) == (whole.n, pytest.approx(whole.total, abs=1e-9))
    assert merged.squares == pytest.approx(whole.squares, abs=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40))
def test_the_path_ends_where_the_state_stands(x: list[float]) -> None:
    assert path(x)[-1] == pytest.approx(bet(x).log_e, abs=1e-9)


def test_no_observation_is_no_evidence() -> None:
    assert bet([]).e_value == Betting().e_value == 1.0


@pytest.mark.parametrize("value", [float("nan"), 1.01, -1.5, float("inf")])
def test_an_observation_outside_the_range_is_refused_with_its_value(value: float) -> None:
    with pytest.raises(ValueError, match=r"outside \[-1, 1\].*clip"):
        bet([0.1, value])


def test_the_figure_stays_finite_however_long_the_evidence() -> None:
    assert 1e300 < bet(np.ones(100_000)).e_value < float("inf")


def test_seven_blocks_reach_24_at_best_and_never_60() -> None:
    assert largest_e(7) == pytest.approx(np.mean([(1 + b) ** 7 for b in BETS]))
    assert 20 < largest_e(7) < 60 < largest_e(9)


@settings(max_examples=50)
@given(st.integers(0, 12), st.floats(0.01, 0.99), st.floats(0.1, 1.2))
def test_the_guardrail_expects_at_most_one_up_to_the_tolerated_risk(n: int, weight: float, risk: float) -> None:
    """Over every attribution of n events, for any relative risk up to r0 = 1.2."""
    chance = risk * weight / (risk * weight + 1 - weight)
    expected = sum(
        comb(n, k) * chance**k * (1 - chance) ** (n - k) * attribute(k, n - k, weight).e_value for k in range(n + 1)
    )
    assert expected <= 1 + 1e-9


@pytest.mark.parametrize("weight", [0.01, 0.1, 0.5, 0.9])
def test_the_guardrail_expects_exactly_one_at_the_tolerated_risk(weight: float) -> None:
    chance = 1.2 * weight / (1.2 * weight + 1 - weight)
    assert chance * attribute(1, 0, weight).e_value + (1 - chance) * attribute(0, 1, weight).e_value == pytest.approx(1)


def test_errors_in_proportion_to_the_weight_prove_nothing() -> None:
    assert attribute(10, 90, 0.1).e_value < 1


def test_seven_canary_errors_where_one_is_expected_are_enough() -> None:
    assert attribute(7, 6, 0.1).e_value >= 100
    assert attribute(2, 2, 0.1).e_value < 100


def test_an_incident_in_both_arms_cancels() -> None:
    assert attribute(100, 900, 0.1).e_value < 1


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_without_two_arms_nothing_can_be_attributed(weight: float) -> None:
    assert attribute(50, 0, weight).e_value == 1.0


def test_steps_with_different_weights_add_up() -> None:
    both = attribute(3, 20, 0.1) + attribute(4, 4, 0.5)
    sums = [a + b for a, b in zip(attribute(3, 20, 0.1).logs, attribute(4, 4, 0.5).logs, strict=True)]
    assert (both.canary, both.stable) == (7, 24)
    assert both.e_value == pytest.approx(np.mean(np.exp(sums)))
    assert len(both.logs) == len(RELATIVE_RISKS)


@pytest.mark.parametrize("arguments", [(-1, 0, 0.1), (0, 0, 1.5), (0, 0, float("nan"))])
def test_impossible_counts_and_weights_are_refused(arguments: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="counts >= 0"):
        attribute(*arguments)
