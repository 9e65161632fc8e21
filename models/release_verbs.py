"""What a person may say to a rollout: start, promote, abort, pause, resume, approve, retry, undo. Each returns the entries it
makes.

The words mean what they mean in Argo Rollouts. Each wants an actor and a reason, and both are in the journal. An
abort is legal in every live state. A promote skips what is left of the current step, never a proven harm nor a
lagging replica.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from models.duration import spell
from models.release import CONVICTED, Draft, enqueue, restart_tests, settle_promotion, tainted, withdraw_family
from models.release_board import Board
from models.release_policy import NO_EVIDENCE, RolloutPolicy, Verdicts
from models.rollout import Decision, enter_step, finish, moved, stop, write
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
    task_policy, policy = policy, board.policy_of(rollout, policy)
    said = f"{actor}: {reason}"
    harm = stop_reason(rollout, verdicts, policy)
    if harm is not None:
        raise VerbRefused(f"promote {version}: {harm}; an abort outranks a promote")
    if rollout.paused:
        raise VerbRefused(f"promote {version}: it is paused; resume it first")
    if rollout.state not in (State.SHADOW, State.CANARY, State.BAKING):
        waits = "the next window's run loads and verifies it" if rollout.state is State.PREPARING else "wait for the replicas"
        raise VerbRefused(f"promote {version}: it is {rollout.state.value}, not SHADOW, CANARY or BAKING; {waits}")
    if board.canary is not None and board.canary.version != version:
        raise VerbRefused(
            f"promote {version}: {board.canary.version} is the canary and there is one a task; abort that first"
        )
    lone = policy.approval == "two-person" and not set(rollout.approvers) - {rollout.proposer}
    if lone and rollout.state is not State.BAKING:
        raise VerbRefused(f"promote {version}: it needs an approver other than {rollout.proposer}; ask for `approve` first")
    draft = Draft(board, now)
    if rollout.state is State.BAKING:
        baked, decisions = finish(rollout, now, said, verdicts, board.epoch, actor)
        draft.add(*decisions)
        draft.route(version, said, stable=version)
        settle_promotion(draft, baked, task_policy)
        return draft.decisions
    if not verdicts.acknowledged:
        raise VerbRefused(
            f"promote {version}: not every live replica has acknowledged routing epoch {board.epoch}: look, then ask again"
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


def start(
    board: Board, version: str, now: datetime, *, number: int, parent: str | None, actor: str, reason: str
) -> list[Decision]:
    """Queue a registered version that has no rollout: one whose update was blocked, and that a person answers for. It has
    to pass every gate; the person is its proposer, so somebody else has to approve it."""
    _signed("start", version, actor, reason)
    if version in board.rollouts:
        state = board.rollouts[version].state.value
        raise VerbRefused(f"start {version}: it has a rollout, which is {state}; `retry` is for one that has ended")
    return enqueue(board, version, number, parent, now, actor, actor=actor, reason=reason)


def retry(
    board: Board,
    version: str,
    now: datetime,
    *,
    actor: str,
    reason: str,
    policy: RolloutPolicy,
    verdicts: Verdicts = NO_EVIDENCE,
) -> list[Decision]:
    """A new attempt of a version that has ended, or that was stable once. Against the same version its evidence goes on,
    under the policy it had; against another it starts again, and so does a test on outcomes, whose users are drawn anew: it
    counts as one more test. It never slides: proven harm is refused."""
    known = _known(board, version, "retry", actor, reason)
    if known.live:
        how = "wait until it has ended" if known.state is State.ROLLING_BACK else "abort it first, or let it go on"
        raise VerbRefused(f"retry {version}: it is {known.state.value}; {how}")
    if version == board.stable:
        raise VerbRefused(f"retry {version}: it is stable")
    harm = stop_reason(known, verdicts, board.policy_of(known, policy))
    if harm is not None:
        raise VerbRefused(f"retry {version}: {harm}; its evidence would go on: only a new version starts again")
    bad = tainted(board, board.parents.get(version))
    if bad is not None:
        raise VerbRefused(f"retry {version}: it carries the weights of {bad.version}, stopped: {bad.reason}")
    kept = board.policy_of(known, policy)
    goes_on = bool(known.policy) and kept.evidence == "paired" and board.opponent(version, kept) == known.against
    changed = Rollout(
        version, known.number, known.parent, known.against, State.QUEUED, now, known.evidence_since, proposer=actor,
        reason=reason, policy=known.policy if goes_on else "", attempt=known.attempt + 1, test=known.test,
        expires_from=now if goes_on else None,
    )
    return [write("rollout.retried", changed, now, reason=reason, actor=actor)]


def undo(
    board: Board,
    now: datetime,
    *,
    actor: str,
    reason: str,
    policy: RolloutPolicy,
    to_version: str | None = None,
) -> list[Decision]:
    """Return to the stable before, or to `to_version`, at once and without a gate, as long as it was stable within
    `undo_window`; later it is queued and has to pass the gates (see `retry`). What was stable since is rolled back, with
    its descendants; a canary is superseded, everything else is tested against the version returned to."""
    if board.stable is None or len(board.stables) < 2:
        raise VerbRefused(f"undo: {board.stable or 'nothing'} is stable and nothing was before it")
    taking = board.canary
    if taking is not None and taking.state in (State.PROMOTING, State.BAKING):
        raise VerbRefused(
            f"undo: {taking.version} is {taking.state.value} at {taking.weight:.0%} and not stable yet: "
            f"`abort` gives its traffic back to {board.stable}"
        )
    target = to_version or board.stables[-2][0]
    places = [place for place, (version, _) in enumerate(board.stables[:-1]) if version == target]
    if target == board.stable or not places:
        once = ", ".join(dict.fromkeys(version for version, _ in board.stables if version != board.stable))
        raise VerbRefused(f"undo to {target}: it {'is' if target == board.stable else 'never was'} stable; before: {once}")
    _known(board, target, "undo to", actor, reason)
    ended = board.stables[places[-1] + 1][1]
    leaving = board.rollouts.get(board.stable)
    window = (board.policy_of(leaving, policy) if leaving else policy).undo_window
    if now - ended > window:
        late = f"{reason} (undo later than {spell(window)}: it has to pass the gates)"
        return retry(board, target, now, actor=actor, reason=late, policy=policy)
    known = board.rollouts.get(target)
    if known is not None and (known.state in CONVICTED or known.live):
        raise VerbRefused(f"undo to {target}: it is {known.state.value}: {known.reason}")
    draft, said = Draft(board, now), f"{actor}: {reason}"
    gone = dict.fromkeys(version for version, _ in board.stables[places[-1] + 1 :] if version in board.rollouts)
    for version in reversed(gone):  # the newest first: the anchor goes back step by step
        one = draft.board.rollouts[version]
        if version == target or not (one.live or one.state is State.PROMOTED or version == board.stable):
            continue
        changed = replace(one, state=State.ROLLED_BACK, state_since=now, weight=0.0, reason=said, holds=())
        draft.add(moved(one, changed, now, said, NO_EVIDENCE, actor))
    if draft.board.canary is not None:
        _, decisions = stop(
            draft.board.canary, now, f"its opponent was undone: {said}", outcome=State.SUPERSEDED, epoch=board.epoch,
            actor=actor,
        )
        draft.add(*decisions)
    draft.route(board.stable, said, stable=target)
    for version in gone:
        withdraw_family(draft, draft.board.rollouts[version])
    restart_tests(draft, policy)
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


def _signed(verb: str, version: str, actor: str, reason: str) -> None:
    if not actor or not reason:
        raise VerbRefused(
            f"{verb} {version}: actor {actor!r}, reason {reason!r}: both are wanted, they go into the journal"
        )
    if actor == "gate":
        raise VerbRefused(f"{verb} {version}: 'gate' signs what no person decided; give another name")


def _known(board: Board, version: str, verb: str, actor: str, reason: str) -> Rollout:
    """The rollout, also of a version that was stable without one: the base."""
    _signed(verb, version, actor, reason)
    since = next((at for stable, at in board.stables if stable == version), None)
    rollout = board.rollouts.get(version)
    if rollout is None and since is not None:
        return Rollout(version, 0, None, board.stable or version, State.PROMOTED, since, since)
    if rollout is None:
        known = ", ".join(sorted(board.rollouts)) or "none"
        raise VerbRefused(f"{verb} {version}: no such rollout; known: {known}")
    return rollout


def _live(board: Board, version: str, verb: str, actor: str, reason: str, watched: bool = False) -> Rollout:
    rollout = _known(board, version, verb, actor, reason)
    if not rollout.live and not (watched and rollout.watched):
        how = "; `undo` leaves a stable version" if version == board.stable else ""
        raise VerbRefused(
            f"{verb} {version}: it is {rollout.state.value} since {rollout.state_since:%Y-%m-%d}: {rollout.reason}{how}"
        )
    return rollout


def _said(kind: str, rollout: Rollout, now: datetime, actor: str, reason: str) -> Decision:
    return write(kind, rollout, now, actor=actor, reason=reason)
