"""Where a person meets a release: the state with its figures, and the verbs, for the command line and the dashboard.

It reads the journal, asks the pure rules and appends what they return; it holds no rule of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from numpy.typing import ArrayLike

from assets.windows.clock import WindowPolicy
from models import release_verbs
from models.release_board import Board
from models.release_policy import RolloutPolicy, Verdicts
from models.rollout import Decision, Rollout, explain
from models.rollout_state import State
from monitoring import off_policy
from monitoring.verdict import judge
from pipelines.reading import read_board, read_evidence
from security.journal import Draft, Journal
from security.replicas import Replicas

Verb = Literal["promote", "abort", "pause", "resume", "approve"]


@dataclass(frozen=True)
class ReleaseDesk:
    """The releases of one task, read afresh at every call."""

    journal: Journal
    task: str
    policy: RolloutPolicy
    window: WindowPolicy

    def board(self) -> Board:
        """Rollouts, routing and lineage head."""
        return read_board(self.journal, self.task)

    def clock(self) -> datetime:
        """The task's clock: the end of the newest window for a replayed stream, else the wall."""
        if self.window.clock == "stream":
            return read_evidence(self.journal, self.task).processed or self.window.start
        return datetime.now(UTC)

    def newest(self, board: Board) -> Rollout | None:
        """The rollout people mean when they name none: the canary, else the newest that is live, else the newest."""
        everything = sorted(board.rollouts.values(), key=lambda r: (r.live, r.number))
        return board.canary or (everything[-1] if everything else None)

    def verdicts(self, rollout: Rollout, board: Board) -> Verdicts:
        """What the evidence says now."""
        live = Replicas(self.journal.engine).live(self.task, datetime.now(UTC), self.policy.lease)
        acknowledged = all(replica.epoch >= board.epoch for replica in live)
        evidence = read_evidence(self.journal, self.task)
        return judge(rollout, evidence, self.policy, self.clock(), acknowledged=acknowledged, prepared=None)

    def explain(self, rollout: Rollout, board: Board) -> str:
        """Where it is, why, and what the next step waits for."""
        free = board.canary is None or board.canary.version == rollout.version
        return explain(rollout, self.verdicts(rollout, board), self.policy, self.clock(), free)

    def rank(self, log: Mapping[str, ArrayLike]) -> list[off_policy.Ranked]:
        """Versions without traffic, and stable beside them, by what they would have earned on a log of decisions, (n,) each.

        Columns: `reward` (more is better), `propensity`, for each version its probability of the logged action, named like
        it; for doubly robust figures `expected` (reward a model expects of that action) and `<version> expected` (of what
        the version would do). It reads only. ValueError for a log without what it takes.
        """
        board = self.board()
        waiting = [one.version for one in board.in_states(State.QUEUED, State.PREPARING, State.SHADOW)]
        named = [version for version in waiting if version in log]
        if not named:
            raise ValueError(f"the log has a column for none of the versions that wait: {', '.join(waiting) or 'none does'}")
        if board.stable is not None and board.stable in log:
            named.append(board.stable)
        wanted = ["reward", "propensity", *(f"{version} expected" for version in named if "expected" in log)]
        missing = [name for name in wanted if name not in log]
        if missing:
            names = ", ".join(map(repr, missing))
            raise ValueError(f"the log has no column {names}: its columns are in docs/release-statistics.md#off-policy")
        weighed = {}
        for version in named:
            model = (log["expected"], log[f"{version} expected"]) if "expected" in log else None
            weighed[version] = off_policy.weigh(log["reward"], log[version], log["propensity"], model=model)
        unknown = [off_policy.Ranked(v, 0.0, refusal="the log has no column for it") for v in waiting if v not in log]
        return off_policy.rank(weighed) + unknown

    def act(self, verb: Verb, version: str, *, actor: str, reason: str, full: bool = False) -> list[Decision]:
        """Carry out a verb; the entries it made. Raises VerbRefused, and Conflict when somebody decided meanwhile."""
        lengths = {room: self.journal.length(f"{room}/{self.task}") for room in ("rollout", "routing", "lineage")}
        board, now = self.board(), self.clock()
        if verb == "promote":
            known = board.rollouts.get(version)
            found = self.verdicts(known, board) if known else Verdicts()
            decisions = release_verbs.promote(
                board, version, found, self.policy, now, actor=actor, reason=reason, full=full
            )
        else:
            decisions = getattr(release_verbs, verb)(board, version, now, actor=actor, reason=reason)
        drafts = [
            Draft(f"{d.room}/{self.task}", d.kind, d.body, expected=lengths[d.room]) for d in decisions
        ]
        if drafts:
            self.journal.append_all(drafts, actor=actor, at=datetime.now(UTC))
        return decisions


EXIT_CODES = {
    State.PROMOTED: 0,
    State.ROLLED_BACK: 2,
    State.ROLLING_BACK: 2,
    State.REJECTED: 2,
    State.WITHDRAWN: 2,
    State.EXPIRED: 3,
    State.SUPERSEDED: 3,
}
STILL_RUNNING = 4
