"""The numbers inside Kafka records, for all records of a buffer at once.

A record is: length, one byte of attributes, time stamp and offset (both relative to the batch), length of the key, key,
length of the value, value, count of headers, headers. All numbers are varints (zigzag, seven bits a byte), so a record
can only be found by following the lengths before it; the rest is arithmetic on columns. This file knows neither batches
nor codecs: a run of records that must end at a given byte is a `lane`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from assets.stream.batch import NULL, Ints, read_varint
from assets.stream.cursor import TOO_LONG, varints

Bools = npt.NDArray[np.bool_]

PAD = bytes(64)  # must follow the last record, so that eight bytes may be read at any number of it

_LANES = 24  # from so many lanes on, a step of numpy along all of them is faster than as many steps of Python
_FEW = 32  # the same for headers
_LONG = 4096  # bytes a record; longer ones have lengths of three bytes, which are followed one by one

# What the number is that begins with two given bytes, and how many of them it takes; 0 when it takes more than two.
_SECOND, _FIRST = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
_ZIGZAG = np.where(_FIRST < 0x80, _FIRST, (_SECOND << 7) + (_FIRST & 0x7F)).ravel()
_WIDTHS = np.where(_FIRST < 0x80, 1, np.where(_SECOND < 0x80, 2, 0)).ravel()
_NUMBERS = (_ZIGZAG >> 1) ^ -(_ZIGZAG & 1)
# From where a record begins to the next one, by the first two bytes of its length; 0 when it takes more than two.
_STEPS = np.where(_WIDTHS, _WIDTHS + (_ZIGZAG >> 1), 0)


class Malformed(Exception):
    """Something does not fit: in lane number `lane`, or in record number `record`."""

    def __init__(self, what: str, *, record: int | None = None, lane: int | None = None) -> None:
        super().__init__(what)
        self.record, self.lane = record, lane


class Columns(NamedTuple):
    """stamps, offsets (n,): relative to the batch. spans (6, n): start and length of key and value, start and count of
    headers; a length of NULL = none."""

    stamps: Ints
    offsets: Ints
    spans: Ints


def columns(data: bytes, sizes: Ints, counts: Ints) -> Columns:
    """The records of lanes of `sizes` bytes and `counts` records (both (lanes,)), one after the other in `data` + PAD.

    Raises Malformed unless every lane is exactly filled by its records, and every record by its parts.
    """
    starts = _starts(data, sizes, counts)
    ends = np.empty_like(starts)
    ends[:-1] = starts[1:]
    ends[-1:] = sizes.sum()
    reader = _Reader(data)
    length, at = reader.varints(starts)
    check(length == ends - at, "a record's length is not what lies between it and the next one")
    check(reader.bytes[at] < 0x80, "a record's attributes are unknown")
    stamps, at = reader.varints(at + 1)
    offsets, at = reader.varints(at)
    spans = np.empty((6, len(starts)), dtype=np.int64)
    for row, part in ((0, "key"), (2, "value")):
        length, at = reader.varints(at)
        check((length >= NULL) & (length <= ends - at), f"a {part} that does not fit into its record")
        spans[row], spans[row + 1] = at, length
        at = at + np.maximum(length, 0)
    count, at = reader.varints(at)
    check((count >= 0) & (count <= (ends - at) >> 1), "a count of headers that do not fit into their record")
    spans[4], spans[5] = at, count
    check(reader.behind_headers(at, count, ends) == ends, "a record that ends before or behind its last part")
    return Columns(stamps, offsets, spans)


def check(good: Bools, what: str, records: Ints | None = None) -> None:
    if not good.all():
        index = int(np.argmin(good))
        raise Malformed(what, record=index if records is None else int(records[index]))


class _Reader:
    """Reads one number of every record at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.bytes = np.frombuffer(data, dtype=np.uint8)
        self._pairs = np.ndarray(max(len(data) - 1, 0), dtype="V2", buffer=data, strides=(1,))

    def varints(self, at: Ints) -> tuple[Ints, Ints]:
        """The numbers that begin at `at` (n,), and where the next byte of each is. Raises Malformed beyond 64 bits."""
        first = self.bytes[at]
        if not (first >= 0x80).any():  # most lengths of keys and counts of headers are one byte
            small = first.astype(np.int64)
            return (small >> 1) ^ -(small & 1), at + 1
        pair = self._pairs[at].view("<u2")
        width = _WIDTHS[pair]
        if width.all():
            return _NUMBERS[pair], at + width
        numbers, width, broken = varints(self.bytes, at)
        check(~broken, TOO_LONG)
        return numbers, at + width

    def behind_headers(self, at: Ints, count: Ints, ends: Ints) -> Ints:
        """Where the headers of each record end: along all records that have a first one, then a second, and so on."""
        live = np.flatnonzero(count)
        if not len(live):
            return at
        at, left = at.copy(), count.copy()
        while len(live) > _FEW:
            at[live] = self._behind_header(at[live], ends[live], live)
            left[live] -= 1
            live = live[left[live] > 0]
        for record in live.tolist():
            at[record] = self._behind_each(int(at[record]), int(left[record]), int(ends[record]), record)
        return at

    def _behind_header(self, at: Ints, ends: Ints, records: Ints) -> Ints:
        for part, least in (("name", 0), ("value", NULL)):
            try:
                length, at = self.varints(at)
            except Malformed as error:
                raise Malformed(str(error), record=int(records[error.record or 0])) from None
            check((length >= least) & (length <= ends - at), f"a header's {part} that does not fit into its record", records)
            at = at + np.maximum(length, 0)
        return at

    def _behind_each(self, at: int, count: int, end: int, record: int) -> int:
        for part in ("name", "value") * count:
            try:
                length, at = read_varint(self._data, at)
            except ValueError as error:
                raise Malformed(str(error), record=record) from None
            if not (0 if part == "name" else NULL) <= length <= end - at:
                raise Malformed(f"a header's {part} that does not fit into its record", record=record)
            at += max(length, 0)
        return at


