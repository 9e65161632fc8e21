"""The randomised canary: exact expectations at both nulls, merging, the journal's row, and what input is refused."""

from __future__ import annotations

from itertools import product
from math import factorial, prod
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.outcome import Outcome, bets, score_form

unit = st.tuples(st.floats(0.01, 0.99), st.integers(0, 1), st.floats(0, 1), st.floats(0, 1))  # pi, arm, outcome, forecast
units = st.lists(unit, min_size=1, max_size=30)
KINDS = tuple(product((0, 1), (0, 1)))  # arm, outcome


def scored(chosen: list[tuple[float, int, float, float]], margin: float = 0.0) -> Outcome:
    pi, arm, outcome, forecast = (list(column) for column in zip(*chosen, strict=True))
    return bets(arm, pi, outcome, forecast, margin)


def chances(pi: float, level: float, effect: float) -> list[float]:
    """Of each of KINDS, when the outcome is 1 with probability `level` in stable and `level + effect` in canary."""
    risk = {0: level, 1: level + effect}
    return [(pi if arm else 1 - pi) * (risk[arm] if y else 1 - risk[arm]) for arm, y in KINDS]


@pytest.mark.parametrize("n", [1, 2, 5, 8, 12])
@pytest.mark.parametrize(("pi", "level", "forecast"), [(0.1, 0.2, 0.2), (0.5, 0.02, 0.7), (0.01, 0.9, 0.0)])
def test_at_the_boundary_of_each_null_the_exact_expectation_is_one(n: int, pi: float, level: float, forecast: float) -> None:
    """All outcomes of n units, gathered by how often each (arm, outcome) came: harm at no effect, promote at an effect
    of the margin, and no more than one where the candidate is better (harm) or worse by more (promote)."""
    margin = 0.05
    for effect in (0.0, margin, -0.01, 0.08):
        harm = promote = 0.0
        chance = chances(pi, level, effect)
        for counts in product(range(n + 1), repeat=len(KINDS)):
            if sum(counts) != n:
                continue
            ways = factorial(n) / prod(factorial(c) for c in counts)
            probability = ways * prod(p**c for p, c in zip(chance, counts, strict=True))
            chosen = [(pi, arm, y, forecast) for (arm, y), c in zip(KINDS, counts, strict=True) for _ in range(c)]
            state = scored(chosen, margin)
            harm += probability * state.harm.e_value
            promote += probability * state.promote.e_value
        if effect <= 0:
            assert harm == pytest.approx(1) if effect == 0 else harm < 1
        if effect >= margin:
            assert promote == pytest.approx(1) if effect == margin else promote < 1


def test_weights_that_rise_while_the_level_triples_leave_the_expectation_at_one() -> None:
    """Five units, each with its own propensity, level and forecast: all 4^5 outcomes of identical versions."""
    plan = [(0.05, 0.2, 0.2), (0.1, 0.3, 0.2), (0.25, 0.4, 0.9), (0.5, 0.5, 0.2), (0.5, 0.6, 0.0)]
    expected = 0.0
    for outcome in product(range(4), repeat=len(plan)):
        probability = prod(chances(pi, level, 0.0)[k] for k, (pi, level, _) in zip(outcome, plan, strict=True))
        chosen = [(pi, *KINDS[k], forecast) for k, (pi, _, forecast) in zip(outcome, plan, strict=True)]
        expected += probability * scored(chosen).harm.e_value
    assert expected == pytest.approx(1)


@given(units, st.floats(0, 1))
def test_both_tests_bet_on_the_same_scores_and_stay_within_one(chosen: list, margin: float) -> None:
    pi, arm, y, m = (np.array(column, dtype=float) for column in zip(*chosen, strict=True))
    promote = pi * (1 - pi) * margin - score_form(arm, pi, y, m)
    assert np.abs(promote).max() <= 1 + 1e-12 and np.abs(score_form(arm, pi, y, m)).max() <= 1
    state = bets(arm, pi, y, m, margin)
    assert state.promote.total == pytest.approx(promote.sum(), abs=1e-9)
    assert state.harm.total == pytest.approx(score_form(arm, pi, y, m).sum(), abs=1e-9)
    assert state.overlap == pytest.approx((pi * (1 - pi)).sum())


