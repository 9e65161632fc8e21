"""What the journal says about the stream of one task: the entries of each kind for each window.

An incremental fold of `cut/<task>` and `window/<task>`; it can be thrown away and folded again. It does not know what
the entries mean (cut.py, gap.py, seal.py and join.py do), only that the first of a kind counts for its window. A window
may have several gaps.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from assets.windows.clock import WindowPolicy, nth_window
from security.journal import Conflict, Draft, Entry, Journal, Projection, unstamp

CUT = "cut.decided"
GAP = "gap.accepted"
NOTED = "gap.noted"  # the same word on the stream of what is sealed: a seal that is under way must see it
SEALED = "window.sealed"
JOINED = "examples.joined"
ENDED = "stream.ended"

_Found = dict[tuple[str, str], list[Entry]]


def _add(found: _Found, entry: Entry) -> _Found:
    for window in {entry.body.get("window", ""), ""}:  # "" has all of the kind
        found.setdefault((entry.kind, window), []).append(entry)
    return found


class History:
    """The newest known entries of one task's stream. Make one for a process; `refresh` reads only what is new."""

    def __init__(self, journal: Journal, task: str) -> None:
        self.journal = journal
        self.task = task
        self._lock = threading.Lock()
        self._reached: dict[tuple[str, WindowPolicy], int] = {}
        self._folds = {name: Projection[_Found](journal, f"{name}/{task}", {}, _add) for name in ("cut", "window")}

    def refresh(self) -> History:
        """Read what was journalled since the last time."""
        with self._lock:
            for fold in self._folds.values():
                fold.refresh()
        return self

    def entries(self, kind: str, window: str = "") -> Sequence[Entry]:
        """The entries of this kind, of one window or of all, in the journal's order, as of the last refresh."""
        return self._fold(kind).state.get((kind, window), ())

    def find(self, kind: str, window: str) -> Entry | None:
        """The first entry of this kind for this window, as of the last refresh."""
        return next(iter(self.entries(kind, window)), None)

    def last(self, kind: str) -> Entry | None:
        """The newest entry of this kind, as of the last refresh."""
        return next(reversed(self.entries(kind)), None)

    def windows(self, kind: str) -> list[str]:
        """Windows that have an entry of this kind, oldest first, as of the last refresh."""
        return sorted(window for found, window in self._fold(kind).state if found == kind and window)

    def first_without(self, kind: str, policy: WindowPolicy) -> str:
        """The earliest window without an entry of this kind, as of the last refresh.

        Entries never go away, so a window that has one is not asked for again: a year of hours is walked once.
        """
        number = self._reached.get((kind, policy), 0)
        while self.entries(kind, window := nth_window(policy, number)):
            number += 1
        self._reached[kind, policy] = number
        return window

    def ended(self) -> datetime | None:
        """The moment every record of the stream is older than, once its end was journalled."""
        entry = self.last(ENDED)
        return None if entry is None else unstamp(entry.body["at"])

    def extend(self, kind: str, body: Mapping[str, Any], *, actor: str, at: datetime) -> Entry:
        """Append the entry of this kind for `body["window"]`, if the stream is still as this history knows it.

        Raises Conflict when somebody else was faster: refresh, and decide again.
        """
        return self.extend_all([(kind, body)], actor=actor, at=at)[0]

    def extend_all(self, found: Sequence[tuple[str, Mapping[str, Any]]], *, actor: str, at: datetime) -> list[Entry]:
        """The same for several entries (kind, body), all or none, if none of their streams has moved."""
        folds = [(self._fold(kind), kind, body) for kind, body in found]
        drafts = [Draft(fold.stream, kind, body, expected=fold.length) for fold, kind, body in folds]
        return self.journal.append_all(drafts, actor=actor, at=at)

    def once(self, kind: str, body: Mapping[str, Any], *, actor: str, at: datetime) -> Entry:
        """The entry of this kind for `body["window"]`: the one there is, else a new one with this body."""
        while True:
            found = self.refresh().find(kind, body["window"])
            if found is not None:
                return found
            try:
                self.extend(kind, body, actor=actor, at=at)
            except Conflict:
                continue

    def _fold(self, kind: str) -> Projection[_Found]:
        return self._folds["cut" if kind in (CUT, GAP) else "window"]
