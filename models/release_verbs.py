"""What a person may say to a rollout: promote, abort, pause, resume, approve. Each returns the entries it makes.

The words mean what they mean in Argo Rollouts. Each wants an actor and a reason, and both are in the journal. An
abort is legal in every live state. A promote skips what is left of the current step, never a proven harm nor a
lagging replica.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from models.release import Draft, settle_promotion, withdraw_family
from models.release_board import Board
from models.release_policy import RolloutPolicy, Verdicts
from models.rollout import Decision, enter_step, finish, stop, write
from models.rollout_conditions import stop_reason
from models.rollout_state import Rollout, State


class VerbRefused(ValueError):
    """The verb does not fit the rollout as it is; the message says what would."""


def promote(
    board: Board,
    version: str,
    verdicts: Verdicts,
    policy: RolloutPolicy,
    now: datetime,
    *,
    actor: str,
    reason: str,
    full: bool = False,
) -> list[Decision]:
    """Skips the rest of the current step; with `full` straight to 100 %. From BAKING it makes the version stable."""
    rollout = _live(board, version, "promote", actor, reason)
    said = f"{actor}: {reason}"
    harm = stop_reason(rollout, verdicts, policy)
    if harm is not None:
        raise VerbRefused(f"promote {version}: {harm}; an abort outranks a promote")
    if rollout.paused:
        raise VerbRefused(f"promote {version}: it is paused; resume it first")
    if rollout.state not in (State.SHADOW, State.CANARY, State.BAKING):
        raise VerbRefused(
            f"promote {version}: it is {rollout.state.value}, not SHADOW, CANARY or BAKING; wait for the replicas"
        )
    if board.canary is not None and board.canary.version != version:
        raise VerbRefused(
            f"promote {version}: {board.canary.version} is the canary and there is one a task; abort that first"
        )
    draft = Draft(board, now)
    if rollout.state is State.BAKING:
        baked, decisions = finish(rollout, now, said, verdicts, board.epoch, actor)
        draft.add(*decisions)
        draft.route(version, said, stable=version)
        settle_promotion(draft, baked)
        return draft.decisions
    if not verdicts.acknowledged:
        raise VerbRefused(
            f"promote {version}: not every live replica has acknowledged routing epoch {board.epoch}; try again"
        )
    last = len(policy.weights) - 1
    if last < 0:
        raise VerbRefused(f"promote {version}: rollout.steps = {list(policy.steps)} has no canary step")
    step = last if full else rollout.step + 1
    draft.add(*enter_step(rollout, step, policy, now, said, verdicts, board.epoch, actor)[1])
    draft.route(version, said)
    return draft.decisions


def abort(board: Board, version: str, now: datetime, *, actor: str, reason: str) -> list[Decision]:
    """Weight 0 in this very decision, from any live state; descendants are withdrawn, the lineage head returns to
    stable."""
    rollout = _live(board, version, "abort", actor, reason, watched=True)
    draft = Draft(board, now)
    after, decisions = stop(rollout, now, f"{actor}: {reason}", epoch=board.epoch, actor=actor)
    draft.add(*decisions)
    if decisions:
        withdraw_family(draft, after)
    return draft.decisions


def pause(board: Board, version: str, now: datetime, *, actor: str, reason: str) -> list[Decision]:
    """Nothing goes further until resumed; guardrails, the harm test and aborts work on."""
    rollout = _live(board, version, "pause", actor, reason)
    return [] if rollout.paused else [_said("rollout.paused", replace(rollout, paused=True), now, actor, reason)]


def resume(board: Board, version: str, now: datetime, *, actor: str, reason: str) -> list[Decision]:
    rollout = _live(board, version, "resume", actor, reason)
    return [_said("rollout.resumed", replace(rollout, paused=False), now, actor, reason)] if rollout.paused else []


def approve(board: Board, version: str, now: datetime, *, actor: str, reason: str) -> list[Decision]:
    """A second person's consent, for `approval = "two-person"`. The proposer's own counts for nothing and is
    refused."""
    rollout = _live(board, version, "approve", actor, reason)
    if actor == rollout.proposer:
        raise VerbRefused(f"approve {version}: {actor} proposed it; another person has to approve")
    if actor in rollout.approvers:
        return []
    approved = replace(rollout, approvers=(*rollout.approvers, actor))
    return [_said("rollout.approved", approved, now, actor, reason)]


def _live(board: Board, version: str, verb: str, actor: str, reason: str, watched: bool = False) -> Rollout:
    if not actor or not reason:
        raise VerbRefused(
            f"{verb} {version}: actor {actor!r}, reason {reason!r}: both are wanted, they go into the journal"
        )
    rollout = board.rollouts.get(version)
    if rollout is None:
        known = ", ".join(sorted(board.rollouts)) or "none"
        raise VerbRefused(f"{verb} {version}: no such rollout; known: {known}")
    if not rollout.live and not (watched and rollout.watched):
        raise VerbRefused(
            f"{verb} {version}: it is {rollout.state.value} since {rollout.state_since:%Y-%m-%d}: {rollout.reason}"
        )
    return rollout


def _said(kind: str, rollout: Rollout, now: datetime, actor: str, reason: str) -> Decision:
    return write(kind, rollout, now, actor=actor, reason=reason)
