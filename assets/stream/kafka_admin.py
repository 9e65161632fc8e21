"""Questions to a Kafka cluster: which topics, partitions, settings and offsets it has.

Each is asked again while the answer is an error that passes (an election, a restart), and ends within the time limit.
Offsets are asked for all partitions of a topic at once: one request to each leader, whatever their number. This file
reads and writes no records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from kafka import KafkaAdminClient, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource
from kafka.errors import KafkaError
from kafka.protocol.consumer import IsolationLevel, OffsetSpec
from kafka.protocol.consumer.offsets import OffsetForLeaderEpochRequest

from assets.stream.deadline import Overdue, Reopening
from assets.stream.log import StreamUnreachable, gone, mismatch, unknown_topic
from assets.stream.refusal import Right, missing_right, refusal

T = TypeVar("T")
_Topic = OffsetForLeaderEpochRequest.OffsetForLeaderTopic


class KafkaAdmin:
    """settings: of kafka-python's admin client. timeout: seconds for each question, and the same again to connect."""

    def __init__(self, bootstrap_servers: str, settings: Mapping[str, Any], timeout: float) -> None:
        self._servers, self._settings, self._timeout = bootstrap_servers, settings, timeout
        self._client: Reopening[Any] = Reopening("kafka-admin", lambda: KafkaAdminClient(**settings), timeout + 1)

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close(2.0)

    def ask(self, what: str, call: Callable[[Any], T], right: Right = "Describe") -> T:
        """One question to the admin client, repeated while the answer is one that passes (an election, a restart).

        right: what the question needs. Raises StreamUnreachable, and StreamRefused, which is one, without that right.
        """
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return self._client.use(call, self._timeout)
            except kafka_errors.TopicAlreadyExistsError:
                raise
            except (Overdue, KafkaError, OSError) as error:
                if isinstance(error, Overdue) or not may_pass(error) or time.monotonic() > deadline:
                    raise self.unreachable(f"asked for {what}", error, right) from error
                time.sleep(0.2)

    def describe(self, topics: list[str]) -> list[dict[str, Any]]:
        """As kafka-python gives it; a topic that is not there has an `error_code`."""
        return self.ask(f"topic {', '.join(topics)}", lambda admin: list(admin.describe_topics(topics)))

    def topic(self, topic: str) -> dict[str, Any]:
        """The description of one topic. Raises UnknownTopic with the nearest name."""
        description = self.describe([topic])[0]
        code = kafka_errors.for_code(description["error_code"])
        if code is kafka_errors.UnknownTopicOrPartitionError or code is kafka_errors.InvalidTopicError:
            names = self.ask("the topics", lambda admin: list(admin.list_topics()))
            raise unknown_topic(topic, (name for name in names if not name.startswith("__")), self._servers)
        if code is not kafka_errors.NoError:
            raise self.unreachable(f"asked for topic {topic!r}", code(description.get("name")))
        return description

    def configs(self, topic: str) -> dict[str, str]:
        """The settings of a topic, the defaults among them."""
        resource = [ConfigResource("topic", topic)]
        answer = self.ask(
            f"the settings of topic {topic!r}", lambda admin: admin.describe_configs(resource, config_filter="all")
        )
        if not (found := answer["topic"][topic]):  # kafka-python passes over the error code of this answer
            what = f"asked for the settings of topic {topic!r}"
            raise missing_right(what, "DescribeConfigs", self._servers, self._settings)
        return {name: str(entry["value"]) for name, entry in found.items()}

    def offsets(
        self, topic: str, parts: list[int], spec: int, isolation: Any = IsolationLevel.READ_UNCOMMITTED
    ) -> dict[int, int]:
        """Offsets by partition, -1 = none. Not `offsets_for_times`: it answers None while a leader is being elected."""
        return {part: offset for part, (offset, _) in self.positions(topic, parts, spec, isolation).items()}

    def positions(
        self, topic: str, parts: list[int], spec: int, isolation: Any = IsolationLevel.READ_UNCOMMITTED
    ) -> dict[int, tuple[int, int | None]]:
        """The same, with the epoch of the leader that answered (of the record, when a time was asked for)."""
        specs = {TopicPartition(topic, part): spec for part in parts}
        answer = self.ask(
            f"the offsets of topic {topic!r}",
            lambda admin: admin.list_partition_offsets(dict(specs), isolation_level=isolation),
        )
        return {tp.partition: (int(entry.offset), entry.leader_epoch) for tp, entry in answer.items()}

    def kept(self, topic: str, epochs: Mapping[int, int]) -> dict[int, int]:
        """Partition -> where the log of that epoch ends in the leader's log (Kafka's OffsetForLeaderEpoch, KIP-320)."""
        wanted = {TopicPartition(topic, part): epoch for part, epoch in epochs.items()}
        return self.ask(f"the epochs of topic {topic!r}", lambda admin: admin._manager.run(_epoch_ends, admin, wanted))

    def open_transactions(self, topic: str, partition: int) -> list[str]:
        """Producer, transactional id and first offset of each, the oldest first (KIP-664)."""
        tp = TopicPartition(topic, partition)
        answered = self.ask(f"the producers of topic {topic!r}", lambda admin: admin.describe_producers([tp]))
        begun = sorted((p.current_transaction_start_offset, p.producer_id) for p in answered[tp].active_producers)
        begun = [(offset, producer) for offset, producer in begun if offset >= 0]
        if not begun:
            return []
        ids = [producer for _, producer in begun]
        answer = self.ask("the open transactions", lambda admin: admin.list_transactions(producer_id_filters=ids))
        names = {found.producer_id: found.transactional_id for every in answer.values() for found in every}
        return [f"producer {each} ({names.get(each, 'unknown id')!r}) since offset {offset}" for offset, each in begun]

    def partitions(self, topic: str) -> list[int]:
        """The partition numbers, in order."""
        return sorted(part["partition_index"] for part in self.topic(topic)["partitions"])

    def check_range(self, topic: str, partition: int, start: int, end: int) -> None:
        """Raises OffsetsGone when [start, end) leaves the log, TopicMismatch when there is no such partition."""
        parts = self.partitions(topic)
        if partition not in parts:
            raise mismatch(topic, "partitions", parts, f"partition {partition}")
        earliest = self.offsets(topic, [partition], OffsetSpec.EARLIEST)[partition]
        latest = self.offsets(topic, [partition], OffsetSpec.LATEST)[partition]
        if error := gone(topic, partition, start, end, (earliest, latest)):
            raise error

    def unreachable(self, what: str, error: BaseException, right: Right = "Describe") -> StreamUnreachable:
        """The error to raise; where the cluster refuses us it says why (this asks it once more, by hand)."""
        return refusal(error, what, right, self._servers, self._settings, self._timeout) or StreamUnreachable(
            f"Kafka at {self._servers}: {what}; {type(error).__name__}: {error} "
            f"(limit {self._timeout:.0f} s): check that the broker runs and [stream] bootstrap_servers names it"
        )


