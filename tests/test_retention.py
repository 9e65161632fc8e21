"""Retention and its bound on golden answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from models import retention


def answers(both: int, lost: int, gained: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    birth = np.repeat([True, True, False, False], [both, lost, gained, neither])
    after = np.repeat([True, False, True, False], [both, lost, gained, neither])
    return after, birth


def test_retention_is_accuracy_now_over_accuracy_at_birth():
    found = retention.measure(*answers(70, 10, 5, 15))
    assert found.value == pytest.approx(75 / 80)
    assert (found.accuracy, found.accuracy_at_birth, found.lost, found.gained, found.rows) == (0.75, 0.8, 10, 5, 100)


def test_unchanged_answers_still_leave_doubt_that_shrinks_with_rows():
    small, large = (retention.measure(*answers(n, 0, 0, n // 4)).bound for n in (80, 80_000))
    assert small < 0.98 < 0.999 < large < 1.0


def test_the_bound_covers_the_truth_as_often_as_it_says():
    """5,000 golden sets of 400 rows, true retention 0.975: covered in 95 %; fails by accident below 1e-6."""
    draw = np.random.default_rng(3)
    counts = draw.multinomial(400, [0.74, 0.06, 0.04, 0.16], size=5_000)
    covered = sum(retention.measure(*answers(*row)).bound <= 0.78 / 0.80 for row in counts)
    assert stats.binom.ppf(5e-7, 5_000, 0.94) <= covered <= stats.binom.ppf(1 - 5e-7, 5_000, 0.965)


def test_the_rows_a_floor_needs_follow_the_share_of_flipped_answers():
    assert retention.rows_needed(1.0, 0.995, 0.8) == pytest.approx(169_000, rel=1e-3)
    rows = retention.rows_needed(0.02, 0.995, 0.8)
    flips = rows // 100
    resolved = retention.measure(*answers(round(0.8 * rows) - flips, flips, flips, round(0.2 * rows) - flips))
    assert resolved.bound == pytest.approx(0.995, abs=3e-4)


def test_golden_answers_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"both must be \(n,\)"):
        retention.measure(np.array([True]), np.array([True, False]))
    with pytest.raises(ValueError, match="0 of 2 golden answers were right"):
        retention.measure(np.array([True, True]), np.array([False, False]))


def test_right_is_the_same_class_or_the_right_side_of_one_half():
    assert retention.correct(np.array([2, 1]), np.array([2, 0])).tolist() == [True, False]
    assert retention.correct(np.array([0.7, 0.7, 0.2]), np.array([1.0, 0.0, 0.0])).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="retention needs classes"):
        retention.correct(np.array([3.2]), np.array([3.0]))
