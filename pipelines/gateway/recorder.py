"""Writes every prediction to the log, off the request path and through a spool on the disk.

The request path appends one row to the spool. One thread writes to the log what waits there, first what gateways that
died left behind; another makes the spool durable. While the log is away the spool fills, what no longer fits is dropped,
and both are counted. A batch whose fate is unknown is written again, so readers deduplicate by `prediction_id`. It does
not know what a prediction means, which log it writes to, nor whether an answer waits for the disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from assets.stream.log import EventLog, Outgoing, UnknownTopic
from pipelines.gateway.spool import SPOOL_BYTES, Spool, SpoolDamaged

logger = logging.getLogger("headgate.gateway")

BATCH_ROWS = 500
LINGER_SECONDS = 0.05  # rows that arrive within it share one append
BACK_OFF_SECONDS = 1.0
SYNC_SECONDS = 1.0  # what a power cut may take of rows nobody waits for; also how soon a disk that failed is tried again
LOOK_SECONDS = 30.0  # between two looks for spools of gateways that died


class Recorder:
    """A spool, the thread that empties it into `topic` and the one that makes it durable.

    `open_log` is called in the thread until it succeeds, so a log that is away at start is only late; `make_topic` when
    the topic does not exist (one that exists is taken as it is). Counters: `recorded`, `failures` (appends to the log,
    or flushes to the disk, that raised); `dropped`: rows the spool did not take, or gave back damaged.
    """

    def __init__(
        self,
        open_log: Callable[[], EventLog],
        topic: str,
        make_topic: Callable[[EventLog], None],
        *,
        spool_bytes: int = SPOOL_BYTES,
    ) -> None:
        self._open_log, self._topic, self._make_topic = open_log, topic, make_topic
        self._spool_bytes = spool_bytes
        self._place = (Path(), "")
        self._spool: Spool | None = None
        self._left: list[Spool] = []  # spools of gateways that died
        self._log: EventLog | None = None
        self._pending: deque[tuple[int, Future[None]]] = deque()
        self._wake, self._hurry = threading.Event(), threading.Event()
        self._stopping, self._given_up, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._drainer = threading.Thread(target=self._drain, name="recorder", daemon=True)
        self._syncer = threading.Thread(target=self._sync, name="recorder-sync", daemon=True)
        self._oldest: int | None = None
        self._refused = self._damaged = 0
        self._trouble = "the recorder is not started"
        self.recorded = self.failures = 0

    @property
    def waiting(self) -> int:
        """Rows that are not in the log yet."""
        return sum(spool.rows for spool in self._spools())

    @property
    def size(self) -> int:
        """Bytes of the spools on the disk."""
        return sum(spool.size for spool in self._spools())

    @property
    def dropped(self) -> int:
        """Rows that will never be in the log."""
        return self._refused + self._damaged

    @property
    def fault(self) -> str:
        """Why rows are dropped, or are not durable, "" = they are taken."""
        return (self._spool.fault if self._spool else "") or self._trouble

    def age(self, now: float) -> float:
        """Seconds since the oldest row that waits was answered; 0 when none waits. `now` in seconds since 1970."""
        return 0.0 if self._oldest is None else max(0.0, now - self._oldest / 1000)

    def start(self, root: Path, name: str) -> None:
        """Begin to record through the spool `name` under `root`, and to empty those under `root` that nobody holds."""
        self._place = (root, name)
        self._open_spool()
        self._syncer.start()
        self._drainer.start()

    def put(self, key: bytes, value: bytes, timestamp: int) -> int:
        """Spool one row (timestamp in ms since 1970 UTC) -> its number; 0, counted as dropped, when it is not taken."""
        number = 0 if self._spool is None else self._spool.append(key, value, timestamp)
        if not number:
            if self._refused % 10_000 == 0:
                logger.error("predictions are not recorded (%d so far): %s", self._refused + 1, self.fault)
            self._refused += 1
        elif not self._wake.is_set():
            self._wake.set()
        return number

    def durable(self, number: int) -> Future[None]:
        """Done when the row with this number is on the disk; fails with the OSError that kept it from it.

        One flush serves all rows that wait for it.
        """
        done: Future[None] = Future()
        self._pending.append((number, done))
        self._hurry.set()
        return done

    def stop(self, seconds: float) -> int:
        """Empty the spool for at most `seconds`, then give up; returns how many rows stay in it for the next start."""
        self._stopping.set()
        self._wake.set()
        if self._drainer.is_alive():
            self._drainer.join(seconds)
        self._given_up.set()
        left = self.waiting
        if left:
            text = "%d predictions stay in %s for the next gateway there: %s did not take them within %g s"
            logger.error(text, left, self._place[0], self._topic, seconds)
        return left

    def _spools(self) -> list[Spool]:
        return [*self._left, *([self._spool] if self._spool else [])]

    def _open_spool(self) -> None:
        root, name = self._place
        try:
            self._spool, self._trouble = Spool.own(root, name, self._spool_bytes), ""
        except OSError as error:
            self._trouble = f"no spool in {root / name}: {error.strerror or error}; free the disk or make it writable"
            self._failed(self._trouble)
        self._wake.set()

    def _failed(self, what: str) -> None:
        self.failures += 1
        if self.failures == 1 or self.failures % 60 == 0:
            logger.warning("%d predictions wait to be recorded: %s", self.waiting, what)

    # -- the disk ------------------------------------------------------------------------------------------------

    def _sync(self) -> None:
        while not self._ended.is_set():
            self._hurry.wait(SYNC_SECONDS)
            self._hurry.clear()
            if self._spool is not None:
                self._sync_spool(self._spool)
            elif not self._ended.is_set():
                self._open_spool()

    def _sync_spool(self, spool: Spool) -> None:
        if spool.fault:
            spool.mend()
        number, error = spool.sync()
        self._trouble = "" if error is None else f"{spool.folder} cannot be flushed: {error.strerror or error}"
        if error is not None:
            self._failed(self._trouble)
        while self._pending and self._pending[0][0] <= number:
            done = self._pending.popleft()[1]
            if done.set_running_or_notify_cancel():
                done.set_exception(error) if error is not None else done.set_result(None)

    # -- the log -------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        looked = -LOOK_SECONDS
        while not self._given_up.is_set() and (self.waiting or not self._stopping.is_set()):
            if time.monotonic() - looked >= LOOK_SECONDS and not self._stopping.is_set():
                looked = time.monotonic()
                self._look()
            if not self.waiting:
                self._wake.wait(LOOK_SECONDS)
            if not self._stopping.is_set():
                time.sleep(LINGER_SECONDS)
            self._wake.clear()
            while not self._given_up.is_set() and self._write():
                pass
        self._ended.set()
        self._hurry.set()
        self._syncer.join()
        for spool in self._spools():
            spool.close()

    def _look(self) -> None:
        """Take over what gateways that died left; they are emptied before this one's own rows."""
        try:
            self._left += Spool.abandoned(self._place[0])
        except OSError as error:
            self._failed(f"spools of other gateways cannot be read: {error}")
        for spool in self._left:
            logger.info("%d predictions in %s, which no gateway holds, are recorded from here", spool.rows, spool.folder)

    def _write(self) -> bool:
        """Move one batch from the oldest spool to the log; False when nothing waits."""
        spools = self._spools()
        if not spools:
            return False
        try:
            rows = spools[0].read(BATCH_ROWS)
            self._oldest = rows[0].timestamp if rows and rows[0].timestamp is not None else None
            if rows:
                self._append(rows)
                spools[0].acknowledge()  # a crash before this repeats the rows, it does not lose them
                self.recorded += len(rows)
            elif self._left:
                self._left.pop(0).close()
            return bool(rows) or len(spools) > 1
        except SpoolDamaged as damaged:
            self._damaged += damaged.rows
            logger.error("%s", damaged)
        except Exception as error:  # noqa: BLE001 - whatever a log raises, recording must neither stop nor reach a client
            self._failed(f"{type(error).__name__}: {error}")
            # Also while stopping: a broker that is restarting may be back before the deadline of `stop`.
            self._given_up.wait(BACK_OFF_SECONDS)
        return True

    def _append(self, rows: list[Outgoing]) -> None:
        self._log = self._log or self._open_log()
        try:
            self._log.append(self._topic, rows)
        except UnknownTopic:
            self._make_topic(self._log)
            self._log.append(self._topic, rows)
