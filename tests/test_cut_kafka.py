"""The cut on a real Kafka: transactions, added partitions, and whose clock a time stamp is from."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from assets.stream.kafka import KafkaLog
from assets.stream.log import Outgoing, Topics, milliseconds
from assets.windows.clock import WindowPolicy
from assets.windows.cut import CutRefused, HeldBack
from monitoring.alarms import open_alarms
from tests.windows import Stream, event, label, new_topics


def spans(cut, topic):
    return dict(cut.topics[topic].partitions)


def cut_when_decided(stream, number, now):
    """The broker writes a transaction's markers a moment after it has told the producer that it is over."""
    until = time.monotonic() + 10
    while True:
        try:
            return stream.cut(number, now=now)
        except HeldBack:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


class Transactions:
    """A producer that writes records of one topic in transactions."""

    def __init__(self, kafka, topic):
        from kafka import KafkaProducer

        self.topic, self.producer = topic, KafkaProducer(bootstrap_servers=kafka, transactional_id=topic)
        self.producer.init_transactions()

    def begin(self, record):
        self.producer.begin_transaction()
        self.producer.send(self.topic, record.value, record.key, timestamp_ms=record.timestamp).get(5)

    def commit(self):
        self.producer.commit_transaction()

    def abort(self):
        self.producer.abort_transaction()


@pytest.fixture
def kafka_stream(kafka, tmp_path):
    """A stream on Kafka by the wall's clock, stamped by the broker; its first week is the one that contains today."""
    log = KafkaLog(kafka)
    names = Topics(*(f"{topic}-wall" for topic in new_topics(log).all))
    for name in names.all:
        log.create_topic(name, 1, timestamp_type="LogAppendTime")
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    yield Stream(log, names, tmp_path / "a", policy=WindowPolicy(timedelta(days=7), today))
    log.close()


@pytest.fixture
def admin(kafka):
    from kafka import KafkaAdminClient

    client = KafkaAdminClient(bootstrap_servers=kafka)
    yield client
    client.close()


def create(admin, topics, **configs):
    """Topics of one partition with settings of the broker's own names."""
    configs = {name.replace("_", "."): str(value) for name, value in configs.items()}
    admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1, "configs": configs} for topic in topics})


def test_partitions_added_in_the_middle_of_a_stream_lose_nothing(kafka, admin, tmp_path):
    log = KafkaLog(kafka)
    stream = Stream(log, new_topics(log, partitions=1), tmp_path / "a")
    stream.publish(event("a", 10), event("b", 70), label("a", 20), label("b", 80))
    stream.end(180)
    stream.run(0)
    admin.create_partitions({stream.topics.events: 3})
    other = KafkaLog(kafka)  # the writer's client knows the old number for a minute
    other.append(stream.topics.events, [event("c", 65, 2), event("d", 75, 0), event("e", 130, 1), event("f", 140, 2)])
    cuts = [stream.cut(1), stream.cut(2)]
    assert [spans(cut, stream.topics.events) for cut in cuts] == [
        {0: (1, 3), 1: (0, 0), 2: (0, 1)}, {0: (3, 3), 1: (0, 1), 2: (1, 2)},
    ]  # fmt: skip
    assert [stream.seal(number).rows[stream.topics.events] for number in range(3)] == [1, 3, 2]
    other.close()
    log.close()


def test_the_search_by_time_sees_records_that_are_not_decided_yet(kafka, admin, tmp_path):
    """Asked of decided records only it would say "none", and the window would end at the high watermark."""
    log = KafkaLog(kafka)
    names = Topics(*(f"{topic}-created" for topic in new_topics(log).all))
    create(admin, names.all, message_timestamp_after_max_ms=60_000)
    start = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=5)
    stream = Stream(log, names, tmp_path / "a", policy=WindowPolicy(timedelta(minutes=1), start))

    def stamped(name, seconds):
        return replace(event(name, 0), timestamp=milliseconds(start + timedelta(seconds=seconds)))

    log.append(names.events, [stamped("a", 10)])
    writer = Transactions(kafka, names.events)
    writer.begin(stamped("of the next window", 70))
    decided = stream.cut(0, now=datetime.now(UTC))
    assert spans(decided, names.events) == {0: (0, 1)}
    with pytest.raises(HeldBack):
        stream.cut(1, now=datetime.now(UTC))
    writer.commit()
    assert spans(cut_when_decided(stream, 1, datetime.now(UTC)), names.events) == {0: (1, 2)}  # the marker is of now
    writer.producer.close()
    log.close()


