"""One contract, two event logs: every test here runs on the embedded log and on a real Apache Kafka."""

from __future__ import annotations

import logging
import multiprocessing
import random
import socket
import time
import zlib
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from assets.stream.deadline import Overdue, Reopening
from assets.stream.embedded import EmbeddedLog
from assets.stream.kafka import KafkaLog
from assets.stream.log import (
    MAX_RECORD_BYTES,
    OffsetsGone,
    Outgoing,
    RecordRefused,
    StreamUnreachable,
    TopicMismatch,
    UnknownTopic,
    milliseconds,
    partition_of,
)

AT = datetime(2013, 6, 3, 8, tzinfo=UTC)
T0 = milliseconds(AT)


def everything(log, topic, partition, start=0, end=None):
    end = log.bounds(topic, AT).partitions[partition].latest if end is None else end
    return [record for batch in log.read(topic, partition, start, end) for record in batch]


def test_what_is_appended_is_read_back_as_it_was(event_log, topic):
    event_log.create_topic(topic, 1)
    sent = [
        Outgoing(b"key", b"value", T0),
        Outgoing(None, b"no key", T0 + 1),
        Outgoing(b"tombstone", None, T0 + 2),
        Outgoing(b"", b"", T0 + 3),
        Outgoing(b"large", random.Random(1).randbytes(1_000_000), T0 + 4),
        Outgoing(b"\xff\x00", b"\x00\n\xff", 0),
    ]
    assert event_log.append(topic, sent) == 6
    got = everything(event_log, topic, 0)
    assert [(r.key, r.value, r.timestamp) for r in got] == [(s.key, s.value, s.timestamp) for s in sent]
    assert [(r.partition, r.offset) for r in got] == [(0, offset) for offset in range(6)]


def test_a_key_always_goes_to_the_same_partition_on_both_logs(event_log, topic):
    event_log.create_topic(topic, 3)
    keys = [f"N{number}".encode() for number in range(300)]
    event_log.append(topic, (Outgoing(key, b"{}") for key in keys))
    for partition in event_log.partitions(topic):
        found = [record.key for record in everything(event_log, topic, partition)]
        assert found == [key for key in keys if zlib.crc32(key) % 3 == partition]


def test_records_without_a_key_take_turns_and_an_explicit_partition_wins(event_log, topic):
    event_log.create_topic(topic, 3)
    event_log.append(topic, [Outgoing(None, bytes([n])) for n in range(6)] + [Outgoing(b"k", b"chosen", partition=2)])
    values = [[record.value for record in everything(event_log, topic, partition)] for partition in range(3)]
    assert values == [[b"\0", b"\3"], [b"\1", b"\4"], [b"\2", b"\5", b"chosen"]]


def test_a_record_without_time_stamp_gets_the_time_it_was_appended(event_log, topic):
    event_log.create_topic(topic, 1)
    before = time.time_ns() // 1_000_000
    event_log.append(topic, [Outgoing(b"k", b"v")])
    assert before <= everything(event_log, topic, 0)[0].timestamp <= time.time_ns() // 1_000_000


def test_a_log_append_time_topic_ignores_the_sender_s_clock(event_log, topic):
    event_log.create_topic(topic, 1, timestamp_type="LogAppendTime")
    before = time.time_ns() // 1_000_000
    event_log.append(topic, [Outgoing(b"k", b"v", T0)])
    assert everything(event_log, topic, 0)[0].timestamp >= before
    assert event_log.bounds(topic, AT).timestamp_type == "LogAppendTime"


def test_a_part_of_a_partition_is_read_exactly(event_log, topic):
    event_log.create_topic(topic, 1)
    event_log.append(topic, (Outgoing(b"k", b"%d" % n, T0 + n) for n in range(12_000)))
    for start, end in [(0, 1), (17, 17), (4_999, 5_001), (11_999, 12_000), (100, 11_000)]:
        got = everything(event_log, topic, 0, start, end)
        assert [(r.offset, r.value) for r in got] == [(n, b"%d" % n) for n in range(start, end)]


def test_two_reads_of_one_log_may_take_turns(event_log, topic):
    event_log.create_topic(topic, 2)
    event_log.append(topic, [Outgoing(None, b"x" * 1_000, T0) for _ in range(14_000)])
    reads = [event_log.read(topic, partition, 0, 7_000) for partition in range(2)]
    seen: list[list[int]] = [[], []]
    while len(seen[0]) + len(seen[1]) < 14_000:
        for partition, read in enumerate(reads):
            seen[partition] += [record.offset for record in next(read, [])]
    assert seen == [list(range(7_000))] * 2


