"""A cursor in each of n rows of bytes: what lies there is read from all rows at once, and no row can leave its own bytes.

Integers are Kafka's and Avro's: zigzag, seven bits a byte, the lowest first. A row where something does not fit gets a
reason, its cursor stays where it was, and the other rows go on. This file does not know what the bytes mean.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from assets.stream.batch import Ints

Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

PADDING = 16  # an integer is read as 8 bytes and 2 more, wherever it begins
ENDS = "the value ends inside it"
TOO_LONG = "an integer of more than 64 bits"

# A step goes through all rows at once and costs some 50 us, however few still take part: without a limit, one record of
# 8 MB made of arrays of one item would hold up a window for minutes. The limit is each row's own, whatever its neighbours.
MOST_STEPS = 4_096

_STOP = np.uint64(0x8080808080808080)
_BITS = np.uint64(0x7F7F7F7F7F7F7F7F)
# Seven bits a byte -> fourteen in two -> 28 in four -> 56: (what stays, what moves, by how much).
_FOLDS = [
    (np.uint64(stays), np.uint64(moves), np.uint64(by))
    for stays, moves, by in (
        (0x007F007F007F007F, 0x7F007F007F007F00, 1),
        (0x00003FFF00003FFF, 0x3FFF00003FFF0000, 2),
        (0x000000000FFFFFFF, 0x0FFFFFFF00000000, 4),
    )
]


def padded(data: bytes | memoryview) -> Bytes:
    """A copy with PADDING zeros behind it."""
    out = np.zeros(len(data) + PADDING, dtype=np.uint8)
    out[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    return out


def at(data: Bytes, starts: Ints, dtype: str) -> npt.NDArray[Any]:
    """The number of this dtype that begins at each of `starts`, aligned or not."""
    kind = np.dtype(dtype)
    view = np.ndarray((len(data) - kind.itemsize + 1,), kind, data, strides=(1,))
    return view[starts]


def varints(data: Bytes, starts: Ints) -> tuple[Ints, Ints, Mask]:
    """The integers that begin at `starts`: values, lengths in bytes (>= 1), and which have more than 64 bits."""
    first = data.take(starts)
    if first.max(initial=0) < 0x80:
        return _unzigzag(first.astype(np.uint64)), np.ones(len(starts), np.int64), np.zeros(len(starts), np.bool_)
    words = at(data, starts, "<u8")
    stop = ~words & _STOP
    last = stop & -stop  # the lowest stop bit; 0 where all eight bytes go on
    inside = last ^ (last - np.uint64(1))  # every bit up to it
    lengths = np.right_shift(np.bitwise_count(inside), 3).astype(np.int64)
    raw = words & inside & _BITS
    for stays, moves, by in _FOLDS:
        raw = (raw & stays) | ((raw & moves) >> by)
    broken = np.zeros(len(starts), np.bool_)
    if not last.all():
        _ninth_and_tenth(data, starts, np.flatnonzero(last == 0), raw, lengths, broken)
    return _unzigzag(raw), lengths, broken


def _ninth_and_tenth(data: Bytes, starts: Ints, rows: Ints, raw: Any, lengths: Ints, broken: Mask) -> None:
    ninth = data[starts[rows] + 8].astype(np.uint64)
    tenth = data[starts[rows] + 9].astype(np.uint64)
    short = ninth < 0x80
    high = (ninth & np.uint64(0x7F)) << np.uint64(56)
    raw[rows] |= np.where(short, high, high | tenth << np.uint64(63))
    lengths[rows] = np.where(short, 9, 10)
    broken[rows] = ~short & (tenth > 1)


def _unzigzag(raw: npt.NDArray[np.uint64]) -> Ints:
    return ((raw >> np.uint64(1)) ^ -(raw & np.uint64(1))).view(np.int64)


class Cursor:
    """Of n rows [pos, end) of `data`, which has PADDING bytes behind the last end. begin <= pos <= end, always.

    errors: number of a row -> the first reason. place: what is read, in front of the reasons. Cursors that were taken from
    this one have the same errors and the same numbers.
    """

    def __init__(self, data: Bytes, pos: Ints, end: Ints) -> None:
        self.data, self.pos, self.end = data, pos, end
        self.place, self.errors = "", dict[int, str]()
        self._rows = np.arange(len(pos))
        self._steps = np.zeros(len(pos), np.int64)

    def begin(self, place: str) -> None:
        """Something else is read now."""
        self.place = place
        self._steps[:] = 0

    def __len__(self) -> int:
        return len(self.pos)

    def fail(self, which: Mask, why: str) -> None:
        """These rows, bool (n,), are bad. The first reason of a row stays."""
        for row in self._rows[which].tolist():
            self.errors.setdefault(row, self.place + why)

    def fail_one(self, index: int, why: str) -> None:
        """The row at this index is bad."""
        self.errors.setdefault(int(self._rows[index]), self.place + why)

    def failed(self) -> Mask:
        """Which rows are bad, bool (n,)."""
        if not self.errors:
            return np.zeros(len(self), np.bool_)
        return np.isin(self._rows, np.fromiter(self.errors, np.int64, len(self.errors)))

    def sub(self, chosen: Ints) -> Cursor:
        """A cursor in the rows at these indices; `back` brings it home."""
        part = copy(self)
        part.pos, part.end, part._rows = self.pos[chosen], self.end[chosen], self._rows[chosen]
        return part

    def back(self, chosen: Ints, part: Cursor) -> None:
        """Go on where the cursor taken by `sub(chosen)` is now."""
        self.pos = self.pos.copy()  # the old one may be somebody's `starts`
        self.pos[chosen] = part.pos

    def varint(self) -> Ints:
        """An integer of each row; 0 in rows where there is none."""
        values, lengths, broken = varints(self.data, self.pos)
        after = self.pos + lengths
        over = after > self.end
        if over.any() or broken.any():
            self.fail(over, ENDS)
            self.fail(broken, TOO_LONG)
            wrong = over | broken
            values, after = np.where(wrong, 0, values), np.where(wrong, self.pos, after)
        self.pos = after
        return values

    def fixed(self, width: int) -> Ints:
        """Where `width` bytes of each row begin. A bad row's are there too, and mean nothing."""
        starts, after = self.pos, self.pos + width
        over = after > self.end
        if over.any():
            self.fail(over, ENDS)
            after = np.where(over, starts, after)
        self.pos = after
        return starts

    def spans(self, counts: Ints, width: int = 1) -> tuple[Ints, Ints]:
        """Where `counts` times `width` bytes of each row begin, and the counts: 0 in rows that do not have them."""
        starts = self.pos
        counts = self.within(counts, width)
        self.pos = starts + (counts if width == 1 else counts * width)
        return starts, counts

    def run(self, counts: Ints) -> tuple[Ints, Ints]:
        """`counts` integers of each row, one row after the other, and the counts: 0 in rows that do not have them.

        Not one by one: the k-th byte below 0x80 ends the k-th integer. So a record of millions costs no more than many. The
        counts themselves, or another integer, must stand right before the first one.
        """
        counts = self.within(counts)
        stops = np.flatnonzero(self.data < 0x80)
        first = np.searchsorted(stops, self.pos)
        last = np.minimum(first + counts, len(stops)) - 1
        counts = self._unless((counts > 0) & (stops[last] >= self.end), counts, ENDS)
        which = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
        starts = stops[which - 1] + 1
        values, _, broken = varints(self.data, starts)
        broken |= stops[which] - starts >= 10
        self.pos = np.where(counts > 0, stops[first + counts - 1] + 1, self.pos)
        if broken.any():
            self.fail(np.isin(np.arange(len(self)), np.repeat(np.arange(len(self)), counts)[broken]), TOO_LONG)
        return values, counts

    def within(self, counts: Ints, width: int = 1) -> Ints:
        """The counts, 0 in rows that do not have so many times `width` bytes, or a negative number of them."""
        room = self.end - self.pos
        return self._unless(counts.view(np.uint64) > (room if width == 1 else room // width).view(np.uint64), counts, ENDS)

    def spend(self, counts: Ints) -> Ints:
        """The counts, 0 in rows that have taken more than MOST_STEPS steps since `begin`, these included."""
        steps = self._steps[self._rows] + counts
        self._steps[self._rows] = steps
        return self._unless(steps > MOST_STEPS, counts, f"more than {MOST_STEPS} blocks or items that are read one by one")

    def _unless(self, over: Mask, counts: Ints, why: str) -> Ints:
        if not over.any():
            return counts
        self.fail(over, why)
        return np.where(over, 0, counts)