async def _epoch_ends(admin: Any, wanted: Mapping[TopicPartition, int]) -> dict[int, int]:
    """kafka-python has this request for its consumers only: put together here, sent by its own admin client."""
    found: dict[int, int] = {}
    for leader, places in (await admin._async_get_leader_for_partitions(list(wanted))).items():
        parts = [
            _Topic.OffsetForLeaderPartition(partition=tp.partition, current_leader_epoch=-1, leader_epoch=wanted[tp])
            for tp in places
        ]
        asked = [_Topic(topic=next(iter(places)).topic, partitions=parts)]
        answer = await admin._manager.send(OffsetForLeaderEpochRequest(replica_id=-1, topics=asked), node_id=leader)
        for part in answer.topics[0].partitions:
            if part.error_code:
                raise kafka_errors.for_code(part.error_code)(f"epoch of partition {part.partition}")
            found[part.partition] = int(part.end_offset)
    return found


def may_pass(error: BaseException) -> bool:
    """Whether the client itself calls the error one that passes. A timeout has used up its time already.

    It forgets one: a leader that its own list of brokers does not have yet, because it has just come back.
    """
    passes = getattr(error, "retriable", False) or isinstance(error, kafka_errors.UnknownBrokerIdError)
    return bool(passes) and not isinstance(error, kafka_errors.KafkaTimeoutError)