def test_bounds_say_where_each_partition_begins_and_ends_and_what_it_is(event_log, topic):
    event_log.create_topic(topic, 2)
    event_log.append(topic, [Outgoing(b"k", b"v", T0, partition=1)] * 3)
    first = event_log.bounds(topic, AT)
    found = {p: (b.earliest, b.latest, b.last_stable) for p, b in first.partitions.items()}
    assert found == {0: (0, 0, 0), 1: (0, 3, 3)}
    assert (first.topic, first.timestamp_type) == (topic, "CreateTime")
    again = event_log.bounds(topic, AT)
    assert first.topic_id == again.topic_id and first.cluster_id == again.cluster_id == event_log.cluster_id()
    event_log.create_topic(f"{topic}-other", 1)
    assert event_log.bounds(f"{topic}-other", AT).topic_id != first.topic_id


def test_the_search_by_time_finds_the_first_offset_at_or_after_it(event_log, topic):
    event_log.create_topic(topic, 1)
    stamps = [T0, T0 + 10, T0 + 5, T0 + 10, T0 + 30, T0 + 20]
    event_log.append(topic, [Outgoing(b"k", b"v", stamp) for stamp in stamps])

    def first(after_ms: float) -> int | None:
        return event_log.bounds(topic, AT + timedelta(milliseconds=after_ms)).partitions[0].at_timestamp

    found = {ms: first(ms) for ms in (-1e6, 0, 0.5, 1, 10, 10.001, 30, 31)}
    assert found == {-1e6: 0, 0: 0, 0.5: 1, 1: 1, 10: 1, 10.001: 4, 30: 4, 31: None}


def test_the_search_by_time_agrees_with_the_definition_on_jumping_clocks_and_trimmed_logs(tmp_path):
    log, rng = EmbeddedLog(tmp_path / "log.db"), random.Random(7)
    for case in range(60):
        topic = f"t{case}"
        log.create_topic(topic, 1)
        stamps = [T0 + rng.randrange(12) for _ in range(rng.randrange(1, 12))]
        log.append(topic, [Outgoing(b"k", b"v", stamp) for stamp in stamps])
        begin = rng.randrange(len(stamps) + 1)
        log.trim(topic, 0, begin)
        for ms in range(13):
            wanted = next((n for n, stamp in enumerate(stamps) if n >= begin and stamp >= T0 + ms), None)
            assert log.bounds(topic, AT + timedelta(milliseconds=ms)).partitions[0].at_timestamp == wanted


def test_trimmed_offsets_are_gone_with_the_exact_gap(event_log, topic, trim):
    event_log.create_topic(topic, 1)
    event_log.append(topic, [Outgoing(b"k", b"%d" % n, T0) for n in range(10)])
    trim(topic, 0, 4)
    assert event_log.bounds(topic, AT).partitions[0].earliest == 4
    with pytest.raises(OffsetsGone, match=r"offsets \[1, 4\).*begins at 4, 3 offsets are lost.*bring the records back"):
        everything(event_log, topic, 0, 1, 9)
    assert [r.value for r in everything(event_log, topic, 0, 4, 6)] == [b"4", b"5"]


def test_offsets_trimmed_while_they_are_being_read_are_gone_not_skipped(event_log, topic, trim):
    event_log.create_topic(topic, 1)
    event_log.append(topic, (Outgoing(b"k", random.Random(n).randbytes(1_000), T0) for n in range(25_000)))
    read = event_log.read(topic, 0, 0, 25_000)
    seen = len(next(read))
    trim(topic, 0, 24_999)
    with pytest.raises(OffsetsGone, match=r"offsets \[\d+, 24999\)"):
        for batch in read:
            seen += len(batch)
    assert seen < 24_999


def test_a_range_beyond_the_end_is_an_error_not_a_wait(event_log, topic):
    event_log.create_topic(topic, 1)
    event_log.append(topic, [Outgoing(b"k", b"v", T0)] * 3)
    with pytest.raises(OffsetsGone, match=r"offsets \[3, 8\).*ends at 3"):
        everything(event_log, topic, 0, 0, 8)


def test_records_that_are_written_after_a_read_are_found_by_the_next_one(event_log, topic):
    event_log.create_topic(topic, 1)
    for n in range(3):
        with pytest.raises(OffsetsGone, match=rf"offsets \[{n}, {n + 1}\).*ends at {n}"):
            everything(event_log, topic, 0, n, n + 1)
        event_log.append(topic, [Outgoing(b"k", b"%d" % n, T0)])
        assert [record.value for record in everything(event_log, topic, 0, n, n + 1)] == [b"%d" % n]


def test_an_unknown_topic_is_named_with_the_nearest_one(event_log, topic):
    event_log.create_topic(topic, 1)
    wrong = topic.replace("flights", "flihgts")
    calls = [
        lambda: event_log.partitions(wrong),
        lambda: event_log.bounds(wrong, AT),
        lambda: list(event_log.read(wrong, 0, 0, 1)),
        lambda: event_log.append(wrong, [Outgoing(b"k", b"v")]),
    ]
    for call in calls:
        with pytest.raises(UnknownTopic, match=f"{wrong}.*did you mean '{topic}'"):
            call()


