"""A run of records of one partition as columns: numbers in arrays, keys and values as spans of one buffer.

Reading a log makes no object for each record; what a record holds is looked at where it is needed, column by column.
This file does not know where the bytes come from, nor what a value means.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from assets.stream.log import Header, Record

Ints = npt.NDArray[np.int64]
Marks = Literal["batches", "records"]

NULL = -1  # the length of a key or value that is not there; an empty one has length 0


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """n records of one partition, in offset order.

    begin, end: every offset of [begin, end) is accounted for: it is a record here, or the log holds none there.
    offsets, timestamps (n,): timestamps in ms since 1970 UTC. keys, values (2, n): where in `data` the bytes begin, and
    how many they are (NULL = none). headers (2, n): where the record's headers begin in `data`, and how many they are.
    marks (m, 3): first offset, last offset and checksum of each unit of the log that this came from, by which a later
    reading can be compared: its own record batches with their CRC (`kind` "batches"), or single records ("records").
    """

    partition: int
    begin: int
    end: int
    offsets: Ints
    timestamps: Ints
    data: bytes
    keys: Ints
    values: Ints
    headers: Ints
    marks: Ints
    kind: Marks

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self) -> Iterator[Record]:
        return (self.record(index) for index in range(len(self)))

    def record(self, index: int) -> Record:
        """One record as an object."""
        return Record(
            self.partition,
            int(self.offsets[index]),
            int(self.timestamps[index]),
            span(self.data, *self.keys[:, index].tolist()),
            span(self.data, *self.values[:, index].tolist()),
            headers_at(self.data, *self.headers[:, index].tolist()),
        )

    def take(self, chosen: npt.NDArray[np.bool_]) -> Batch:
        """The records that are chosen, bool (n,); it accounts for the same offsets."""
        return replace(
            self, offsets=self.offsets[chosen], timestamps=self.timestamps[chosen], keys=self.keys[:, chosen],
            values=self.values[:, chosen], headers=self.headers[:, chosen],
        )  # fmt: skip


def pack(partition: int, begin: int, end: int, records: Sequence[Record]) -> Batch:
    """Records that are objects already as a batch that accounts for [begin, end)."""
    data = bytearray()
    spans = np.empty((6, len(records)), dtype=np.int64)
    marks = np.empty((len(records), 3), dtype=np.int64)
    for index, record in enumerate(records):
        first = len(data)
        for row, part in ((0, record.key), (2, record.value)):
            spans[row : row + 2, index] = len(data), NULL if part is None else len(part)
            data += part or b""
        spans[4:, index] = len(data), len(record.headers)
        for name, value in record.headers:
            text = name.encode()
            data += varint(len(text)) + text + varint(NULL if value is None else len(value)) + (value or b"")
        framing = b"%d %d %d " % (record.timestamp, spans[1, index], spans[3, index])
        marks[index] = record.offset, record.offset, zlib.crc32(data[first:], zlib.crc32(framing))
    return Batch(
        partition, begin, end,
        np.array([record.offset for record in records], dtype=np.int64),
        np.array([record.timestamp for record in records], dtype=np.int64),
        bytes(data), spans[:2], spans[2:4], spans[4:], marks, "records",
    )  # fmt: skip


def span(data: bytes, start: int, length: int) -> bytes | None:
    """The bytes of one span."""
    return None if length < 0 else data[start : start + length]


def headers_at(data: bytes, start: int, count: int) -> tuple[Header, ...]:
    """`count` headers that begin at `start`, framed as in a Kafka record: varint length, name, varint length, value."""
    found = []
    for _ in range(count):
        length, start = read_varint(data, start)
        name, start = data[start : start + length].decode(errors="backslashreplace"), start + length
        length, start = read_varint(data, start)
        found.append((name, span(data, start, length)))
        start += max(length, 0)
    return tuple(found)


def varint(number: int) -> bytes:
    """Zigzag, seven bits a byte, the lowest first: Kafka's and Avro's integers."""
    rest, out = (number << 1) ^ (number >> 63), bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def read_varint(data: bytes, start: int) -> tuple[int, int]:
    """The inverse -> the number, and where the next byte is. Raises ValueError for more than 64 bits."""
    rest = 0
    for shift in range(0, 70, 7):
        byte = data[start]
        rest |= (byte & 0x7F) << shift
        start += 1
        if byte < 0x80:
            if rest >> 64:
                break
            return (rest >> 1) ^ -(rest & 1), start
    raise ValueError("a number of more than 64 bits")
