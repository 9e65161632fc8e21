"""The outbox: carries what was decided to systems that must never hold a decision up. So far one: MLflow's aliases.

The journal is the outbox and a mark beside it says how far an effect has come. An effect is carried out, then its mark is
raised: killed in between, it is carried out again, with the same result. A system that is away is asked again, later each time.
Also with nothing new it is looked at every minute, and what somebody changed there is changed back and said in the log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from threading import Event

from assets.board_fold import BoardFold
from monitoring.registry import Releases, releases_of
from security.effects import EffectsDone
from security.journal import Journal

logger = logging.getLogger("headgate.controller")
POLL = timedelta(seconds=1)
LONGEST_POLL = timedelta(minutes=5)
RECONCILE = timedelta(minutes=1)


@dataclass
class Outbox:
    """The effect "mlflow" of one task's board. `show` brings the registry to what it is given and says what it changed."""

    journal: Journal
    task: str
    show: Callable[[str, Releases], list[str]]
    _shown: Releases | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._board = BoardFold(self.journal, self.task)

    @property
    def effect(self) -> str:
        return f"mlflow/{self.task}"

    @cached_property
    def _done(self) -> EffectsDone:
        return EffectsDone(self.journal.engine)

    def waits(self) -> bool:
        """Whether the board shows something else than what was carried out last."""
        return releases_of(self._board.refresh()) != self._shown

    def apply(self) -> list[str]:
        """Carry out what the journal says; what had to be changed. Raises whatever the other system raises."""
        board = self._board.refresh()
        wanted, seq = releases_of(board), self._board.seq
        if not wanted.states:
            return []
        drifted = self._done.of(self.effect) >= seq
        changes = self.show(self.task, wanted)
        self._done.raise_to(self.effect, seq, datetime.now(UTC))
        for change in changes:
            if drifted:
                logger.warning("MLflow was changed by somebody else and is changed back: %s", change)
            else:
                logger.info("MLflow: %s", change)
        self._shown = wanted
        return changes


def deliver(outbox: Outbox, stop: Event, *, reconcile: timedelta = RECONCILE) -> None:
    """Apply what is new, and once in `reconcile` everything, until `stop` is set. Never raises, never gives up."""
    waits, applied, failing = POLL, float("-inf"), False
    while not stop.is_set():
        try:
            if failing or time.monotonic() - applied >= reconcile.total_seconds() or outbox.waits():
                outbox.apply()
                applied = time.monotonic()
            if failing:
                logger.warning("MLflow answers again: its aliases are what the journal says")
            waits, failing = POLL, False
        except Exception as error:  # noqa: BLE001 - whatever the other system raises is one more way of being away
            waits = min(LONGEST_POLL, waits * 2)
            if not failing:
                first = (str(error).strip() or "no message").splitlines()[0]
                logger.warning("MLflow's aliases wait, decisions do not: %s: %s", type(error).__name__, first)
            failing = True
        stop.wait(waits.total_seconds())