def test_creating_a_topic_twice_changes_nothing_and_another_shape_is_an_error(event_log, topic):
    event_log.create_topic(topic, 2)
    event_log.append(topic, [Outgoing(b"k", b"v", T0, partition=1)])
    event_log.create_topic(topic, 2)
    assert len(everything(event_log, topic, 1)) == 1
    with pytest.raises(TopicMismatch, match=f"'{topic}' has partitions 2, wanted 3"):
        event_log.create_topic(topic, 3)
    with pytest.raises(TopicMismatch, match=r"has message\.timestamp\.type CreateTime, wanted LogAppendTime"):
        event_log.create_topic(topic, 2, timestamp_type="LogAppendTime")


def test_headers_come_back_in_order_with_their_repetitions(event_log, topic):
    event_log.create_topic(topic, 1)
    headers = [(), (("trace", b"1"),), (("trace", b""), ("näme", b"\xff\x00"), ("trace", b"2"), ("", b"x" * 300))]
    event_log.append(topic, [Outgoing(b"k", b"v", T0, headers=found) for found in headers * 40])
    assert [record.headers for record in everything(event_log, topic, 0)] == headers * 40


def test_the_batches_of_a_read_account_for_every_offset_once_and_mark_what_they_came_from(event_log, topic):
    event_log.create_topic(topic, 1)
    for turn in range(4):
        event_log.append(topic, [Outgoing(b"k", b"%d" % n * 500, T0) for n in range(turn * 100)])
    batches = list(event_log.read(topic, 0, 30, 570))
    assert batches[0].begin == 30 and batches[-1].end == 570
    assert all(after.begin == before.end for before, after in pairwise(batches))
    marks = [mark for batch in batches for mark in batch.marks.tolist()]
    assert marks[0][0] <= 30 and marks[-1][1] >= 569
    assert all(after[0] == before[1] + 1 for before, after in pairwise(marks))
    again = [mark for batch in event_log.read(topic, 0, 30, 570) for mark in batch.marks.tolist()]
    assert again == marks


def test_a_partition_that_is_not_there_is_an_error(event_log, topic):
    event_log.create_topic(topic, 2)
    with pytest.raises(TopicMismatch, match="partition 5"):
        everything(event_log, topic, 5, 0, 1)


def test_records_no_log_can_hold_are_refused_before_anything_of_their_batch_is_written(event_log, topic):
    event_log.create_topic(topic, 1)
    good, large = Outgoing(b"k", b"v", T0), Outgoing(b"k", bytes(MAX_RECORD_BYTES), T0)
    refused = [
        (Outgoing(None, None), "neither key nor value"),
        (large, f"{MAX_RECORD_BYTES + 1} bytes.*> the limit of {MAX_RECORD_BYTES}"),
        (Outgoing(b"k", b"v", partition=7), "partition 7 is not one of the 1"),
    ]
    for record, message in refused:
        with pytest.raises(RecordRefused, match=message):
            event_log.append(topic, [good, record])
    assert event_log.bounds(topic, AT).partitions[0].latest == 0
    event_log.append(topic, [Outgoing(None, random.Random(2).randbytes(MAX_RECORD_BYTES), T0)])
    assert len(everything(event_log, topic, 0)[0].value or b"") == MAX_RECORD_BYTES


def test_a_time_without_zone_is_refused(event_log, topic):
    event_log.create_topic(topic, 1)
    with pytest.raises(ValueError, match="has no time zone"):
        event_log.bounds(topic, AT.replace(tzinfo=None))


def _append_many(path, topic, writer):
    log = EmbeddedLog(path)
    for n in range(50):
        log.append(topic, [Outgoing(b"%d" % writer, b"%d" % n, T0, partition=0)] * 4)


