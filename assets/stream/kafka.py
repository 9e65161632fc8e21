"""The event log on Apache Kafka, through kafka-python's ordinary records.

No consumer groups: the journal decides which offsets belong to a window, so a reader is only ever told `assign` and
`seek`. Every call has a time limit, after which it raises StreamUnreachable with broker, topic, partition and offset.
This file does not know windows, tasks, Dagster, or how a broker is started.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import kafka.record.util
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource
from kafka.errors import KafkaError
from kafka.protocol.consumer import IsolationLevel, OffsetSpec

from assets.stream.batch import Batch, pack
from assets.stream.deadline import Overdue, Reopening
from assets.stream.log import (
    MAX_RECORD_BYTES,
    Bounds,
    IdentityChanged,
    Outgoing,
    Record,
    StreamUnreachable,
    TimestampType,
    TopicBounds,
    TopicMismatch,
    check_record,
    gone,
    milliseconds,
    mismatch,
    partition_of,
    unknown_topic,
)

T = TypeVar("T")

# What one append keeps in memory before it waits for the broker's acknowledgement.
APPEND_RECORDS = 10_000
APPEND_BYTES = 32 << 20
# A poll returns earlier when records are there; it also bounds how late the watchdog looks.
POLL_MS = 500
# Framing of a record inside a request: headers, lengths, batch header. The limits below leave room for it.
FRAMING_BYTES = 64 << 10
_NO_LONGER = (kafka_errors.OffsetOutOfRangeError, kafka_errors.NoOffsetForPartitionError)

logging.getLogger("kafka").addHandler(logging.NullHandler())  # else Python prints its warnings on stderr, unasked


def _consumer_settings() -> dict[str, Any]:
    return {
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",  # the default, "latest", loses records silently
        "isolation_level": "read_committed",
        "allow_auto_create_topics": False,  # a misspelt name must not create a topic
        "check_crcs": True,
        "metrics_enabled": False,
        # One fetch is in flight for a broker, so a partition moves one fetch at a time: large fetches, few round trips.
        "max_poll_records": 10**9,
        "max_partition_fetch_bytes": 8 << 20,
        "fetch_max_bytes": 64 << 20,
        "receive_message_max_bytes": 128 << 20,
        "fetch_max_wait_ms": 200,
    }


def _producer_settings() -> dict[str, Any]:
    return {
        "enable_idempotence": True,
        "acks": "all",
        "compression_type": "lz4",
        "batch_size": 256 << 10,
        "linger_ms": 5,
        "max_request_size": MAX_RECORD_BYTES + FRAMING_BYTES,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }


def _check_client() -> None:
    """Refuse kafka-python's silent fall-back to a CRC in Python: 10,000 instead of 246,000 records/s of 1 KB."""
    if kafka.record.util.crc32c_c is None:
        raise ImportError(
            "the crc32c wheel is missing, without it kafka-python reads 10 to 25 times slower: `pip install crc32c`"
        )
    logger = logging.getLogger("kafka")
    if logger.getEffectiveLevel() < logging.INFO:
        logger.setLevel(logging.INFO)  # its DEBUG lines hold whole frames, credentials included


