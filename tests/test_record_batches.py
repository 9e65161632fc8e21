"""Bytes of record batches become columns, or an error with topic, partition and offset; never wrong records."""

from __future__ import annotations

import gzip
import random
import struct
from contextlib import suppress

import lz4.frame
import numpy as np
import pytest
import zstandard
from kafka import TopicPartition, codec
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.record import MemoryRecords

from assets.stream import record_batches
from assets.stream.batch import varint
from assets.stream.inflate import MAX_BYTES, Inflater
from assets.stream.log import OffsetsGone
from assets.stream.record_batches import decode, walk
from tests.kafka_batches import (
    GZIP,
    LOG_APPEND_TIME,
    LZ4,
    NONE,
    SNAPPY,
    T0,
    ZSTD,
    Log,
    marker,
    random_log,
    record_batch,
    repacked,
    resealed,
    row,
)


def read(data, start=0, end=None, *, begun=False):
    """All records of the batches in `data`, none hidden."""
    batches = list(walk(memoryview(data), "topic 't' partition 3"))
    end = batches[-1].last + 1 if end is None and batches else end
    return list(decode("t", 3, batches, start, end or 0, begun=begun))


def rows_of(batches):
    return [(r.offset, r.timestamp, r.key, r.value, list(r.headers)) for batch in batches for r in batch]


def rows_by_kafka_python(data, start=0):
    records = Fetcher.PartitionRecords(start, TopicPartition("t", 3), MemoryRecords(data))
    found = []
    while records:  # an error behind some records is raised by the next call
        found += records.take()
    return [(r.offset, r.timestamp, r.key, r.value, list(r.headers)) for r in found]


def rows(count, value=b'{"x": %d}'):
    return [(T0 + n, b"key", value % n, []) for n in range(count)]


def body_of(batch):
    return batch[61:]


# -- what is inside a batch -------------------------------------------------------------------------------------------


def lz4_as_java(body):
    """No content size, blocks of 64 KiB that stand alone."""
    packer = lz4.frame.LZ4FrameCompressor(block_size=lz4.frame.BLOCKSIZE_MAX64KB, block_linked=False)
    return packer.begin() + packer.compress(body) + packer.flush()


def zstd_as_java(body):
    packer = zstandard.ZstdCompressor().compressobj()
    return packer.compress(body) + packer.flush()


def halves(pack):
    return lambda body: pack(body[:1000]) + pack(body[1000:])


PACKINGS = {
    "gzip": (GZIP, gzip.compress),
    "gzip in two members": (GZIP, halves(gzip.compress)),
    "snappy in blocks": (SNAPPY, codec.snappy_encode),
    "snappy raw": (SNAPPY, codec.snappy.compress),
    "lz4": (LZ4, codec.lz4_encode),
    "lz4 as Java writes it": (LZ4, lz4_as_java),
    "zstd": (ZSTD, codec.zstd_encode),
    "zstd as Java writes it": (ZSTD, zstd_as_java),
    "zstd in two frames": (ZSTD, halves(zstd_as_java)),
}


@pytest.mark.parametrize("name", PACKINGS)
def test_every_packing_of_the_same_records_is_read_the_same(name):
    number, pack = PACKINGS[name]
    plain = record_batch(7, rows(4_000))
    packed = repacked(plain, number, pack(body_of(plain)))
    assert len(packed) < len(plain) and len(body_of(plain)) > 64 << 10
    assert rows_of(read(packed, 7)) == rows_by_kafka_python(plain)


