"""The invariants of a release under random schedules of updates, looks and people."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from models.release import enqueue, found, step_board
from models.release_board import Board, fold, fold_all
from models.release_verbs import VerbRefused, abort, pause, promote, resume
from models.rollout import Decision, State, Verdict, Verdicts
from models.rollout_state import TRAFFIC
from security.journal import canonical
from tests.test_rollout import DAY, GOOD, POLICY, QUIET, T0, WHO

VERDICTS = st.builds(
    Verdicts,
    promote=st.sampled_from([*Verdict, Verdict.BETTER, Verdict.BETTER]),
    promote_e=st.sampled_from([0.5, 59.0, 80.0, 400.0]),
    harm=st.sampled_from([Verdict.UNDECIDED] * 8 + [Verdict.WORSE, Verdict.ERROR]),
    harm_e=st.sampled_from([0.2, 33.0]),
    errors=st.sampled_from([Verdict.UNDECIDED] * 9 + [Verdict.WORSE]),
    blocks=st.sampled_from([0, 6, 7, 20]),
    samples=st.sampled_from([10, 1000]),
    mean=st.sampled_from([None, -0.01, 0.04]),
    tail=st.sampled_from([False] * 5 + [True]),
    requests=st.sampled_from([0, 100]),
    canary_requests=st.sampled_from([0, 10]),
    covered=st.sampled_from([True] * 4 + [False]),
    fresh=st.sampled_from([True] * 4 + [False]),
    prepared=st.sampled_from([None, True, True, True, False]),
    acknowledged=st.booleans(),
)


def proves(verdicts: Verdicts) -> bool:
    return (
        verdicts.promote is Verdict.BETTER
        and verdicts.promote_e >= POLICY.promote_threshold
        and verdicts.blocks >= POLICY.min_blocks
        and verdicts.mean is not None
        and verdicts.mean > 0
        and verdicts.fresh
        and not verdicts.tail
    )


class AnySchedule(RuleBasedStateMachine):
    """Updates, looks with any figures, and people, in any order."""

    @initialize()
    def start(self) -> None:
        self.journal: list[tuple[str, dict[str, Any]]] = []
        self.board = Board()
        self.now = T0
        self.number = 0
        self.write(found("base-1", T0))

    def write(self, decisions: list[Decision]) -> None:
        before = self.board
        for decision in decisions:
            body = json.loads(canonical(decision.body))
            self.journal.append((decision.kind, body))
            self.board = fold(self.board, decision.kind, body)
        assert self.board == fold_all(before, decisions)  # the journal's text loses nothing
        routings = [d for d in decisions if d.kind == "routing.set"]
        assert len(routings) <= 1
        if self.board.routing != before.routing:
            assert len(routings) == 1 and self.board.epoch == before.epoch + 1
            if before.routing:  # a change of weight has its rollout's decision in the same transaction
                assert any(d.room == "rollout" and d.body["version"] == routings[0].body["rollout"] for d in decisions)

    @rule(fresh_branch=st.booleans())
    def update(self, fresh_branch: bool) -> None:
        self.number += 1
        version = f"v{self.number:06d}"
        parent = self.board.stable if fresh_branch else self.board.head
        self.write(enqueue(self.board, version, self.number, parent, self.now))
        if self.board.rollouts[version].state is State.QUEUED:
            self.write([Decision("lineage", "head.moved", {"head": version})])

    @rule(data=st.data(), hours=st.sampled_from([1, 24, 24, 24, 24 * 9]))
    def look(self, data: st.DataObject, hours: int) -> None:
        self.now += timedelta(hours=hours)
        verdicts = {v: data.draw(VERDICTS) for v, r in self.board.rollouts.items() if r.live or r.watched}
        before = self.board
        self.write(step_board(self.board, verdicts, POLICY, self.now))
        self.check_raises(before, verdicts)

    @precondition(lambda self: self.number >= 1)
    @rule(data=st.data(), good=st.booleans())
    def look_kindly(self, data: st.DataObject, good: bool) -> None:
        """Long stretches of good luck, so that canaries and promotions are reached."""
        self.now += DAY
        verdicts = {v: GOOD if good or r.number % 2 else QUIET for v, r in self.board.rollouts.items()}
        before = self.board
        self.write(step_board(self.board, verdicts, POLICY, self.now))
        self.check_raises(before, verdicts)

    def check_raises(self, before: Board, verdicts: dict[str, Verdicts]) -> None:
        for version, rollout in self.board.rollouts.items():
            old = before.rollouts[version]
            if rollout.weight > old.weight:
                assert proves(verdicts[version]) and verdicts[version].acknowledged and not old.paused
            if verdicts.get(version, QUIET).harm is Verdict.WORSE and old.scored:
                assert not rollout.live or rollout.state is State.ROLLING_BACK

    @precondition(lambda self: any(r.live for r in self.board.rollouts.values()))
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from([v for v, r in self.board.rollouts.items() if r.live]))
        self.write(abort(self.board, version, self.now, **WHO))
        after = self.board.rollouts[version]
        assert after.weight == 0.0 and after.state in (State.REJECTED, State.ROLLING_BACK)
        assert self.board.routing is not None and self.board.routing.canary != version

    @precondition(lambda self: any(r.live for r in self.board.rollouts.values()))
    @rule(data=st.data(), verb=st.sampled_from([pause, resume]))
    def pause_or_resume(self, data: st.DataObject, verb: Any) -> None:
        version = data.draw(st.sampled_from([v for v, r in self.board.rollouts.items() if r.live]))
        self.write(verb(self.board, version, self.now, **WHO))

    @precondition(lambda self: any(r.live for r in self.board.rollouts.values()))
    @rule(data=st.data(), full=st.booleans())
    def promote(self, data: st.DataObject, full: bool) -> None:
        version = data.draw(st.sampled_from([v for v, r in self.board.rollouts.items() if r.live]))
        verdicts = data.draw(VERDICTS)
        try:
            self.write(promote(self.board, version, verdicts, POLICY, self.now, full=full, **WHO))
        except VerbRefused:
            return
        assert verdicts.harm is not Verdict.WORSE

    @invariant()
    def at_most_one_canary(self) -> None:
        board = getattr(self, "board", None)
        if board is None or board.routing is None:
            return
        taking = [r for r in board.rollouts.values() if r.state in TRAFFIC]
        leaving = [r for r in board.rollouts.values() if r.state is State.ROLLING_BACK]
        assert len(taking) + len(leaving) <= 1
        assert (board.routing.canary, board.routing.weight) == (
            (taking[0].version, taking[0].weight) if taking else (None, 0.0)
        )
        assert all(r.epoch == board.epoch for r in taking)
        tested = board.in_states(State.SHADOW, State.PREPARING, State.ROLLING_BACK, *TRAFFIC)
        assert len(tested) <= POLICY.shadow_slots
        assert all(r.against == board.stable for r in board.rollouts.values() if r.scored)

    @invariant()
    def nothing_live_carries_condemned_weights(self) -> None:
        board = getattr(self, "board", None)
        if board is None:
            return
        for bad in board.in_states(State.REJECTED, State.ROLLED_BACK):
            for rollout in board.rollouts.values():
                if board.descends(rollout.version, bad.version) and rollout.version != bad.version:
                    assert rollout.state in (State.WITHDRAWN, State.REJECTED, State.ROLLED_BACK, State.PROMOTED) or (
                        rollout.state is State.ROLLING_BACK
                    )
            assert not board.descends(board.head, bad.version) or board.descends(board.stable, bad.version)

    def teardown(self) -> None:
        replayed = Board()
        for kind, body in getattr(self, "journal", []):
            replayed = fold(replayed, kind, body)
        assert replayed == getattr(self, "board", Board())


TestAnySchedule = AnySchedule.TestCase
TestAnySchedule.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
