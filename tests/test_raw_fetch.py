"""Whole record batches instead of kafka-python's records: the same records, positions and errors, or the ordinary path."""

from __future__ import annotations

import logging
import random
import struct
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from kafka.record import MemoryRecords
from kafka.record.memory_records import MemoryRecordsBuilder

from assets.stream import raw_fetch
from assets.stream.deadline import Reopening
from assets.stream.kafka import KafkaLog
from assets.stream.log import Outgoing
from assets.stream.raw_fetch import RawPartitionRecords, partition_records, unusable
from assets.stream.record_batches import decode
from assets.windows.proof import Proof
from tests.kafka_batches import ABORT, COMMIT, T0, Log, marker, random_log, record_batch

TP = TopicPartition("t", 0)
LOGS = 2_000


@pytest.fixture
def fresh_trial():
    """The trial of this process is forgotten before and after."""
    for found in (unusable, raw_fetch._tell_old_format):
        found.cache_clear()
    yield
    for found in (unusable, raw_fetch._tell_old_format):
        found.cache_clear()


def told(caplog):
    """What we logged: kafka-python's own threads, of clients of other tests too, log when they like."""
    return [record for record in caplog.records if record.name == "headgate.stream"]


def ordinary(data, start, **settings):
    """-> kafka-python's records, and its object."""
    records = Fetcher.PartitionRecords(start, TP, MemoryRecords(data), **settings)
    taken = []
    while records:
        taken += records.take(7)
    return [(r.offset, r.timestamp, r.key, r.value, list(r.headers)) for r in taken], records


def raw(data, start, **settings):
    records = RawPartitionRecords(start, TP, MemoryRecords(data), **settings)
    found = []
    for fetched in records.take():
        batches = list(decode("t", 0, fetched.batches, start, fetched.end, begun=False))
        assert [batch.begin for batch in batches] == [start, *(batch.end for batch in batches[:-1])]
        found += [(r.offset, r.timestamp, r.key, r.value, list(r.headers)) for batch in batches for r in batch]
        assert not batches or batches[-1].end == fetched.end == records.next_fetch_offset
    return found, records


def test_two_thousand_random_logs_read_as_by_kafka_python_at_both_isolation_levels():
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    rng, rows, hidden = random.Random(seed), 0, 0
    for _ in range(LOGS):
        log = random_log(rng, length=14, most=6)
        data = log.data
        if rng.random() < 0.5:  # a truncated tail
            data = data[: max(0, len(data) - rng.randrange(400))]
        start = rng.randrange(log.end) if rng.random() < 0.5 and log.end else 0
        first = next((n for n, end in enumerate(ends_of(log)) if end > start), 0)
        data = data[sum(map(len, log.batches[:first])) :]  # as a broker: from the batch that holds the offset
        for level in IsolationLevel:
            settings = {"isolation_level": level, "aborted_transactions": log.aborted}
            wanted, theirs = ordinary(data, start, **settings)
            found, ours = raw(data, start, **settings)
            assert found == wanted
            assert (ours.next_fetch_offset, ours.leader_epoch) == (theirs.next_fetch_offset, theirs.leader_epoch)
            assert not ours and not theirs
            rows += len(found)
            hidden += level == IsolationLevel.READ_COMMITTED and theirs.next_fetch_offset - start - len(found)
    assert rows > 15 * LOGS and hidden > LOGS  # the logs have something to read, and something to hide


def ends_of(log):
    end = 0
    for batch in log.batches:
        end += struct.unpack_from(">i", batch, 23)[0] + 1
        yield end


def test_an_answer_is_taken_once_and_told_to_the_fetcher_once():
    log, told, measured = random_log(random.Random(3)), [], []
    aggregator = SimpleNamespace(record=lambda *found: measured.append(found))
    records = RawPartitionRecords(0, TP, MemoryRecords(log.data), on_drain=told.append, metric_aggregator=aggregator)
    assert records and len(records.take(1)) == 1
    assert not records and records.take() == []
    records.drain()
    assert told == [records] and records.bytes_read > 0
    assert measured == [(TP, records.bytes_read, records.records_read)]
    dropped = RawPartitionRecords(0, TP, MemoryRecords(log.data), on_drain=told.append)
    dropped.drain()
    assert not dropped and dropped.take() == [] and dropped.next_fetch_offset == 0


def test_an_answer_without_a_whole_batch_is_nothing_and_moves_nothing():
    batch = record_batch(0, [(T0, b"k", b"v", [])])
    for length in (0, 1, 11, 12, 60, len(batch) - 1):
        records = RawPartitionRecords(0, TP, MemoryRecords(batch[:length]))
        assert records.take() == [] and records.next_fetch_offset == 0 and not records