@pytest.mark.parametrize("name", PACKINGS)
def test_a_packed_batch_that_is_cut_off_is_an_error_and_never_fewer_records(name):
    number, pack = PACKINGS[name]
    plain = record_batch(0, rows(200))
    packed = pack(body_of(plain))
    for length in (0, 1, 5, len(packed) // 2, len(packed) - 1):
        with pytest.raises(CorruptRecordError, match="topic 't' partition 3: the record batch at offset 0 is damaged"):
            read(repacked(plain, number, packed[:length]))


@pytest.mark.parametrize("name", PACKINGS)
def test_a_batch_that_unfolds_beyond_the_limit_is_refused_with_both_sizes(name):
    number, pack = PACKINGS[name]
    packed = pack(bytes(1 << 20))
    assert len(Inflater(1 << 20)(number, memoryview(packed))) == 1 << 20
    with pytest.raises(ValueError, match=rf"{len(packed)} bytes unfold to \d+ or more > the limit of {(1 << 20) - 1} a batch"):
        Inflater((1 << 20) - 1)(number, memoryview(packed))


def test_a_batch_that_only_claims_to_be_huge_takes_no_memory():
    claims = {
        SNAPPY: b"\xff\xff\xff\xff\x07" + bytes(20),
        LZ4: bytearray(codec.lz4_encode(bytes(100))),
        ZSTD: b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40) + bytes(20),
    }
    struct.pack_into("<Q", claims[LZ4], 6, 1 << 40)
    for number, claim in claims.items():
        with pytest.raises(CorruptRecordError, match=f"unfold to .* > the limit of {MAX_BYTES} a batch"):
            read(repacked(record_batch(0, rows(5)), number, bytes(claim)))


def test_an_unknown_codec_is_named():
    with pytest.raises(CorruptRecordError, match="codec 6 is none of none, gzip, snappy, lz4, zstd"):
        read(repacked(record_batch(0, rows(5)), 6, b"anything"))


