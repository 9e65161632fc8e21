"""Which event is mature in a window, and which label is its own: the rules of the join, on arrays of envelopes.

* An event is mature at its arrival + horizon. It belongs to the window that contains its maturity, or to the one it was
  sealed in, if it was sealed later (out of order).
* Of several events with one id the first counts: by sealed window, then time stamp, partition, offset. By sealed window
  first, because a copy that is found later must not change what was learnt earlier.
* Of several labels the first by time stamp, partition, offset counts, among those that are sealed through the window
  and lie within the horizon of the event's arrival, before or after it (a label may overtake its event).

Pure and vectorised; it reads no file. All times are ms since 1970, all windows are numbers on the grid, from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Which of these ids were dealt with in an earlier window, bool (n,).
Before = Callable[[pa.Array], Bools]


@dataclass(frozen=True, slots=True)
class Grid:
    """The windows `origin + k * every`, the horizon, and the window that is joined, `this`."""

    origin: int
    every: int
    horizon: int
    this: int

    @property
    def begin(self) -> int:
        """Where this window begins."""
        return self.origin + self.this * self.every

    def belongs(self, rows: Rows) -> Ints:
        """The window in which a row's time is up: at + horizon, or the one it was sealed in if that is later, (n,)."""
        return np.maximum((rows.at + self.horizon - self.origin) // self.every, rows.sealed)


@dataclass(frozen=True, slots=True)
class Rows:
    """Envelopes of one topic. numbers (5, n): sealed window, row in its table, time stamp, partition, offset.

    ids (n,): the event ids. code (n,): the same as numbers, equal in both topics for equal ids.
    """

    numbers: Ints
    ids: pa.Array
    code: Ints

    def __len__(self) -> int:
        return len(self.code)

    @property
    def sealed(self) -> Ints:
        return self.numbers[0]

    @property
    def row(self) -> Ints:
        return self.numbers[1]

    @property
    def at(self) -> Ints:
        return self.numbers[2]

    def take(self, indices: Ints) -> Rows:
        """The rows with these indices, in this order."""
        return Rows(self.numbers[:, indices], self.ids.take(pa.array(indices)), self.code[indices])

    def firsts(self, *order: int) -> Ints:
        """Indices of the first row of each code by these numbers, the most important first."""
        ranked = np.lexsort((*(self.numbers[key] for key in reversed(order)), self.code))
        codes = self.code[ranked]
        starts = np.ones(len(codes), dtype=np.bool_)
        starts[1:] = codes[1:] != codes[:-1]
        return ranked[starts]


_SEALED, _AT, _PART, _OFFSET = 0, 2, 3, 4


@dataclass(frozen=True, slots=True)
class Match:
    """mature: the events of this window. chosen (n,): the label of each as an index into the labels, -1 for none.

    The counts are of records that turn out in this window to be of no use; see join.Examples.
    """

    mature: Rows
    chosen: Ints
    duplicate_events: int
    duplicate_labels: int
    late_labels: int
    labels_without_event: int


def rows_of(topics: Sequence[tuple[Ints, pa.Array]]) -> list[Rows]:
    """Rows of several topics with common codes, from (numbers, ids) of each."""
    codes = pa.chunked_array([ids for _, ids in topics]).combine_chunks().dictionary_encode().indices
    parts = np.split(codes.to_numpy().astype(np.int64), np.cumsum([len(ids) for _, ids in topics])[:-1])
    return [Rows(numbers, ids, code) for (numbers, ids), code in zip(topics, parts, strict=True)]


def match(events: Rows, labels: Rows, grid: Grid, before: Before) -> Match:
    """Match a window's events with their labels.

    events: all that are sealed through this window and whose time is not up before it, others may be among them.
    labels: all that are sealed through it and lie within the horizon of such an event.
    """
    mature, duplicate_events = _mature(events, grid, before)
    owner = _index_of(mature.code, labels.code)
    arrived = _take(mature.at, owner)
    timely = (owner >= 0) & (np.abs(labels.at - arrived) <= grid.horizon)
    first = _first_labels(labels, timely)
    chosen = np.full(len(mature), -1, dtype=np.int64)
    chosen[owner[first]] = first
    late, lost = _unused(events, labels, owner, arrived, grid, before)
    return Match(mature, chosen, duplicate_events, int(timely.sum()) - len(first), late, lost)


def _mature(events: Rows, grid: Grid, before: Before) -> tuple[Rows, int]:
    """The events of this window, and how many copies are left out in it."""
    belongs = grid.belongs(events)
    # Those that wait for a later window take part: the first copy of an event may be one of them.
    open_ = events.take(np.flatnonzero(belongs >= grid.this))
    first = open_.take(open_.firsts(_SEALED, _AT, _PART, _OFFSET))
    mature = first.take(np.flatnonzero(grid.belongs(first) == grid.this))
    fresh = mature.take(np.flatnonzero(~before(mature.ids)))
    return fresh, int((belongs == grid.this).sum()) - len(fresh)


def _first_labels(labels: Rows, timely: Bools) -> Ints:
    candidates = np.flatnonzero(timely)
    return candidates[labels.take(candidates).firsts(_AT, _PART, _OFFSET)]


def _unused(events: Rows, labels: Rows, owner: Ints, arrived: Ints, grid: Grid, before: Before) -> tuple[int, int]:
    """How many labels turn out in this window to have come too late, and how many to have no event."""
    here = labels.sealed == grid.this
    expires = grid.belongs(labels) == grid.this
    asked = np.flatnonzero((owner < 0) & (here | expires))
    dealt_with = np.zeros(len(labels), dtype=np.bool_)
    dealt_with[asked] = before(labels.ids.take(pa.array(asked)))
    late = ((owner >= 0) & (labels.at > arrived + grid.horizon)) | (here & dealt_with)
    lost = expires & (owner < 0) & ~dealt_with & ~np.isin(labels.code, events.code)
    return int(late.sum()), int(lost.sum())


def _index_of(codes: Ints, asked: Ints) -> Ints:
    """For each asked code its index in `codes`, -1 when it is not there."""
    table = np.full(int(max(codes.max(initial=-1), asked.max(initial=-1))) + 1, -1, dtype=np.int64)
    table[codes] = np.arange(len(codes))
    return table[asked]


def _take(values: Ints, indices: Ints) -> Ints:
    """values[indices], and 0 where the index is -1."""
    found: Any = np.append(values, 0)[indices]
    return np.where(indices >= 0, found, 0)
