"""The event log on one SQLite file, for machines where no broker can run.

It keeps the contract of `log.EventLog` for a few processes on one machine: WAL mode, one writer at a time, readers
never wait. It has no transactions of producers (so last stable = latest), no retention by itself (`trim` stands in for
it), and does not know Kafka. It is the one user of sqlite3 outside `security/`, because the log is not the journal.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path

from assets.stream.batch import Batch, pack
from assets.stream.log import (
    Bounds,
    Header,
    Outgoing,
    Record,
    StreamUnreachable,
    TimestampType,
    TopicBounds,
    check_record,
    gone,
    milliseconds,
    mismatch,
    partition_of,
    unknown_topic,
)

BATCH_RECORDS = 5_000
BATCH_BYTES = 8 << 20
APPEND_RECORDS = 10_000

# `peak` is the largest timestamp up to and including this offset. It never falls along a partition, so the first record
# with timestamp >= t is the first with peak >= t, which an index finds without a scan, even when timestamps jump about.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS cluster (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS topics (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, id TEXT NOT NULL, partitions INTEGER NOT NULL,
    timestamp_type TEXT NOT NULL, retention_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS partitions (
    topic INTEGER NOT NULL, number INTEGER NOT NULL, earliest INTEGER NOT NULL, latest INTEGER NOT NULL,
    peak INTEGER NOT NULL, PRIMARY KEY (topic, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
    topic INTEGER NOT NULL, part INTEGER NOT NULL, at INTEGER NOT NULL, timestamp INTEGER NOT NULL,
    peak INTEGER NOT NULL, key BLOB, value BLOB, headers TEXT, PRIMARY KEY (topic, part, at));
CREATE INDEX IF NOT EXISTS records_by_peak ON records (topic, part, peak, at);
"""


