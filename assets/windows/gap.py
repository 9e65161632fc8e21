"""Gaps: offsets of a window that the log has lost, and a person's word that the chain of windows may go on without them.

The rule, for one partition:

* A cut keeps its range. A gap is a part of it that the log does not hold any more; the window is sealed without it, and
  its manifest names it. A sealed window never opens again, and needs no gap: its records are in the store.
* What lies below the log's first offset (retention, deletion) is lost to the one window that was to have it.
* A log that ends before the last cut does was truncated, and gives the same offsets to new records. From the first offset
  that no window has or will have (`resume_at`), all that is cut and not sealed is lost, in every window at once; the next
  cut begins there. So no record is in two windows, and none that the log still holds is in no window. An offset can be
  in two windows then, with two records that were there one after the other: the gap's entry says from where on.

What happened to a record that was lost before any cut had its offset cannot be known, nor how many they were. This file
holds what was accepted and what follows from it; how it is accepted is in acceptance.py, and what is read of a window in
seal.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from assets.windows.clock import window_id
from assets.windows.cut import find_cut
from assets.windows.history import GAP, History
from security.journal import Entry, stamp


@dataclass(frozen=True, slots=True)
class Gap:
    """An accepted loss. start == end: nothing of the window itself, it only begins at `resume_at` after a truncation."""

    window: str
    topic: str
    partition: int
    start: int
    end: int
    resume_at: int | None
    reason: str
    actor: str
    at: datetime
    epoch: int | None = None  # of the leader when it was accepted

    def body(self, decided: tuple[datetime, datetime]) -> dict[str, Any]:
        """As it is journalled; `decided` are the window's bounds."""
        return {
            "window": self.window,
            "start": stamp(decided[0]),
            "end": stamp(decided[1]),
            "topic": self.topic,
            "partition": self.partition,
            "offsets": [self.start, self.end],
            "lost": self.end - self.start,
            "resume_at": self.resume_at,
            "epoch": self.epoch,
            "reason": self.reason,
        }

    @classmethod
    def of(cls, entry: Entry) -> Gap:
        """The gap an entry of the journal tells of."""
        body = entry.body
        names = ("window", "topic", "partition", "resume_at", "epoch", "reason")
        start, end = body["offsets"]
        return cls(start=start, end=end, actor=entry.actor, at=entry.at, **{name: body[name] for name in names})


def accepted_gaps(history: History, window: str) -> Mapping[tuple[str, int], list[tuple[int, int]]]:
    """(topic, partition) -> the [start, end) of the window that are accepted as lost, as of the last refresh."""
    found: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for gap in map(Gap.of, history.entries(GAP, window)):
        if gap.start < gap.end:
            found.setdefault((gap.topic, gap.partition), []).append((gap.start, gap.end))
    return found


def touched(history: History, topics: Collection[str]) -> list[str]:
    """Windows that may lack records of these topics, in order, as of the last refresh.

    Offsets have no time once they are gone. What was lost at the end of a window's range may have been written up to the
    first record behind it: every window up to the one that has it is touched, but none that began after the acceptance.
    """
    found = set()
    for gap in map(Gap.of, history.entries(GAP)):
        window = gap.window
        while gap.topic in topics and (decided := find_cut(history, window)) is not None and decided.start <= gap.at:
            found.add(window)
            start, end = decided.topics[gap.topic].partitions[gap.partition]
            if end != (gap.end if window == gap.window else start):
                break
            window = window_id(decided.end)
    return sorted(found)
