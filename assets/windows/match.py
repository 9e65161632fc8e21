"""Which event is mature in a window, and which label is its own: the rules of the join, on arrays of hashes and times.

* An event is mature at its arrival + horizon. It belongs to the window that contains its maturity, or to the one it was
  sealed in, if it was sealed later (out of order).
* Of several events with one id the first counts: by sealed window, then time stamp, partition, offset. By sealed window
  first, because a copy that is found later must not change what was learnt earlier.
* Of several labels the first by time stamp, partition, offset counts, among those that are sealed through the window
  and lie within the horizon of the event's arrival, before or after it (a label may overtake its event).

Pure and vectorised; it reads no file, and looks at one sealed window after the other, so that its memory is bounded by
what matures. All times are ms since 1970, all windows are numbers on the grid, from 0. Equal ids are equal hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from assets.windows.idhash import Hashes
from assets.windows.lookup import Lookup

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Which of the ids with these hashes were dealt with in an earlier window, bool (n,).
Before = Callable[[Hashes], Bools]


@dataclass(frozen=True, slots=True)
class Part:
    """One topic's n rows of one sealed window, n >= 1, by ascending partition and offset.

    span: the smallest and the largest time stamp. read: hashes of the ids and time stamps, (n,) each; asked for each
    time they are looked at. partitions (k,), ends (k,): rows below ends[0] are of partitions[0], and so on.
    """

    window: int
    span: tuple[int, int]
    read: Callable[[], tuple[Hashes, Ints]]
    partitions: Ints
    ends: Ints


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

    @property
    def low(self) -> int:
        """Arrivals of [low, high) are mature in this window."""
        return self.begin - self.horizon

    @property
    def high(self) -> int:
        return self.low + self.every

    def touches(self, part: Part) -> bool:
        """Whether the time of a row of the part may be up in this window."""
        return part.span[0] < self.high and (part.window == self.this or part.span[1] >= self.low)

    def due(self, part: Part, at: Ints) -> Bools:
        """The rows whose time (at + horizon, or when they were sealed, if that is later) is up in this window, (n,)."""
        return at < self.high if part.window == self.this else (at >= self.low) & (at < self.high)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one topic, by ascending place. places (n,): sealed window << 40 | row in it. at (n,): time stamps."""

    places: Ints
    at: Ints

    def __len__(self) -> int:
        return len(self.places)

    def take(self, chosen: Bools) -> Rows:
        """The rows that are marked."""
        return Rows(self.places[chosen], self.at[chosen])


_WINDOW = 40
_ROW = (1 << _WINDOW) - 1


def windows_and_rows(places: Ints) -> tuple[Ints, Ints]:
    """The two numbers a place is made of, (n,) each."""
    return places >> _WINDOW, places & _ROW


@dataclass(frozen=True, slots=True)
class Match:
    """mature: the events of this window; hashes (n,): of their ids, ascending, in an order of their own.

    chosen (n,): the label of each mature event as an index into `labels`, which has others too; -1 for none. The counts
    are of records that turn out in this window to be of no use; see join.Examples.
    """

    mature: Rows
    hashes: Hashes
    labels: Rows
    chosen: Ints
    duplicate_events: int
    duplicate_labels: int
    late_labels: int
    labels_without_event: int


def match(events: Sequence[Part], labels: Callable[[int], Sequence[Part]], grid: Grid, before: Before) -> Match:
    """Match a window's events with their labels.

    events: every part that is sealed through this window and has a time stamp of grid.low or later, and the window's
    own, the oldest first. labels: the same for labels, given the lowest time stamp that is asked for.
    """
    mature, by_hash, hashes, duplicate_events = _mature(events, grid, before)
    oldest = min(grid.begin, int(mature.at.min(initial=grid.begin))) - grid.horizon
    parts = labels(oldest)
    found, owner, others = _labels(parts, by_hash, hashes, grid)
    arrived = mature.at[owner]
    timely = np.flatnonzero(np.abs(found.at - arrived) <= grid.horizon)
    chosen = _first_labels(found, timely, owner, len(mature), {part.window: part for part in parts})
    late = int((found.at > arrived + grid.horizon).sum())
    more_late, lost = _without_owner(events, others, grid, before)
    duplicates = len(timely) - int((chosen >= 0).sum())
    return Match(mature, hashes, found, chosen, duplicate_events, duplicates, late + more_late, lost)


def ranked(keys: npt.NDArray[Any], within: Callable[[Ints], Ints]) -> tuple[Ints, npt.NDArray[Any], Bools]:
    """Indices that sort the keys, the sorted keys, and which of these equals the one before it, (n,) each.

    within: for indices whose keys occur more than once, the order of their rows by key and whatever comes after it.
    """
    order = np.argsort(keys)
    in_order = keys[order]
    again = np.zeros(len(order), dtype=np.bool_)
    again[1:] = in_order[1:] == in_order[:-1]
    several = again.copy()
    several[:-1] |= again[1:]
    places = np.flatnonzero(several)
    if len(places):
        group = order[places]
        order[places] = group[within(group)]
    return order, in_order, again


