"""Record batches as a broker would serve them, built by kafka-python's own builder, for tests that need no broker."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from kafka.record.memory_records import MemoryRecordsBuilder
from kafka.record.util import calc_crc32c

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
LOG_APPEND_TIME, CONTROL = 0x08, 0x20
ABORT, COMMIT = 0, 1
T0 = 1_400_000_000_000

Row = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]  # time stamp, key, value, headers


def resealed(batch: bytes | bytearray) -> bytes:
    """The batch with the checksum that belongs to its bytes."""
    fixed = bytearray(batch)
    struct.pack_into(">I", fixed, 17, calc_crc32c(memoryview(fixed)[21:]))
    return bytes(fixed)


def record_batch(
    base: int,
    rows: list[Row],
    *,
    codec: int = NONE,
    producer: int = -1,
    transactional: bool = False,
    attributes: int = 0,
    epoch: int = 0,
    compacted: tuple[int, ...] = (),
) -> bytes:
    """compacted: offsets, relative to `base`, that were taken out; the rows take the others in turn."""
    state = {"producer_id": producer, "producer_epoch": 0, "base_sequence": 0} if producer >= 0 else {}
    builder = MemoryRecordsBuilder(2, codec, 1 << 26, transactional=transactional, **state)
    offset = 0
    for row in rows:
        while offset in compacted:
            builder.skip(1)
            offset += 1
        builder.append(*row)
        offset += 1
    builder.close()
    batch = bytearray(builder.buffer())
    struct.pack_into(">q", batch, 0, base)
    struct.pack_into(">i", batch, 12, epoch)
    struct.pack_into(">h", batch, 21, struct.unpack_from(">h", batch, 21)[0] | attributes)
    while offset in compacted:  # at the end only the header knows of them
        struct.pack_into(">i", batch, 23, offset)
        offset += 1
    return resealed(batch)


def marker(base: int, producer: int, kind: int) -> bytes:
    """The end of a transaction: its key is int16 version, int16 type."""
    rows: list[Row] = [(T0, struct.pack(">hh", 0, kind), struct.pack(">hi", 0, 7), [])]
    return record_batch(base, rows, producer=producer, transactional=True, attributes=CONTROL)


def repacked(batch: bytes, codec: int, packed: bytes, records: int | None = None) -> bytes:
    """The batch with other bytes for its records, said to be packed by `codec`."""
    fixed = bytearray(batch[:61]) + packed
    struct.pack_into(">i", fixed, 8, len(fixed) - 12)
    struct.pack_into(">h", fixed, 21, (struct.unpack_from(">h", fixed, 21)[0] & ~7) | codec)
    if records is not None:
        struct.pack_into(">i", fixed, 57, records)
    return resealed(fixed)


def row(rng: random.Random) -> Row:
    """Null and empty keys and values, repeated and null headers, time stamps that jump, values of all small sizes."""
    key = rng.choice([None, b"", b"key", rng.randbytes(rng.randrange(200))])
    value = rng.choice([None, b"", b'{"x": 1}', rng.randbytes(rng.randrange(300)), b"z" * rng.randrange(70)])
    headers: list[tuple[str, bytes | None]] = []
    if rng.random() < 0.3:
        names = ["trace", "trace", "näme", "", "n" * 80]
        values = [None, b"", b"v", rng.randbytes(100)]
        headers = [(rng.choice(names), rng.choice(values)) for _ in range(rng.randrange(1, 5))]
    stamp = rng.choice([T0, T0 + rng.randrange(10**6), rng.randrange(1 << 42), 0])
    return stamp, key, value, headers


@dataclass
class Log:
    """Batches from offset 0 on, and the aborted transactions a broker would name."""

    batches: list[bytes] = field(default_factory=list)
    end: int = 0
    aborted: list[Any] = field(default_factory=list)

    def add(self, batch: bytes) -> None:
        self.batches.append(batch)
        self.end += struct.unpack_from(">i", batch, 23)[0] + 1

    @property
    def data(self) -> bytes:
        return b"".join(self.batches)


def random_log(rng: random.Random, length: int = 16, most: int = 6) -> Log:
    """Plain and idempotent batches, three producers with transactions that end in commit or abort, or do not end yet."""
    log, begun = Log(), {}
    for _ in range(rng.randrange(1, length)):
        rows = [row(rng) for _ in range(rng.randrange(1, most))]
        attributes = LOG_APPEND_TIME if rng.random() < 0.2 else 0
        codec, epoch, chance = rng.randrange(5), rng.randrange(9), rng.random()
        if chance < 0.4:
            log.add(record_batch(log.end, rows, codec=codec, producer=rng.choice([-1, 9]), attributes=attributes, epoch=epoch))
        elif chance < 0.75:
            producer = rng.randrange(3)
            begun.setdefault(producer, log.end)
            log.add(
                record_batch(
                    log.end, rows, codec=codec, producer=producer, transactional=True, attributes=attributes, epoch=epoch
                )
            )
        elif begun:
            producer = rng.choice(sorted(begun))
            kind = rng.choice([ABORT, COMMIT])
            if kind == ABORT:
                log.aborted.append(SimpleNamespace(producer_id=producer, first_offset=begun[producer]))
            del begun[producer]
            log.add(marker(log.end, producer, kind))
    rng.shuffle(log.aborted)
    return log
