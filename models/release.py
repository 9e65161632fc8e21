"""The release rules of a task: which versions are tested, who takes the canary, what a proven harm or a promotion
does.

`step_board` is asked once a window (or as often as one likes: with nothing new it decides nothing) and returns every
entry of the moment, rollout, routing and lineage together, to be appended in one transaction. The board after it is
the fold.

* Up to `shadow_slots` versions are under test at once, the canary among them. The newest waiting version takes a free
  slot; when none is free it replaces the shadow with the least evidence that has had `min_blocks` blocks.
* A superseded version that has descendants stays under the harm test (`watched`): else a bad version is replaced
  before it can be convicted and its children go on. (On flights: stopped in 8 of 8 runs with this rule, in 0 of 12
  without.)
* A version that is rejected or rolled back takes all its descendants with it, and the lineage head returns to stable.
* A promotion supersedes older versions; newer ones start their evidence again, against the new stable.

It knows no figures of its own and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from models.release_board import Board, fold
from models.release_policy import NO_EVIDENCE, RolloutPolicy, Verdicts
from models.rollout import Decision, Stream, advance, stop, write
from models.rollout_state import TRAFFIC, Rollout, State
from security.journal import stamp

CONVICTED = (State.REJECTED, State.ROLLED_BACK, State.WITHDRAWN, State.ROLLING_BACK)
GONE = frozenset({State.PROMOTED, State.REJECTED, State.ROLLED_BACK, State.WITHDRAWN})


class Draft:
    """The entries of one moment and the board they lead to; `board` is at every point the fold of what was written."""

    def __init__(self, board: Board, now: datetime) -> None:
        self.board = board
        self.now = now
        self.epoch = board.epoch
        self.decisions: list[Decision] = []

    def add(self, *decisions: Decision) -> None:
        for decision in decisions:
            self.decisions.append(decision)
            self.board = fold(self.board, decision.kind, decision.body)

    def route(self, cause: str, reason: str, stable: str | None = None) -> None:
        """Makes the routing follow the rollouts; writes nothing where it does already."""
        board = self.board
        target = stable or board.stable
        if target is None:
            raise ValueError(
                "the task has no routing: write the base's `routing.set` before the first rollout (see found)"
            )
        taking = next((r for r in board.rollouts.values() if r.state in TRAFFIC), None)
        wanted = (target, taking.version if taking else None, taking.weight if taking else 0.0)
        current = board.routing
        if current and (current.stable, current.canary, current.weight) == wanted:
            return
        body = {
            "epoch": board.epoch + 1, "stable": wanted[0], "canary": wanted[1], "weight": wanted[2],
            "salt": taking.salt if taking else "", "rollout": cause, "reason": reason, "clock": stamp(self.now),
        }
        self.add(Decision(Stream.ROUTING, "routing.set", body))

    def adopt(self, policy: RolloutPolicy) -> None:
        body = {"policy": policy.to_body(), "digest": policy.digest, "clock": stamp(self.now)}
        self.add(Decision(Stream.ROLLOUT, "policy.set", body))

    def next_test(self) -> int:
        """The number of a test that begins now, among the task's of this calendar year."""
        return self.board.tests.get(self.now.year, 0) + 1

    def move_head(self, head: str, reason: str) -> None:
        if self.board.head != head:
            self.add(Decision(Stream.LINEAGE, "head.moved", {"head": head, "reason": reason, "clock": stamp(self.now)}))


def found(base: str, now: datetime) -> list[Decision]:
    """The first entries of a task: the frozen base is stable and lineage head."""
    draft = Draft(Board(), now)
    draft.route("", "the frozen base answers until a version is promoted", stable=base)
    draft.move_head(base, "the frozen base")
    return draft.decisions


