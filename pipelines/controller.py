"""The release controller: looks at the board and at the live counts every second, and carries out what the rules decide between
windows: a guardrail, an acknowledgement, a step whose time has come.

It asks the same pure rules as the step of a window, and writes as that does: in one transaction, each stream compared with the
length it was read at. So any number of controllers may run, beside the worker and beside people: one of them wins, the others
read again. The counts it decided on stand in the journal before the decision (`served.counted`), so the decision can be derived
again; without a decision nothing is written. It loads no model: whether a version can be loaded is the worker's to say.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from threading import Event

from assets.board_fold import BoardFold
from assets.windows.clock import WindowPolicy
from models import release
from models.release_board import Board
from models.release_policy import RolloutPolicy, Verdicts
from models.rollout import Decision
from monitoring import evidence
from monitoring.alarms import raise_alarm
from monitoring.convictions import alarms_of
from monitoring.evidence import COUNTED, Evidence
from monitoring.live_counts import news, with_news
from monitoring.verdict import judge
from pipelines.expected import expected
from security.journal import Conflict, Draft, Journal, JournalError, Projection, stamp
from security.replicas import Replicas
from security.served import LiveCounts

logger = logging.getLogger("headgate.controller")
POLL = timedelta(seconds=1)
LONGEST_POLL = timedelta(seconds=30)  # while the journal does not answer
ATTEMPTS = 5
BLIND = timedelta(seconds=30)  # without a look for longer, people are told: nothing was stopped meanwhile


@dataclass
class Controller:
    """The releases of one task. `wall` is the clock on the wall; the task's own follows from it or from the stream."""

    journal: Journal
    task: str
    policy: RolloutPolicy
    window: WindowPolicy
    actor: str = "controller"
    wall: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self._board = BoardFold(self.journal, self.task)

    def look(self) -> list[Decision]:
        """One look; what was decided and appended. Raises Conflict, JournalUnreachable."""
        for _ in range(ATTEMPTS):
            board = self._board.refresh()
            if not any(one.live or one.watched for one in board.rollouts.values()):
                return []
            scored = self.journal.length(self._windows)  # before the evidence: what comes between makes a conflict
            known = self._evidence.refresh()
            counted = news(self._live, self.task, board, known)
            seen = with_news(known, counted)
            now = self._clock(known)
            verdicts = self._verdicts(board, seen, now)
            decisions = release.step_board(board, verdicts, self.policy, now)
            if not decisions:
                return []
            before = [] if counted is None else [Draft(self._windows, COUNTED, counted | {"clock": stamp(now)})]
            if self._append(board, decisions, before, scored):
                return decisions
        raise Conflict(f"the release of {self.task} was changed by others {ATTEMPTS} times in a row: the next look tries again")

    @property
    def _windows(self) -> str:
        return f"window/{self.task}"

    @cached_property
    def _evidence(self) -> Projection[Evidence]:
        return evidence.projection(self.journal, self.task)

    @cached_property
    def _live(self) -> LiveCounts:
        return LiveCounts(self.journal.engine)

    @cached_property
    def _replicas(self) -> Replicas:
        return Replicas(self.journal.engine)

    def _verdicts(self, board: Board, seen: Evidence, now: datetime) -> dict[str, Verdicts]:
        acknowledged = self._replicas.all_acknowledged(self.task, board.epoch, self.wall(), self.policy.lease)
        return {
            version: judge(one, seen, board.policy_of(one, self.policy), now, acknowledged=acknowledged, prepared=None)
            for version, one in board.rollouts.items() if one.live or one.watched
        }

    def _clock(self, known: Evidence) -> datetime:
        """The task's: for a replayed stream the end of its newest window, else the wall, never before the journal's newest."""
        if self.window.clock == "stream":
            return known.processed or self.window.start
        return self._at()

    def _at(self) -> datetime:
        return self.journal.now(self.wall())

    def _append(self, board: Board, decisions: Sequence[Decision], before: Sequence[Draft], scored: int) -> bool:
        """Whether all of it was written; not when somebody else decided, or a window was scored, meanwhile."""
        alarms = alarms_of(decisions, board, self.policy, self.journal, self.task)
        try:
            entries, read = [*before, *self._board.drafts(decisions), *alarms], {self._windows: scored}
            self.journal.append_all(entries, actor=self.actor, at=self._at(), unmoved=read)
        except Conflict as error:
            logger.info("%s", error)
            return False
        return True

    def tell_blind(self, seconds: float, why: str) -> None:
        """Tell people that for so long nothing could be looked at. Raises JournalError."""
        raise_alarm(
            self.journal, self.task, kind="stale", window=f"{self.wall():%Y-%m-%dT%H:%MZ}",
            message=f"the release controller could not look for {seconds:.0f} s ({why}): no canary was stopped meanwhile",
            figure=seconds, limit=BLIND.total_seconds(), at=self._at(), actor=self.actor,
        )  # fmt: skip


def control(
    controller: Controller, stop: Event, on_decisions: Callable[[list[Decision]], None] = lambda decisions: None
) -> None:
    """Look every second until `stop` is set. Whatever goes wrong is said once, told to people when the journal is back, and
    tried again: a controller that ends protects nobody."""
    blind, waits, why = time.monotonic(), POLL, ""
    while not stop.is_set():
        began = time.monotonic()
        try:
            if why and began - blind > BLIND.total_seconds():
                controller.tell_blind(began - blind, why)
            decisions = controller.look()
            if why:
                logger.warning("looking again after %.0f s", began - blind)
            blind, waits, why = began, POLL, ""
            if decisions:
                on_decisions(decisions)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            if not why:
                known = expected(error)
                logger.error("nothing is decided until this is mended: %s", told, exc_info=not known)
            why = told
            waits = min(LONGEST_POLL, waits * 2) if isinstance(error, JournalError) else POLL
        stop.wait(max(0.0, waits.total_seconds() - (time.monotonic() - began)))
