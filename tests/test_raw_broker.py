"""On a real broker the raw and the ordinary path read the same records: every codec, transactions, the broker's own time."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from kafka import KafkaProducer

from assets.stream.kafka import KafkaLog
from assets.stream.log import Outgoing
from tests.kafka_batches import T0

AT = datetime(2014, 5, 13, tzinfo=UTC)


@pytest.fixture
def both(kafka):
    """The log on the raw and on the ordinary path."""
    logs = KafkaLog(kafka, raw=True), KafkaLog(kafka, raw=False)
    yield logs
    for log in logs:
        log.close()


def same_records(both, topic, start=0, end=None):
    """The records, which are the same on both paths; the batches tile the range on each."""
    end = both[0].bounds(topic, AT).partitions[0].latest if end is None else end
    read = [list(log.read(topic, 0, start, end)) for log in both]
    for batches, kind in zip(read, ("batches", "records"), strict=True):
        assert [batch.begin for batch in batches] == [start, *(batch.end for batch in batches[:-1])]
        assert batches[-1].end == end and {batch.kind for batch in batches} == {kind}
    ours, theirs = ([record for batch in batches for record in batch] for batches in read)
    assert ours == theirs
    marks = [mark for batch in read[0] for mark in batch.marks.tolist()]
    assert marks[0][0] <= start and marks[-1][1] >= end - 1
    assert all(after[0] == before[1] + 1 for before, after in pairwise(marks))
    return ours


def sender(kafka, **settings):
    return KafkaProducer(bootstrap_servers=kafka, linger_ms=20, **settings)


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
def test_every_codec_of_a_real_producer_is_read_the_same_on_both_paths(both, kafka, topic, codec):
    both[0].create_topic(topic, 1)
    producer, rng = sender(kafka, compression_type=codec, batch_size=8 << 10), random.Random(5)
    sent = []
    for n in range(3_000):
        value = rng.choice([b"", b"{}", b'{"n": %d}' % n * 9])
        sent.append((rng.choice([None, b"key%d" % n]), value, [("h", b""), ("h", b"%d" % n)] * (n % 3)))
    for n, (key, value, headers) in enumerate(sent):
        producer.send(topic, value, key, headers=headers, partition=0, timestamp_ms=T0 + n * 7919 % 50_000)
    producer.close()
    found = same_records(both, topic)
    assert [(r.key, r.value, list(r.headers)) for r in found] == sent
    assert [r.timestamp for r in found] == [T0 + n * 7919 % 50_000 for n in range(3_000)]
    assert [r.offset for r in same_records(both, topic, 1_234, 2_345)] == list(range(1_234, 2_345))


def test_transactions_that_run_into_each_other_are_read_the_same_on_both_paths(both, kafka, topic):
    both[0].create_topic(topic, 1)
    producers = [sender(kafka, transactional_id=f"{topic}-{n}", compression_type="lz4") for n in range(3)]
    for producer in producers:
        producer.init_transactions()
    rng, kept = random.Random(9), []
    for turn in range(4):
        for producer in producers:
            producer.begin_transaction()
        values = {producer: [] for producer in producers}
        for n in range(12):
            producer = rng.choice(producers)
            value = b"%d/%d" % (turn, n)
            offset = producer.send(topic, value, partition=0).get(10).offset
            values[producer].append((offset, value))
        for number, producer in enumerate(producers):
            if (number + turn) % 3 == 0:
                producer.abort_transaction()
            else:
                producer.commit_transaction()
                kept += values[producer]
        both[0].append(topic, [Outgoing(None, b"plain %d" % turn, T0)])
    for producer in producers:
        producer.close()
    found = same_records(both, topic)
    assert [(r.offset, r.value) for r in found if not r.value.startswith(b"plain")] == sorted(kept)
    assert sum(r.value.startswith(b"plain") for r in found) == 4
    latest = both[0].bounds(topic, AT).partitions[0].latest
    for start in range(0, latest, 5):  # also from a marker, and from the middle of an aborted run
        assert same_records(both, topic, start) == [r for r in found if r.offset >= start]


def test_the_broker_s_own_time_is_read_the_same_on_both_paths(both, topic):
    both[0].create_topic(topic, 1, timestamp_type="LogAppendTime")
    before = time.time_ns() // 1_000_000
    for turn in range(3):
        both[0].append(topic, [Outgoing(b"k", b"%d" % turn, T0 + n) for n in range(100)])
    found = same_records(both, topic)
    assert len(found) == 300 and all(before <= r.timestamp <= time.time_ns() // 1_000_000 for r in found)