def _mature(events: Sequence[Part], grid: Grid, before: Before) -> tuple[Rows, Ints, Hashes, int]:
    """The events of this window, which of them have the ascending hashes, and how many copies are left out in it."""
    found, known = [], []
    for part in filter(grid.touches, events):
        hashes, at = part.read()
        rows = np.flatnonzero(grid.due(part, at))
        found.append(Rows((part.window << _WINDOW) + rows, at[rows]))
        known.append(hashes[rows])
    here, of_rows = _together(found), np.concatenate([np.empty(0, dtype=np.uint64), *known])

    def within(group: Ints) -> Ints:
        places = here.places[group]
        return np.lexsort((places, here.at[group], places >> _WINDOW, of_rows[group]))

    order, hashes, again = ranked(of_rows, within)
    first, hashes = order[~again], hashes[~again]
    fresh = ~before(hashes)
    # A copy that waits for a later window and was sealed before the one that is mature now is the first.
    latest = int(here.places[-1]) >> _WINDOW if len(here) else -1
    waiting = [part for part in events if part.window < latest and part.span[1] >= grid.high]
    sealed = here.places[first] >> _WINDOW
    late = np.flatnonzero(sealed > waiting[0].window) if waiting else first[:0]
    for part, indices in _waiting(waiting, hashes[late], grid):
        fresh[late[indices][sealed[late[indices]] > part.window]] = False
    kept = np.zeros(len(here), dtype=np.bool_)
    kept[first[fresh]] = True
    by_hash = (np.cumsum(kept) - 1)[first[fresh]]
    return here.take(kept), by_hash, hashes[fresh], len(here) - len(by_hash)


def _waiting(events: Iterable[Part], hashes: Hashes, grid: Grid) -> Iterator[tuple[Part, Ints]]:
    """Where in `hashes` (ascending) are those of events that wait for a later window, part by part."""
    waiting = [part for part in events if part.span[1] >= grid.high]
    if not waiting or not len(hashes):
        return
    table = Lookup(hashes)
    for part in waiting:
        known, at = part.read()
        rows, indices = table.find(known)
        yield part, indices[at[rows] >= grid.high]


def _together(found: list[Rows]) -> Rows:
    none = np.empty(0, dtype=np.int64)
    return Rows(np.concatenate([none, *(r.places for r in found)]), np.concatenate([none, *(r.at for r in found)]))


@dataclass(frozen=True, slots=True)
class _Others:
    """Labels of no mature event. hashes, here, expired (n,): of the id; sealed in this window; its time is up in it."""

    hashes: Hashes
    here: Bools
    expired: Bools


def _labels(parts: Sequence[Part], by_hash: Ints, hashes: Hashes, grid: Grid) -> tuple[Rows, Ints, _Others]:
    """The labels of mature events, the event of each, and of the others those that are new or whose time is up."""
    table = Lookup(hashes)
    found, owners, others = [], [np.empty(0, dtype=np.int64)], [_Others(hashes[:0], *np.zeros((2, 0), dtype=np.bool_))]
    for part in parts:
        known, at = part.read()
        rows, indices = table.find(known)
        found.append(Rows((part.window << _WINDOW) + rows, at[rows]))
        owners.append(by_hash[indices])
        here = part.window == grid.this
        if here or grid.touches(part):
            asked = np.ones(len(at), dtype=np.bool_) if here else grid.due(part, at)
            asked[rows] = False
            which = np.flatnonzero(asked)
            expired = grid.due(part, at[which])
            others.append(_Others(known[which], np.full(len(which), here), expired))
    columns = (np.concatenate([getattr(each, name) for each in others]) for name in ("hashes", "here", "expired"))
    return _together(found), np.concatenate(owners), _Others(*columns)


def _first_labels(labels: Rows, timely: Ints, owner: Ints, events: int, parts: Mapping[int, Part]) -> Ints:
    """The first of the timely labels of each event, as an index into `labels`, -1 for none, (events,)."""
    chosen = np.full(events, -1, dtype=np.int64)
    owners = owner[timely]
    chosen[owners] = timely
    several = np.zeros(events, dtype=np.bool_)
    several[owners[chosen[owners] != timely]] = True
    group = timely[several[owners]]
    order = (_partitions(labels.places[group], parts), labels.at[group], owner[group])
    group = group[np.lexsort((labels.places[group], *order))]
    chosen[owner[group[::-1]]] = group[::-1]  # of several for one event numpy keeps the last: the first in order
    return chosen


def _partitions(places: Ints, parts: Mapping[int, Part]) -> Ints:
    windows, rows = windows_and_rows(places)
    found = np.empty(len(places), dtype=np.int64)
    for window in np.unique(windows).tolist():
        mine, part = windows == window, parts[window]
        found[mine] = part.partitions[np.searchsorted(part.ends, rows[mine], side="right")]
    return found


def _without_owner(events: Sequence[Part], labels: _Others, grid: Grid, before: Before) -> tuple[int, int]:
    """How many labels turn out in this window to have come too late, and how many to have no event."""
    dealt_with = before(labels.hashes)
    hashes, copies = np.unique(labels.hashes[labels.expired & ~dealt_with], return_counts=True)
    for _, indices in _waiting(events, hashes, grid):
        copies[indices] = 0
    return int((labels.here & dealt_with).sum()), int(copies.sum())