def test_what_is_before_a_damaged_batch_is_given_and_the_damage_is_raised_next_and_for_good():
    good, bad = record_batch(0, [(T0, b"k", b"v", [])] * 3), bytearray(record_batch(3, [(T0, b"k", b"v", [])]))
    bad[-1] ^= 1
    records = RawPartitionRecords(0, TP, MemoryRecords(good + bad))
    (fetched,) = records.take()
    assert fetched.end == records.next_fetch_offset == 3 and records
    for _ in range(2):
        with pytest.raises(CorruptRecordError, match=r"topic 't' partition 0: the record batch at offset 3 .*checksum"):
            records.take()
    assert records.next_fetch_offset == 3
    unchecked = RawPartitionRecords(0, TP, MemoryRecords(good + bad), check_crcs=False)
    assert unchecked.take()[0].end == 4


def test_the_type_of_a_marker_is_read_from_its_key_and_not_searched_in_its_bytes():
    """A commit whose time stamp and value hold the bytes of an abort's key."""
    log = Log()
    rows = [(T0, None, b"v", [])]
    for offset in (0, 1):
        log.add(record_batch(offset, rows, producer=1, transactional=True))
    trap = [(T0, struct.pack(">hh", 0, COMMIT), b"\x08\x00\x00\x00\x00" * 3, [])]
    log.add(record_batch(2, trap, producer=1, transactional=True, attributes=0x20))
    log.add(record_batch(3, rows, producer=1, transactional=True))
    log.add(marker(4, 1, ABORT))
    log.add(record_batch(5, rows, producer=1, transactional=True))
    aborted = [SimpleNamespace(producer_id=1, first_offset=3)]
    settings = {"isolation_level": IsolationLevel.READ_COMMITTED, "aborted_transactions": aborted}
    found, _ = raw(log.data, 0, **settings)
    assert [offset for offset, *_ in found] == [0, 1, 5] and found == ordinary(log.data, 0, **settings)[0]


def test_a_marker_that_cannot_be_read_is_damage():
    broken = record_batch(0, [(T0, b"\0", b"", [])], producer=1, transactional=True, attributes=0x20)
    records = RawPartitionRecords(0, TP, MemoryRecords(broken), isolation_level=IsolationLevel.READ_COMMITTED)
    with pytest.raises(CorruptRecordError, match="offset 0 is damaged: a transaction's marker"):
        records.take()