def enqueue(
    board: Board,
    version: str,
    number: int,
    parent: str | None,
    now: datetime,
    proposer: str = "pipeline",
    **said: str,
) -> list[Decision]:
    """A new version waits for a slot; one whose ancestor was convicted meanwhile is withdrawn at once. `said`: further
    body of the entry, where a person asked for it."""
    if board.stable is None:
        raise ValueError(
            f"{version} cannot be queued: the task has no stable version; write the base's `routing.set` first"
        )
    if version in board.rollouts:
        return []
    rollout = Rollout(version, number, parent, board.stable, State.QUEUED, now, now, proposer=proposer)
    draft = Draft(board, now)
    draft.add(write("rollout.queued", rollout, now, number=number, parent=parent, **said))
    ancestor = tainted(board, parent)
    if ancestor is not None:
        draft.add(*stop(rollout, now, _withdrawal(ancestor), outcome=State.WITHDRAWN)[1])
    return draft.decisions


def tainted(board: Board, version: str | None) -> Rollout | None:
    """A convicted version whose weights `version` carries. One that stable descends from says nothing of it (stable was
    better), nor does one that merely leaves its users."""
    for bad in board.in_states(*CONVICTED):
        leaves = bad.state is State.ROLLING_BACK and bad.outcome in (State.EXPIRED, State.SUPERSEDED)
        if not leaves and board.descends(version, bad.version) and not board.descends(board.stable, bad.version):
            return bad
    return None


def step_board(
    board: Board, verdicts: Mapping[str, Verdicts], policy: RolloutPolicy, now: datetime, window: str | None = None
) -> list[Decision]:
    """Every entry of this moment. A version without verdicts has no evidence. With `window`, each window is stepped
    once."""
    if window is not None and board.stepped is not None and window <= board.stepped:
        return []
    draft = Draft(board, now)
    judge = _Judge(verdicts)
    _freeze(draft, policy, window)
    _convict(draft, judge, policy)
    _advance_all(draft, judge, policy)
    _fill_slots(draft, judge, policy)
    if window is not None:
        draft.add(Decision(Stream.ROLLOUT, "rollout.stepped", {"window": window, "clock": stamp(now)}))
    return draft.decisions


def _freeze(draft: Draft, policy: RolloutPolicy, window: str | None) -> None:
    """A freeze holds those that run, too. Between windows freezes are only added: two processes with different settings
    would else take turns for ever. A window's step takes out what the settings no longer have."""
    known = draft.board.policy
    if known is None or not any(r.live and r.policy for r in draft.board.rollouts.values()):
        return
    wanted = policy.freeze if window is not None else tuple(dict.fromkeys((*known.freeze, *policy.freeze)))
    if wanted != known.freeze:
        draft.adopt(replace(known, freeze=wanted))


class _Judge:
    """Verdicts by version, silent for a version whose evidence was restarted within this step."""

    def __init__(self, verdicts: Mapping[str, Verdicts]) -> None:
        self._verdicts = dict(verdicts)

    def __call__(self, version: str) -> Verdicts:
        return self._verdicts.get(version, NO_EVIDENCE)

    def restart(self, version: str) -> None:
        old = self(version)
        self._verdicts[version] = Verdicts(fresh=old.fresh, prepared=old.prepared, acknowledged=old.acknowledged)


def _convict(draft: Draft, judge: _Judge, policy: RolloutPolicy) -> None:
    """Stops, before anything goes further: oldest first, so that a whole family falls with its root."""
    for version in [r.version for r in sorted(draft.board.rollouts.values(), key=lambda r: r.number)]:
        rollout = draft.board.rollouts[version]
        if not rollout.live and not rollout.watched:
            continue
        frozen = draft.board.policy_of(rollout, policy)
        after, decisions = advance(
            rollout, judge(version), frozen, draft.now, canary_free=False, epoch=draft.board.epoch
        )
        if condemned(rollout, after):
            draft.add(*decisions)
            withdraw_family(draft, after)


def condemned(before: Rollout, after: Rollout) -> bool:
    """Whether this move is a conviction: the version is bad, not merely late or replaced."""
    if after.state is State.REJECTED:
        return before.state is not State.REJECTED
    leaving = after.state is State.ROLLING_BACK and after.outcome is State.ROLLED_BACK
    return leaving and not (before.state is State.ROLLING_BACK and before.outcome is State.ROLLED_BACK)


