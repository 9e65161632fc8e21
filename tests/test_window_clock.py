"""The grid of windows: names, bounds, and when a window is due by each clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.windows.clock import (
    NotDue,
    WindowPolicy,
    check_due,
    next_window,
    nth_window,
    parse_window,
    previous_window,
    window_at,
    window_bounds,
    window_id,
    window_index,
    windows_between,
)

START = datetime(2013, 6, 3, 8, tzinfo=UTC)
DAILY = WindowPolicy(timedelta(days=1), START)
DIVISORS = [timedelta(minutes=m) for m in range(1, 1441) if 1440 % m == 0] + [timedelta(days=7)]


def test_a_window_is_named_by_its_start_in_utc():
    assert window_id(START) == "2013-06-03T08:00Z"
    assert window_id(START.astimezone(timezone(timedelta(hours=-4)))) == "2013-06-03T08:00Z"
    assert parse_window("2013-06-03T08:00Z") == START


@pytest.mark.parametrize("text", ["2013-06-03", "2013-06-03T08:00", "2013-6-3T8:00Z", "2013-06-03T08:00:00Z", "", "W1"])
def test_any_other_spelling_of_a_window_is_refused_with_the_right_one(text):
    with pytest.raises(ValueError, match="2013-06-03T08:00Z"):
        parse_window(text)


@pytest.mark.parametrize(
    "every", [timedelta(hours=7), timedelta(seconds=30), timedelta(days=2), timedelta(0), timedelta(hours=-1)]
)
def test_a_length_that_is_no_calendar_is_refused(every):
    with pytest.raises(ValueError, match=r"window\.every.*divide a day"):
        WindowPolicy(every, START)


@pytest.mark.parametrize("every", DIVISORS, ids=str)
def test_every_divisor_of_a_day_and_a_week_is_taken(every):
    assert WindowPolicy(every, START).every == every


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"start": datetime(2013, 6, 3)}, r"window\.start"),
        ({"start": START + timedelta(seconds=1)}, r"window\.start"),
        ({"grace": timedelta(seconds=-1)}, r"window\.grace"),
        ({"clock": "sun"}, r"window\.clock"),
        ({"enter": "arrival", "evidence_share": 0.1}, r"window\.enter"),
        ({"evidence_share": 0.1}, r"window\.evidence_share"),
    ],
)
def test_a_wrong_setting_is_named(wrong, name):
    with pytest.raises(ValueError, match=name):
        WindowPolicy(**{"every": timedelta(days=1), "start": START, **wrong})


@given(st.sampled_from(DIVISORS), st.integers(0, 10**9), st.integers(0, 59_999))
def test_every_moment_lies_in_exactly_one_window(every, seconds, millis):
    policy = WindowPolicy(every, START)
    moment = START + timedelta(seconds=seconds, milliseconds=millis)
    window = window_at(policy, moment)
    start, end = window_bounds(policy, window)
    assert start <= moment < end
    number = window_index(policy, moment)
    assert number == (start - START) // every and nth_window(policy, number) == window
    assert next_window(policy, window) == window_id(end)
    assert previous_window(policy, next_window(policy, window)) == window


def test_windows_are_listed_with_both_ends():
    assert windows_between(DAILY, "2013-06-03T08:00Z", "2013-06-05T08:00Z") == [
        "2013-06-03T08:00Z",
        "2013-06-04T08:00Z",
        "2013-06-05T08:00Z",
    ]
    assert windows_between(DAILY, "2013-06-04T08:00Z", "2013-06-03T08:00Z") == []


def test_nothing_is_before_the_first_window():
    assert next_window(DAILY, None) == "2013-06-03T08:00Z"
    assert previous_window(DAILY, "2013-06-03T08:00Z") is None
    with pytest.raises(ValueError, match="before the first window, 2013-06-03T08:00Z"):
        window_at(DAILY, START - timedelta(milliseconds=1))


def test_a_window_off_the_grid_is_refused_with_the_one_it_lies_in():
    with pytest.raises(ValueError, match="lies inside 2013-06-03T08:00Z"):
        window_bounds(DAILY, "2013-06-03T09:00Z")


def test_by_the_wall_a_window_is_due_at_its_end_and_grace():
    policy = WindowPolicy(timedelta(days=1), START, timedelta(seconds=60))
    ready = START + timedelta(days=1, seconds=60)
    with pytest.raises(NotDue) as early:
        check_due(policy, window_id(START), now=ready - timedelta(microseconds=1), passed=True, ended=START)
    assert early.value.when == ready
    assert "2013-06-03T08:00Z" in early.value.reason
    check_due(policy, window_id(START), now=ready, passed=False, ended=None)


def test_by_the_stream_a_window_is_due_when_records_have_passed_it():
    policy = WindowPolicy(timedelta(days=1), START, clock="stream")
    far = START + timedelta(days=5000)
    with pytest.raises(NotDue, match="waits for records"):
        check_due(policy, window_id(START), now=far, passed=False, ended=None)
    check_due(policy, window_id(START), now=far, passed=True, ended=None)


def test_the_clock_of_the_stream_never_runs_ahead_of_the_walls():
    policy = WindowPolicy(timedelta(days=1), START, clock="stream")
    end = START + timedelta(days=1)
    with pytest.raises(NotDue, match="after now") as early:
        check_due(policy, window_id(START), now=end - timedelta(microseconds=1), passed=True, ended=None)
    assert early.value.when == end
    check_due(policy, window_id(START), now=end, passed=True, ended=None)


def test_when_the_stream_has_ended_the_windows_that_began_before_are_due_and_no_more():
    policy = WindowPolicy(timedelta(days=1), START, clock="stream")
    ended = START + timedelta(days=1, hours=1)
    for window in ("2013-06-03T08:00Z", "2013-06-04T08:00Z"):
        check_due(policy, window, now=START, passed=False, ended=ended)
    with pytest.raises(NotDue, match="after the stream ended"):
        check_due(policy, "2013-06-05T08:00Z", now=START, passed=True, ended=ended)
