"""Kafka's record batches (format v2) as columns: headers checked, contents unpacked, numbers decoded by numpy.

Only one thing is done record by record: following the lengths, each of which says where the next record begins. Every
span is checked against its record, every record against its batch, every batch against the one before it; what does not
fit is an error with topic, partition and offset, never a wrong record. The format: Kafka's documentation, "Record
Batch". This file knows bytes, and no client, connection, window or meaning of a value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from kafka.errors import CorruptRecordError
from kafka.record.util import calc_crc32c

from assets.stream.batch import Batch, Ints, read_varint
from assets.stream.inflate import Inflater
from assets.stream.log import OffsetsGone
from assets.stream.record_columns import PAD, Malformed, check, columns

# Unpacked bytes in one Batch, so that an answer of 8 MiB that unfolds a hundredfold does not fill the memory. Usual ones
# make one Batch: many record batches side by side are what makes numpy fast.
CHUNK_BYTES = 32 << 20

_HEADER = struct.Struct(">qiibIhiqqqhii")
_COVERED = 21  # where the bytes begin that the checksum covers
_FRAME = 12  # base offset and length, which the length does not count
_LOG_APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x08, 0x10, 0x20


class LogBatch(NamedTuple):
    """The header of one record batch, and its records as they lie in the log (`body`).

    shown: False for a transaction's marker and for aborted records: they are accounted for, and never seen.
    """

    base: int
    last: int
    crc: int
    records: int  # how many
    first_timestamp: int
    max_timestamp: int
    attributes: int
    epoch: int
    producer: int
    body: memoryview
    shown: bool = True

    @property
    def is_control(self) -> bool:
        return bool(self.attributes & _CONTROL)

    @property
    def is_transactional(self) -> bool:
        return bool(self.attributes & _TRANSACTIONAL)


# -- headers ----------------------------------------------------------------------------------------------------------


def old_format(data: memoryview) -> int | None:
    """The format (`magic`) of the first complete batch that is from before Kafka 0.11: 0 or 1; None when all are newer."""
    at = 0
    while len(data) - at > _FRAME + 4:
        length, magic = struct.unpack_from(">i4xb", data, at + 8)
        at += _FRAME + length
        if at > len(data) or length < 0:
            return None
        if magic in (0, 1):
            return int(magic)
    return None


def walk(data: memoryview, place: str, *, check_crcs: bool = True) -> Iterator[LogBatch]:
    """The batches of a response, in order; an incomplete one at the end is left for the next response.

    place: for messages. Raises CorruptRecordError at the first batch whose checksum or header does not hold.
    """
    at = 0
    while len(data) - at >= _FRAME:
        (length,) = struct.unpack_from(">i", data, at + 8)
        end = at + _FRAME + length
        if end > len(data):
            return
        if end - at < _HEADER.size:
            raise corrupt(place, struct.unpack_from(">q", data, at)[0], f"its length {length} is less than a header's")
        base, _, epoch, magic, crc, attributes, delta, first, latest, producer, _, _, count = _HEADER.unpack_from(data, at)
        if magic != 2:
            raise corrupt(place, base, f"format {magic}, only 2 is known here")
        if check_crcs and (found := calc_crc32c(data[at + _COVERED : end])) != crc:
            raise corrupt(place, base, f"its checksum is {found:#010x}, its header says {crc:#010x}")
        if delta < 0 or count < 0 or base < 0:
            raise corrupt(place, base, f"it says it has {count} records up to {delta} behind its first offset")
        body = data[at + _HEADER.size : end]
        yield LogBatch(base, base + delta, crc, count, first, latest, attributes, epoch, producer, body)
        at = end


def ends_in_abort(batch: LogBatch, place: str) -> bool:
    """Whether a control batch is the marker of an aborted transaction: the key is int16 version, int16 type, 0 = abort."""
    if not batch.is_control or not batch.records:
        return False
    try:
        data = bytes(Inflater()(batch.attributes & 7, batch.body))
        _, at = read_varint(data, 0)
        at += 1  # attributes
        for _ in range(2):  # time stamp and offset
            _, at = read_varint(data, at)
        length, at = read_varint(data, at)
        _, kind = struct.unpack_from(">hh", data[: at + max(length, 0)], at)
    except (ValueError, IndexError, struct.error) as error:
        raise corrupt(place, batch.base, f"a transaction's marker that cannot be read: {error}") from error
    return bool(kind == 0)


def corrupt(place: str, base: int, what: str) -> CorruptRecordError:
    return CorruptRecordError(f"{place}: the record batch at offset {base} is damaged: {what}")


# -- batches that tile the range --------------------------------------------------------------------------------------


def decode(
    topic: str, partition: int, batches: Sequence[LogBatch], start: int, end: int, *, begun: bool
) -> Iterator[Batch]:
    """The records of [start, end) that are in `batches`, which must follow each other from `start` without a hole.

    begun: `start` is where the batch before ended, so the first one must begin there; else it may begin earlier.
    Raises OffsetsGone for a hole or an overlap, CorruptRecordError for a batch that cannot be decoded.
    """
    place, inflate = f"topic {topic!r} partition {partition}", Inflater()
    begin = position = start
    chunk = _Chunk(place, partition)
    for batch in batches:
        if batch.last < start and not begun:
            continue
        if position >= end:
            break
        if batch.base > position or (batch.base < position and (begun or position > start)):
            raise _hole(place, position, batch.base)
        position = batch.last + 1
        chunk.add(batch, inflate)
        if chunk.size >= CHUNK_BYTES:
            yield chunk.columns(begin, min(position, end))
            begin, chunk = position, _Chunk(place, partition)
    if position > begin:
        yield chunk.columns(begin, min(position, end))


def _hole(place: str, position: int, base: int) -> OffsetsGone:
    if base > position:
        return OffsetsGone(
            f"offsets [{position}, {base}) of {place} are not in the log: a record batch ends at {position - 1}, the next "
            f"begins at {base}; {base - position} offsets were taken out (compaction, or a repair after damage): bring "
            "the records back from another replica or a backup"
        )
    return OffsetsGone(
        f"offsets [{base}, {position}) of {place} are in the log twice: they were read already, and the next record "
        f"batch begins at {base} again; the log was rewritten under the reader: read the range again from its start"
    )


class _Chunk:
    """Some batches, unpacked, on their way to one Batch."""

    def __init__(self, place: str, partition: int) -> None:
        self._place, self._partition = place, partition
        self._marks: list[tuple[int, int, int]] = []
        self._lanes: list[LogBatch] = []
        self._bodies: list[bytes | memoryview] = []
        self.size = 0

    def add(self, batch: LogBatch, inflate: Inflater) -> None:
        self._marks.append((batch.base, batch.last, batch.crc))
        if not batch.shown:
            return
        try:
            body = inflate(batch.attributes & 7, batch.body)
        except ValueError as error:
            raise corrupt(self._place, batch.base, str(error)) from error
        self._lanes.append(batch)
        self._bodies.append(body)
        self.size += len(body)

    def columns(self, begin: int, end: int) -> Batch:
        """Those records of the batches that lie in [begin, end)."""
        sizes = np.array([len(body) for body in self._bodies], dtype=np.int64)
        bases, lasts, _, counts, firsts, latest, attributes = (
            np.array([lane[:7] for lane in self._lanes], dtype=np.int64).reshape(-1, 7).T
        )
        data = b"".join((*self._bodies, PAD))
        try:
            found = columns(data, sizes, counts)
            first = np.repeat(firsts, counts)
            stamps = first + found.stamps
            check((stamps >= first) == (found.stamps >= 0), "a time stamp of more than 64 bits")
            offsets = np.repeat(bases, counts) + found.offsets
            check((found.offsets >= 0) & (offsets <= np.repeat(lasts, counts)), "an offset that is not in its batch")
            check(np.diff(offsets, prepend=-1) > 0, "an offset that does not come after the one before")
        except Malformed as error:
            lane = error.lane if error.record is None else np.searchsorted(np.cumsum(counts), error.record, "right")
            raise corrupt(self._place, self._lanes[int(lane or 0)].base, str(error)) from None
        appended = (attributes & _LOG_APPEND_TIME) != 0
        if appended.any():  # the broker's clock, one time for the whole batch
            stamps = np.where(np.repeat(appended, counts), np.repeat(latest, counts), stamps)
        low, high = np.searchsorted(offsets, (begin, end))
        self._check_whole(offsets[low:high], np.maximum(bases, begin), np.minimum(lasts + 1, end))
        spans = found.spans[:, low:high]
        return Batch(
            self._partition, begin, end, offsets[low:high], stamps[low:high], data, spans[:2], spans[2:4], spans[4:],
            np.array(self._marks, dtype=np.int64).reshape(-1, 3), "batches",
        )  # fmt: skip

    def _check_whole(self, offsets: Ints, firsts: Ints, ends: Ints) -> None:
        """Every offset of a batch that is shown has a record; only compaction takes one out of the middle."""
        missing = int((ends - firsts).sum()) - len(offsets)
        for first, end in zip(firsts.tolist(), ends.tolist(), strict=True) if missing else ():
            low, high = np.searchsorted(offsets, (first, end))
            edges = np.concatenate([[first - 1], offsets[low:high], [end]])
            if len(wide := np.flatnonzero(np.diff(edges) > 1)):
                raise OffsetsGone(
                    f"offsets [{edges[wide[0]] + 1}, {edges[wide[0] + 1]}) of {self._place} have no record: {missing} were "
                    "taken out of their record batches (compaction): bring the records back from a backup, and set "
                    "cleanup.policy=delete"
                )