def withdraw_family(draft: Draft, bad: Rollout) -> None:
    """Withdraws the descendants, sets the routing, moves the head back to stable if it carries the bad weights.

    Unless stable itself descends from the bad one: an old version that is worse than its own child says nothing of it."""
    if draft.board.descends(draft.board.stable, bad.version):
        draft.route(bad.version, bad.reason)
        return
    for other in sorted(draft.board.rollouts.values(), key=lambda r: r.number):
        if (
            other.version != bad.version
            and other.state not in GONE
            and draft.board.descends(other.version, bad.version)
        ):
            draft.add(*stop(other, draft.now, _withdrawal(bad), outcome=State.WITHDRAWN, epoch=draft.board.epoch)[1])
    draft.route(bad.version, bad.reason)
    stable = draft.board.stable
    if stable is not None and draft.board.head is not None and draft.board.descends(draft.board.head, bad.version):
        draft.move_head(stable, f"{bad.version} was stopped: {bad.reason}")


def _withdrawal(bad: Rollout) -> str:
    return f"carries the weights of {bad.version}, stopped: {bad.reason}"


def _advance_all(draft: Draft, judge: _Judge, policy: RolloutPolicy) -> None:
    """The canary first (its promotion restarts the others), then newest first: of several that pass the newest takes
    it."""
    canary = draft.board.canary
    if canary is not None:
        _advance_one(draft, canary, judge, policy)
        after = draft.board.rollouts[canary.version]
        if after.state is State.PROMOTED and canary.state is not State.PROMOTED:
            settle_promotion(draft, after, policy, judge)
    others = [
        r
        for r in draft.board.rollouts.values()
        if (r.live or r.watched) and not (canary and r.version == canary.version)
    ]
    for rollout in sorted(others, key=lambda r: -r.number):
        _advance_one(draft, draft.board.rollouts[rollout.version], judge, policy)


def _advance_one(draft: Draft, rollout: Rollout, judge: _Judge, policy: RolloutPolicy) -> None:
    free = draft.board.canary is None
    verdicts = judge(rollout.version)
    if draft.board.epoch != draft.epoch:  # what replicas acknowledged is the routing before this moment's
        verdicts = replace(verdicts, acknowledged=False)
    frozen = draft.board.policy_of(rollout, policy)
    after, decisions = advance(rollout, verdicts, frozen, draft.now, canary_free=free, epoch=draft.board.epoch)
    draft.add(*decisions)
    if condemned(rollout, after):
        withdraw_family(draft, after)
        return
    stable = rollout.version if after.state is State.PROMOTED else None
    if decisions and (rollout.state in TRAFFIC or after.state in TRAFFIC):
        draft.route(rollout.version, after.reason, stable=stable)


def settle_promotion(draft: Draft, promoted: Rollout, policy: RolloutPolicy, judge: _Judge | None = None) -> None:
    """Older versions under test are superseded, newer ones start again against the new stable.

    One that may lose a margin goes on against its anchor, which moves only with a promotion that was proven better."""
    for other in sorted(draft.board.rollouts.values(), key=lambda r: r.number):
        if other.version == promoted.version or not (other.live or other.watched):
            continue
        if other.number < promoted.number:
            reason = f"older than {promoted.version}, which is stable now"
            changed = replace(
                other, state=State.SUPERSEDED, state_since=draft.now, watched=False, holds=(), reason=reason
            )
            draft.add(write("rollout.superseded", changed, draft.now, reason=reason))
    restart_tests(draft, policy, judge)


def restart_tests(draft: Draft, policy: RolloutPolicy, judge: _Judge | None = None) -> None:
    """Every version under test whose opponent is another now begins its evidence again."""
    for other in sorted(draft.board.rollouts.values(), key=lambda r: r.number):
        if not (other.scored or other.state in (State.QUEUED, State.PREPARING)):
            continue
        against = draft.board.opponent(other.version, draft.board.policy_of(other, policy))
        if against is None or against == other.against or against == other.version:
            continue
        reason = f"evidence starts again against {against}"
        changed = replace(
            other, against=against, evidence_since=draft.now, expires_from=None, holds=(), reason=reason,
            test=other.test if other.state is State.QUEUED else draft.next_test(),
        )
        draft.add(write("rollout.restarted", changed, draft.now, reason=reason))
        if judge is not None:
            judge.restart(other.version)


