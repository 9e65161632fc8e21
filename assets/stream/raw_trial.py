"""A small log in memory, read by kafka-python's records and by whole batches: both must be the same.

Run once in each process before whole batches are used (a few ms): it proves that the hook's arguments, the wheels of all
codecs and the arithmetic do what they should with the versions that are installed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.protocol.consumer import IsolationLevel
from kafka.record import MemoryRecords
from kafka.record.memory_records import MemoryRecordsBuilder
from kafka.record.util import calc_crc32c

from assets.stream.inflate import NAMES
from assets.stream.record_batches import decode

_TP = TopicPartition("trial", 0)
_COMMITTED, _ABORTED = 1, 0  # types of a transaction's marker
_CONTROL, _LOG_APPEND_TIME = 0x20, 0x08


def differs(partition_records: Callable[..., Any]) -> str | None:
    """What the two readings do not agree on; None when they agree."""
    log, end, aborted = _log()
    for start in (0, 3):
        settings = {"isolation_level": IsolationLevel.READ_COMMITTED, "aborted_transactions": aborted}
        ordinary = Fetcher.PartitionRecords(start, _TP, MemoryRecords(log), **settings)
        raw = partition_records(start, _TP, MemoryRecords(log), **settings)
        records, (fetched,) = ordinary.take(), raw.take()
        wanted = [(row.offset, row.timestamp, row.key, row.value, list(row.headers)) for row in records]
        found = [
            (row.offset, row.timestamp, row.key, row.value, list(row.headers))
            for batch in decode(_TP.topic, _TP.partition, fetched.batches, start, end, begun=False)
            for row in batch
        ]
        if found != wanted:
            odd = next((pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1]), (len(found), len(wanted)))
            return f"a generated log reads {odd[0]} where kafka-python reads {odd[1]}"
        if not raw.next_fetch_offset == fetched.end == ordinary.next_fetch_offset == end or raw or ordinary:
            return f"a generated log ends at {raw.next_fetch_offset}, for kafka-python at {ordinary.next_fetch_offset}"
    return None


def _log() -> tuple[bytes, int, list[SimpleNamespace]]:
    """Every codec, a committed and an aborted transaction, a batch stamped by the broker -> bytes, end, aborted ones."""
    base, parts = 0, []
    for number, producer in [*((codec, -1) for codec in range(len(NAMES))), (3, 7), (4, 8)]:
        parts.append(_batch(base, number, producer, attributes=_LOG_APPEND_TIME if number == 2 else 0))
        base += 5
    for producer, kind in ((8, _ABORTED), (7, _COMMITTED)):
        parts.append(_batch(base, 0, producer, attributes=_CONTROL, marker=struct.pack(">hh", 0, kind)))
        base += 1
    return b"".join(parts), base, [SimpleNamespace(producer_id=8, first_offset=5 * len(NAMES) + 5)]


def _batch(base: int, codec: int, producer: int, *, attributes: int, marker: bytes | None = None) -> bytes:
    state = {"producer_id": producer, "producer_epoch": 0, "base_sequence": 0} if producer >= 0 else {}
    builder = MemoryRecordsBuilder(2, codec, 1 << 20, transactional=producer >= 0, **state)
    for index in range(5) if marker is None else ():
        headers = [("nøme", b"1"), ("nøme", None)][: index % 3]
        value = None if index == 1 else b'{"x": %d}' % index * (1 + 40 * index)
        builder.append(1_400_000_000_000 + 900 * index, None if index == 2 else b"key", value, headers)
    if marker is not None:
        builder.append(1_400_000_000_000, marker, bytes(6), [])
    builder.close()
    batch = bytearray(builder.buffer())
    struct.pack_into(">q", batch, 0, base)
    struct.pack_into(">h", batch, 21, struct.unpack_from(">h", batch, 21)[0] | attributes)
    struct.pack_into(">I", batch, 17, calc_crc32c(memoryview(batch)[21:]))
    return bytes(batch)