def test_a_broker_that_bounds_the_producers_clocks_refuses_what_lies_ahead_of_the_grace(kafka, admin, tmp_path):
    log = KafkaLog(kafka)
    names = [f"{topic}-bounded" for topic in new_topics(log).all]
    create(admin, names, message_timestamp_after_max_ms=60_000)
    policy = WindowPolicy(timedelta(days=1), datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0))
    stream = Stream(log, Topics(*names), tmp_path / "a", policy=policy)
    ahead = milliseconds(datetime.now(UTC))
    log.append(names[0], [Outgoing(b"a", b'{"x": 1}', ahead + 30_000)])
    with pytest.raises(Exception, match="InvalidTimestamp"):
        log.append(names[0], [Outgoing(b"b", b'{"x": 1}', ahead + 600_000)])
    due = policy.start + timedelta(days=1, seconds=60)
    assert log.bounds(names[0], due).after_max_ms == 60_000
    strict = replace(stream.policy, grace=timedelta(seconds=59))
    with pytest.raises(CutRefused, match=r"after\.max\.ms = 60000 ms > window\.grace = 59000 ms"):
        Stream(log, Topics(*names), tmp_path / "b", policy=strict).cut(0, now=due)
    assert spans(stream.cut(0, now=due), names[0])[0] in ((0, 1), (0, 0))  # in the last minute of a day it is the next one's
    log.close()


@pytest.mark.parametrize("committed", [True, False])
def test_an_open_transaction_on_kafka_holds_the_window_back_until_it_is_decided(kafka, kafka_stream, committed):
    topic, later = kafka_stream.topics.events, kafka_stream.policy.start + timedelta(days=8)
    writer = Transactions(kafka, topic)
    writer.begin(event("undone", 5))
    writer.abort()
    writer.begin(event("a", 5))
    held = r"offsets from 2 are not decided, the window ends at 3 \(producer \d+ \('.*-wall'\) since offset 2\)"
    due = kafka_stream.policy.start + timedelta(days=7, seconds=60)
    for now, alarms in ((due, 0), (due + timedelta(minutes=15), 0), (later, 1), (later, 1)):
        with pytest.raises(HeldBack, match=held):
            kafka_stream.cut(0, now=now)
        assert len(open_alarms(kafka_stream.history.journal, "delays")) == alarms
    (alarm,) = open_alarms(kafka_stream.history.journal, "delays")
    assert (alarm.kind, alarm.figure, alarm.limit) == ("open_transaction", 86_340, 900)
    (writer.commit if committed else writer.abort)()
    assert spans(cut_when_decided(kafka_stream, 0, later), topic) == {0: (0, 4)}
    sealed = kafka_stream.seal(0)
    assert sealed.rows[topic] == committed
    assert sealed.gaps[topic] == 4 - committed  # aborted records and two markers
    writer.producer.close()


def test_a_replay_written_in_transactions_is_refused_because_their_markers_carry_the_brokers_time(kafka, tmp_path):
    log = KafkaLog(kafka)
    stream = Stream(log, new_topics(log, partitions=1), tmp_path / "a")
    stream.publish(label("a", 10), label("b", 130))
    writer = Transactions(kafka, stream.topics.events)
    for number in range(2):
        writer.begin(event(f"{number}", 5 + number))
        writer.commit()
    stream.end(180)
    assert spans(stream.cut(0), stream.topics.events) == {0: (0, 1)}
    with pytest.raises(CutRefused, match="offset 1 is a transaction's marker"):
        stream.cut(1)
    writer.producer.close()
    log.close()