def test_processes_that_append_to_one_embedded_log_lose_nothing(tmp_path):
    log = EmbeddedLog(tmp_path / "log.db")
    log.create_topic("t", 1)
    spawn = multiprocessing.get_context("fork")
    writers = [spawn.Process(target=_append_many, args=(tmp_path / "log.db", "t", n)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    got = everything(log, "t", 0)
    assert [record.offset for record in got] == list(range(600))
    for n in range(3):
        assert [r.value for r in got if r.key == b"%d" % n] == [b"%d" % m for m in range(50) for _ in range(4)]


def test_a_file_that_is_no_log_is_named(tmp_path):
    (tmp_path / "log.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(StreamUnreachable, match=r"log\.db.*not a database"):
        EmbeddedLog(tmp_path / "log.db")


def test_aborted_and_open_transactions_are_neither_read_nor_counted_as_stable(kafka, topic):
    from kafka import KafkaProducer

    log = KafkaLog(kafka)
    log.create_topic(topic, 1)
    producer = KafkaProducer(bootstrap_servers=kafka, transactional_id=topic)
    producer.init_transactions()
    for value, end in ((b"kept", producer.commit_transaction), (b"aborted", producer.abort_transaction)):
        producer.begin_transaction()
        producer.send(topic, value, partition=0).get(10)  # else the abort drops it unsent
        end()
    log.append(topic, [Outgoing(None, b"plain", T0)])
    latest = log.bounds(topic, AT).partitions[0].latest
    producer.begin_transaction()
    producer.send(topic, b"open", partition=0).get(10)
    bounds = log.bounds(topic, AT).partitions[0]
    assert (bounds.last_stable, bounds.latest) == (latest, latest + 1)
    assert [record.value for record in everything(log, topic, 0, 0, latest)] == [b"kept", b"plain"]
    assert everything(log, topic, 0, 3, 4) == []  # only the marker of the aborted one: passed, not waited for
    producer.abort_transaction()
    producer.close()
    log.close()


def test_an_open_transaction_in_the_range_ends_the_read_with_its_place(kafka, topic):
    from kafka import KafkaProducer

    log = KafkaLog(kafka, timeout=2.0)
    log.create_topic(topic, 1)
    producer = KafkaProducer(bootstrap_servers=kafka, transactional_id=topic)
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(topic, b"open", partition=0).get(10)
    with pytest.raises(StreamUnreachable, match=f"no progress at topic '{topic}' partition 0 offset 0"):
        everything(log, topic, 0, 0, 1)
    producer.abort_transaction()
    producer.close()
    log.close()


def test_a_compacted_topic_is_refused(kafka, topic):
    from kafka import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.create_topics(
        {topic: {"num_partitions": 1, "configs": {"cleanup.policy": "compact"}}}, wait_for_metadata=True
    )
    admin.close()
    log = KafkaLog(kafka)
    with pytest.raises(TopicMismatch, match=r"cleanup\.policy=compact"):
        log.bounds(topic, AT)
    log.close()


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_a_broker_that_does_not_answer_is_reported_in_bounded_time(kind):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if kind == "silent":
            server.listen()  # connections are accepted by the system, and nobody ever answers
        log = KafkaLog(f"127.0.0.1:{server.getsockname()[1]}", timeout=0.5)
        for call in (lambda: log.bounds("t", AT), lambda: list(log.read("t", 0, 0, 1)), lambda: log.append("t", [])):
            begin = time.monotonic()
            with pytest.raises(StreamUnreachable, match=r"Kafka at 127\.0\.0\.1:\d+.*check that the broker runs"):
                call()
                log.append("t", [Outgoing(b"k", b"v")])
            assert time.monotonic() - begin < 2 * 0.5 + 1.5
        log.close()


def test_the_slow_checksum_in_python_is_refused(monkeypatch):
    monkeypatch.setattr("kafka.record.util.crc32c_c", None)
    with pytest.raises(ImportError, match="the crc32c wheel is missing"):
        KafkaLog("127.0.0.1:9092")


@pytest.mark.parametrize("before", [logging.DEBUG, logging.WARNING])
def test_the_client_never_logs_whole_frames_also_when_debug_is_asked_for_later(monkeypatch, before):
    monkeypatch.setattr(logging.getLogger("kafka"), "level", logging.NOTSET)
    monkeypatch.setattr(logging.getLogger(), "level", before)
    KafkaLog("127.0.0.1:9092")
    monkeypatch.setattr(logging.getLogger(), "level", logging.DEBUG)
    assert logging.getLogger("kafka").getEffectiveLevel() == logging.INFO


def test_a_client_that_hangs_is_given_up_and_a_new_one_opened():
    opened, closed = [], []

    class Client:
        def __init__(self):
            opened.append(self)

        def close(self):
            closed.append(self)

    client = Reopening("test", Client, 1.0)
    assert client.use(lambda own: own is opened[0], 1.0)
    begin, generation = time.monotonic(), client.generation
    with pytest.raises(Overdue, match=r"no answer within 0\.1 s"):
        client.use(lambda _: time.sleep(5), 0.1)
    assert time.monotonic() - begin < 1.0
    assert client.generation != generation, "what the client was told is forgotten with it"
    assert client.use(lambda own: own is opened[1], 1.0)
    client.close(1.0)
    assert len(opened) == 2 and set(closed) == set(opened)


def test_the_rule_for_partitions_is_the_documented_one():
    assert partition_of(Outgoing(b"N14228", b"{}"), 3, 0) == zlib.crc32(b"N14228") % 3 == 1
