"""What this replica has answered by routing epoch and arm, counted on the request path and published beside the journal.

Counting is two dictionary look-ups and an addition; publishing is the follower's. A fault of the table is told once and
loses nothing: the counts are cumulative. It knows no request and no rollout.
"""

from __future__ import annotations

import logging
import uuid
from datetime import datetime

from security.journal import Journal, JournalError
from security.served import Count, LiveCounts

logger = logging.getLogger("headgate.gateway")


class Counts:
    """Requests, errors and slow answers by (epoch, arm), of this process. A slow answer took longer than `slow_ms`."""

    def __init__(self, task: str, replica: str, slow_ms: float) -> None:
        self._task, self._slow_seconds = task, slow_ms / 1000.0
        self._name = f"{replica}-{uuid.uuid4().hex[:8]}"  # a replica that starts again adds to what it said before
        self._counted: dict[tuple[int, str], list[int]] = {}
        self._said: dict[tuple[int, str], Count] = {}
        self._table: LiveCounts | None = None
        self._told = False

    def add(self, epoch: int, arm: str, failed: bool, seconds: float) -> None:
        """One answer. For one thread; an error is not slow."""
        row = self._counted.get((epoch, arm))
        if row is None:
            row = self._counted[epoch, arm] = [0, 0, 0]
        row[0] += 1
        if failed:
            row[1] += 1
        elif seconds > self._slow_seconds:
            row[2] += 1

    def publish(self, journal: Journal, now: datetime) -> None:
        """Say what is new since the last time; nothing when nothing is."""
        rows: dict[tuple[int, str], Count] = {key: (*key, *row) for key, row in list(self._counted.items())}  # type: ignore[misc]
        news = [row for key, row in rows.items() if self._said.get(key) != row]
        if not news:
            return
        try:
            self._table = self._table or LiveCounts(journal.engine)
            self._table.publish(self._task, self._name, news, now)
        except JournalError as error:
            if not self._told:
                logger.warning("live counts are not published, guardrails wait for the sealed window: %s", error)
            self._told = True
            return
        self._said, self._told = rows, False
