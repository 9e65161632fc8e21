"""Where a person meets a release: the state with its figures, and the verbs, for the command line, HTTP and the dashboard.

It reads the journal, asks the pure rules and appends what they return; it holds no rule of a release. Who may ask, and
whether what was asked for is still what there is, are settled here once for every way in: proof by a one-time token
where two persons are wanted, and a revision for requests that may come twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from numpy.typing import ArrayLike

from assets.board_fold import BoardFold
from assets.windows.clock import WindowPolicy
from models import release_verbs
from models.freeze import frozen
from models.release_board import Board
from models.release_policy import RolloutPolicy, Verdicts
from models.release_verbs import VerbRefused
from models.rollout import Condition, Decision, Rollout, Stream, conditions, explain
from models.rollout_state import State
from monitoring import evidence, off_policy
from monitoring.evidence import COUNTED, Evidence
from monitoring.live_counts import news, with_news
from monitoring.outlook import outlook
from monitoring.verdict import judge
from pipelines.reading import read_lineage
from pipelines.verbs import VERBS
from security.journal import Conflict, Draft, Entry, Journal, Projection, stamp
from security.replicas import Replicas
from security.served import LiveCounts
from security.tokens import APPROVE, Claims, TokenRefused, refuse_revoked, spending

ATTEMPTS = 5


JUDGED = ("promote", "retry")  # what is proven against the version bars them


class Stale(Exception):
    """The task's releases are not at the revision the request was made for: look again, then decide again."""


