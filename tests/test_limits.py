"""No key gets more than its burst and its rate, whatever the order of its requests."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.limits import Limiter

START = 1_700_000_000.0
gaps = st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.03, 0.1, 0.25, 1.0, 7.0]), min_size=1, max_size=80)


@settings(deadline=None, max_examples=200)
@given(gaps, st.floats(0.1, 500.0), st.integers(1, 20))
def test_never_more_than_burst_plus_rate_times_t_in_any_span(waits, rate, burst):
    limiter, now, admitted = Limiter(rate, burst), START, []
    for wait in waits:
        now += wait
        if limiter.admit("key", now) == 0.0:
            admitted.append(now)
    for i, first in enumerate(admitted):
        for j in range(i, len(admitted)):
            # a clock of float seconds near 1.7e9 has steps of 0.24 microseconds
            assert j - i + 1 <= burst + rate * (admitted[j] - first + 1e-6)


def test_the_burst_is_admitted_exactly_and_the_next_one_waits_an_interval():
    limiter = Limiter(10.0, 5)
    assert [limiter.admit("key", START) for _ in range(5)] == [0.0] * 5
    assert limiter.admit("key", START) == pytest.approx(0.1, abs=1e-6)


def test_a_steady_caller_at_the_rate_is_never_refused():
    limiter = Limiter(10.0, 1)
    assert all(limiter.admit("key", START + i / 10 + 1e-6 * i) == 0.0 for i in range(1000))


def test_waiting_as_long_as_told_is_enough_and_a_refusal_costs_nothing():
    limiter = Limiter(2.0, 1)
    limiter.admit("key", START)
    wait = limiter.admit("key", START)
    assert all(limiter.admit("key", START + 0.1) > 0 for _ in range(50))
    assert limiter.admit("key", START + wait + 1e-6) == 0.0


def test_keys_do_not_share_an_allowance():
    limiter = Limiter(1.0, 1)
    assert limiter.admit("a", START) == limiter.admit("b", START) == 0.0
    assert limiter.admit("a", START) > 0


def test_many_keys_stay_bounded_and_never_free_a_busy_one():
    limiter = Limiter(1.0, 2, max_keys=10)
    assert [limiter.admit("busy", START) for _ in range(2)] == [0.0, 0.0]
    admitted = sum(limiter.admit(f"key-{i}", START) == 0.0 for i in range(1000))
    assert len(limiter) <= 11
    assert admitted == 9 + 2  # nine keys of their own, then one shared burst
    assert limiter.admit("busy", START) > 0


def test_idle_keys_make_room():
    limiter = Limiter(1.0, 1, max_keys=10)
    assert all(limiter.admit(f"key-{i}", START + 2 * i) == 0.0 for i in range(1000))
    assert len(limiter) <= 10


@pytest.mark.parametrize(("rate", "burst"), [(0.0, 1), (-1.0, 1), (float("nan"), 1), (float("inf"), 1), (1.0, 0)])
def test_a_limit_that_makes_no_sense_is_refused(rate, burst):
    with pytest.raises(ValueError, match=r"at least 1|above 0"):
        Limiter(rate, burst)
