"""Evidence: sums by block, folding in any order, and the verdicts read from them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.release_policy import RolloutPolicy, Verdict, Verdicts
from models.rollout_state import Rollout, State, Taken
from monitoring.evidence import Evidence, Served, count_served, entry, fold, score
from monitoring.sequential import bet
from monitoring.verdict import judge, lint
from security.journal import canonical

DAY = timedelta(days=1)
START = datetime(2013, 6, 3, 8, tzinfo=UTC)
ORIGIN = round(START.timestamp() * 1000)
PAIR = ("v000001-aa", "base-1")
POLICY = RolloutPolicy(shadow_slots=1)


def rollout(state: State = State.SHADOW, **more: Any) -> Rollout:
    return Rollout(PAIR[0], 1, None, PAIR[1], state, START, START, **more)


def window_body(k: int, stable: Any, candidate: Any, length: timedelta = DAY, **more: Any) -> dict[str, Any]:
    """Entry of the k-th window of that length, its examples spread evenly over it."""
    begin = START + k * length
    n = len(stable)
    matured = ORIGIN + (k * length + length * np.arange(n) / max(n, 1)) // timedelta(milliseconds=1)
    sums = score(stable, candidate, matured.astype(np.int64) if n else [], DAY, ORIGIN)
    body = entry(begin.isoformat(), begin + length, {PAIR: sums}, **more)
    return json.loads(canonical(body))  # as it comes back from the journal


def folded(bodies: list[dict[str, Any]]) -> Evidence:
    evidence = Evidence()
    for body in bodies:
        evidence = fold(evidence, body)
    return evidence


def days(gains: list[float], n: int = 50) -> Evidence:
    return folded([window_body(k, np.full(n, 0.5), np.full(n, 0.5 - gain)) for k, gain in enumerate(gains)])


def look(
    evidence: Evidence, one: Rollout | None = None, policy: RolloutPolicy = POLICY, now: datetime | None = None
) -> Verdicts:
    moment = now or evidence.processed or START
    return judge(one or rollout(), evidence, policy, moment, acknowledged=True, prepared=True)


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 2**31))
def test_shuffled_and_repeated_windows_give_the_same_figures(random, seed: int) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    hours = [window_body(k, rng.random(5), rng.random(5), timedelta(hours=6)) for k in range(32)]
    straight = look(folded(hours), now=START + 8 * DAY)
    again = hours + random.sample(hours, 10)
    random.shuffle(again)
    shuffled = look(folded(again), now=START + 8 * DAY)
    assert straight.blocks == shuffled.blocks == 8
    assert shuffled.promote_e == pytest.approx(straight.promote_e, abs=1e-9)
    assert shuffled.harm_e == pytest.approx(straight.harm_e, abs=1e-9)


def test_hour_windows_and_day_windows_close_the_same_blocks() -> None:
    rng = np.random.default_rng(0)
    stable, candidate = rng.random((8, 24)), rng.random((8, 24))
    by_day = folded([window_body(k, stable[k], candidate[k]) for k in range(8)])
    hours = [(d, h) for d in range(8) for h in range(24)]
    by_hour = folded(
        [window_body(24 * d + h, stable[d, h : h + 1], candidate[d, h : h + 1], DAY / 24) for d, h in hours]
    )
    assert look(by_hour).promote_e == pytest.approx(look(by_day).promote_e, abs=1e-9)


def test_a_window_of_three_days_holds_three_blocks() -> None:
    evidence = folded([window_body(0, np.full(90, 0.5), np.full(90, 0.46), 3 * DAY)])
    verdicts = look(evidence)
    assert (verdicts.blocks, verdicts.samples) == (3, 90)


def test_a_block_counts_only_when_its_day_is_over() -> None:
    quarter = [window_body(k, [0.5] * 5, [0.4] * 5, DAY / 4) for k in range(7)]
    assert look(folded(quarter[:3])).blocks == 0
    assert look(folded(quarter[:4])).blocks == 1
    assert look(folded(quarter)).blocks == 1


def test_blocks_before_the_start_of_the_rollout_do_not_count() -> None:
    evidence = days([0.04] * 9)
    later = Rollout(PAIR[0], 1, None, PAIR[1], State.SHADOW, START, START + 4 * DAY)
    assert look(evidence, later).blocks == 5


def test_the_figure_is_the_betting_figure_of_clipped_block_means() -> None:
    gains = [0.04, -0.02, 0.3, 0.01]
    expected = bet([0.4, -0.2, 1.0, 0.1]).e_value
    assert look(days(gains)).promote_e == pytest.approx(expected)


def test_a_better_version_is_better_only_after_enough_blocks_and_examples() -> None:
    assert look(days([0.1] * 6)).promote is Verdict.UNDECIDED  # the largest possible figure, one block short of seven
    assert look(days([0.1] * 7)).promote is Verdict.BETTER
    assert look(days([0.1] * 7, n=2)).promote is Verdict.UNDECIDED  # 14 examples < min_samples 200


def test_a_worse_version_is_worse() -> None:
    verdicts = look(days([-0.1] * 9))
    assert verdicts.harm is Verdict.WORSE
    assert verdicts.harm_e >= 20 > verdicts.promote_e


def test_figures_that_clipping_makes_good_do_not_promote_against_the_unclipped_mean() -> None:
    verdicts = look(days([-5.0] + [0.1] * 20))
    assert verdicts.promote_e >= POLICY.promote_threshold
    assert verdicts.promote is Verdict.UNDECIDED
    assert verdicts.mean is not None and verdicts.mean < 0


def test_a_recent_block_below_the_cap_is_a_tail_and_an_old_one_is_not() -> None:
    assert look(days([0.04] * 6 + [-0.11])).tail
    assert not look(days([-0.11] + [0.04] * 7)).tail


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["stable", "candidate"])
def test_a_loss_that_is_no_number_is_an_error_and_never_a_success(value: float, side: str) -> None:
    broken, whole = np.full(50, 0.5), np.full(50, 0.5)
    broken[3] = value
    pair = (broken, whole) if side == "stable" else (whole, broken)
    evidence = fold(days([0.1] * 9), window_body(9, *pair))
    verdicts = look(evidence)
    assert (verdicts.promote, verdicts.harm) == (Verdict.ERROR, Verdict.ERROR)
    assert verdicts.reasons == ("1 examples have a loss that is not a finite number: the pair is not comparable",)


def test_a_loss_that_is_no_number_does_not_shield_a_version_that_harms() -> None:
    evidence = fold(days([-0.1] * 9), window_body(9, [0.5, 0.5], [0.5, float("nan")]))
    assert look(evidence).harm is Verdict.WORSE


def test_no_evidence_is_undecided_and_stale() -> None:
    verdicts = look(Evidence())
    assert (verdicts.promote, verdicts.harm, verdicts.fresh) == (Verdict.UNDECIDED, Verdict.UNDECIDED, False)
    assert look(days([]), now=START).blocks == 0


def test_a_block_that_touches_a_gap_does_not_count_also_not_its_part_of_before() -> None:
    quarter = [window_body(k, [0.5] * 5, [0.4] * 5, DAY / 4) for k in range(8)]
    quarter[6] |= {"void": {"windows": ["w"], "blocks": [ORIGIN + 86_400_000], "examples": 5}}
    assert look(folded(quarter)).blocks == 1
    assert folded(quarter).void == {ORIGIN + 86_400_000}


def test_a_window_without_examples_adds_no_block() -> None:
    assert look(folded([window_body(0, [], [])])).blocks == 0


def test_data_older_than_the_limit_are_stale() -> None:
    evidence = days([0.04])
    assert look(evidence, now=START + 3 * DAY).fresh
    assert not look(evidence, now=START + 3 * DAY + timedelta(seconds=1)).fresh


def test_low_and_broken_label_coverage_are_seen() -> None:
    assert not look(folded([window_body(0, [0.5], [0.4], coverage=0.4)])).covered
    assert look(folded([window_body(0, [0.5], [0.4], coverage=0.97)])).covered


def test_harm_that_begins_in_the_canary_is_proven_by_the_test_of_its_step() -> None:
    """Good for 28 days, then bad: the test since the start alone needs 30 more days, with the restart 14."""
    gains = [0.04] * 28 + [-0.1] * 14
    canary = rollout(State.CANARY, taken=(Taken(0, 0.1, 2, START + 28 * DAY),))
    policy = RolloutPolicy(steps=("shadow", 10, 50, 100), shadow_slots=1)
    assert look(days(gains), canary, policy).harm is Verdict.WORSE
    assert look(days(gains), rollout(), policy).harm is Verdict.UNDECIDED


def test_predictions_are_counted_once_by_epoch_and_arm() -> None:
    served = count_served(
        [1, 1, 2, 2, 2], ["stable", "stable", "canary", "canary", "stable"], [False, True, True, True, False],
        [10, 900, 5, 5, 300], slow_ms=250, prediction_ids=["a", "b", "c", "c", "d"],
    )  # fmt: skip
    assert served == [Served(1, "stable", 2, 1, 0), Served(2, "canary", 1, 1, 0), Served(2, "stable", 1, 0, 1)]


def served_body(k: int, *served: Served) -> dict[str, Any]:
    return window_body(k, [0.5] * 30, [0.46] * 30, served=served)


def test_errors_of_the_canary_beyond_its_share_make_a_guardrail_fire() -> None:
    canary = rollout(State.CANARY, taken=(Taken(0, 0.1, 2, START),))
    calm = look(folded([served_body(0, Served(2, "canary", 100, 3, 0), Served(2, "stable", 900, 30, 0))]), canary)
    assert (calm.errors, calm.requests, calm.canary_requests) == (Verdict.UNDECIDED, 1000, 100)
    loud = look(folded([served_body(0, Served(2, "canary", 100, 8, 0), Served(2, "stable", 900, 4, 0))]), canary)
    assert loud.errors is Verdict.WORSE and loud.slow is Verdict.UNDECIDED
    slow = look(folded([served_body(0, Served(2, "canary", 100, 0, 40), Served(2, "stable", 900, 0, 10))]), canary)
    assert slow.slow is Verdict.WORSE and slow.errors is Verdict.UNDECIDED


def test_requests_of_another_epoch_belong_to_another_step() -> None:
    canary = rollout(State.CANARY, taken=(Taken(0, 0.1, 2, START),))
    verdicts = look(folded([served_body(0, Served(1, "stable", 500, 0, 0), Served(2, "canary", 3, 0, 0))]), canary)
    assert (verdicts.requests, verdicts.canary_requests) == (3, 3)


def test_unequal_columns_are_refused_with_their_lengths() -> None:
    with pytest.raises(ValueError, match=r"\(2,\), \(3,\) and \(2,\)"):
        score([1, 2], [1, 2, 3], [0, 0], DAY)
    with pytest.raises(ValueError, match="1, 2, 1 and 1"):
        count_served([1], ["stable", "stable"], [False], [1.0], 250)
    with pytest.raises(ValueError, match="not positive"):
        score([1.0], [1.0], [0], timedelta(0))


def test_lint_refuses_a_policy_that_can_never_promote() -> None:
    assert lint(RolloutPolicy()) == []
    found = lint(RolloutPolicy(max_age=7 * DAY, shadow_slots=1))
    assert len(found) == 1 and "24 at best, below 200" in found[0]
