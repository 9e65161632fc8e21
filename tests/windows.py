"""A small stream for tests of windows: three topics of a task in any event log, a journal and a store in one folder."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from assets.stream.formats import formats_of
from assets.stream.log import EventLog, Outgoing, Topics
from assets.windows.clock import WindowPolicy, window_id
from assets.windows.cut import Cut, cut
from assets.windows.history import History
from assets.windows.join import Examples, join
from assets.windows.seal import SealedWindow, SealPolicy, seal
from security.journal import Draft, Journal, stamp

START = datetime(2024, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 1, 1, tzinfo=UTC)  # the wall clock, long after the stream's times
HORIZON = timedelta(hours=2)
HOURLY = WindowPolicy(timedelta(hours=1), START, timedelta(0), "stream")
EVENT = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("x", pa.float64(), nullable=False),
        pa.field("near", pa.list_(pa.float32(), 3), nullable=False),
    ]
)
LABEL = pa.schema([pa.field("event_id", pa.string(), nullable=False), pa.field("y", pa.int64(), nullable=False)])


def at(minutes: float) -> int:
    """So many minutes after the start, as a record's time stamp."""
    return int((START + timedelta(minutes=minutes)).timestamp() * 1000)


def event(name: str, minutes: float, partition: int | None = None, **fields: object) -> Outgoing:
    value = {"event_id": name, "x": 0.5, "near": [1, 2.5, -3], **fields}
    return Outgoing(name.encode(), json.dumps(value).encode(), at(minutes), partition)


def label(name: str, minutes: float, y: int = 1, partition: int | None = None) -> Outgoing:
    return Outgoing(name.encode(), json.dumps({"event_id": name, "y": y}).encode(), at(minutes), partition)


def new_topics(log: EventLog, partitions: int = 2) -> Topics:
    """Three topics nobody else has."""
    mark = uuid.uuid4().hex[:10]
    topics = Topics(f"flights-{mark}", f"arrivals-{mark}", f"predictions-{mark}")
    for topic in topics.all:
        log.create_topic(topic, partitions)
    return topics


@dataclass
class Stream:
    """One task's stream, and what is made of it under `folder`."""

    log: EventLog
    topics: Topics
    folder: Path
    policy: WindowPolicy = HOURLY
    horizon: timedelta = HORIZON
    max_reject_share: float = 0.5
    processes: int = 1
    task: str = "delays"

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.history = History(Journal(f"sqlite:///{self.folder}/journal.db"), self.task)
        self.root = self.folder / "store"

    def window(self, number: int) -> str:
        return window_id(self.policy.start + number * self.policy.every)

    def publish(self, *records: Outgoing) -> None:
        """Events have an "x", labels a "y"."""
        events = [record for record in records if b'"x"' in (record.value or b"")]
        self.log.append(self.topics.events, events)
        self.log.append(self.topics.labels, [record for record in records if record not in events])

    def end(self, minutes: float) -> None:
        """Journal the end of the stream."""
        body = {"at": stamp(START + timedelta(minutes=minutes))}
        self.history.journal.append(Draft(f"window/{self.task}", "stream.ended", body), actor="test", at=NOW)

    def cut(self, number: int, now: datetime = NOW) -> Cut:
        return cut(self.history, self.log, self.policy, self.topics, self.window(number), now=now, actor="test")

    def seal(self, number: int) -> SealedWindow:
        return seal(
            self.history,
            self.log,
            self.root,
            self.window(number),
            formats_of(self.topics, EVENT, LABEL),
            policy=SealPolicy(self.max_reject_share, self.processes),
            now=NOW,
            actor="test",
        )

    def join(self, number: int, negative_if_absent: bool = False) -> Examples:
        return join(
            self.history,
            self.root,
            self.policy,
            self.topics,
            self.window(number),
            horizon=self.horizon,
            negative_if_absent=negative_if_absent,
            now=NOW,
            actor="test",
        )

    def run(self, number: int) -> tuple[Cut, SealedWindow, Examples]:
        return self.cut(number), self.seal(number), self.join(number)

    def hashes(self) -> dict[str, str]:
        """Path -> sha256 of every finished file of the store, with the topics' own names taken out of the paths."""
        names = dict(zip(self.topics.all, ("events", "labels", "predictions"), strict=True))
        found = {}
        for path in sorted(self.root.rglob("*")):
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(self.root).parts):
                key = str(path.relative_to(self.root))
                for name, plain in names.items():
                    key = key.replace(name, plain)
                found[key] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found
