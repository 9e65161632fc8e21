"""The rules around a rollout: its frozen policy, strategies, gates that only hold, freezes, retry, undo, the anchor."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from models.freeze import frozen
from models.release import found, step_board
from models.release_board import Board, fold_all
from models.release_policy import STRATEGIES, RolloutPolicy, Verdict, Verdicts
from models.release_verbs import VerbRefused, promote, retry, start, undo
from models.rollout import Rollout, State, advance, conditions
from security.journal import canonical
from tests.test_rollout import BAD, DAY, GOOD, POLICY, QUIET, T0, WHO, new_board, said, state, step, walk

SIGNALS = replace(GOOD, errors=Verdict.WORSE, errors_e=140.0)


def ladder(version: str, policy: RolloutPolicy, **verdicts: Verdicts) -> list[float]:
    """Weights of six days, one look a day."""
    board, seen = new_board(version), []
    for day in range(6):
        board, _ = step(board, T0 + day * DAY, policy, **verdicts)
        seen.append(board.routing.weight if board.routing else 0.0)
    return seen


def held(board: Board, version: str) -> set[str]:
    return set(board.rollouts[version].holds)


# policy


def test_a_version_keeps_the_policy_it_was_started_under() -> None:
    board = walk(new_board("v1"), [0])
    undecided = replace(GOOD, promote_e=30.0, promote=Verdict.UNDECIDED)
    board, decisions = step(board, T0 + DAY, replace(POLICY, alpha=0.5), v1=undecided)
    assert decisions == [] and board.policy_of(board.rollouts["v1"], POLICY) == POLICY
    board, decisions = step(board, T0 + 2 * DAY, replace(POLICY, alpha=0.5), v1=GOOD)
    assert "limit 60.0" in decisions[0].body["reason"]


def test_a_policy_is_journalled_when_a_version_that_waits_may_need_it_and_once() -> None:
    board, decisions = step(new_board("v1"), T0)
    assert said(decisions)[0] == "policy.set" and board.policy == POLICY
    again = fold_all(new_board("v2"), decisions)
    assert "policy.set" not in said(step(again, T0 + DAY)[1])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_policy_comes_back_from_its_journal_text(strategy: str) -> None:
    policy = RolloutPolicy(strategy=strategy, freeze=("Fri 16:00 - Mon 08:00",), min_hold=timedelta(minutes=90))
    assert RolloutPolicy.from_body(json.loads(canonical(policy.to_body()))) == policy
    assert policy.digest != POLICY.digest


# strategies


@pytest.mark.parametrize(
    ("strategy", "weights"),
    [
        ("blue-green", [0.0, 0.99, 0.99, 0.0, 0.0, 0.0]),
        ("phases", [0.0, 0.05, 0.5, 0.99, 0.99, 0.0]),
        ("shadow", [0.0] * 6),
    ],
)
def test_a_strategy_is_a_ladder(strategy: str, weights: list[float]) -> None:
    assert ladder("v1", RolloutPolicy(strategy=strategy), v1=GOOD) == weights


def test_an_ab_test_waits_on_its_split_for_the_outcome_and_for_two_weeks() -> None:
    policy = RolloutPolicy(strategy="ab")
    seen = replace(QUIET, units=5000, forecast=0.2)
    proven = replace(seen, outcome=Verdict.BETTER, outcome_e=80.0, effect=-0.01)
    board = walk(new_board("v1"), [0, 1], policy, v1=seen)  # users are let in without any proof
    assert board.routing is not None and board.routing.weight == 0.5 and board.rollouts["v1"].forecast == 0.2
    assert walk(board, range(2, 14), policy, v1=proven).routing == board.routing
    assert walk(board, range(2, 25), policy, v1=seen).routing == board.routing, "time alone proves nothing"
    assert state(walk(board, range(14, 18), policy, v1=proven), "v1") is State.PROMOTED


def test_an_outcome_that_is_no_better_never_reaches_all_users() -> None:
    policy = RolloutPolicy(strategy="ab", min_test=timedelta(days=1))
    for verdicts in (
        replace(QUIET, promote=Verdict.BETTER, promote_e=900.0, mean=0.1),  # a paired loss is not what users do
        replace(QUIET, outcome=Verdict.BETTER, outcome_e=59.0, effect=-0.01),
        replace(QUIET, outcome=Verdict.BETTER, outcome_e=float("nan"), effect=-0.01),
        replace(QUIET, outcome=Verdict.BETTER, outcome_e=80.0, effect=0.01),
        replace(QUIET, outcome=Verdict.BETTER, outcome_e=80.0, effect=None),
    ):
        assert max(ladder("v1", policy, v1=verdicts)) == 0.5


def test_a_worse_outcome_is_rolled_back() -> None:
    policy = RolloutPolicy(strategy="ab")
    board = walk(new_board("v1"), [0, 1], policy)
    harmful = replace(QUIET, outcome=Verdict.WORSE, outcome_harm_e=44.0, units=900)
    board, decisions = step(board, T0 + 2 * DAY, policy, v1=harmful)
    assert state(board, "v1") is State.ROLLING_BACK
    assert "harm 44.0 >= 40.0 on the outcome of 900 units" in decisions[0].body["reason"]


def test_outcomes_need_a_step_on_which_to_see_them() -> None:
    with pytest.raises(ValueError, match="give at least one"):
        RolloutPolicy(strategy="blue-green", evidence="outcome")


# gates


def test_a_gate_may_hold_for_a_person_or_only_report() -> None:
    for changed, expected in (
        ({}, State.ROLLING_BACK),
        ({"pause_on": ("errors",)}, State.CANARY),
        ({"dry_run": ("errors",)}, State.CANARY),
    ):
        policy = replace(POLICY, **changed)  # type: ignore[arg-type]
        board = walk(walk(new_board("v1"), [0, 1], policy, v1=GOOD), [2], policy, v1=SIGNALS)
        assert state(board, "v1") is expected
        assert ("signal" in held(board, "v1")) == ("pause_on" in changed)
        assert board.rollouts["v1"].weight == {"dry_run": 0.5, "pause_on": 0.1}.get(next(iter(changed), ""), 0.0)


def test_a_protected_slice_bars_a_promotion_and_stops_a_version_that_harms_it() -> None:
    policy = replace(POLICY, protected_slices=("night",))
    limit = policy.harm_threshold
    assert limit == 40.0
    for told, expected in (
        (("night", limit, 1.0, -0.01), State.CANARY),
        (("night", limit - 1, 1.0, 0.01), State.SHADOW),
        (("night", limit, 1.0, -0.03), State.SHADOW),
        (("night", limit, 1.0, None), State.SHADOW),
        (("night", 0.1, limit, -0.2), State.REJECTED),
    ):
        board = walk(new_board("v1"), [0, 1], policy, v1=replace(GOOD, slices=(told,)))
        assert state(board, "v1") is expected


def test_arms_that_are_not_split_as_planned_hold() -> None:
    board = walk(walk(new_board("v1"), [0, 1], v1=GOOD), [2], v1=replace(GOOD, assigned_e=1000.0))
    assert state(board, "v1") is State.CANARY and held(board, "v1") == {"srm"}


# freezes


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ("Fri 16:00 - Mon 08:00", "11-20T16:00 11-22T12:00 11-23T07:59", "11-20T15:59 11-23T08:00"),
        ("Mon 22:00 - Tue 06:00", "11-23T23:00 11-24T05:59", "11-23T21:00 11-25T00:00"),
        ("2026-12-20 - 2026-12-30", "12-20T00:00 12-30T23:59", "12-19T23:59 12-31T00:00"),
    ],
)
def test_a_freeze_holds_from_its_first_minute_to_its_last(window: str, inside: str, outside: str) -> None:
    for texts, expected in ((inside, window), (outside, None)):
        for text in texts.split():
            assert frozen((window,), datetime.fromisoformat(f"2026-{text}:00+00:00")) == expected


@pytest.mark.parametrize(
    "text",
    ["weekend", "Fry 16:00 - Mon 08:00", "Fri 25:00 - Mon 08:00", "Fri 16:00 - Fri 16:00", "2027-01-03 - 2026-12-20"],
)
def test_a_freeze_nobody_can_read_is_refused_with_the_settings(text: str) -> None:
    with pytest.raises(ValueError, match="freeze"):
        RolloutPolicy(freeze=(text,))


def test_in_a_freeze_no_weight_rises_and_harm_still_stops() -> None:
    policy = replace(POLICY, freeze=("Mon 00:00 - Sun 23:59",))
    board = walk(new_board("v1"), range(3), policy, v1=GOOD)
    assert state(board, "v1") is State.SHADOW and held(board, "v1") == {"freeze"}
    assert state(walk(board, [4], policy, v1=BAD), "v1") is State.REJECTED


# start and retry


def test_a_person_may_queue_a_version_that_was_blocked_and_is_its_proposer() -> None:
    board = new_board("v1")
    decisions = start(board, "v7", T0, number=7, parent="v1", **WHO)
    one = fold_all(board, decisions).rollouts["v7"]
    assert (one.state, one.proposer, decisions[0].body["reason"]) == (State.QUEUED, "ana", WHO["reason"])
    with pytest.raises(VerbRefused, match="`retry`"):
        start(board, "v1", T0, number=1, parent="base-1", **WHO)
    with pytest.raises(VerbRefused, match="both are wanted"):
        start(board, "v8", T0, number=8, parent="v1", actor="ana", reason="")


def expired() -> Board:
    board = walk(new_board("v1"), [0, 1, 29])
    assert state(board, "v1") is State.EXPIRED
    return board


def test_retry_goes_on_with_the_same_evidence_and_the_same_policy_and_a_new_time_limit() -> None:
    before, laxer = expired(), replace(POLICY, alpha=0.2)
    board = fold_all(before, retry(before, "v1", T0 + 30 * DAY, policy=laxer, **WHO))
    board = walk(board, [31, 32], laxer)
    one, old = board.rollouts["v1"], before.rollouts["v1"]
    assert (one.state, one.attempt, one.test) == (State.SHADOW, 2, 1)
    assert (one.evidence_since, one.policy, one.proposer) == (old.evidence_since, old.policy, "ana")
    assert state(walk(board, [58], laxer), "v1") is State.SHADOW
    assert state(walk(board, [60], laxer), "v1") is State.EXPIRED


def test_retry_against_another_stable_begins_a_new_test() -> None:
    board = walk(new_board("v1", ("v2", "base-1")), range(8), replace(POLICY, max_age=timedelta(days=3)), v2=GOOD)
    assert board.stable == "v2" and not board.rollouts["v1"].live
    board = walk(fold_all(board, retry(board, "v1", T0 + 8 * DAY, policy=POLICY, **WHO)), [9, 10])
    one = board.rollouts["v1"]
    assert (one.state, one.against, one.test) == (State.SHADOW, "v2", 3)
    assert one.evidence_since > T0 + 8 * DAY and board.policy_of(one, RolloutPolicy()) == POLICY


def test_retry_is_refused_where_it_would_wash_off_what_was_proven() -> None:
    board = new_board("v1", "v2")
    for version in ("v1", "v9"):
        with pytest.raises(VerbRefused):
            retry(board, version, T0, policy=POLICY, **WHO)
    board = walk(board, [0, 1], v1=BAD)
    assert state(board, "v1") is State.REJECTED and state(board, "v2") is State.WITHDRAWN
    with pytest.raises(VerbRefused, match="only a new version starts again"):
        retry(board, "v1", T0 + 2 * DAY, policy=POLICY, verdicts=BAD, **WHO)
    with pytest.raises(VerbRefused, match="carries the weights of v1"):
        retry(board, "v2", T0 + 2 * DAY, policy=POLICY, **WHO)


# undo


def promoted(*versions: Any) -> Board:
    """Each version walks to stable in turn, five days each."""
    board = new_board(*versions)
    return walk(board, range(6 * len(versions)), **{(v if isinstance(v, str) else v[0]): GOOD for v in versions})


def test_undo_returns_at_once_with_the_family_and_the_head() -> None:
    board = walk(new_board("v1"), range(6), v1=GOOD)
    board = fold_all(board, step_board(board, {}, POLICY, T0 + 6 * DAY))
    assert board.stable == "v1" and board.anchor == "v1"
    decisions = undo(board, T0 + 7 * DAY, policy=POLICY, **WHO)
    after = fold_all(board, decisions)
    assert after.stable == "base-1" and after.routing is not None and after.routing.weight == 0.0
    assert state(after, "v1") is State.ROLLED_BACK and after.head == "base-1" and after.anchor == "base-1"
    assert said(decisions) == ["rollout.advanced", "routing.set", "head.moved"]


def test_undo_takes_the_canary_down_and_tests_the_rest_against_the_version_returned_to() -> None:
    board = walk(new_board("v1", ("v2", "base-1"), ("v3", "base-1")), range(6), v1=GOOD)
    assert board.stable == "v1"
    board = walk(board, [6, 7], v2=GOOD)
    assert board.canary is not None and board.canary.version == "v2"
    after = fold_all(board, undo(board, T0 + 8 * DAY, policy=POLICY, **WHO))
    assert state(after, "v2") is State.ROLLING_BACK and after.rollouts["v2"].outcome is State.SUPERSEDED
    assert after.rollouts["v3"].against == "base-1" and after.rollouts["v3"].evidence_since == T0 + 8 * DAY
    assert state(walk(after, [9]), "v2") is State.SUPERSEDED


def test_undo_outside_its_window_goes_through_the_gates() -> None:
    board = walk(new_board("v1"), range(6), v1=GOOD)
    late = T0 + 13 * DAY
    decisions = undo(board, late, policy=POLICY, **WHO)
    after = walk(fold_all(board, decisions), [14, 15], **{"base-1": QUIET})
    assert said(decisions) == ["rollout.retried"] and after.stable == "v1"
    one = after.rollouts["base-1"]
    assert (one.state, one.against) == (State.SHADOW, "v1")
    back = walk(after, range(16, 22), **{"base-1": GOOD})
    assert back.stable == "base-1" and state(back, "v1") is State.PROMOTED


def test_an_old_version_that_loses_to_its_own_child_takes_nobody_with_it() -> None:
    board = walk(new_board("v1"), range(6), v1=GOOD)
    board = walk(fold_all(board, undo(board, T0 + 13 * DAY, policy=POLICY, **WHO)), [14])
    after = walk(board, [15], **{"base-1": BAD})
    assert state(after, "base-1") is State.REJECTED and after.head == "v1" and after.stable == "v1"


def test_undo_of_nothing_of_stable_itself_or_of_a_stranger_is_refused() -> None:
    board = new_board("v1")
    with pytest.raises(VerbRefused, match="nothing was before it"):
        undo(board, T0, policy=POLICY, **WHO)
    board = walk(board, range(6), v1=GOOD)
    for target in ("v1", "v7"):
        with pytest.raises(VerbRefused, match="before: base-1"):
            undo(board, T0 + 7 * DAY, policy=POLICY, to_version=target, **WHO)
    undone = fold_all(board, undo(board, T0 + 7 * DAY, policy=POLICY, **WHO))
    with pytest.raises(VerbRefused, match="ROLLED_BACK"):
        undo(undone, T0 + 8 * DAY, policy=POLICY, **WHO)


# the anchor, and alpha over a year


def test_margins_do_not_add_up_because_they_are_measured_from_the_last_version_proven_better() -> None:
    loose = replace(POLICY, margin=0.02)
    board = walk(new_board("v1", ("v2", "base-1"), ("v3", "base-1")), [0], loose)
    board = walk(board, range(1, 7), loose, v1=GOOD)
    assert board.stable == "v1" and board.anchor == "base-1"
    assert {board.rollouts[v].against for v in ("v2", "v3")} == {"base-1"}, "their evidence goes on against the anchor"
    strict = walk(new_board("v1"), range(6), v1=GOOD)
    assert strict.anchor == "v1"


def test_a_version_a_person_pushed_through_is_no_anchor() -> None:
    board = walk(new_board("v1"), [0])
    board = fold_all(board, promote(board, "v1", QUIET, POLICY, T0 + DAY, full=True, **WHO))
    board = walk(board, range(2, 6))
    assert board.stable == "v1" and board.anchor == "base-1"


def test_a_year_of_attempts_spends_one_alpha() -> None:
    policy = replace(POLICY, alpha_per="year")
    assert sum(1.0 / policy.promote_limit(k) for k in range(1, 5000)) < policy.alpha
    board = new_board("v1", ("v2", "base-1"))
    board = walk(board, [0], policy)
    assert sorted(r.test for r in board.rollouts.values()) == [1, 2]
    second = next(r for r in board.rollouts.values() if r.test == 2)
    found_ = {c.name: c for c in conditions(second, GOOD, policy, T0 + DAY)}
    assert not found_["evidence"].met and f"needs {policy.promote_limit(2):.1f}" in found_["evidence"].text


def test_the_count_of_tests_begins_again_with_the_year() -> None:
    board = fold_all(Board(), found("base-1", T0))
    assert replace(board, tests={2012: 40}).tests.get(T0.year, 0) == 0
    assert walk(replace(new_board("v1"), tests={2012: 40}), [0]).rollouts["v1"].test == 1


def test_a_rollout_of_an_older_journal_is_read_with_defaults() -> None:
    body = Rollout("v1", 1, None, "base-1", State.SHADOW, T0, T0).to_body()
    for key in ("policy", "attempt", "test", "expires_from", "forecast", "proven"):
        del body[key]
    one = Rollout.from_body(body)
    assert (one.attempt, one.policy, one.ages_from) == (1, "", T0)
    assert advance(one, QUIET, POLICY, T0 + DAY)[1] == ()
