"""What the journal says about the stream of one task: the entry of each kind for each window.

An incremental fold of `cut/<task>` and `window/<task>`; it can be thrown away and folded again. It does not know what
the entries mean (cut.py, seal.py and join.py do), only that each kind has at most one entry a window.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from security.journal import Conflict, Draft, Entry, Journal, Projection, unstamp

CUT = "cut.decided"
SEALED = "window.sealed"
JOINED = "examples.joined"
ENDED = "stream.ended"

_Found = dict[tuple[str, str], Entry]


def _add(found: _Found, entry: Entry) -> _Found:
    found.setdefault((entry.kind, entry.body.get("window", "")), entry)
    found[(entry.kind, "")] = entry  # the newest of its kind
    return found


class History:
    """The newest known entries of one task's stream. Make one for a process; `refresh` reads only what is new."""

    def __init__(self, journal: Journal, task: str) -> None:
        self.journal = journal
        self.task = task
        self._lock = threading.Lock()
        self._folds = {name: Projection[_Found](journal, f"{name}/{task}", {}, _add) for name in ("cut", "window")}

    def refresh(self) -> History:
        """Read what was journalled since the last time."""
        with self._lock:
            for fold in self._folds.values():
                fold.refresh()
        return self

    def find(self, kind: str, window: str) -> Entry | None:
        """The entry of this kind for this window, as of the last refresh."""
        return self._fold(kind).state.get((kind, window))

    def last(self, kind: str) -> Entry | None:
        """The newest entry of this kind, as of the last refresh."""
        return self._fold(kind).state.get((kind, ""))

    def windows(self, kind: str) -> list[str]:
        """Windows that have an entry of this kind, oldest first, as of the last refresh."""
        return sorted(window for found, window in self._fold(kind).state if found == kind and window)

    def ended(self) -> datetime | None:
        """The moment every record of the stream is older than, once its end was journalled."""
        entry = self.last(ENDED)
        return None if entry is None else unstamp(entry.body["at"])

    def extend(self, kind: str, body: Mapping[str, Any], *, actor: str, at: datetime) -> Entry:
        """Append the entry of this kind for `body["window"]`, if the stream is still as this history knows it.

        Raises Conflict when somebody else was faster: refresh, and decide again.
        """
        fold = self._fold(kind)
        draft = Draft(fold.stream, kind, body, expected=fold.length)
        return self.journal.append(draft, actor=actor, at=at)

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
        return self._folds["cut" if kind == CUT else "window"]
