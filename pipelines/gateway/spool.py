"""A bounded queue of rows on the local disk: one thread appends, another takes off what has arrived elsewhere.

A spool is a folder that one process holds by a lock (flock). Rows lie in numbered segments; one that is wholly taken off
is deleted. A row that `append` gave a number survives kill -9, one that `sync` has passed survives a power cut. After a
crash rows may be given twice; none is left out. It knows neither what a row means nor where it goes.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections import deque
from contextlib import suppress
from itertools import count, islice
from pathlib import Path

from assets.stream.log import MAX_RECORD_BYTES, Outgoing
from pipelines.gateway.segment import START, Segment, begin, find, frame, frames, note_taken, write
from security.disk import settle

SPOOL_BYTES = 256 << 20  # 600,000 rows of 400 bytes: ten minutes without Kafka at 1,000 requests a second
SEGMENT_BYTES = 4 << 20
READ_BYTES = 256 << 10
SUFFIX, DAMAGED = ".rows", ".damaged"

logger = logging.getLogger("headgate.gateway")
_told: set[Path] = set()  # folders that could not be opened: looked at again and again, said once

# What makes written bytes durable. fdatasync leaves out the file's times, which nobody needs.
flush = getattr(os, "fdatasync", os.fsync)


class SpoolDamaged(Exception):
    """A segment holds bytes that are no rows. What could be read of it was given; the file is kept for a person."""

    def __init__(self, path: Path, rows: int) -> None:
        super().__init__(
            f"{path} holds {rows} prediction(s) or more that cannot be read: the disk changed them. The file is kept: "
            "check the disk, then delete it"
        )
        self.rows = rows


class Spool:
    """The rows of one folder. `append` may be called by any thread, `sync` and `mend` by one, the rest by one.

    limit: bytes of all its files; what came first is kept, what no longer fits is refused. rows: how many wait. size:
    bytes on the disk. appended: rows written by this object. fault: why rows are refused, "" = they are not.
    """

    def __init__(self, folder: Path, lock: int, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.rows = self.size = self.appended = 0
        self.fault = ""
        self._lock, self._guard = lock, threading.Lock()
        self._segment_bytes = min(SEGMENT_BYTES, limit // 8)
        self._writing: int | None = None  # the newest segment, open; None = the next row begins one
        self._rolled: list[int] = []  # segments before it that are not durable yet, open
        self._synced, self._named, self._broken, self._closed = 0, True, False, False
        self._reading: int | None = None  # the oldest segment, open
        self._given = (0, 0)  # how many rows `read` gave last, and the offset behind them
        self._segments: deque[Segment] = deque()
        self._next = 1
        for path in sorted(path for path in folder.glob(f"*{SUFFIX}") if path.stem.isdigit()):
            self._next = int(path.stem) + 1
            if (found := find(path)) is None:
                path.unlink()
            else:
                self._segments.append(found)
                self.rows, self.size = self.rows + found.rows, self.size + found.end

    @classmethod
    def own(cls, root: Path, name: str, limit: int = SPOOL_BYTES) -> Spool:
        """The spool `root`/`name`, or `name`-1, `name`-2... while other processes hold those. Raises OSError."""
        for number in count():
            folder = root / (f"{name}-{number}" if number else name)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # rows name the units that were asked about
            if (lock := _lock(folder)) is not None:
                try:
                    for parent in (root, root.parent):  # a power cut must not take the folder's name
                        settle(parent)
                    return cls(folder, lock, limit)
                except BaseException:
                    os.close(lock)
                    raise
        raise AssertionError("unreachable")

    @classmethod
    def abandoned(cls, root: Path) -> list[Spool]:
        """The spools under `root` that no process holds and rows wait in, now held; empty ones are deleted.

        A folder that cannot be opened is left as it is, with a warning, and keeps nobody from the others. Raises OSError
        when `root` itself cannot be listed.
        """
        found = []
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            try:
                spool = cls._take(folder)
            except (OSError, ValueError) as error:
                if folder not in _told:
                    logger.warning("%s cannot be opened (%s): its rows wait; give this process access to it", folder, error)
                    _told.add(folder)
                continue
            _told.discard(folder)
            if spool is not None:
                found.append(spool)
        return found

    @classmethod
    def _take(cls, folder: Path) -> Spool | None:
        if (lock := _lock(folder)) is None:
            return None
        try:
            spool = cls(folder, lock, 0)
        except BaseException:
            os.close(lock)
            raise
        if spool._segments:
            return spool
        spool.close()
        return None

    # -- the thread that appends ---------------------------------------------------------------------------------

    def append(self, key: bytes, value: bytes, timestamp: int) -> int:
        """Write one row to its file -> its number, from 1; 0 when it does not fit or the disk fails (see `fault`)."""
        row = frame(key, value, timestamp)
        length = len(row)
        with self._guard:
            if self._broken or self._closed or length > MAX_RECORD_BYTES:
                return 0
            if self.size + length > self.limit:
                self.fault = f"the spool {self.folder} is full: {self.size} of {self.limit} bytes wait for the log"
                return 0
            try:
                handle = self._writing
                if handle is None or self._segments[-1].end + length > self._segment_bytes:
                    handle = self._begin()
                segment = self._segments[-1]
                write(handle, row, segment.end)
            except OSError as error:
                self._broken = True
                self.fault = f"rows cannot be written to {self.folder}: {error.strerror or error}"
                return 0
            segment.end += length
            segment.rows += 1
            self.size += length
            self.rows += 1
            self.appended += 1
            return self.appended

    def _begin(self) -> int:
        self._roll()
        path = self.folder / f"{self._next:012d}{SUFFIX}"
        self._writing, self._named = (handle := begin(path)), False
        self._next += 1
        self._segments.append(Segment(path))
        self.size += START
        return handle

    def _roll(self) -> None:
        if self._writing is not None:
            self._rolled.append(self._writing)
            self._writing = None

    # -- the thread that makes durable ---------------------------------------------------------------------------

    def sync(self) -> tuple[int, OSError | None]:
        """Flush to the disk -> the number of the last row that is meant, and what went wrong.

        After an error the kernel forgets what it could not write, and a second try would succeed without having written
        anything. So a segment that failed gets no more rows; those it has are read as long as they can be.
        """
        with self._guard:
            mark, writing, rolled, named = self.appended, self._writing, self._rolled, self._named
            self._rolled = []
        failed = None
        try:
            if mark != self._synced:
                for handle in (*rolled, *(() if writing is None else (writing,))):
                    flush(handle)
                if not named:
                    os.fsync(self._lock)
        except OSError as error:
            failed = error
        with self._guard:
            if writing is not None and self._writing == writing:
                if failed is not None:
                    self._roll()
                elif mark != self._synced:
                    self._named = True
            self._synced = mark
        for handle in rolled:
            os.close(handle)
        return mark, failed

    def mend(self) -> None:
        """Take rows again when the disk does, or when there is room; to be tried now and then."""
        with self._guard:
            if self._broken:
                try:
                    self._begin()
                except OSError:
                    return
                self._broken = False
            elif self.limit - self.size < self.limit // 64:
                return
            self.fault = ""

    # -- the thread that takes off -------------------------------------------------------------------------------

    def read(self, most: int) -> list[Outgoing]:
        """The oldest rows, at most `most`; the same ones again until `acknowledge`. Empty when none wait.

        Raises SpoolDamaged, once for each such file, and OSError.
        """
        while self._segments:
            segment = self._segments[0]
            with self._guard:
                end, newest = segment.end, self._writing is not None and len(self._segments) == 1
            if segment.taken < end:
                if rows := self._rows(segment, end, most):
                    return rows
                with self._guard:
                    if len(self._segments) == 1:
                        self._roll()
                    segment.taken, segment.damaged = segment.end, True
            elif newest:
                return []
            self._remove(segment)
        return []

    def acknowledge(self) -> None:
        """Take off what `read` gave last."""
        segment, (rows, behind) = self._segments[0], self._given
        if self._reading is not None:
            with suppress(OSError):  # then these rows are given again after a crash
                note_taken(self._reading, behind)
        with self._guard:
            segment.taken = behind
            segment.rows -= rows
            self.rows -= rows

    def close(self) -> None:
        """Let go of the folder; it is deleted when nothing waits in it."""
        with self._guard:
            self._closed = True
            self._roll()
            handles, self._rolled = self._rolled, []
        for handle in handles:
            os.close(handle)
        with suppress(OSError, SpoolDamaged):
            self.read(1)  # deletes what is wholly taken off
        self._stop_reading()
        with suppress(OSError):
            self.folder.rmdir()
        os.close(self._lock)

    def _rows(self, segment: Segment, end: int, most: int) -> list[Outgoing]:
        if self._reading is None:
            self._reading = os.open(segment.path, os.O_RDWR)
        left = end - segment.taken
        for size in (min(READ_BYTES, left), left):  # one row may be larger than what is read at once
            rows = list(islice(frames(os.pread(self._reading, size, segment.taken)), most))
            if rows:
                self._given = len(rows), segment.taken + rows[-1][1]
                return [row for row, _ in rows]
        return []

    def _remove(self, segment: Segment) -> None:
        self._stop_reading()
        if segment.damaged:
            kept = segment.path.replace(segment.path.with_suffix(DAMAGED))
        else:
            segment.path.unlink(missing_ok=True)
        with self._guard:
            self._segments.popleft()
            self.size -= segment.end
            self.rows -= segment.rows
        if segment.damaged:
            raise SpoolDamaged(kept, max(1, segment.rows))

    def _stop_reading(self) -> None:
        if self._reading is not None:
            os.close(self._reading)
            self._reading = None


def _lock(folder: Path) -> int | None:
    """A handle that holds the folder, None when another process does. The kernel lets go when the process ends."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.stat().st_ino == os.fstat(handle).st_ino:  # else the one who held it has deleted it
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(handle)
        raise
    os.close(handle)
    return None
