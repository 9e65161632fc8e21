"""Fixtures for the event log: one real Apache Kafka for the whole test run, and an empty SQLite file for each test."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from assets.stream.embedded import EmbeddedLog
from assets.stream.kafka import KafkaLog
from assets.stream.log import EventLog
from pipelines.broker import BrokerFailed, LocalBroker

# Shared by all runs in this checkout (41 MB, ignored by git), so that only the first one fetches.
JARS = Path(__file__).parents[1] / "var" / "jars"


@pytest.fixture(scope="session")
def local_broker(tmp_path_factory) -> Iterator[LocalBroker]:
    """The broker itself, for tests that do something to it. They leave it running at the same address."""
    with LocalBroker(jars=JARS) as broker:
        try:
            broker.start(tmp_path_factory.mktemp("a bröker's folder"))
        except BrokerFailed as error:
            pytest.skip(f"no local Kafka on this machine: {error}")
        yield broker


@pytest.fixture(scope="session")
def kafka(local_broker) -> str:
    """The address of a real Kafka. Topics of other tests are in it: take names from the `topic` fixture."""
    return local_broker.bootstrap


@pytest.fixture
def topic() -> str:
    """A topic name nobody else has."""
    return f"flights-{uuid.uuid4().hex[:12]}"


@pytest.fixture(params=["embedded", "kafka"])
def event_log(request, tmp_path) -> Iterator[EventLog]:
    """Both kinds of event log: a test that takes this runs on each."""
    log: EventLog
    if request.param == "embedded":
        log = EmbeddedLog(tmp_path / "log.db")
    else:
        log = KafkaLog(request.getfixturevalue("kafka"))
    yield log
    log.close()


@pytest.fixture
def trim(event_log) -> Callable[[str, int, int], None]:
    """trim(topic, partition, before): delete the records below an offset, as retention would."""
    if isinstance(event_log, EmbeddedLog):
        return event_log.trim

    def delete(topic: str, partition: int, before: int) -> None:
        from kafka import KafkaAdminClient, TopicPartition

        admin = KafkaAdminClient(bootstrap_servers=event_log.bootstrap_servers)
        admin.delete_records({TopicPartition(topic, partition): before})
        admin.close()

    return delete
