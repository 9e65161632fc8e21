"""The e-processes: exact expectation, order, merging, limits of the input, and the guardrail."""

from __future__ import annotations

from fractions import Fraction
from math import comb
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.sequential import BETS, RELATIVE_RISKS, Attribution, Betting, attribute, bet, largest_e, path

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


@pytest.mark.parametrize("n", [1, 4, 12])
@pytest.mark.parametrize("worse", [Fraction(0), Fraction(1, 50)])
def test_right_or_wrong_pairs_at_the_margin_or_below_expect_at_most_one(n: int, worse: Fraction) -> None:
    """All outcomes of n pairs that differ in 1/10, (D + margin) / (1 + margin), mean at the boundary or below it."""
    margin = Fraction(1, 100)
    down, up = (Fraction(1, 10) + margin + worse) / 2, (Fraction(1, 10) - margin - worse) / 2
    expected = Fraction(0)
    for ups in range(n + 1):
        for downs in range(n + 1 - ups):
            ways = comb(n, ups) * comb(n - ups, downs)
            d = [1] * ups + [-1] * downs + [0] * (n - ups - downs)
            figure = bet([float((x + margin) / (1 + margin)) for x in d]).e_value
            expected += ways * up**ups * down**downs * Fraction(9, 10) ** (n - ups - downs) * Fraction(figure)
    assert float(expected) == pytest.approx(1) if worse == 0 else float(expected) < 1


def test_the_figure_is_the_mean_of_eight_of_a_published_package() -> None:
    """The package's own bet is larger than its limit at so small an alpha, so that the limit, our bet, is what it bets."""
    ville = pytest.importorskip("ville", reason="ville is not installed: pip install ville")
    x = np.random.default_rng(1).uniform(-0.9, 1.0, size=100)
    published = [ville.BettingTest(0.0, bounds=(-1, 1), alternative="greater", alpha=1e-300, c=b).fit(x) for b in BETS]
    assert [test.log_e_values_[-1] for test in published] == pytest.approx(list(bet(x).logs), abs=1e-9)
    assert np.log(np.mean([test.e_values_ for test in published], axis=0)) == pytest.approx(path(x), abs=1e-9)


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


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.floats(0.01, 0.99)), max_size=8), st.randoms())
def test_events_in_any_order_and_in_parts_give_the_same_figure(parts: list, random: Random) -> None:
    whole = sum((attribute(*part) for part in parts), Attribution())
    single = [attribute(int(k < c), int(k >= c), w) for c, s, w in parts for k in range(c + s)]
    random.shuffle(single)
    assert sum(single, Attribution()).logs == pytest.approx(whole.logs, abs=1e-9)


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