@given(units, st.randoms(use_true_random=False), st.integers(1, 4))
def test_shuffled_split_and_stored_units_give_the_same_state(chosen: list, random: Random, parts: int) -> None:
    whole, shuffled = scored(chosen, 0.02), list(chosen)
    random.shuffle(shuffled)
    pieces = [scored(shuffled[k::parts], 0.02) for k in range(parts) if shuffled[k::parts]]
    merged = sum((Outcome.from_row(piece.to_row()) for piece in pieces), Outcome())
    assert merged.to_row() == pytest.approx(whole.to_row(), abs=1e-9)
    assert merged.promote.log_e == pytest.approx(whole.promote.log_e, abs=1e-9)


def test_the_row_has_22_numbers_however_many_units_there_were() -> None:
    rng = np.random.default_rng(1)
    state = bets(rng.random(5000) < 0.1, 0.1, rng.random(5000), 0.5, 0.02)
    assert len(state.to_row()) == len(Outcome().to_row()) == 22
    assert Outcome.from_row(state.to_row()) == state
    assert all(type(value) is float for value in state.to_row())


@pytest.mark.parametrize("spoil", [
    lambda row: row[:-1], lambda row: [float("nan"), *row[1:]], lambda row: [-1.0, *row[1:]],
    lambda row: [1.5, *row[1:]], lambda row: [row[0], 1e6, *row[2:]], lambda row: [*row[:-1], float("inf")],
])  # fmt: skip
def test_a_row_nobody_can_have_written_is_refused(spoil) -> None:
    row = bets([1, 0, 0], 0.3, [0.5, 0.1, 0.9], 0.4).to_row()
    with pytest.raises(ValueError, match="wanted"):
        Outcome.from_row(spoil(row))


@pytest.mark.parametrize(("propensity", "arm"), [(0.0, 0), (1.0, 1)])
def test_a_unit_that_could_go_only_one_way_adds_nothing_but_its_count(propensity: float, arm: int) -> None:
    state = bets([arm] * 50, propensity, 1.0, 0.0, 0.02)
    assert (state.n, state.overlap, state.promote.e_value, state.harm.e_value, state.effect) == (50, 0.0, 1.0, 1.0, None)


@pytest.mark.parametrize(("arguments", "message"), [
    (([1], [0.0], [0.5], [0.5]), "arm 1 at propensity 0 cannot be drawn"),
    (([0], [1.0], [0.5], [0.5]), "arm 0 at propensity 1 cannot be drawn"),
    (([0.5], [0.5], [0.5], [0.5]), "arm 0.5 is neither"),
    (([1], [0.5], [1.5], [0.5]), r"outcome 1.5 is outside \[0, 1\]: divide"),
    (([1], [0.5], [float("nan")], [0.5]), "outcome nan is outside"),
    (([1], [1.1], [0.5], [0.5]), "propensity 1.1 is outside"),
    (([1], [0.5], [0.5], [-0.1]), "forecast -0.1 is outside"),
    (([1, 0], [0.5], [0.5], [0.5]), "one value a unit wanted"),
    (([[1, 0]], 0.5, 0.5, 0.5), "one value a unit wanted"),
])  # fmt: skip
def test_impossible_units_are_refused_with_their_value(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bets(*arguments)
    with pytest.raises(ValueError, match=message):
        score_form(*arguments)


@pytest.mark.parametrize("margin", [-0.1, 1.1, float("nan")])
def test_a_margin_outside_the_outcome_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="margin"):
        bets([1], 0.5, 0.5, 0.5, margin)


def test_no_unit_is_no_evidence() -> None:
    assert bets([], [], [], []) == Outcome()
    assert Outcome().effect is None


def test_the_estimate_is_the_effect_however_weights_and_levels_move() -> None:
    """200,000 units, effect .05, weight .05 to .5 while the level doubles: 4 standard errors are .013."""
    rng, n = np.random.default_rng(2), 200_000
    pi, level = np.linspace(0.05, 0.5, n), np.linspace(0.2, 0.4, n)
    arm = rng.random(n) < pi
    state = bets(arm, pi, rng.random(n) < level + 0.05 * arm, 0.2)
    assert state.effect == pytest.approx(0.05, abs=4 * state.harm.squares**0.5 / state.overlap)
    assert state.harm.squares**0.5 / state.overlap < 0.0035


def test_a_canary_ten_points_worse_is_harm_and_one_that_is_better_is_not() -> None:
    rng, n = np.random.default_rng(3), 4000
    arm = rng.random(n) < 0.1
    worse = bets(arm, 0.1, rng.random(n) < 0.2 + 0.1 * arm, 0.2, 0.02)
    better = bets(arm, 0.1, rng.random(n) < 0.2 - 0.1 * arm, 0.2, 0.02)
    assert worse.harm.e_value > 20 and worse.promote.e_value < 1
    assert better.promote.e_value > 20 and better.harm.e_value < 1
