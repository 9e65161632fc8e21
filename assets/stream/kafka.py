"""The event log on Apache Kafka.

No consumer groups: the journal decides which offsets belong to a window, so a reader is only ever told `assign` and
`seek`. Every call has a time limit, after which it raises StreamUnreachable with broker, topic, partition and offset.
Reading takes one of two paths, which give the same records: whole record batches (`raw_fetch`, `record_batches`), or
kafka-python's ordinary records where those cannot be used. This file does not know windows, tasks, Dagster, or how a
broker is started.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any, Literal

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.errors import KafkaError
from kafka.protocol.consumer import IsolationLevel, OffsetSpec

from assets.stream import raw_fetch
from assets.stream.batch import Batch, pack
from assets.stream.deadline import Overdue, Reopening
from assets.stream.kafka_admin import KafkaAdmin, may_pass
from assets.stream.kafka_settings import (
    FETCH_BYTES,
    FRAMING_BYTES,
    check_client,
    consumer_settings,
    producer_settings,
    shared_settings,
)
from assets.stream.log import (
    MAX_RECORD_BYTES,
    Bounds,
    OffsetsGone,
    Outgoing,
    Record,
    RecordRefused,
    StreamUnreachable,
    TimestampType,
    TopicBounds,
    TopicMismatch,
    check_record,
    milliseconds,
    mismatch,
    partition_of,
)
from assets.stream.record_batches import decode
from assets.stream.refusal import StreamRefused
from assets.stream.wide_reads import widen

logger = logging.getLogger("headgate.stream")

# What one append keeps in memory before it waits for the broker's acknowledgement.
APPEND_RECORDS = 10_000
APPEND_BYTES = 32 << 20
# A poll returns earlier when records are there; it also bounds how late the watchdog looks.
POLL_MS = 500
# A damaged batch may be the connection's fault: how often it is read before it counts as lost.
READS = 3
_NO_LONGER = (kafka_errors.OffsetOutOfRangeError, kafka_errors.NoOffsetForPartitionError)


class KafkaLog:
    """EventLog on a Kafka cluster.

    bootstrap_servers: "host:port[,host:port...]". timeout: seconds without an answer or progress after which a call
    raises StreamUnreachable (a call may need two of them: one to connect, one to be answered). client: further settings
    for every client, such as `security_protocol`. raw: read whole record batches; None = when this process can, False =
    never, True = RuntimeError when it cannot.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        timeout: float = 7.0,
        client: Mapping[str, Any] | None = None,
        raw: bool | None = None,
    ) -> None:
        check_client()
        self.bootstrap_servers = bootstrap_servers
        self._timeout, self._client, self._raw = timeout, dict(client or {}), raw
        obstacle = raw_fetch.unusable() if raw is not False else "not wanted"
        if raw and obstacle:
            raise RuntimeError(f"KafkaLog(raw=True): whole record batches cannot be read: {obstacle}")
        self.path: Literal["raw", "ordinary"] = "ordinary" if obstacle else "raw"
        limit = int(timeout * 1000)
        shared = shared_settings(bootstrap_servers, limit, self._client)
        self._admin = KafkaAdmin(bootstrap_servers, shared, timeout)
        self._consumer: Reopening[Any] = Reopening(
            "kafka-reader", lambda: self._reader({**shared, **consumer_settings(self._sizes[0])}), timeout + 1
        )
        self._producer: Reopening[Any] = Reopening(
            "kafka-writer", lambda: KafkaProducer(**shared, **producer_settings(limit)), timeout + 1
        )
        self._sizes: tuple[int, ...] = FETCH_BYTES  # of an answer; the first is asked for
        self._reading: object = None
        self._known: set[str] = set()

    def _reader(self, settings: dict[str, Any]) -> Any:
        consumer = KafkaConsumer(**settings)
        if self.path == "raw":
            raw_fetch.install(consumer)
            widen(consumer)
        return consumer

    def cluster_id(self) -> str:
        """The id the cluster was formatted with; also the cheapest proof that a broker answers."""
        return str(self._admin.ask("the cluster's id", lambda admin: admin.describe_cluster())["cluster_id"])

    def create_topic(
        self, topic: str, partitions: int, *, timestamp_type: TimestampType = "CreateTime", retention_ms: int = -1
    ) -> None:
        configs = {
            "message.timestamp.type": timestamp_type,
            "retention.ms": str(retention_ms),
            "max.message.bytes": str(MAX_RECORD_BYTES + FRAMING_BYTES),
        }
        wanted = {topic: {"num_partitions": partitions, "configs": configs}}
        if not self._admin.describe([topic])[0]["error_code"]:
            self._check_topic(topic, partitions, timestamp_type)
            return
        try:
            self._admin.ask(
                f"to create topic {topic!r}", lambda admin: admin.create_topics(wanted, wait_for_metadata=True), "Create"
            )
        except kafka_errors.TopicAlreadyExistsError:  # another process was faster; it must have meant the same topic
            self._check_topic(topic, partitions, timestamp_type)

    def _check_topic(self, topic: str, partitions: int, timestamp_type: TimestampType) -> None:
        found = len(self.partitions(topic))
        if found != partitions:
            raise mismatch(topic, "partitions", found, partitions)
        kind = self._admin.configs(topic)["message.timestamp.type"]
        if kind != timestamp_type:
            raise mismatch(topic, "message.timestamp.type", kind, timestamp_type)

    def partitions(self, topic: str) -> list[int]:
        return self._admin.partitions(topic)

    def bounds(self, topic: str, at: datetime) -> TopicBounds:
        """As the contract; asked in an order that keeps `at_timestamp` and `last_stable` <= `latest` under writers."""
        description = self._admin.topic(topic)
        configs = self._admin.configs(topic)
        if "compact" in configs["cleanup.policy"]:
            raise TopicMismatch(
                f"topic {topic!r} has cleanup.policy={configs['cleanup.policy']}: compaction takes records out of "
                "decided ranges; set cleanup.policy=delete"
            )
        parts = sorted(part["partition_index"] for part in description["partitions"])
        latest = self._admin.positions(topic, parts, OffsetSpec.LATEST)
        search = self._admin.offsets(topic, parts, milliseconds(at))
        stable = self._admin.offsets(topic, parts, OffsetSpec.LATEST, IsolationLevel.READ_COMMITTED)
        earliest = self._admin.offsets(topic, parts, OffsetSpec.EARLIEST)
        found: dict[int, Bounds] = {}
        for part in parts:
            hit = search[part] if search[part] >= 0 else None
            top, epoch = latest[part]
            hit = None if hit is not None and hit > top else hit  # written since: the epoch is of what was there before
            found[part] = Bounds(earliest[part], top, min(stable[part], top), hit, epoch)
        after = int(configs["message.timestamp.after.max.ms"]) if "message.timestamp.after.max.ms" in configs else None
        kind: TimestampType = "LogAppendTime" if configs["message.timestamp.type"] == "LogAppendTime" else "CreateTime"
        return TopicBounds(topic, str(description["topic_id"]), self.cluster_id(), found, kind, after)

    def kept(self, topic: str, epochs: Mapping[int, int]) -> Mapping[int, int]:
        return self._admin.kept(topic, epochs)

    def open_transactions(self, topic: str, partition: int) -> list[str]:
        return self._admin.open_transactions(topic, partition)

    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[Batch]:
        """As the contract. A batch whose checksum or content does not hold is read three times, then it is OffsetsGone.

        An answer that does not arrive in time is asked for in smaller pieces, when the broker answers small questions.
        """
        reading, damaged = _Reading(TopicPartition(topic, partition), start, end), 0
        while reading.position < end:
            try:
                for batch in self._next(reading):
                    reading.position, damaged = batch.end, 0
                    yield batch
                    reading.moved = time.monotonic()  # the caller's time is not the broker's
            except StreamUnreachable as error:
                self._consumer.drop()  # a client that met a dead path goes on waiting for it when it is good again
                if self._ask_for_less(reading, error):
                    continue
                if reading.place in str(error):
                    raise
                raise type(error)(f"Kafka at {self.bootstrap_servers}: no record of {reading.place}; {error}") from error
            except kafka_errors.CorruptRecordError as error:
                damaged += 1
                self._reading = None  # so that it is fetched again
                if damaged == READS:
                    raise OffsetsGone(
                        f"offsets from {reading.position} of {topic!r} partition {partition} cannot be read, {READS} "
                        f"times in a row: {error}; the leader's copy is damaged: make another replica the leader, or "
                        "bring the records back from a backup"
                    ) from error

    def _ask_for_less(self, reading: _Reading, error: StreamUnreachable) -> bool:
        """Whether to read on with smaller answers: the broker is there, and what it sends takes too long."""
        if isinstance(error, StreamRefused) or len(self._sizes) == 1:
            return False
        topic, partition = reading.tp
        try:
            self._admin.check_range(topic, partition, reading.position, reading.end)
        except StreamUnreachable:
            return False
        self._sizes = self._sizes[1:]
        logger.warning(
            "Kafka at %s: no answer for %s within %.0f s: the link is slow, or the broker; from now on at most %d KiB are "
            "asked for at once", self.bootstrap_servers, reading.place, self._timeout, self._sizes[0] >> 10
        )  # fmt: skip
        reading.moved = time.monotonic()
        return True

    def _next(self, reading: _Reading) -> Iterator[Batch]:
        """What the next answer holds; nothing when there was none, or an error that passes."""
        if (answer := self._poll(reading)) is None:
            return
        topic, partition = reading.tp
        if not reading.checked and (answer.reached <= reading.position or (answer.high or 0) < reading.end):
            self._admin.check_range(topic, partition, reading.position, reading.end)
            reading.checked = True
        if answer.reached <= reading.position:
            if time.monotonic() - reading.moved > self._timeout:
                late = Overdue(f"{self._timeout:.0f} s without a record, {self._sizes[0] >> 10} KiB asked for at once")
                raise self._admin.unreachable(f"no progress at {reading.place}", late)
        elif answer.found and isinstance(answer.found[0], raw_fetch.Fetched):
            for fetched in answer.found:
                begun = reading.position > reading.start
                yield from decode(topic, partition, fetched.batches, reading.position, reading.end, begun=begun)
        else:
            # Not until "last offset + 1": only the position passes transaction markers and aborted records.
            records = [_record(record) for record in answer.found if record.offset < reading.end]
            yield pack(partition, reading.position, min(answer.reached, reading.end), records)

    def _poll(self, reading: _Reading) -> _Answer | None:
        """One poll, None after an error that passes."""
        mine = self._reading is reading and reading.generation == self._consumer.generation
        try:
            answer = self._consumer.use(_step(reading.tp, None if mine else reading.position), self._timeout)
        except _NO_LONGER as error:
            self._admin.check_range(reading.tp.topic, reading.tp.partition, reading.position, reading.end)
            raise StreamUnreachable(f"{self.bootstrap_servers} refused {reading.place}: {error}") from error
        except kafka_errors.LogTruncationError as error:
            told = f"{reading.place}: the log was truncated under the reader: {error}; run the window again"
            raise OffsetsGone(told) from error
        except kafka_errors.CorruptRecordError:
            raise
        except (Overdue, KafkaError, OSError) as error:
            waited = time.monotonic() - reading.moved
            if isinstance(error, Overdue) or not may_pass(error) or waited > self._timeout:
                raise self._admin.unreachable(f"no record of {reading.place}", error, "Read") from error
            time.sleep(0.1)
            return None
        self._reading, reading.generation = reading, self._consumer.generation
        return answer

    def append(self, topic: str, records: Iterable[Outgoing]) -> int:
        if topic not in self._known:
            self._admin.topic(topic)
            self._known.add(topic)
        pending = iter(records)
        written = 0
        while chunk := _chunk(topic, pending):
            done = written
            try:
                self._producer.use(lambda producer: _send(producer, topic, chunk, done), self._timeout * 2)  # noqa: B023
            except (Overdue, KafkaError, OSError) as error:
                self._known.discard(topic)
                if isinstance(error, kafka_errors.UnknownTopicOrPartitionError):
                    self._admin.topic(topic)
                raise self._admin.unreachable(
                    f"topic {topic!r}: {written} records are written, the next {len(chunk)} may be or not", error, "Write"
                ) from error
            written += len(chunk)
        return written

    def opener(self) -> Callable[[], KafkaLog]:
        return partial(KafkaLog, self.bootstrap_servers, timeout=self._timeout, client=self._client, raw=self._raw)

    def close(self) -> None:
        for client in (self._producer, self._consumer):
            client.close(2.0)
        self._admin.close()


