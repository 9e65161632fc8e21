"""The event log as the rest of the house sees it: topics, partitions, offsets, and nothing else.

Two implementations keep this contract: `kafka.KafkaLog` and `embedded.EmbeddedLog`; `tests/test_log.py` runs one suite
on both. This file does not know which of them it is talking about, what a record means, or what a window is.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from assets.stream.batch import Batch

Header = tuple[str, bytes | None]
TimestampType = Literal["CreateTime", "LogAppendTime"]

# Apache Kafka's own default is 1 MiB (`max.message.bytes`); an event with an embedded document can be larger, and one
# that does not fit must be refused where it is written, not where it is read.
MAX_RECORD_BYTES = 8 << 20

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class StreamUnreachable(Exception):
    """The log gave no answer, or made no progress, within its time limit. Trying again later may help."""


class OffsetsGone(Exception):
    """Records of a decided range are not in the log (retention, deletion, truncation). Trying again does not help."""


class IdentityChanged(Exception):
    """The topic or the cluster is another one than the one the offsets were decided on."""


class UnknownTopic(Exception):
    """No such topic in this log."""


class TopicMismatch(Exception):
    """The topic exists, but not as it was asked for."""


class RecordRefused(ValueError):
    """The record can be written to no log: nothing in it, too large, or for a partition that is not there."""


@dataclass(frozen=True, slots=True)
class Topics:
    """The names of a task's topics."""

    events: str
    labels: str
    predictions: str

    @property
    def all(self) -> tuple[str, str, str]:
        return self.events, self.labels, self.predictions


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record to append. `timestamp` in ms since 1970 UTC, None = now; `partition` None = by key."""

    key: bytes | None
    value: bytes | None
    timestamp: int | None = None
    partition: int | None = None
    headers: tuple[Header, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it lies in the log. `timestamp` in ms since 1970 UTC."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where one partition begins and ends, as offsets.

    latest: the offset the next record will get. last_stable: no open transaction below it; <= latest.
    at_timestamp: the first offset whose timestamp is >= the one asked for, None = no such record; <= latest.
    epoch: grows with every new leader, None where there are none. In one epoch a partition only grows.
    """

    earliest: int
    latest: int
    last_stable: int
    at_timestamp: int | None
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class TopicBounds:
    """The bounds of all partitions of a topic, and which topic of which cluster that was."""

    topic: str
    topic_id: str
    cluster_id: str
    partitions: Mapping[int, Bounds]
    timestamp_type: TimestampType
    after_max_ms: int | None


class EventLog(Protocol):
    """An append-only log of topics. One object serves one reading thread; several objects may share a log."""

    def create_topic(
        self, topic: str, partitions: int, *, timestamp_type: TimestampType = "CreateTime", retention_ms: int = -1
    ) -> None:
        """Make the topic, or find it there. Raises TopicMismatch when it is there with another count or type."""

    def partitions(self, topic: str) -> list[int]:
        """The partition numbers, in order. Raises UnknownTopic."""

    def bounds(self, topic: str, at: datetime) -> TopicBounds:
        """The bounds of every partition now, and the first offsets at or after `at`."""

    def kept(self, topic: str, epochs: Mapping[int, int]) -> Mapping[int, int]:
        """Partition -> the offset up to which it still holds what it held in that epoch, for each partition asked for.

        A partition that was truncated since then and has grown again cannot be told by its bounds, but by this.
        """

    def open_transactions(self, topic: str, partition: int) -> list[str]:
        """What is known of each open transaction, the oldest first, in words for a person."""

    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[Batch]:
        """Every record with start <= offset < end, in offset order, in batches as they come.

        The batches account for [start, end) without a hole or an overlap; a batch may have no records (transaction
        markers, aborted records). Raises OffsetsGone with the exact gap when the range begins before the earliest or
        ends after the latest offset, or when the log does not hold together; StreamUnreachable when nothing moves.
        """

    def append(self, topic: str, records: Iterable[Outgoing]) -> int:
        """Write the records and return how many; durable when it returns.

        After StreamUnreachable a part of the records may be in the log: appending again may double them.
        """

    def opener(self) -> Callable[[], EventLog]:
        """What opens the same log in another process; it can be pickled."""

    def close(self) -> None:
        """Let go of connections. The object must not be used afterwards."""


def partition_of(record: Outgoing, partitions: int, position: int) -> int:
    """The partition a record goes to: its own choice, else crc32(key), else in turn by its `position` in the append.

    >>> partition_of(Outgoing(b"N14228", b"{}"), 3, 0)
    1
    """
    if record.partition is not None:
        if not 0 <= record.partition < partitions:
            raise RecordRefused(
                f"partition {record.partition} is not one of the {partitions} of this topic (0 to {partitions - 1}): "
                "leave it out to have it chosen by key"
            )
        return record.partition
    if record.key is None:
        return position % partitions
    return zlib.crc32(record.key) % partitions


def check_record(topic: str, record: Outgoing) -> int:
    """The bytes of a record's key, value and headers. Raises RecordRefused for an empty or an oversized one."""
    if record.key is None and record.value is None:
        raise RecordRefused(f"a record for topic {topic!r} has neither key nor value: give it at least one of them")
    size = len(record.key or b"") + len(record.value or b"")
    size += sum(len(name.encode()) + len(value or b"") for name, value in record.headers)
    if size > MAX_RECORD_BYTES:
        raise RecordRefused(
            f"a record of {size} bytes for topic {topic!r} > the limit of {MAX_RECORD_BYTES}: "
            "store large documents elsewhere and send their address"
        )
    return size


def milliseconds(at: datetime) -> int:
    """The first whole millisecond since 1970 UTC that is not before `at`; times before 1970 count as 1970.

    A negative number would mean something else to Kafka (-1 is "latest").
    """
    if at.tzinfo is None:
        raise ValueError(f"the time {at.isoformat()} has no time zone: pass an aware datetime (UTC)")
    return max(0, -((_EPOCH - at) // timedelta(milliseconds=1)))


def unknown_topic(topic: str, present: Iterable[str], where: str) -> UnknownTopic:
    """The error for a topic that is not there, with the nearest name that is."""
    names = sorted(present)
    near = difflib.get_close_matches(topic, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"topics there: {', '.join(names) or 'none'}."
    return UnknownTopic(f"no topic {topic!r} in {where}: {hint} Create it, or change its name under [stream]")


def mismatch(topic: str, what: str, found: object, wanted: object) -> TopicMismatch:
    """The error for a topic that exists with another property."""
    return TopicMismatch(
        f"topic {topic!r} has {what} {found}, wanted {wanted}: change the setting under [stream], "
        "or use another topic name (a topic cannot be changed back)"
    )


def gone(topic: str, partition: int, start: int, end: int, bounds: tuple[int, int]) -> OffsetsGone | None:
    """The error for a range [start, end) that leaves the log's [earliest, latest), or None when it fits."""
    earliest, latest = bounds
    place = f"{topic!r} partition {partition}"
    if start < earliest:
        lost = min(end, earliest)
        return OffsetsGone(
            f"offsets [{start}, {lost}) of {place} are gone: the log begins at {earliest}, {lost - start} offsets are "
            "lost (retention or deletion overtook the reader); raise the topic's retention and bring the records back"
        )
    if end > latest:
        first = max(start, latest)
        return OffsetsGone(
            f"offsets [{first}, {end}) of {place} are not there: the log ends at {latest} "
            "(truncated, or another log than the one the range was decided on)"
        )
    return None
