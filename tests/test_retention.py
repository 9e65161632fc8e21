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


def test_the_floor_that_can_be_resolved_is_the_bound_of_an_unchanged_accuracy():
    for rows, flips in ((2_000, 40), (10_000, 0), (50_000, 2_000)):
        found = retention.measure(*answers(int(0.8 * rows) - flips, flips, flips, int(0.2 * rows) - flips))
        assert retention.resolvable(rows, 2 * flips / rows, 0.8) == pytest.approx(found.bound, abs=1e-9)


def test_a_golden_set_that_is_too_small_is_told_with_the_rows_it_needs():
    measured = {"rows": 10_000, "lost": 500, "gained": 400, "accuracy_at_birth": 0.8}
    enough, told = retention.size_told("history", 10_000, 0.995, measured)
    assert not enough and told == (
        "golden set 'history': 10,000 rows can show a retention of 0.9938 where 9.0% of answers flip (measured); "
        "the floor 0.995 needs about 15,219 rows"
    )
    assert retention.size_told("history", 15_300, 0.995, measured)[0]
    assert "8.0% of answers flip (assumed)" in retention.size_told("history", 10_000, 0.995)[1]


def test_a_protected_regime_is_refused_by_its_bound_with_figures_and_cure():
    found = retention.measure(*answers(760, 40, 40, 160))
    assert retention.refused("day", found, 0.985) is not None and retention.refused("day", found, 0.97) is None
    sentence = retention.refused("day", found, 0.995)
    assert "'day' 1.0000, with 95 % confidence only >= 0.9814 < floor 0.995 (40 answers lost, 40 gained of 1,000)" in sentence
    assert "needs about 13,528 rows" in sentence and "docs/alarms.md#retention" in sentence


def test_what_an_entry_says_is_read_by_regime_also_from_before_there_were_any():
    old = {"value": 0.99, "bound": 0.98}
    assert retention.by_regime(old) == {"history": old} and retention.by_regime(None) == {} == retention.worst({})
    day, night = {"value": 0.99, "bound": 0.98, "refused": "day is lost"}, {"error": "no golden row"}
    told = {"day": day, "night": night, "fog": {"value": 0.9}}
    assert retention.worst(told) == {"value": 0.9} and retention.refusal(told) == "day is lost"
    assert retention.retention_told("night", night) == "night: no golden row"


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
