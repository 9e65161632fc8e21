"""The guard's arithmetic: what counts as too much, with and without noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from models import guard
from tests.updates import law

W = "2013-03-04T08:00Z"


def test_a_gradient_norm_within_its_limit_is_no_finding():
    assert guard.check_gradient_norm(10.0, 10.0, W) is None


def test_a_gradient_norm_beyond_its_limit_names_value_limit_and_cure():
    finding = guard.check_gradient_norm(14.2, 10.0, W)
    assert (finding.kind, finding.figure, finding.limit) == ("gradient_norm", 14.2, 10.0)
    assert finding.message == (
        f"gradient norm 14.2 > max_gradient_norm 10 in window {W}: update interrupted, nothing released; "
        "see docs/alarms.md#gradient-norm"
    )


def test_the_largest_layer_is_named():
    finding = guard.check_gradient_norm(14.2, 10.0, W, layers={"fc1": 3.0, "head": 13.9})
    assert "> max_gradient_norm 10, largest in layer 'head' (13.9), in window" in finding.message


def test_the_raw_norm_of_pure_noise_is_not_taken_for_a_gradient():
    """500 examples, 3,201 parameters, sigma 5.27, C 12: the norm is 57 and says nothing."""
    deviation = law(500, noise_multiplier=5.27, max_grad_norm=12.0).deviation
    norm = deviation * math.sqrt(3201)
    assert 56 < norm < 58
    assert guard.check_gradient_norm(norm, 10.0, W, dimensions=3201, deviation=deviation) is None
    assert guard.check_gradient_norm(norm, 10.0, W) is not None


NOISES = [(1, 3.0, 10.0), (1, 3.0, 1e-9), (20, 1.0, 0.5), (100, 1.0, 10.0), (3201, 0.08, 10.0), (3201, 1.01, 10.0),
          (3201, 1.01, 1e-9), (100_000, 0.5, 1.0)]


@pytest.mark.parametrize(("dimensions", "deviation", "limit"), NOISES)
def test_a_true_norm_at_its_limit_stops_one_step_in_1e10_at_most(dimensions, deviation, limit):
    """By the exact noncentral chi-square; and the allowance is no more than a sixth wider than it must be."""
    allowed, shift = guard.noisy_limit(limit, dimensions, deviation), (limit / deviation) ** 2
    assert 1e-14 < stats.ncx2.sf(dimensions + (allowed / deviation) ** 2, dimensions, shift) < 1e-10
    exact = deviation * math.sqrt(stats.ncx2.isf(1e-10, dimensions, shift) - dimensions)
    assert limit < exact < allowed < 1.18 * exact


def test_a_true_norm_of_twice_the_limit_is_seen_through_the_noise():
    d, s = 3201, 0.3
    norm = math.sqrt(20.0**2 + d * s**2)
    finding = guard.check_gradient_norm(norm, 10.0, W, dimensions=d, deviation=s)
    assert finding.figure == pytest.approx(20.0) and 10.0 < finding.limit < 14.0


def test_without_noise_the_limit_is_the_limit():
    assert guard.noisy_limit(10.0, 3201, 0.0) == 10.0
    assert guard.noisy_limit(10.0, 3201, 1e-12) == pytest.approx(10.0)
    assert guard.noisy_limit(math.inf, 3201, 1.0) == guard.noisy_limit(1e200, 3201, 1.0) == math.inf


def test_values_that_are_not_finite_are_counted():
    assert guard.check_finite(0, "the adapter", W) is None
    finding = guard.check_finite(3, "the adapter", W)
    assert (finding.kind, finding.figure, finding.limit) == ("non_finite", 3.0, 0.0)
    assert "3 non-finite values" in finding.message and "docs/alarms.md#non-finite" in finding.message


def test_no_change_of_weights_is_an_error_and_so_is_a_change_that_is_no_number():
    assert guard.check_weight_change(1e-9, "the adapter", W) is None
    assert guard.check_weight_change(0.0, "the adapter", W).kind == "no_weight_change"
    assert guard.check_weight_change(math.nan, "the adapter", W) is not None


@pytest.mark.parametrize(("after", "found"), [(1.5, False), (1.51, True), (0.5, False), (0.49, True)])
def test_a_loss_that_changes_by_more_than_half_is_found_in_both_directions(after, found):
    finding = guard.check_loss_change(1.0, after, 0.5, W)
    assert (finding is not None) == found
    if finding:
        assert "max_loss_change 0.5" in finding.message and "docs/alarms.md#loss-change" in finding.message


def test_a_loss_that_was_zero_does_not_divide_by_it():
    assert guard.check_loss_change(0.0, 0.0, 0.5, W) is None
    assert guard.check_loss_change(0.0, 0.1, 0.5, W).figure > 1e6


def test_an_update_is_compared_with_the_median_of_at_least_three():
    assert guard.check_update_norm(50.0, [1.0, 1.0], 5.0, W) is None
    assert guard.check_update_norm(5.0, [1.0, 1.0, 9.0], 5.0, W) is None
    assert guard.check_update_norm(5.0, [0.0, 0.0, 0.0], 5.0, W) is None
    finding = guard.check_update_norm(6.0, [0.5, 1.0, 9.0], 5.0, W)
    assert (finding.kind, finding.figure, finding.limit) == ("update_norm", 6.0, 5.0)
    assert finding.message == (
        f"update norm 6 is 6 times the median of 3 earlier ones (1), beyond max_update_norm 5 in window {W}: compare the "
        "window's labels and drift with those before; see docs/training.md#update-norm"
    )


@pytest.mark.parametrize(("cosine", "found"), [(None, False), (0.9, False), (-0.09, False), (-0.11, True)])
def test_a_turn_is_measured_in_deviations_of_earlier_turns(cosine, found):
    """The median is 0.2, the deviation at least 0.05."""
    earlier = [0.2, 0.21, 0.19, 0.2, 0.2, 0.2, 0.9, -0.9]
    assert guard.check_update_direction(cosine, earlier[1:], 6.0, W) is None, "seven are too few"
    finding = guard.check_update_direction(cosine, earlier, 6.0, W)
    assert (finding is not None) == found
    if finding:
        assert finding.figure == pytest.approx(6.2) and finding.limit == 6.0
        assert finding.message == (
            "cosine -0.11 of the update with all earlier ones together lies 6.2 deviations under the usual 0.2, beyond "
            f"max_update_turn 6 in window {W}: it undoes what was learnt; compare the window's labels with those before; "
            "see docs/training.md#update-direction"
        )


def test_steady_updates_are_rarely_taken_for_a_turn():
    """20,000 normal cosines after 8 such ones: 0.46 % are found; fails by accident below 1e-6 between 0.3 and 0.7 %."""
    draw = np.random.default_rng(3).normal(0.0, 0.3, size=(20_000, 9))
    found = sum(guard.check_update_direction(row[8], row[:8].tolist(), 6.0, W) is not None for row in draw)
    assert 60 < found < 140


def test_an_interruption_carries_kind_figure_and_limit():
    with pytest.raises(guard.UpdateInterrupted, match=r"docs/alarms\.md") as caught:
        guard.interrupt(guard.check_gradient_norm(11.0, 10.0, W))
    assert (caught.value.kind, caught.value.figure, caught.value.limit) == ("gradient_norm", 11.0, 10.0)