@dataclass
class ReleaseDesk:
    """The releases of one task as the journal has them at every call; what was read before is not read again.

    For one thread: two that look at once need a desk each.
    """

    journal: Journal
    task: str
    policy: RolloutPolicy
    window: WindowPolicy

    def board(self) -> Board:
        """Rollouts, routing and lineage head."""
        return self._fold.refresh()

    @property
    def revision(self) -> str:
        """Where the releases stood at the last `board`: decisions and routings, which only grow, so no earlier board had it."""
        return "-".join(str(self._lengths()[f"{room}/{self.task}"]) for room in (Stream.ROLLOUT, Stream.ROUTING))

    def clock(self) -> datetime:
        """The task's clock: the end of the newest window for a replayed stream, else the wall."""
        if self.window.clock == "stream":
            return self._evidence.refresh().processed or self.window.start
        return self._at()

    def _at(self) -> datetime:
        return self.journal.now(datetime.now(UTC))

    def verdicts(self, rollout: Rollout, board: Board) -> Verdicts:
        """What the evidence says now, and what the gateways have counted since."""
        return self._judged(rollout, board, self._news(board))

    def _judged(self, rollout: Rollout, board: Board, counted: Mapping[str, Any] | None) -> Verdicts:
        acknowledged = self._replicas.all_acknowledged(self.task, board.epoch, datetime.now(UTC), self.policy.lease)
        found, policy = with_news(self._evidence.refresh(), counted), self.policy_of(rollout, board)
        return judge(rollout, found, policy, self.clock(), acknowledged=acknowledged, prepared=None)

    def _news(self, board: Board) -> dict[str, Any] | None:
        return news(self._live, self.task, board, self._evidence.refresh())

    def policy_of(self, rollout: Rollout, board: Board) -> RolloutPolicy:
        """What it is judged by: its own policy since its start, before that the task's newest in the journal, else ours."""
        return board.policy_of(rollout, board.policy or self.policy)

    def explain(self, rollout: Rollout, board: Board, verdicts: Verdicts | None = None) -> str:
        """Where it is, why, and what the next step waits for."""
        found = verdicts or self.verdicts(rollout, board)
        policy = self.policy_of(rollout, board)
        sentences = outlook(rollout, found, self._evidence.refresh(), policy)
        return explain(rollout, found, policy, self.clock(), board.free_for(rollout), sentences)

    def unmet(self, rollout: Rollout, board: Board, verdicts: Verdicts) -> list[Condition]:
        """What the next step waits for."""
        policy = self.policy_of(rollout, board)
        every = conditions(rollout, verdicts, policy, self.clock(), board.free_for(rollout))
        return [condition for condition in every if not condition.met]

    def history(self, version: str | None = None) -> list[Entry]:
        """Every decision, oldest first; with `version` those about it."""
        streams = [f"{room}/{self.task}" for room in (Stream.ROLLOUT, Stream.ROUTING)]
        entries = self.journal.tail(streams=streams, without=("rollout.stepped",))
        return [e for e in entries if version in (None, e.body.get("version") or e.body.get("rollout"))]

    @cached_property
    def _fold(self) -> BoardFold:
        return BoardFold(self.journal, self.task)

    @cached_property
    def _evidence(self) -> Projection[Evidence]:
        return evidence.projection(self.journal, self.task)

    @cached_property
    def _replicas(self) -> Replicas:
        return Replicas(self.journal.engine)  # which makes its table: a write, so once

    @cached_property
    def _live(self) -> LiveCounts:
        return LiveCounts(self.journal.engine)

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

    def act(
        self, verb: str, version: str | None, *, actor: str, reason: str, token: Claims | None = None, **options: Any
    ) -> list[Decision]:
        """Carry out a verb; the entries it made, none where all is so already. Raises as `write`."""
        entries = self.write(verb, version, actor=actor, reason=reason, token=token, **options)
        return [Decision(entry.stream.split("/")[0], entry.kind, entry.body) for entry in entries]

    def write(
        self,
        verb: str,
        version: str | None,
        *,
        actor: str,
        reason: str,
        token: Claims | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> list[Entry]:
        """Carry out a verb of `VERBS`, in one transaction; the entries it made, none where all is so already.

        `token`: what proves `actor`. `revision`: refuse when anything was decided since. Raises VerbRefused, TokenRefused,
        Stale, Conflict when somebody decided meanwhile, JournalUnreachable.
        """
        if token is not None:
            refuse_revoked(self.journal, token)
        for _ in range(ATTEMPTS):
            board = self.board()
            if revision is not None and revision != self.revision:
                raise Stale(
                    f"{verb} {version}: asked for revision {revision}, it is {self.revision} now: something was decided since, "
                    "perhaps by this very request when it came first; look again, then decide again"
                )
            paid = [self._proof(version or "", board, token)] if verb == "approve" else []
            windows = f"window/{self.task}"
            # what is scored meanwhile makes a conflict
            read = {windows: self.journal.length(windows)} if verb in JUDGED else {}
            counted = self._news(board) if verb in JUDGED else None
            decisions = self._decide(verb, version, board, counted, actor=actor, reason=reason, **options)
            if not decisions:
                return []
            used = [Draft(windows, COUNTED, counted | {"clock": stamp(self.clock())})] if counted else []
            drafts = [Draft(f"{d.room}/{self.task}", d.kind, d.body) for d in decisions]
            try:
                entries = self.journal.append_all(
                    [*used, *drafts, *filter(None, paid)], actor=actor, at=self._at(), unmoved=self._lengths() | read
                )
                return entries[len(used) : len(used) + len(drafts)]
            except Conflict:
                if VERBS[verb].onward and revision is None:  # on another board it might be another step
                    raise
        raise Conflict(f"{verb} {version}: others decided {ATTEMPTS} times in a row meanwhile; nothing was written, try again")

    def _decide(
        self,
        verb: str,
        version: str | None,
        board: Board,
        counted: Mapping[str, Any] | None,
        *,
        actor: str,
        reason: str,
        **options: Any,
    ) -> list[Decision]:
        now, said = self.clock(), {"actor": actor, "reason": reason, **options}
        if verb == "undo":
            if version is not None and version != board.stable:
                raise VerbRefused(f"undo {version}: it is not stable, {board.stable} is; name the version to undo")
            return release_verbs.undo(board, now, policy=self.policy, **said)
        named = version or ""
        if verb == "start":
            known = read_lineage(self.journal, self.task).versions.get(named)
            if known is None:
                raise VerbRefused(f"start {named}: no such version is registered; see `headgate version list`")
            return release_verbs.start(board, named, now, number=known["number"], parent=known["parent"], **said)
        if verb in JUDGED:
            one = board.rollouts.get(named)
            verdicts = self._judged(one, board, counted) if one else Verdicts()
            frost = frozen(self.policy.freeze, now) if one and one.state is not State.BAKING and verb == "promote" else None
            if frost:  # that the journal may not know yet
                raise VerbRefused(f"promote {named}: no version gets more traffic within {frost}, by [rollout] freeze")
            said |= {"verdicts": verdicts, "policy": self.policy}
        found: list[Decision] = getattr(release_verbs, verb)(board, named, now=now, **said)
        return found

    def _proof(self, version: str, board: Board, token: Claims | None) -> Draft | None:
        """The entry that spends an approver's token; None without one, where none is wanted."""
        known = board.rollouts.get(version)
        wanted = (self.policy_of(known, board) if known else self.policy).approval == "two-person"
        if token is None and not wanted:
            return None
        if token is None or APPROVE not in token.scopes:
            raise VerbRefused(
                f'approve {version}: approval = "two-person" takes no name on trust; whoever keeps the token key runs '
                f"`headgate token issue --subject APPROVER --scope {APPROVE} --rollout {version}`, the approver gives what it "
                "prints to --token-file, or to the gateway"
            )
        if token.rollout != version:
            raise TokenRefused(403, f"the token approves {token.rollout}, not {version}: ask for one of {version}")
        return spending(self.journal, token)

    def _lengths(self) -> dict[str, int]:
        return {stream: self._fold.lengths.get(stream, 0) for stream in (f"{room}/{self.task}" for room in Stream)}


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