def _fill_slots(draft: Draft, judge: _Judge, policy: RolloutPolicy) -> None:
    """The newest waiting version is next. Waiting ones for which no slot is left are superseded, without a watch:
    they were never tested, and what they carry their descendants carry, which are tested."""
    waiting = draft.board.in_states(State.QUEUED)[::-1]
    before = draft.board.policy
    trusted = before is not None and before.approval == policy.approval  # consent given where nobody had to prove who they are
    found, written = draft.board, len(draft.decisions)
    if waiting and before != policy:
        draft.adopt(policy)
    for rollout in waiting:
        occupied = draft.board.in_states(State.PREPARING, State.SHADOW, State.ROLLING_BACK, *TRAFFIC)
        newest = rollout is waiting[0]
        if len(occupied) >= policy.shadow_slots and (not newest or not _replace_weakest(draft, rollout, judge, policy)):
            if not newest:
                _supersede(draft, rollout, f"{waiting[0].version} is newer and waits too", watch=False)
            continue
        against = draft.board.opponent(rollout.version, draft.board.policy_of(rollout, policy)) or rollout.against
        goes_on = rollout.expires_from is not None and against == rollout.against  # a retry: the same test, the same policy
        goes_on &= draft.board.policy_of(rollout, policy).approval == policy.approval  # nobody goes round a second person so
        changed = replace(
            rollout,
            state=State.PREPARING,
            state_since=draft.now,
            against=against,
            reason="has a slot",
            policy=rollout.policy if goes_on else policy.digest,
            test=rollout.test if goes_on else draft.next_test(),
            expires_from=rollout.expires_from if goes_on else None,
            approvers=rollout.approvers if trusted else (),
        )
        draft.add(write("rollout.started", changed, draft.now, reason="has a slot"))
        _advance_one(draft, changed, judge, policy)
    if draft.board.policy is not before and len(draft.decisions) == written + 1:  # nothing was decided by it
        draft.board = found
        draft.decisions.pop()


def _replace_weakest(draft: Draft, newcomer: Rollout, judge: _Judge, policy: RolloutPolicy) -> bool:
    """Frees the slot of the shadow with the least evidence; false where none may be replaced yet.

    A shadow keeps its slot for `min_blocks` blocks: with updates faster than that every version would be replaced
    before it could pass. So does the leader, as long as its evidence speaks for it (> 1): where updates come faster than
    blocks it would else be the only one old enough to be replaced, week after week. One that a person paused, or that
    has passed and waits for the canary, keeps its slot too."""
    everyone = draft.board.in_states(State.SHADOW)
    leader = max(everyone, key=lambda r: judge(r.version).promote_e, default=None)
    shadows = [
        r for r in everyone
        if judge(r.version).blocks >= draft.board.policy_of(r, policy).min_blocks and not r.paused
        and not judge(r.version).promote_e >= draft.board.policy_of(r, policy).promote_limit(r.test)
        and not (r is leader and judge(r.version).promote_e > 1.0)
    ]
    if not shadows:
        return False
    weakest = min(shadows, key=lambda r: (judge(r.version).promote_e, r.number))
    figures = judge(weakest.version)
    reason = (
        f"least evidence ({figures.promote_e:.2f} after {figures.blocks} blocks) when {newcomer.version} needed a slot"
    )
    _supersede(draft, weakest, reason, watch=draft.board.has_descendants(weakest.version))
    return True


def _supersede(draft: Draft, rollout: Rollout, reason: str, watch: bool) -> None:
    changed = replace(rollout, state=State.SUPERSEDED, state_since=draft.now, watched=watch, holds=(), reason=reason)
    draft.add(write("rollout.superseded", changed, draft.now, reason=reason))
