"""The hook by which kafka-python hands over whole record batches instead of an object for each record.

kafka-python's fetcher makes its records by `self.PartitionRecords(...)`; an attribute of the fetcher's object shadows
that nested class. Metadata, sessions, SASL, retries and positions stay kafka-python's. Whether the hook does what the
class does is tried once in each process, on a few generated batches; what does not hold is a reason to leave kafka-python
as it is (`unusable`). This file does not know topics, ranges or windows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import kafka
from kafka.consumer.fetcher import Fetcher
from kafka.consumer.group import KafkaConsumer
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel

from assets.stream.raw_trial import differs
from assets.stream.record_batches import LogBatch, ends_in_abort, old_format, walk

VERSIONS = "3.0."  # the hook is a private part of kafka-python; these versions were read and tried

logger = logging.getLogger("headgate.stream")


@dataclass(frozen=True, slots=True)
class Fetched:
    """The record batches of one answer for one partition: they account for the offsets up to `end`."""

    end: int
    batches: tuple[LogBatch, ...]


class RawPartitionRecords:
    """What kafka-python's `Fetcher.PartitionRecords` is, with one `Fetched` where that one has many records.

    Same attributes, same positions, same errors at the same place, and the same rules for transactions.
    """

    def __init__(
        self,
        fetch_offset: int,
        tp: Any,
        records: Any,
        key_deserializer: Any = None,
        value_deserializer: Any = None,
        check_crcs: bool = True,
        isolation_level: Any = IsolationLevel.READ_UNCOMMITTED,
        aborted_transactions: Iterable[Any] | None = None,
        metric_aggregator: Any = None,
        on_drain: Callable[[Any], Any] = lambda _: None,
    ) -> None:
        self.fetch_offset = self.next_fetch_offset = fetch_offset
        self.topic_partition, self.leader_epoch = tp, -1
        self.bytes_read = self.records_read = 0
        self.isolation_level = isolation_level
        self.check_crcs, self.metric_aggregator, self.on_drain = check_crcs, metric_aggregator, on_drain
        self._place = f"topic {tp.topic!r} partition {tp.partition}"
        self._data: memoryview | None = memoryview(records._buffer)
        self._error: CorruptRecordError | None = None
        # Transactions that end in an abort, by first offset, the last one first; producers that are inside one now.
        self._ahead = sorted(((txn.first_offset, txn.producer_id) for txn in aborted_transactions or ()), reverse=True)
        self._aborting: set[int] = set()

    def __bool__(self) -> bool:
        return self._data is not None

    def drain(self) -> None:
        if self._data is not None:
            self._data = None
            if self.metric_aggregator:
                self.metric_aggregator.record(self.topic_partition, self.bytes_read, self.records_read)
            self.on_drain(self)

    def take(self, n: int | None = None) -> list[Fetched]:
        """All that is there, as one item. A damaged batch is raised when nothing is before it, or by the next call."""
        if self._error is not None:
            raise self._error
        taken: list[LogBatch] = []
        try:
            for batch in walk(self._data or memoryview(b""), self._place, check_crcs=self.check_crcs):
                taken.append(batch if self._is_shown(batch) else batch._replace(shown=False))
                self.next_fetch_offset, self.leader_epoch = batch.last + 1, batch.epoch
                self.bytes_read += len(batch.body)
                self.records_read += batch.records
        except CorruptRecordError as error:
            self._error = error
            if not taken:
                raise
        else:
            self.drain()
        return [Fetched(self.next_fetch_offset, tuple(taken))] if taken else []

    def _is_shown(self, batch: LogBatch) -> bool:
        """As Kafka's own consumers decide: markers never, aborted records not to those who read committed ones."""
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.producer >= 0:
            while self._ahead and self._ahead[-1][0] <= batch.last:
                self._aborting.add(self._ahead.pop()[1])
            if ends_in_abort(batch, self._place):
                self._aborting.discard(batch.producer)
            elif batch.is_transactional and batch.producer in self._aborting:
                return False
        return not batch.is_control


def partition_records(fetch_offset: int, tp: Any, records: Any, **settings: Any) -> Any:
    """What the fetcher calls: raw batches, or kafka-python's own class when the log has messages from before 2017."""
    old = old_format(memoryview(records._buffer))
    if old is None:
        return RawPartitionRecords(fetch_offset, tp, records, **settings)
    _tell_old_format(tp.topic, old)
    return Fetcher.PartitionRecords(fetch_offset, tp, records, **settings)


@cache
def _tell_old_format(topic: str, old: int) -> None:
    logger.warning(
        "topic %r holds messages of format %d (before Kafka 0.11): a range that has some is read record by record, about "
        "ten times slower and without proof that the log has no hole", topic, old
    )  # fmt: skip


def install(consumer: Any) -> None:
    """From now on this consumer's `poll` answers with lists of Fetched (or of records, see `partition_records`)."""
    consumer._fetcher.PartitionRecords = partition_records
    # glibc gives large blocks back to the system when they are freed, so each answer would fault its pages in anew: 0.18
    # faults a record, a quarter of all CPU time. Once a larger block was freed, it keeps what is smaller (mallopt(3),
    # M_MMAP_THRESHOLD, 32 MiB at most). The block is never touched, so it costs nothing; elsewhere it does nothing.
    bytes((32 << 20) - (64 << 10))


@cache
def unusable() -> str | None:
    """Why whole batches cannot be read in this process, None when they can. Logged once."""
    try:
        reason = _reason()
    except Exception as error:  # noqa: BLE001 (whatever is wrong with a private part of a library: the other path works)
        reason = f"the trial failed: {type(error).__name__}: {error}"
    if reason is not None:
        logger.warning(
            "reading Kafka record by record, ten times slower and without proof that the log has no hole: %s", reason
        )
    return reason


def _reason() -> str | None:
    if not kafka.__version__.startswith(VERSIONS):
        return f"kafka-python {kafka.__version__} is installed, its inside is known for {VERSIONS}x: install that one"
    for name, user in (("PartitionRecords", Fetcher._parse_fetched_data), ("_fetcher", KafkaConsumer.__init__)):
        if name not in user.__code__.co_names:
            return f"kafka-python's {user.__qualname__} does not use `{name}`: install kafka-python {VERSIONS}x"
    return differs(partition_records)