@pytest.mark.parametrize("lanes", [1, 23, 24, 60])
def test_records_of_all_sizes_are_found_in_few_and_in_many_batches(lanes):
    """Lengths of one to four bytes, batches of one record beside batches of hundreds."""
    rng, log = random.Random(lanes), Log()
    for lane in range(lanes):
        found = [row(rng) for _ in range(rng.choice([1, 2, 30, 700 // lanes]))]
        for size in rng.sample([63, 64, 8_191, 8_192, 70_000], k=rng.randrange(3)) + [3_000_000] * (lane == lanes // 2):
            found.insert(rng.randrange(len(found) + 1), (T0, None, b"z" * size, []))
        log.add(record_batch(log.end, found, codec=rng.randrange(5)))
    assert rows_of(read(log.data)) == rows_by_kafka_python(log.data)


def test_times_far_apart_are_read_exactly_and_more_than_64_bits_are_an_error():
    times = [0, 1 << 55, 1 << 56, (1 << 62) + 1, 5, (1 << 63) - 1, T0]
    data = record_batch(0, [(stamp, None, b"v", []) for stamp in times])
    assert [stamp for _, stamp, *_ in rows_of(read(data))] == times == [row[1] for row in rows_by_kafka_python(data)]
    beyond = bytearray(data)
    struct.pack_into(">q", beyond, 27, 1)  # the first time stamp, to which the others are relative
    with pytest.raises(CorruptRecordError, match="a time stamp of more than 64 bits"):
        read(resealed(beyond))


def test_in_a_batch_with_the_broker_s_time_every_record_has_it():
    data = record_batch(0, rows(3), attributes=LOG_APPEND_TIME) + record_batch(3, rows(2))
    assert [stamp for _, stamp, *_ in rows_of(read(data))] == [T0 + 2] * 3 + [T0, T0 + 1]


def test_headers_are_found_however_many_there_are():
    rng = random.Random(11)
    for most in (1, 3, 40, 2_000):
        found = []
        for n in range(120):
            count = rng.choice([0, 1, rng.randrange(most)]) if n else most
            found.append((T0, b"k", b"v", [(f"n{m}", rng.choice([None, b"", b"x" * (m % 300)])) for m in range(count)]))
        data = record_batch(0, found)
        assert [headers for *_, headers in rows_of(read(data))] == [headers for *_, headers in found]


def test_a_header_s_name_that_is_no_text_is_kept_readable_though_kafka_python_refuses_it():
    data = bytearray(record_batch(0, [(T0, b"k", b"v", [("name", b"1")])]))
    data[data.index(b"name")] = 0xFF
    assert rows_of(read(resealed(data)))[0][4] == [("\\xffame", b"1")]


# -- what does not hold together --------------------------------------------------------------------------------------


def made_of(*numbers, tail=b"", claimed=0):
    """A record of these numbers after its length and attributes, all as varints."""
    inside = b"\0" + b"".join(part if isinstance(part, bytes) else varint(part) for part in numbers) + tail
    return varint(len(inside) + claimed) + inside


GOOD = made_of(0, 0, 1, b"k", 1, b"v", 0)
MALFORMED = {
    "too long a record": (made_of(0, 0, 1, b"k", 1, b"v", 0, claimed=1), "not as long as"),
    "too short a record": (made_of(0, 0, 1, b"k", 1, b"v", 0, tail=b"\0"), "ends before or behind its last part"),
    "a negative length": (varint(-5) + GOOD[1:], "not as long as|not what lies between"),
    "unknown attributes": (GOOD[:1] + b"\x80" + GOOD[2:], "attributes are unknown"),
    "an offset before the batch": (made_of(0, -1, 1, b"k", 1, b"v", 0), "an offset that is not in its batch"),
    "an offset behind the batch": (made_of(0, 1, 1, b"k", 1, b"v", 0), "an offset that is not in its batch"),
    "a key beyond the record": (made_of(0, 0, 5, b"k", 1, b"v", 0), "a key that does not fit"),
    "a key of length -2": (made_of(0, 0, -2, b"k", 1, b"v", 0), "a key that does not fit"),
    "a key of 2^62 bytes": (made_of(0, 0, 1 << 62, b"k", 1, b"v", 0), "a key that does not fit"),
    "a value beyond the record": (made_of(0, 0, 1, b"k", 9, b"v", 0), "a value that does not fit"),
    "a value of length -2": (made_of(0, 0, 1, b"k", -2, 0), "a value that does not fit"),
    "headers that are not there": (made_of(0, 0, 1, b"k", 1, b"v", 1), "headers that do not fit"),
    "a negative count of headers": (made_of(0, 0, 1, b"k", 1, b"v", -1), "headers that do not fit"),
    "a header's name too long": (made_of(0, 0, 1, b"k", 1, b"v", 1, 9, b"n", 0), "a header's name that does not fit"),
    "a header without name": (made_of(0, 0, 1, b"k", 1, b"v", 1, -1, b"n", 0), "a header's name that does not fit"),
    "a header's value too long": (made_of(0, 0, 1, b"k", 1, b"v", 1, 1, b"n", 9), "a header's value that does not fit"),
    "a number of 70 bits": (made_of(b"\xff" * 9 + b"\x7f", 0, 1, b"k", 1, b"v", 0), "more than 64 bits"),
    "a number without end": (made_of(b"\xff" * 40), "more than 64 bits"),
}


@pytest.mark.parametrize("what", MALFORMED)
@pytest.mark.parametrize("lanes", [1, 40])
def test_a_record_whose_parts_do_not_fit_is_named_with_its_batch(what, lanes):
    body, message = MALFORMED[what]
    good = [record_batch(offset, [(T0, b"k", b"v", [])]) for offset in range(lanes)]
    good[lanes // 2] = repacked(good[lanes // 2], NONE, body)
    with pytest.raises(CorruptRecordError, match=f"topic 't' partition 3: .*offset {lanes // 2} is damaged: .*({message})"):
        read(b"".join(good))


@pytest.mark.parametrize("part", ["name", "value"])
def test_a_wrong_header_among_many_good_ones_is_found(part):
    record = made_of(0, 0, 1, b"k", 1, b"v", 2, 1, b"n", 1, b"v", 1, b"n", 1, b"v")
    wrong = made_of(0, 0, 1, b"k", 1, b"v", 2, 1, b"n", 1, b"v", *((7, b"n", 1) if part == "name" else (1, b"n", 7)), b"v")
    batches = [repacked(record_batch(n, [(T0, b"k", b"v", [])]), NONE, wrong if n == 77 else record) for n in range(99)]
    with pytest.raises(CorruptRecordError, match=f"offset 77 is damaged: a header's {part} that does not fit"):
        read(b"".join(batches))


@pytest.mark.parametrize("said", [-1, 0, 2, 4, 1 << 30])
def test_a_count_of_records_that_is_not_what_is_there_is_an_error(said):
    plain = record_batch(0, rows(3))
    with pytest.raises(CorruptRecordError, match="offset 0 is damaged"):
        read(repacked(plain, NONE, body_of(plain), records=said))


def test_offsets_that_do_not_rise_are_an_error():
    body = made_of(0, 1, 1, b"k", 1, b"v", 0) + made_of(0, 0, 1, b"k", 1, b"v", 0)
    with pytest.raises(CorruptRecordError, match="an offset that does not come after the one before"):
        read(repacked(record_batch(0, rows(2)), NONE, body))


# -- batches that tile a range ----------------------------------------------------------------------------------------


def numbered(*spans):
    """Batches [first, last] of a log, all their records there."""
    return b"".join(record_batch(first, rows(last - first + 1)) for first, last in spans)


def test_only_the_records_of_the_range_are_given_and_every_batch_that_touches_it_is_marked():
    log = Log()
    for _ in range(3):
        log.add(record_batch(log.end, rows(5), codec=LZ4))
    log.add(marker(log.end, 7, 1))
    log.add(record_batch(log.end, rows(5)))
    batches = list(walk(memoryview(log.data), "here"))
    hidden = [batch._replace(shown=batch.base not in (5, 15)) for batch in batches]
    for start, end in [(0, 21), (3, 21), (4, 5), (5, 10), (7, 9), (9, 11), (12, 18), (15, 16)]:
        (found,) = decode("t", 3, hidden, start, end, begun=False)
        assert (found.partition, found.begin, found.end, found.kind) == (3, start, end, "batches")
        assert found.offsets.tolist() == [n for n in range(start, end) if n not in (5, 6, 7, 8, 9, 15)]
        touching = [batch for batch in batches if batch.last >= start and batch.base < end]
        assert found.marks.tolist() == [[batch.base, batch.last, batch.crc] for batch in touching]
        for column in (found.offsets, found.timestamps, found.keys, found.values, found.headers, found.marks):
            assert column.dtype == np.int64


def test_a_hole_between_batches_is_named_exactly():
    for end in (30, 9, 7):
        with pytest.raises(OffsetsGone, match=r"offsets \[5, 8\) of topic 't' partition 3 are not in the log.*3 offsets"):
            read(numbered((0, 4), (8, 9), (10, 30)), 0, end)
    with pytest.raises(OffsetsGone, match=r"offsets \[2, 40\)"):
        read(numbered((40, 41)), 2, 5)
    assert len(rows_of(read(numbered((0, 4), (8, 9)), 0, 5))) == 5  # the hole lies behind the range


def test_a_range_may_begin_inside_a_batch_but_is_not_read_twice():
    data = numbered((0, 4), (5, 9))
    assert [offset for offset, *_ in rows_of(read(data, 3))] == list(range(3, 10))
    assert [offset for offset, *_ in rows_of(read(numbered((5, 9)), 5, begun=True))] == list(range(5, 10))
    with pytest.raises(OffsetsGone, match=r"offsets \[0, 3\) .* are in the log twice.*rewritten under the reader"):
        read(data, 3, begun=True)
    with pytest.raises(OffsetsGone, match=r"offsets \[3, 5\) .* are in the log twice"):
        read(numbered((0, 4), (3, 9)))


def test_offsets_that_compaction_took_out_of_a_batch_are_named_exactly():
    data = numbered((0, 4)) + record_batch(5, rows(6), compacted=(1, 2, 5, 8)) + numbered((15, 16))
    with pytest.raises(OffsetsGone, match=r"offsets \[6, 8\) of topic 't' partition 3 have no record: 4 were taken out"):
        read(data)
    with pytest.raises(OffsetsGone, match=r"offsets \[7, 8\) .*: 1 were"):
        read(data, 7, 10)
    assert [offset for offset, *_ in rows_of(read(data, 11, 13))] == [11, 12]
    with pytest.raises(OffsetsGone, match=r"offsets \[0, 3\) .*: 3 were"):
        read(record_batch(0, [], compacted=(0, 1, 2)))


def test_a_large_answer_becomes_several_batches_that_tile_it(monkeypatch):
    log = random_log(random.Random(5), length=60)
    whole = read(log.data)
    monkeypatch.setattr(record_batches, "CHUNK_BYTES", 500)
    pieces = read(log.data)
    assert len(whole) == 1 and len(pieces) > 5 and rows_of(pieces) == rows_of(whole)
    assert [piece.begin for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])] and pieces[-1].end == log.end
    assert np.concatenate([piece.marks for piece in pieces]).tolist() == whole[0].marks.tolist()


# -- bytes that were changed ------------------------------------------------------------------------------------------


def changed(data, rng):
    """A few bits turned over, or a few bytes cut out or put in."""
    fixed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 3])):
        at = rng.randrange(len(fixed))
        kind = rng.random()
        if kind < 0.8:
            fixed[at] ^= 1 << rng.randrange(8)
        elif kind < 0.9:
            del fixed[at : at + rng.randrange(1, 9)]
        else:
            fixed[at:at] = rng.randbytes(rng.randrange(1, 9))
    return bytes(fixed)


def test_changed_bytes_are_an_error_or_the_records_before_them():
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    rng, errors = random.Random(seed), 0
    for _ in range(400):
        log = random_log(rng, length=8, most=5)
        wanted = rows_of(read(log.data)) if log.end else []
        for _ in range(20 if log.end else 0):
            try:
                found = rows_of(read(changed(log.data, rng)))
            except (CorruptRecordError, OffsetsGone):
                errors += 1
            else:
                assert found == wanted[: len(found)]
    assert errors > 3_000


def test_changed_bytes_under_a_right_checksum_are_an_error_or_what_kafka_python_reads():
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    rng, errors, read_anyway = random.Random(seed), 0, 0
    for _ in range(600):
        packed = rng.choice([NONE] * 6 + [GZIP, SNAPPY, LZ4, ZSTD])
        batch = record_batch(0, [row(rng) for _ in range(rng.randrange(1, 6))], codec=packed)
        for _ in range(20):
            bad = bytearray(batch[:21] + changed(batch[21:], rng))
            if len(bad) < 61:
                continue
            struct.pack_into(">i", bad, 8, len(bad) - 12)
            bad = resealed(bad)
            try:
                (one,) = walk(memoryview(bad), "here")
                found = [] if one.is_control else rows_of(decode("t", 3, [one], 0, one.last + 1, begun=False))
            except (CorruptRecordError, OffsetsGone):
                errors += 1
                continue
            read_anyway += 1
            try:
                wanted = rows_by_kafka_python(bad)
            except CorruptRecordError as error:
                assert "UnicodeDecodeError" in str(error)  # a header's name, which Java's clients read as well
            else:
                assert found == wanted
    assert errors > 3_000 and read_anyway > 1_000


def test_random_bytes_are_never_records():
    rng = random.Random(13)
    for _ in range(2_000):
        data = rng.randbytes(rng.randrange(200))
        with suppress(CorruptRecordError):
            assert list(walk(memoryview(data), "here")) == []


def test_a_length_that_cannot_be_is_an_error_and_not_a_wait():
    assert list(walk(memoryview(b""), "here")) == []
    for length in (-1, -(1 << 31), 0, 48):
        data = bytearray(record_batch(5, rows(2)))
        struct.pack_into(">i", data, 8, length)
        with pytest.raises(CorruptRecordError, match=f"offset 5 is damaged: its length {length}"):
            list(walk(memoryview(data), "here"))
