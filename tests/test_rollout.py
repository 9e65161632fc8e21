"""The rollout state machine and its board: each rule by an example."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from models.release import enqueue, found, step_board
from models.release_board import Board, fold, fold_all
from models.release_verbs import VerbRefused, abort, approve, pause, promote, resume
from models.rollout import (
    Decision,
    Rollout,
    RolloutPolicy,
    State,
    Verdict,
    Verdicts,
    advance,
    conditions,
    explain,
)

DAY = timedelta(days=1)
T0 = datetime(2013, 6, 3, 8, tzinfo=UTC)
POLICY = RolloutPolicy(steps=("shadow", 10, 50, 100))
WHO = {"actor": "ana", "reason": "release drill"}

QUIET = Verdicts(fresh=True, prepared=True, acknowledged=True, blocks=7, samples=500, requests=100, canary_requests=10)
GOOD = replace(QUIET, promote=Verdict.BETTER, promote_e=80.0, mean=0.04, blocks=9)
BAD = replace(QUIET, harm=Verdict.WORSE, harm_e=24.1, blocks=11, mean=-0.1)


def new_board(*versions: str | tuple[str, str]) -> Board:
    """Base and these versions queued in order, each trained from the one before (or from the parent given)."""
    board = fold_all(Board(), found("base-1", T0))
    parent = "base-1"
    for number, item in enumerate(versions, 1):
        version, parent = item if isinstance(item, tuple) else (item, parent)
        board = fold_all(board, enqueue(board, version, number, parent, T0))
        board = fold(board, "head.moved", {"head": version})
        parent = version
    return board


def step(
    board: Board, now: datetime, policy: RolloutPolicy = POLICY, **verdicts: Verdicts
) -> tuple[Board, list[Decision]]:
    decisions = step_board(board, {v: verdicts.get(v, QUIET) for v in board.rollouts}, policy, now)
    return fold_all(board, decisions), decisions


def walk(board: Board, days: Iterable[int], policy: RolloutPolicy = POLICY, **verdicts: Verdicts) -> Board:
    for day in days:
        board, _ = step(board, T0 + day * DAY, policy, **verdicts)
    return board


def state(board: Board, version: str) -> State:
    return board.rollouts[version].state


def said(decisions: list[Decision]) -> list[str]:
    return [d.kind for d in decisions]


# one version on its way


def test_a_good_version_walks_from_shadow_to_stable_one_step_a_look() -> None:
    board, seen = new_board("v1"), []
    for day in range(6):
        board, _ = step(board, T0 + day * DAY, v1=GOOD)
        seen.append((state(board, "v1").value, board.routing.weight if board.routing else None))
    assert seen == [
        ("SHADOW", 0.0), ("CANARY", 0.1), ("CANARY", 0.5), ("PROMOTING", 0.99), ("BAKING", 0.99), ("PROMOTED", 0.0),
    ]
    assert board.stable == "v1" and board.routing is not None and board.routing.canary is None
    assert board.epoch == 5 and board.pairs() == []


def test_every_decision_carries_its_figures_and_limits() -> None:
    board = walk(new_board("v1"), range(1))
    _, decisions = step(board, T0 + DAY, v1=BAD)
    body = decisions[0].body
    assert body["reason"] == "harm 24.1 >= 20.0 after 11 blocks"
    assert (body["from"], body["to"], body["figures"]["harm_e"]) == ("SHADOW", "REJECTED", 24.1)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"promote_e": 59.9}, "evidence"),
        ({"promote": Verdict.UNDECIDED}, "evidence"),
        ({"promote_e": float("nan")}, "evidence"),
        ({"blocks": 6}, "blocks"),
        ({"samples": 199}, "samples"),
        ({"mean": -0.001}, "mean"),
        ({"mean": float("nan")}, "mean"),
        ({"mean": None}, "mean"),
        ({"promote": Verdict.ERROR}, "evidence_error"),
        ({"harm": Verdict.ERROR}, "evidence_error"),
        ({"fresh": False}, "stale_data"),
        ({"covered": False}, "label_coverage"),
        ({"tail": True}, "tail_loss"),
        ({"acknowledged": False}, "not_acknowledged"),
    ],
)
def test_a_single_missing_condition_keeps_the_version_in_shadow(change: dict[str, Any], name: str) -> None:
    board = walk(new_board("v1"), range(1))
    verdicts = replace(GOOD, **change)
    after, _ = step(board, T0 + DAY, v1=verdicts)
    assert state(after, "v1") is State.SHADOW and after.routing == board.routing
    unmet = [c for c in conditions(after.rollouts["v1"], verdicts, POLICY, T0 + DAY) if not c.met]
    assert name in [c.name for c in unmet]
    assert set(after.rollouts["v1"].holds) == {c.name for c in unmet if c.hold}


def test_evidence_that_was_there_once_does_not_promote_later() -> None:
    board = walk(new_board("v1"), range(2), v1=GOOD)
    assert state(board, "v1") is State.CANARY
    board = walk(board, range(2, 6), v1=replace(GOOD, promote=Verdict.UNDECIDED, promote_e=59.0))
    assert board.rollouts["v1"].weight == 0.1


def test_a_canary_step_needs_its_time_and_its_requests() -> None:
    board = walk(new_board("v1"), range(2), v1=GOOD)
    early, _ = step(board, T0 + DAY + timedelta(minutes=59), v1=GOOD)
    assert early.rollouts["v1"].weight == 0.1 and early.rollouts["v1"].holds == ()
    for few in ({"requests": 19}, {"canary_requests": 0}):
        held, decisions = step(board, T0 + 2 * DAY, v1=replace(GOOD, **few))
        assert held.rollouts["v1"].holds == ("no_traffic",) and said(decisions) == ["rollout.held"]
        assert step(held, T0 + 3 * DAY, v1=replace(GOOD, **few))[1] == []  # said once, not at every look
    after, _ = step(held, T0 + 3 * DAY, v1=GOOD)
    assert after.rollouts["v1"].weight == 0.5 and after.rollouts["v1"].holds == ()


@pytest.mark.parametrize("guard", ["errors", "slow"])
@pytest.mark.parametrize("paused", [False, True])
def test_a_guardrail_rolls_back_even_while_paused(guard: str, paused: bool) -> None:
    board = walk(new_board("v1"), range(2), v1=GOOD)
    if paused:
        board = fold_all(board, pause(board, "v1", T0 + DAY, **WHO))
    fired = replace(GOOD, **{guard: Verdict.WORSE, f"{guard}_e": 130.0, "acknowledged": False})
    after, decisions = step(board, T0 + DAY, v1=fired)
    assert state(after, "v1") is State.ROLLING_BACK and after.routing is not None and after.routing.weight == 0.0
    assert said(decisions) == ["rollout.advanced", "routing.set", "head.moved"]
    assert "130.0 >= 100.0" in decisions[0].body["reason"]
    done, _ = step(after, T0 + 2 * DAY, v1=fired)
    assert state(done, "v1") is State.ROLLED_BACK


def test_harm_while_baking_gives_the_old_stable_back_at_once() -> None:
    board = walk(new_board("v1"), range(5), v1=GOOD)
    assert state(board, "v1") is State.BAKING
    after, _ = step(board, T0 + 5 * DAY, v1=BAD)
    assert after.routing is not None and (after.routing.stable, after.routing.weight) == ("base-1", 0.0)


def test_a_rollback_ends_with_the_acknowledgement_or_the_lease() -> None:
    board = walk(new_board("v1"), range(2), v1=GOOD)
    late = replace(BAD, acknowledged=False)
    board, _ = step(board, T0 + DAY, v1=late)
    board, none = step(board, T0 + DAY + timedelta(seconds=29), v1=late)
    assert none == [] and state(board, "v1") is State.ROLLING_BACK
    assert state(step(board, T0 + DAY + timedelta(seconds=29), v1=BAD)[0], "v1") is State.ROLLED_BACK
    assert state(step(board, T0 + DAY + timedelta(seconds=30), v1=late)[0], "v1") is State.ROLLED_BACK


def test_an_undecided_version_expires_and_keeps_the_head() -> None:
    board = walk(new_board("v1"), range(29))
    assert state(board, "v1") is State.EXPIRED and board.head == "v1" and board.stable == "base-1"


def test_an_undecided_canary_expires_through_a_rollback() -> None:
    board = walk(new_board("v1"), range(2), v1=GOOD)
    board = walk(board, range(2, 30))
    assert state(board, "v1") is State.EXPIRED and board.routing is not None and board.routing.weight == 0.0
    assert board.head == "v1"


def test_a_version_that_cannot_be_loaded_is_rejected_and_one_not_tried_waits() -> None:
    board = new_board("v1")
    assert state(step(board, T0, v1=replace(QUIET, prepared=None))[0], "v1") is State.PREPARING
    assert state(step(board, T0, v1=replace(QUIET, prepared=False))[0], "v1") is State.REJECTED


def test_no_verdicts_at_all_never_promote() -> None:
    board = new_board("v1", "v2", "v3", "v4")
    for day in range(60):
        board = fold_all(board, step_board(board, {}, POLICY, T0 + day * DAY))
        assert board.routing is not None and board.routing.weight == 0.0 and board.stable == "base-1"


# the family


def test_proven_harm_takes_the_descendants_the_canary_and_the_head() -> None:
    board = new_board("v1", "v2", "v3")
    board = walk(board, range(2), v3=GOOD)
    assert state(board, "v3") is State.CANARY
    board, decisions = step(board, T0 + 2 * DAY, v1=BAD, v3=GOOD)
    assert state(board, "v1") is State.REJECTED and state(board, "v2") is State.WITHDRAWN
    assert board.routing is not None and board.routing.weight == 0.0 and board.head == "base-1"
    withdrawn = ["rollout.withdrawn"] * 2  # v3 is on its way: nobody can have acknowledged a routing that is new
    assert said(decisions) == ["rollout.advanced", *withdrawn, "routing.set", "head.moved"]
    assert state(board, "v3") is State.ROLLING_BACK
    board, _ = step(board, T0 + 3 * DAY)
    assert state(board, "v3") is State.WITHDRAWN
    late = enqueue(board, "v4", 4, "v3", T0 + 3 * DAY)  # was in training when its family was stopped
    assert state(fold_all(board, late), "v4") is State.WITHDRAWN


def test_versions_of_another_branch_stay_when_a_version_is_stopped() -> None:
    board = walk(new_board("v1", ("v2", "base-1")), range(2), v1=BAD)
    assert state(board, "v1") is State.REJECTED and state(board, "v2") is State.SHADOW and board.head == "v2"


def test_a_promotion_supersedes_older_versions_and_restarts_newer_ones() -> None:
    board = new_board("v1", "v2", "v3")
    board = walk(board, range(5), v2=GOOD)
    before = board.rollouts["v3"].evidence_since
    board, decisions = step(board, T0 + 5 * DAY, v2=GOOD, v3=GOOD)
    assert [state(board, v) for v in ("v1", "v2", "v3")] == [State.SUPERSEDED, State.PROMOTED, State.SHADOW]
    assert board.rollouts["v3"].against == "v2" and board.rollouts["v3"].evidence_since > before
    assert board.pairs() == [("v3", "v2")] and board.stable == "v2"
    assert sum(d.kind == "routing.set" for d in decisions) == 1


def test_the_newest_of_several_that_pass_takes_the_one_canary() -> None:
    board = walk(new_board("v1", "v2", "v3"), range(2), v1=GOOD, v2=GOOD)
    assert [state(board, v) for v in ("v1", "v2", "v3")] == [State.SHADOW, State.CANARY, State.SHADOW]


def test_the_newest_waiting_version_replaces_the_one_with_the_least_evidence() -> None:
    board = walk(new_board("v1", "v2", "v3"), range(1))
    board = fold_all(board, enqueue(board, "v4", 4, "v3", T0))
    figures = {v: replace(QUIET, promote_e=e) for v, e in (("v1", 1.5), ("v2", 0.5), ("v3", 2.0))}
    board, _ = step(board, T0 + DAY, **figures)
    assert state(board, "v2") is State.SUPERSEDED and board.rollouts["v2"].watched
    assert state(board, "v4") is State.SHADOW and ("v2", "base-1") in board.pairs()
    board, _ = step(board, T0 + 2 * DAY, v2=BAD)
    assert [state(board, v) for v in ("v1", "v2", "v3", "v4")] == [
        State.SHADOW, State.REJECTED, State.WITHDRAWN, State.WITHDRAWN,
    ]
    assert board.head == "base-1"


def test_the_leader_keeps_its_slot_when_it_is_the_only_one_old_enough_to_be_replaced() -> None:
    board = walk(new_board("v1", "v2", "v3"), range(1))
    board = fold_all(board, enqueue(board, "v4", 4, "v3", T0))
    young, leader = replace(QUIET, blocks=2), replace(QUIET, promote_e=9.0)
    assert state(walk(board, range(1, 3), v1=leader, v2=young, v3=young), "v1") is State.SHADOW
    spoken_against = replace(QUIET, promote_e=0.9)
    assert state(walk(board, range(1, 3), v1=spoken_against, v2=young, v3=young), "v1") is State.SUPERSEDED


def test_a_shadow_keeps_its_slot_until_it_has_had_its_blocks() -> None:
    young = replace(QUIET, blocks=6)
    board = walk(new_board("v1", "v2", "v3"), range(1))
    board = fold_all(board, enqueue(board, "v4", 4, "v3", T0))
    board = walk(board, range(1, 5), v1=young, v2=young, v3=young)
    assert state(board, "v4") is State.QUEUED
    board = fold_all(board, enqueue(board, "v5", 5, "v4", T0))
    board = walk(board, range(5, 6), v1=young, v2=young, v3=young)
    assert state(board, "v4") is State.SUPERSEDED and not board.rollouts["v4"].watched
    assert state(board, "v5") is State.QUEUED


def test_a_watch_ends_at_max_age_and_a_version_without_descendants_is_not_watched() -> None:
    board = walk(new_board("v1", ("v2", "base-1"), ("v3", "v1")), range(1))
    board = fold_all(board, enqueue(board, "v4", 4, "v1", T0))
    least = {"v2": replace(QUIET, promote_e=0.5)}
    board = walk(board, range(1, 2), **least)
    assert state(board, "v2") is State.SUPERSEDED and not board.rollouts["v2"].watched
    board = fold_all(board, enqueue(board, "v5", 5, "v4", T0))
    board = walk(board, range(2, 3), v1=replace(QUIET, promote_e=0.5))
    assert board.rollouts["v1"].watched
    board = walk(board, range(3, 30))
    assert not board.rollouts["v1"].watched and state(board, "v1") is State.SUPERSEDED


def test_a_window_is_stepped_once() -> None:
    board = new_board("v1")
    first = step_board(board, {"v1": GOOD}, POLICY, T0, window="2013-06-03T08:00Z")
    assert said(first)[-1] == "rollout.stepped"
    board = fold_all(board, first)
    assert step_board(board, {"v1": GOOD}, POLICY, T0 + DAY, window="2013-06-03T08:00Z") == []
    assert step_board(board, {"v1": GOOD}, POLICY, T0 + DAY, window="2013-06-04T08:00Z") != []


def test_a_second_look_at_the_same_moment_decides_nothing() -> None:
    board, _ = step(new_board("v1"), T0)
    assert step(board, T0)[1] == []


# what people say


def test_promote_skips_a_step_and_full_goes_to_all_of_the_traffic() -> None:
    board = walk(new_board("v1"), range(1))
    one = fold_all(board, promote(board, "v1", QUIET, POLICY, T0, **WHO))
    assert one.rollouts["v1"].weight == 0.1
    full = fold_all(one, promote(one, "v1", QUIET, POLICY, T0, full=True, **WHO))
    assert full.rollouts["v1"].state is State.PROMOTING and full.routing is not None and full.routing.weight == 0.99
    baking, _ = step(full, T0 + DAY)
    done = fold_all(baking, promote(baking, "v1", QUIET, POLICY, T0 + DAY, **WHO))
    assert done.stable == "v1" and "ana: release drill" in done.rollouts["v1"].reason


def test_promote_is_refused_where_an_abort_is_due_or_replicas_lag() -> None:
    board = walk(new_board("v1", "v2"), range(2), v2=GOOD)
    cases = {
        "harm 24.1 >= 20.0": ("v2", BAD),
        "not every live replica": ("v2", replace(QUIET, acknowledged=False)),
        "v2 is the canary": ("v1", QUIET),
        "no such rollout; known: v1, v2": ("v9", QUIET),
    }
    for message, (version, verdicts) in cases.items():
        with pytest.raises(VerbRefused, match=message):
            promote(board, version, verdicts, POLICY, T0 + DAY, **WHO)
    paused = fold_all(board, pause(board, "v2", T0 + DAY, **WHO))
    with pytest.raises(VerbRefused, match="resume it first"):
        promote(paused, "v2", QUIET, POLICY, T0 + DAY, **WHO)
    with pytest.raises(VerbRefused, match="both are wanted"):
        abort(board, "v2", T0, actor="ana", reason="")


def test_a_paused_rollout_goes_on_only_after_resume() -> None:
    board = walk(new_board("v1"), range(1))
    board = fold_all(board, pause(board, "v1", T0, **WHO))
    board = walk(board, range(1, 4), v1=GOOD)
    assert state(board, "v1") is State.SHADOW
    board = fold_all(board, resume(board, "v1", T0 + 4 * DAY, **WHO))
    assert state(walk(board, range(4, 5), v1=GOOD), "v1") is State.CANARY


def test_abort_of_a_finished_rollout_is_refused_with_its_end() -> None:
    board = walk(new_board("v1"), range(29))
    with pytest.raises(VerbRefused, match="it is EXPIRED since 2013-07-01"):
        abort(board, "v1", T0 + 30 * DAY, **WHO)


def test_two_persons_have_to_agree_where_the_policy_says_so() -> None:
    policy = replace(POLICY, approval="two-person")
    board = walk(new_board("v1"), range(3), policy, v1=GOOD)
    assert board.rollouts["v1"].holds == ("human",)
    with pytest.raises(VerbRefused, match="another person"):
        approve(board, "v1", T0, actor="pipeline", reason="mine")
    board = fold_all(board, approve(board, "v1", T0 + 3 * DAY, **WHO))
    assert state(walk(board, range(3, 4), policy, v1=GOOD), "v1") is State.CANARY


def test_explain_names_the_figures_and_the_next_condition() -> None:
    board = walk(new_board("v1"), range(1))
    text = explain(board.rollouts["v1"], replace(GOOD, promote_e=23.4, tail=True, worst_block=-0.2), POLICY, T0 + DAY)
    assert "v1 is SHADOW since 2013-06-03 08:00 UTC" in text
    assert "Waits (evidence): evidence 23.4, needs 60.0." in text
    assert "Held (tail_loss): worst recent block mean -0.200 < -0.1." in text
    assert "it expires 2013-07-01 08:00 UTC" in text


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": (1, 100)}, "shadow"),
        ({"steps": ("shadow", 10, 5, 100)}, "rising"),
        ({"steps": ("shadow", 10)}, "end with 100"),
        ({"alpha": 0.0}, r"outside \(0, 1\)"),
        ({"alpha_per": "month"}, "use one of 'attempt', 'year'"),
        ({"strategy": "red-black"}, "use one of 'grey', 'ab'"),
        ({"margin": 0.2}, "margin < cap"),
        ({"shadow_slots": 0}, "shadow_slots = 0 < 1"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutPolicy(**setting)


def test_a_shadow_policy_never_gives_traffic() -> None:
    policy = RolloutPolicy(steps=("shadow",))
    board = walk(new_board("v1"), range(29), policy, v1=GOOD)
    assert state(board, "v1") is State.EXPIRED and board.epoch == 1


def test_advance_alone_does_not_change_what_is_over() -> None:
    for final in (State.PROMOTED, State.REJECTED, State.ROLLED_BACK, State.EXPIRED, State.SUPERSEDED, State.WITHDRAWN):
        over = Rollout("v1", 1, None, "base-1", final, T0, T0)
        assert advance(over, BAD, POLICY, T0 + 99 * DAY) == (over, ())