# -- where the records begin ------------------------------------------------------------------------------------------


def _starts(data: bytes, sizes: Ints, counts: Ints) -> Ints:
    """Where each record begins, (sum of counts,): the lanes side by side as far as that is faster, then one by one."""
    ends = np.cumsum(sizes)
    firsts = np.cumsum(counts) - counts
    too_many = np.flatnonzero(counts > sizes)  # before memory is taken for what a damaged header says
    if len(too_many):
        lane = int(too_many[0])
        raise Malformed(f"{counts[lane]} records are said to be in {sizes[lane]} bytes", lane=lane)
    starts = np.empty(int(counts.sum()), dtype=np.int64)
    at, done = ends - sizes, np.zeros_like(counts)
    if len(counts) >= _LANES and sizes.sum() < _LONG * counts.sum():
        at, done = _side_by_side(data, at, firsts, counts, starts)
    for lane in np.flatnonzero((done < counts) | (at != ends)).tolist():
        first = int(firsts[lane])
        begin = first + int(done[lane])
        try:
            found, end = _follow(data, int(at[lane]), first + int(counts[lane]) - begin)
        except (IndexError, ValueError):  # out of the data, or a length of more than 64 bits
            found, end = [], -1
        if end != int(ends[lane]):
            raise Malformed(f"its {counts[lane]} records are not as long as its {sizes[lane]} bytes", lane=lane)
        starts[begin : begin + len(found)] = found
    return starts


def _follow(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    """Where `count` records from `at` on begin, and where the last one ends. The hot loop of the long batches."""
    found: list[int] = []
    add = found.append
    for _ in range(count):
        add(at)
        low = data[at]
        if low < 0x80:
            at += 1 + (low >> 1)
            continue
        high = data[at + 1]
        if high < 0x80:  # two bytes: (low - 128 + (high << 7)) >> 1, and themselves
            at += (high << 6) + (low >> 1) - 62
            continue
        length, at = read_varint(data, at)
        at += max(length, 0)
    return found, at


def _side_by_side(data: bytes, begins: Ints, firsts: Ints, counts: Ints, starts: Ints) -> tuple[Ints, Ints]:
    """Fills `starts` for the first records of all lanes -> for each lane, where the next one begins and how many are done.

    A lane that meets a long record stands still there; one that runs out of the data leaves all to be done again.
    """
    order = np.argsort(-counts, kind="stable")
    falling = counts[order]
    steps = int(falling[_LANES - 1])
    if not steps:
        return begins, np.zeros_like(counts)
    live = np.searchsorted(-falling, -np.arange(steps), "left").tolist()
    pairs = np.ndarray(len(data) - 1, dtype="V2", buffer=data, strides=(1,))
    at, slot = begins[order], firsts[order]
    try:
        for lanes in live:
            here = at[:lanes]
            starts[slot[:lanes]] = here
            here += _STEPS[pairs[here].view("<u2")]
            slot += 1
    except IndexError:
        return begins, np.zeros_like(counts)
    done = np.minimum(falling, steps)
    latest = np.minimum(firsts[order] + np.maximum(done, 1), len(starts)) - 1
    for index in np.flatnonzero(starts[latest] == at).tolist():  # those that stand still
        first = int(firsts[order[index]])
        done[index] = np.searchsorted(starts[first : first + int(done[index])], at[index])
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return at[back], done[back]