def old_messages(magic, base=0):
    """Three of them, of one size; their checksum does not cover the offset."""
    builder = MemoryRecordsBuilder(magic, 0, 1 << 20)
    for number in range(3):
        builder.append(T0, b"k", b"%d" % number)
    builder.close()
    data = bytearray(builder.buffer())
    for number in range(3):
        struct.pack_into(">q", data, number * len(data) // 3, base + number)
    return bytes(data)


@pytest.mark.parametrize("magic", [0, 1])
def test_messages_of_old_formats_are_left_to_kafka_python_and_told_once(magic, fresh_trial, caplog):
    data = old_messages(magic) + record_batch(3, [(T0, b"k", b"v", [])])
    for _ in range(2):
        records = partition_records(0, TP, MemoryRecords(data), isolation_level=IsolationLevel.READ_COMMITTED)
        assert isinstance(records, Fetcher.PartitionRecords)
        assert [record.value for record in records.take()] == [b"0", b"1", b"2", b"v"]
    (line,) = told(caplog)
    assert f"messages of format {magic}" in line.getMessage() and "'t'" in line.getMessage()


class Served:
    """Stands in for kafka-python's consumer: answers of at most so many bytes, or one batch, made as its fetcher does."""

    def __init__(self, log, size):
        self._log, self._size = log, size

    def assign(self, places):
        pass

    def seek(self, place, offset):
        self._at = offset

    def poll(self, timeout_ms):
        answer = b""
        for batch, end in zip(self._log.batches, self._log.ends, strict=True):
            if answer and len(answer) + len(batch) > self._size:
                break
            answer += batch if end > self._at else b""
        records = partition_records(self._at, TP, MemoryRecords(answer))
        taken, self._at = records.take(10**9), records.next_fetch_offset
        return {TP: taken}

    def position(self, place, timeout_ms):
        return self._at

    def highwater(self, place):
        return self._log.ends[-1]

    def close(self):
        pass


@dataclass
class Aged:
    """Runs of three records, each in a batch of a format: 0 and 1 as before Kafka 0.11, 2 as since then."""

    formats: list[int]

    def __post_init__(self):
        self.ends = [3 * n + 3 for n in range(len(self.formats))]
        self.batches = [
            old_messages(magic, end - 3) if magic < 2 else record_batch(end - 3, [(T0, b"k", b"%d" % n, []) for n in range(3)])
            for magic, end in zip(self.formats, self.ends, strict=True)
        ]


@pytest.mark.parametrize("formats", [[1, 1, 2, 2, 2], [0, 2], [2, 2, 1, 2], [2, 0, 2, 1, 1, 2]])
def test_a_range_with_old_and_new_messages_is_read_whole_with_one_fingerprint(formats, fresh_trial, caplog):
    """However it was fetched, and whichever comes first; an accepted gap is left out in the second reading too."""
    log, found = Aged(formats), set()
    for size in (1, 200, 1 << 20):
        kafka_log = KafkaLog("127.0.0.1:1", raw=True)
        kafka_log._consumer = Reopening("served", partial(Served, log, size), 1.0)
        proof = Proof("t", 0, 1, log.ends[-1] - 1)
        batches = list(proof.read(kafka_log, [(2, 3)]))
        rows = [(record.offset, record.value) for batch in batches for record in batch]
        assert rows == [(n, b"%d" % (n % 3)) for n in range(1, log.ends[-1] - 1) if n != 2]
        found.add((proof.fingerprint(), proof.records))
    assert len(found) == 1 and found.pop()[0].startswith("records:")
    assert len(told(caplog)) == len(set(formats) - {2})


def test_a_format_of_the_future_is_an_error():
    batch = bytearray(record_batch(0, [(T0, b"k", b"v", [])]))
    batch[16] = 3
    with pytest.raises(CorruptRecordError, match="format 3, only 2 is known"):
        partition_records(0, TP, MemoryRecords(bytes(batch))).take()


# -- whether it may be used -------------------------------------------------------------------------------------------


def test_the_trial_is_run_once(fresh_trial, caplog):
    assert unusable() is None
    assert [KafkaLog("127.0.0.1:1").path for _ in range(3)] == ["raw"] * 3 and told(caplog) == []
    assert unusable.cache_info().misses == 1


def without_fetcher(patch):
    def opened(self):
        self.inner = None

    patch.setattr("assets.stream.raw_fetch.KafkaConsumer.__init__", opened)


def other_arguments(patch):
    class Changed(Fetcher.PartitionRecords):
        def __init__(self, fetch_offset, tp, records, *, isolation, **settings):
            super().__init__(fetch_offset, tp, records, **settings)

    patch.setattr(Fetcher, "PartitionRecords", Changed)


def other_parser(patch):
    patch.setattr(Fetcher, "_parse_fetched_data", lambda self, completed: completed.records)


BROKEN = {
    "another version": (lambda patch: patch.setattr("kafka.__version__", "3.1.0"), "kafka-python 3.1.0"),
    "no class": (lambda patch: patch.delattr(Fetcher, "PartitionRecords"), "PartitionRecords"),
    "class not used": (other_parser, "does not use `PartitionRecords`"),
    "no fetcher": (without_fetcher, "does not use `_fetcher`"),
    "other arguments": (other_arguments, "the trial failed: TypeError"),
    "a wheel is missing": (lambda patch: patch.setattr("kafka.codec.zstd", None), "the trial failed"),
    "other records": (
        lambda patch: patch.setattr("kafka.record.default_records.DefaultRecord.timestamp", 5),
        "where kafka-python reads",
    ),
    "other positions": (
        lambda patch: patch.setattr("kafka.record.default_records.DefaultRecordBatch.next_offset", 7),
        "for kafka-python at 7",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_does_not_fit_is_one_warning_with_the_reason_and_the_ordinary_path(what, fresh_trial, monkeypatch, caplog):
    breaking, reason = BROKEN[what]
    breaking(monkeypatch)
    assert [KafkaLog("127.0.0.1:1").path for _ in range(2)] == ["ordinary"] * 2
    (line,) = told(caplog)
    assert line.levelno == logging.WARNING
    assert reason in line.getMessage() and "record by record" in line.getMessage()
    with pytest.raises(RuntimeError, match="cannot be read"):
        KafkaLog("127.0.0.1:1", raw=True)


def test_the_ordinary_path_can_be_asked_for_and_stays_so_in_another_process(fresh_trial, caplog):
    log = KafkaLog("127.0.0.1:1", raw=False)
    assert (log.path, log.opener()().path, told(caplog)) == ("ordinary", "ordinary", [])


def test_after_the_fallback_a_real_broker_is_read_as_before(fresh_trial, monkeypatch, kafka, topic):
    monkeypatch.setattr("kafka.__version__", "3.1.0")
    log = KafkaLog(kafka)
    log.create_topic(topic, 1)
    log.append(topic, [Outgoing(b"k", b"%d" % n, T0) for n in range(50)])
    batches = list(log.read(topic, 0, 3, 40))
    assert log.path == "ordinary" and {batch.kind for batch in batches} == {"records"}
    assert [record.value for batch in batches for record in batch] == [b"%d" % n for n in range(3, 40)]
    log.close()