class EmbeddedLog:
    """EventLog in the file `path` (made when missing). timeout: seconds to wait for another process's write."""

    def __init__(self, path: Path, *, timeout: float = 10.0) -> None:
        self.path, self._timeout = path, timeout
        self._lock = threading.RLock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._told("to open"):
            self._db = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")  # durable when append returns, as acks=all is
            with self._transaction():
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                if "headers" not in [row[1] for row in self._db.execute("PRAGMA table_info(records)")]:
                    self._db.execute("ALTER TABLE records ADD COLUMN headers TEXT")  # a file from before 0.2
                fresh = (f"embedded-{uuid.uuid4()}",)
                self._db.execute("INSERT INTO cluster SELECT ? WHERE NOT EXISTS (SELECT 1 FROM cluster)", fresh)

    def cluster_id(self) -> str:
        """The id this file was made with."""
        with self._told("the cluster's id"):
            return str(self._db.execute("SELECT id FROM cluster").fetchone()[0])

    def create_topic(
        self, topic: str, partitions: int, *, timestamp_type: TimestampType = "CreateTime", retention_ms: int = -1
    ) -> None:
        if partitions < 1:
            raise mismatch(topic, "partitions", partitions, "at least 1")
        with self._told(f"to create topic {topic!r}"), self._transaction():
            query = "SELECT partitions, timestamp_type FROM topics WHERE name = ?"
            found = self._db.execute(query, (topic,)).fetchone()
            if found is None:
                insert = "INSERT INTO topics (name, id, partitions, timestamp_type, retention_ms) VALUES (?,?,?,?,?)"
                row = (topic, str(uuid.uuid4()), partitions, timestamp_type, retention_ms)
                number = self._db.execute(insert, row).lastrowid
                self._db.executemany(
                    "INSERT INTO partitions VALUES (?, ?, 0, 0, -1)", [(number, part) for part in range(partitions)]
                )
                return
        if found[0] != partitions:
            raise mismatch(topic, "partitions", found[0], partitions)
        if found[1] != timestamp_type:
            raise mismatch(topic, "message.timestamp.type", found[1], timestamp_type)

    def partitions(self, topic: str) -> list[int]:
        with self._told(f"topic {topic!r}"):
            return list(range(self._topic(topic)[1]))

    def bounds(self, topic: str, at: datetime) -> TopicBounds:
        wanted = milliseconds(at)
        with self._told(f"the bounds of {topic!r}"), self._transaction("DEFERRED"):
            number, _, topic_id, kind = self._topic(topic)
            parts = self._db.execute("SELECT number, earliest, latest FROM partitions WHERE topic = ?", (number,))
            found = {
                part: Bounds(earliest, latest, latest, self._first_at(number, part, wanted))
                for part, earliest, latest in sorted(parts.fetchall())
            }
            return TopicBounds(topic, topic_id, self.cluster_id(), found, kind, None)

    def _first_at(self, number: int, part: int, wanted: int) -> int | None:
        hit = self._db.execute(
            "SELECT at, timestamp FROM records WHERE topic = ? AND part = ? AND peak >= ? ORDER BY peak, at LIMIT 1",
            (number, part, wanted),
        ).fetchone()
        if hit is None or hit[1] >= wanted:
            return None if hit is None else int(hit[0])
        # Its peak comes from a record that has been trimmed: look at the records themselves.
        hit = self._db.execute(
            "SELECT at FROM records WHERE topic = ? AND part = ? AND at > ? AND timestamp >= ? ORDER BY at LIMIT 1",
            (number, part, hit[0], wanted),
        ).fetchone()
        return None if hit is None else int(hit[0])

    def kept(self, topic: str, epochs: Mapping[int, int]) -> Mapping[int, int]:
        return {}

    def open_transactions(self, topic: str, partition: int) -> list[str]:
        return []

    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[Batch]:
        position = start
        while position < end:
            records = self._records(topic, partition, position, end)
            begin, position = position, records[-1].offset + 1
            yield pack(partition, begin, position, records)

    def _records(self, topic: str, partition: int, start: int, end: int) -> list[Record]:
        """The next records of a range, complete up to the last of them; never empty (else OffsetsGone)."""
        batch: list[Record] = []
        size = 0
        with self._told(f"topic {topic!r} partition {partition} offset {start}"), self._transaction("DEFERRED"):
            number, count, _, _ = self._topic(topic)
            if not 0 <= partition < count:
                raise mismatch(topic, "partitions", count, f"partition {partition}")
            bounds = self._db.execute(
                "SELECT earliest, latest FROM partitions WHERE topic = ? AND number = ?", (number, partition)
            ).fetchone()
            if error := gone(topic, partition, start, end, bounds):
                raise error
            rows = self._db.execute(
                "SELECT at, timestamp, key, value, headers FROM records WHERE topic = ? AND part = ? AND at >= ? AND at < ? "
                "ORDER BY at LIMIT ?",
                (number, partition, start, end, BATCH_RECORDS),
            )
            for offset, timestamp, key, value, headers in rows:
                batch.append(Record(partition, offset, timestamp, key, value, _headers(headers)))
                size += len(value or b"")
                if size > BATCH_BYTES:
                    rows.close()
                    break
        return batch

    def append(self, topic: str, records: Iterable[Outgoing]) -> int:
        pending = iter(records)
        written = 0
        with self._told(f"topic {topic!r}"):
            self._topic(topic)
            while chunk := list(islice(pending, APPEND_RECORDS)):
                for record in chunk:
                    check_record(topic, record)
                self._write(topic, chunk, written)
                written += len(chunk)
        return written

    def _write(self, topic: str, chunk: list[Outgoing], position: int) -> None:
        with self._transaction():
            number, count, _, kind = self._topic(topic)
            rows = self._db.execute("SELECT number, latest, peak FROM partitions WHERE topic = ?", (number,))
            ends = {part: (latest, peak) for part, latest, peak in rows}
            now = time.time_ns() // 1_000_000
            fresh = []
            for index, record in enumerate(chunk):
                part = partition_of(record, count, position + index)
                stamp = now if record.timestamp is None or kind == "LogAppendTime" else record.timestamp
                offset, peak = ends[part]
                peak = max(peak, stamp)
                fresh.append((number, part, offset, stamp, peak, record.key, record.value, _headers_text(record.headers)))
                ends[part] = (offset + 1, peak)
            self._db.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", fresh)
            self._db.executemany(
                "UPDATE partitions SET latest = ?, peak = ? WHERE topic = ? AND number = ?",
                [(latest, peak, number, part) for part, (latest, peak) in ends.items()],
            )

    def trim(self, topic: str, partition: int, before: int) -> None:
        """Delete the records with offset < `before`, as retention would."""
        with self._told(f"to trim {topic!r}"), self._transaction():
            number = self._topic(topic)[0]
            self._db.execute("DELETE FROM records WHERE topic = ? AND part = ? AND at < ?", (number, partition, before))
            self._db.execute(
                "UPDATE partitions SET earliest = MIN(latest, MAX(earliest, ?)) WHERE topic = ? AND number = ?",
                (before, number, partition),
            )

    def opener(self) -> Callable[[], EmbeddedLog]:
        return partial(EmbeddedLog, self.path.absolute(), timeout=self._timeout)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _topic(self, topic: str) -> tuple[int, int, str, TimestampType]:
        row = self._db.execute(
            "SELECT number, partitions, id, timestamp_type FROM topics WHERE name = ?", (topic,)
        ).fetchone()
        if row is None:
            names = [name for (name,) in self._db.execute("SELECT name FROM topics")]
            raise unknown_topic(topic, names, f"the embedded log {self.path}")
        return row

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        """All or nothing. Writers take the lock at once: two that upgrade from reading would refuse each other."""
        self._db.execute(f"BEGIN {kind}")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """One thread at a time; SQLite's errors (locked, full, not a database) leave as StreamUnreachable."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise StreamUnreachable(
                    f"the embedded log {self.path}, asked for {what}: {error}; "
                    "check the disk, and that no other process holds the file"
                ) from error


def _headers_text(headers: tuple[Header, ...]) -> str | None:
    """Headers as JSON, null for none: bytes as Latin-1 text, which has a character for each byte."""
    pairs = [(name, value if value is None else value.decode("latin-1")) for name, value in headers]
    return json.dumps(pairs) if pairs else None


def _headers(text: str | None) -> tuple[Header, ...]:
    found = json.loads(text) if text else []
    return tuple((name, value if value is None else value.encode("latin-1")) for name, value in found)