@dataclass(eq=False)
class _Reading:
    """How far a read has come. checked: that its end is in the log. generation: of the client that was told to seek."""

    tp: Any
    start: int
    end: int
    position: int = field(init=False)
    moved: float = field(default_factory=time.monotonic)
    generation: int = -1
    checked: bool = False

    def __post_init__(self) -> None:
        self.position = self.start

    @property
    def place(self) -> str:
        return f"topic {self.tp.topic!r} partition {self.tp.partition} offset {self.position}"


@dataclass(frozen=True, slots=True)
class _Answer:
    """found: Fetched, or ordinary records. reached: the offset they account for. high: where the log ends, if known."""

    found: list[Any]
    reached: int
    high: int | None


def _step(tp: TopicPartition, seek: int | None) -> Callable[[Any], _Answer]:
    """One poll of one partition."""

    def step(consumer: Any) -> _Answer:
        if seek is not None:
            consumer.assign([tp])
            consumer.seek(tp, seek)
        found = consumer.poll(timeout_ms=POLL_MS).get(tp, [])
        position = consumer.position(tp, timeout_ms=POLL_MS)
        return _Answer(found, -1 if position is None else int(position), consumer.highwater(tp))

    return step


def _record(found: Any) -> Record:
    stamp = -1 if found.timestamp is None else found.timestamp  # format 0 has none; -1 is Kafka's word for it
    return Record(found.partition, found.offset, stamp, found.key, found.value, tuple(found.headers or ()))


def _chunk(topic: str, records: Iterator[Outgoing]) -> list[Outgoing]:
    chunk: list[Outgoing] = []
    size = 0
    for record in islice(records, APPEND_RECORDS):
        size += check_record(topic, record)
        for name, value in record.headers:
            if value is None:
                raise RecordRefused(
                    f"header {name!r} of a record for topic {topic!r} has no value, and kafka-python can write none: "
                    "leave the header out, or send an empty value"
                )
        chunk.append(record)
        if size > APPEND_BYTES:
            break
    return chunk


def _send(producer: Any, topic: str, chunk: list[Outgoing], position: int) -> None:
    """Send all, then wait for every acknowledgement."""
    count = len(producer.partitions_for(topic) or ())
    if not count:
        raise kafka_errors.UnknownTopicOrPartitionError(topic)
    parts = [partition_of(record, count, position + index) for index, record in enumerate(chunk)]  # before any is sent
    futures = [
        producer.send(
            topic, record.value, record.key, partition=part, timestamp_ms=record.timestamp, headers=list(record.headers)
        )
        for record, part in zip(chunk, parts, strict=True)
    ]
    producer.flush()
    for future in futures:
        future.get(0)
