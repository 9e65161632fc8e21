"""Writes every prediction to the log, off the request path.

The request path only appends to a bounded queue in memory; one thread packs what waits into batches for
`EventLog.append`. While the log is away the queue fills, what no longer fits is dropped, and both are counted:
serving never waits for Kafka. A batch whose fate is unknown is written again, so readers deduplicate by
`prediction_id`. It does not know what a prediction means, nor which log it writes to.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from assets.stream.log import EventLog, Outgoing, UnknownTopic

logger = logging.getLogger("headgate.gateway")

QUEUE_ROWS = 20_000  # about 10 MB of 400-byte rows: what a few minutes without Kafka may cost in memory
BATCH_ROWS = 500
LINGER_SECONDS = 0.05  # rows that arrive within it share one append
BACK_OFF_SECONDS = 1.0


class Recorder:
    """A bounded queue and the thread that drains it into `topic`.

    `open_log` is called in the thread until it succeeds, so a log that is away at start is only late; `make_topic` when
    the topic does not exist (one that exists is taken as it is).
    Counters: `recorded`, `dropped` (queue full, or not written by the end of `stop`), `failures` (appends that raised).
    """

    def __init__(
        self,
        open_log: Callable[[], EventLog],
        topic: str,
        make_topic: Callable[[EventLog], None],
        *,
        queue_rows: int = QUEUE_ROWS,
    ) -> None:
        self._open_log, self._topic, self._make_topic = open_log, topic, make_topic
        self._queue_rows = queue_rows
        self._rows: deque[Outgoing] = deque()
        self._log: EventLog | None = None
        self._wake, self._stopping, self._given_up = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self.recorded = self.dropped = self.failures = 0

    @property
    def waiting(self) -> int:
        """Rows in memory that are not in the log yet."""
        return len(self._rows)

    def start(self) -> None:
        """Begin to drain."""
        self._thread.start()

    def put(self, key: bytes, value: bytes, timestamp: int) -> bool:
        """Queue one row (timestamp in ms since 1970 UTC); False, counted as dropped, when the queue is full."""
        if len(self._rows) >= self._queue_rows:
            self.dropped += 1
            return False
        self._rows.append(Outgoing(key, value, timestamp))
        self._wake.set()
        return True

    def stop(self, seconds: float) -> int:
        """Drain for at most `seconds`, then give up; returns how many rows were lost (they are counted as dropped)."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        self._given_up.set()
        lost = len(self._rows)
        if lost:
            self.dropped += lost
            text = "%d predictions were not recorded: %s did not take them within %g s"
            logger.error(text, lost, self._topic, seconds)
        return lost

    def _run(self) -> None:
        while not self._given_up.is_set() and (self._rows or not self._stopping.is_set()):
            self._wake.wait()
            if not self._stopping.is_set():
                time.sleep(LINGER_SECONDS)
            self._wake.clear()
            while self._rows and not self._given_up.is_set():
                if not self._write():
                    # Also while stopping: a broker that is restarting may be back before the deadline of `stop`.
                    self._given_up.wait(BACK_OFF_SECONDS)

    def _write(self) -> bool:
        batch = [self._rows[index] for index in range(min(BATCH_ROWS, len(self._rows)))]
        try:
            self._log = self._log or self._open_log()
            try:
                self._log.append(self._topic, batch)
            except UnknownTopic:
                self._make_topic(self._log)
                self._log.append(self._topic, batch)
        except Exception as error:  # noqa: BLE001 - whatever a log raises, recording must neither stop nor reach a client
            self.failures += 1
            if self.failures == 1 or self.failures % 60 == 0:
                kind = type(error).__name__
                logger.warning("%d predictions wait to be recorded: %s: %s", len(self._rows), kind, error)
            return False
        # Rows leave the queue only now: a crash of this thread's append can repeat them, not lose them.
        for _ in batch:
            self._rows.popleft()
        self.recorded += len(batch)
        return True