class KafkaLog:
    """EventLog on a Kafka cluster.

    bootstrap_servers: "host:port[,host:port...]". timeout: seconds without an answer or progress after which a call
    raises StreamUnreachable (a call may need two of them: one to connect, one to be answered). client: further settings
    for every client, such as `security_protocol`.
    """

    def __init__(
        self, bootstrap_servers: str, *, timeout: float = 7.0, client: Mapping[str, Any] | None = None
    ) -> None:
        _check_client()
        self.bootstrap_servers = bootstrap_servers
        self._timeout, self._client = timeout, dict(client or {})
        limit = int(timeout * 1000)
        shared: dict[str, Any] = {
            "bootstrap_servers": [server.strip() for server in bootstrap_servers.split(",")],
            "client_id": "headgate",
            "bootstrap_timeout_ms": limit,
            "request_timeout_ms": limit,
            "metadata_max_age_ms": 60_000,
            "reconnect_backoff_max_ms": 500,  # the default, 30 s, makes a broker that is back look dead
            **self._client,
        }
        delivery = {"delivery_timeout_ms": limit + 1000, "max_block_ms": limit}
        self._admin: Reopening[Any] = Reopening("kafka-admin", lambda: KafkaAdminClient(**shared), timeout + 1)
        self._consumer: Reopening[Any] = Reopening(
            "kafka-reader", lambda: KafkaConsumer(**shared, **_consumer_settings()), timeout + 1
        )
        self._producer: Reopening[Any] = Reopening(
            "kafka-writer", lambda: KafkaProducer(**shared, **_producer_settings(), **delivery), timeout + 1
        )
        self._reading: object = None
        self._known: set[str] = set()

    def cluster_id(self) -> str:
        """The id the cluster was formatted with; also the cheapest proof that a broker answers."""
        return str(self._ask("the cluster's id", lambda admin: admin.describe_cluster())["cluster_id"])

    def create_topic(
        self, topic: str, partitions: int, *, timestamp_type: TimestampType = "CreateTime", retention_ms: int = -1
    ) -> None:
        configs = {
            "message.timestamp.type": timestamp_type,
            "retention.ms": str(retention_ms),
            "max.message.bytes": str(MAX_RECORD_BYTES + FRAMING_BYTES),
        }
        wanted = {topic: {"num_partitions": partitions, "configs": configs}}
        if not self._describe([topic])[0]["error_code"]:
            self._check_topic(topic, partitions, timestamp_type)
            return
        try:
            self._ask(f"to create topic {topic!r}", lambda admin: admin.create_topics(wanted, wait_for_metadata=True))
        except kafka_errors.TopicAlreadyExistsError:  # another process was faster; it must have meant the same topic
            self._check_topic(topic, partitions, timestamp_type)

    def _check_topic(self, topic: str, partitions: int, timestamp_type: TimestampType) -> None:
        found = len(self.partitions(topic))
        if found != partitions:
            raise mismatch(topic, "partitions", found, partitions)
        kind = self._configs(topic)["message.timestamp.type"]
        if kind != timestamp_type:
            raise mismatch(topic, "message.timestamp.type", kind, timestamp_type)

    def partitions(self, topic: str) -> list[int]:
        return sorted(part["partition_index"] for part in self._topic(topic)["partitions"])

    def bounds(self, topic: str, at: datetime) -> TopicBounds:
        """As the contract; asked in an order that keeps `at_timestamp` and `last_stable` <= `latest` under writers."""
        description = self._topic(topic)
        configs = self._configs(topic)
        if "compact" in configs["cleanup.policy"]:
            raise TopicMismatch(
                f"topic {topic!r} has cleanup.policy={configs['cleanup.policy']}: compaction takes records out of "
                "decided ranges; set cleanup.policy=delete"
            )
        parts = sorted(part["partition_index"] for part in description["partitions"])
        latest = self._offsets(topic, parts, OffsetSpec.LATEST)
        search = self._offsets(topic, parts, milliseconds(at))
        stable = self._offsets(topic, parts, OffsetSpec.LATEST, IsolationLevel.READ_COMMITTED)
        earliest = self._offsets(topic, parts, OffsetSpec.EARLIEST)
        found: dict[int, Bounds] = {}
        for part in parts:
            hit = search[part] if search[part] >= 0 else None
            top = max(latest[part], hit or 0)
            found[part] = Bounds(earliest[part], top, min(stable[part], top), hit)
        after = int(configs["message.timestamp.after.max.ms"]) if "message.timestamp.after.max.ms" in configs else None
        kind: TimestampType = "LogAppendTime" if configs["message.timestamp.type"] == "LogAppendTime" else "CreateTime"
        return TopicBounds(topic, str(description["topic_id"]), self.cluster_id(), found, kind, after)

    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[Batch]:
        if start >= end:
            return
        self._check_range(topic, partition, start, end)
        tp, me = TopicPartition(topic, partition), object()
        position, generation, moved = start, -1, time.monotonic()
        # Not until "last offset + 1": only the position passes transaction markers and aborted records.
        while position < end:
            place = f"topic {topic!r} partition {partition} offset {position}"
            mine = self._reading is me and generation == self._consumer.generation
            try:
                records, reached = self._consumer.use(_step(tp, None if mine else position), self._timeout)
            except _NO_LONGER as error:
                self._check_range(topic, partition, position, end)
                raise StreamUnreachable(f"{self.bootstrap_servers} refused {place}: {error}") from error
            except kafka_errors.LogTruncationError as error:
                raise IdentityChanged(f"{place}: the log was truncated under the reader: {error}") from error
            except (Overdue, KafkaError, OSError) as error:
                if isinstance(error, Overdue) or not _may_pass(error) or time.monotonic() - moved > self._timeout:
                    raise self._unreachable(f"no record of {place}", error) from error
                time.sleep(0.1)
                continue
            self._reading, generation = me, self._consumer.generation
            found = [
                Record(
                    partition, record.offset, record.timestamp, record.key, record.value, tuple(record.headers or ())
                )
                for record in records
                if record.offset < end
            ]
            if reached > position:
                begin, position, moved = position, reached, time.monotonic()
                yield pack(partition, begin, min(position, end), found)
                moved = time.monotonic()  # the caller's time is not the broker's
            elif time.monotonic() - moved > self._timeout:
                self._consumer.drop()
                raise self._unreachable(f"no progress at {place}", Overdue(f"{self._timeout:.0f} s without a record"))

    def append(self, topic: str, records: Iterable[Outgoing]) -> int:
        if topic not in self._known:
            self._topic(topic)
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
                    self._topic(topic)
                raise self._unreachable(
                    f"topic {topic!r}: {written} records are written, the next {len(chunk)} may be or not", error
                ) from error
            written += len(chunk)
        return written

    def opener(self) -> Callable[[], KafkaLog]:
        return partial(KafkaLog, self.bootstrap_servers, timeout=self._timeout, client=self._client)

    def close(self) -> None:
        for client in (self._producer, self._consumer, self._admin):
            client.close(2.0)

    # -- asking the broker ---------------------------------------------------------------------------------------

    def _ask(self, what: str, call: Callable[[Any], T]) -> T:
        """One question to the admin client, repeated while the answer is one that passes (an election, a restart)."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return self._admin.use(call, self._timeout)
            except kafka_errors.TopicAlreadyExistsError:
                raise
            except (Overdue, KafkaError, OSError) as error:
                if isinstance(error, Overdue) or not _may_pass(error) or time.monotonic() > deadline:
                    raise self._unreachable(f"asked for {what}", error) from error
                time.sleep(0.2)

    def _describe(self, topics: list[str]) -> list[dict[str, Any]]:
        return self._ask(f"topic {', '.join(topics)}", lambda admin: list(admin.describe_topics(topics)))

    def _topic(self, topic: str) -> dict[str, Any]:
        description = self._describe([topic])[0]
        code = kafka_errors.for_code(description["error_code"])
        if code is kafka_errors.UnknownTopicOrPartitionError or code is kafka_errors.InvalidTopicError:
            names = self._ask("the topics", lambda admin: list(admin.list_topics()))
            raise unknown_topic(topic, (name for name in names if not name.startswith("__")), self.bootstrap_servers)
        if code is not kafka_errors.NoError:
            raise self._unreachable(f"asked for topic {topic!r}", code(description.get("name")))
        return description

    def _configs(self, topic: str) -> dict[str, str]:
        resource = [ConfigResource("topic", topic)]
        answer = self._ask(
            f"the settings of topic {topic!r}", lambda admin: admin.describe_configs(resource, config_filter="all")
        )
        return {name: str(entry["value"]) for name, entry in answer["topic"][topic].items()}

    def _offsets(
        self, topic: str, parts: list[int], spec: int, isolation: Any = IsolationLevel.READ_UNCOMMITTED
    ) -> dict[int, int]:
        """Offsets by partition, -1 = none. Not `offsets_for_times`: it answers None while a leader is being elected."""
        specs = {TopicPartition(topic, part): spec for part in parts}
        answer = self._ask(
            f"the offsets of topic {topic!r}",
            lambda admin: admin.list_partition_offsets(dict(specs), isolation_level=isolation),
        )
        return {tp.partition: int(entry.offset) for tp, entry in answer.items()}

    def _check_range(self, topic: str, partition: int, start: int, end: int) -> None:
        parts = self.partitions(topic)
        if partition not in parts:
            raise mismatch(topic, "partitions", parts, f"partition {partition}")
        earliest = self._offsets(topic, [partition], OffsetSpec.EARLIEST)[partition]
        latest = self._offsets(topic, [partition], OffsetSpec.LATEST)[partition]
        if error := gone(topic, partition, start, end, (earliest, latest)):
            raise error

    def _unreachable(self, what: str, error: BaseException) -> StreamUnreachable:
        return StreamUnreachable(
            f"Kafka at {self.bootstrap_servers}: {what}; {type(error).__name__}: {error} "
            f"(limit {self._timeout:.0f} s): check that the broker runs and [stream] bootstrap_servers names it"
        )


def _may_pass(error: BaseException) -> bool:
    """Whether the client itself calls the error one that passes. A timeout has used up its time already."""
    return bool(getattr(error, "retriable", False)) and not isinstance(error, kafka_errors.KafkaTimeoutError)


def _step(tp: TopicPartition, seek: int | None) -> Callable[[Any], tuple[list[Any], int]]:
    """One poll of one partition -> its records and the position after them."""

    def step(consumer: Any) -> tuple[list[Any], int]:
        if seek is not None:
            consumer.assign([tp])
            consumer.seek(tp, seek)
        records = consumer.poll(timeout_ms=POLL_MS).get(tp, [])
        position = consumer.position(tp, timeout_ms=POLL_MS)
        behind = records[-1].offset + 1 if records else -1
        return records, max(behind, -1 if position is None else int(position))

    return step


def _chunk(topic: str, records: Iterator[Outgoing]) -> list[Outgoing]:
    chunk: list[Outgoing] = []
    size = 0
    for record in islice(records, APPEND_RECORDS):
        size += check_record(topic, record)
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
