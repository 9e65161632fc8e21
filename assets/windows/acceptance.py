"""accept-gap: a person says that the records a window has lost are lost, and the chain of windows goes on without them.

Only what is really gone is accepted, and all that follows from it in one transaction of the journal; gap.py has the rule.
To find where a truncated log stopped being the one that was sealed, it compares the two. It waits for nothing, and does
not know why the records are gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from heapq import merge
from itertools import zip_longest
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from assets.stream.decode import ENVELOPE
from assets.stream.log import Bounds, EventLog
from assets.windows import store
from assets.windows.clock import window_id
from assets.windows.cut import Cut, check_identity, epochs_of, resumed, rewritten
from assets.windows.gap import Gap, accepted_gaps
from assets.windows.history import CUT, GAP, NOTED, SEALED, History
from assets.windows.proof import pieces
from assets.windows.seal import SealedWindow, find_sealed, read_sealed
from security.journal import Conflict

Row = tuple[int, int, bytes | None]  # offset, time stamp, key
_ROWS_AT_ONCE = 10_000


class GapRefused(Exception):
    """Nothing is missing there, or it is missing somewhere else. Nothing was written."""


def accept_gap(
    history: History, log: EventLog, root: Path, window: str, topic: str, partition: int, *, reason: str, now: datetime,
    actor: str,
) -> list[Gap]:  # fmt: skip
    """Accept what a window has lost of a partition; the gaps that were journalled, those of other windows included.

    window: one that is cut and not sealed, or the next to be cut. root: the store. now: the wall clock. Raises GapRefused,
    IdentityChanged, and what the log and the store raise.
    """
    if not reason.strip():
        raise GapRefused(f"accepting a gap of window {window} needs a reason: it goes into the journal beside your name")
    while True:
        cuts = _cuts(history.refresh(), window)
        bounds = log.bounds(topic, cuts[-1].end)
        check_identity(cuts[-1], bounds)
        if partition not in bounds.partitions:
            raise GapRefused(f"topic {topic!r} has no partition {partition}, only 0 to {max(bounds.partitions)}")
        begin = resumed(history).get((topic, partition), cuts[-1].topics[topic].partitions.get(partition, (0, 0))[1])
        again = bool(rewritten(log, epochs_of(history, cuts[-1], topic), bounds, {partition: begin}))
        place = _Place(history, log, root, cuts, topic, partition, bounds.partitions[partition], begin, again)
        lost = place.lost(window)
        said = (reason, actor, now, place.here.epoch)
        gaps = [Gap(name, topic, partition, start, end, at, *said) for name, start, end, at in lost]
        every, after = cuts[-1].end - cuts[-1].start, cuts[-1].end
        grid = {each.window: (each.start, each.end) for each in cuts} | {window_id(after): (after, after + every)}
        try:
            found = [(GAP, gap.body(grid[gap.window])) for gap in gaps]
            history.extend_all([*found, (NOTED, {"windows": [gap.window for gap in gaps]})], actor=actor, at=now)
        except Conflict:
            continue
        return gaps


def _cuts(history: History, window: str) -> list[Cut]:
    """Every cut, in order. Raises GapRefused for a window that can have no gap."""
    if history.find(SEALED, window) is not None:
        raise GapRefused(f"window {window} is sealed: its records are in the store, nothing of it is missing")
    cuts = [Cut.of(entry.body) for entry in history.entries(CUT)]
    if not cuts or window not in {window_id(cuts[-1].end), *(each.window for each in cuts)}:
        cure = f"the next to be cut is {window_id(cuts[-1].end)}" if cuts else "no window is cut yet"
        raise GapRefused(f"window {window} is not cut: {cure}")
    return cuts


@dataclass(frozen=True, slots=True)
class _Place:
    """A partition of the log as it is now (`here`), and all cuts that were made of it.

    begin: where the next one would begin. again: the log was truncated below, and has grown since.
    """

    history: History
    log: EventLog
    root: Path
    cuts: list[Cut]
    topic: str
    partition: int
    here: Bounds
    begin: int
    again: bool

    def lost(self, window: str) -> list[tuple[str, int, int, int | None]]:
        """(window, start, end, resume_at) of what is gone and not accepted yet. Raises GapRefused."""
        waiting = list(self._waiting())
        found: list[tuple[str, int, int, int | None]] = [
            (name, start, min(end, self.here.earliest), None)
            for name, start, end in waiting
            if name == window and start < self.here.earliest
        ]
        if self.again or self.here.latest < self.begin:  # truncated
            at = self._resume_at()
            tails = [(name, max(start, at), end, at) for name, start, end in waiting if at < end]
            found += tails or [(window_id(self.cuts[-1].end), at, at, at)]
        if window in {name for name, *_ in found}:
            return found
        place = f"{self.topic!r} partition {self.partition} is [{self.here.earliest}, {self.here.latest}) now"
        if found:
            name, start, end, _ = found[0]
            raise GapRefused(f"{place}: not window {window} has lost offsets, but {name} [{start}, {end}): accept them there")
        ranges = {decided.window: "offsets [{}, {})".format(*self._range(decided)) for decided in self.cuts}
        before = ", ".join(f"[{start}, {end})" for start, end in self._accepted(window)) or "nothing"
        raise GapRefused(
            f"{place}, and window {window} has {ranges.get(window, f'what comes from offset {self.begin} on')} ({before} of it "
            "accepted before): by these bounds nothing is missing. A window that is not cut yet is run first; what its "
            "range lacks then can be accepted"
        )

    def _range(self, decided: Cut) -> tuple[int, int]:
        """[start, end) of a cut here; a partition that was added later has none."""
        return decided.topics[self.topic].partitions.get(self.partition, (0, 0))

    def _accepted(self, window: str) -> tuple[tuple[int, int], ...]:
        return tuple(accepted_gaps(self.history, window).get((self.topic, self.partition), ()))

    def _waiting(self) -> Iterator[tuple[str, int, int]]:
        """(window, start, end) of what is cut, not sealed and not accepted as lost."""
        for decided in self.cuts:
            if self.history.find(SEALED, decided.window) is None:
                for start, end, there in pieces(*self._range(decided), self._accepted(decided.window)):
                    if there:
                        yield decided.window, start, end

    def _resume_at(self) -> int:
        """The first offset whose record no window has or will have, in a log that was truncated and may have grown again.

        What lies before a truncation is as it was, what lies behind it is new: from the newest sealed window back to the
        first one that still has a record where it was, the lowest offset that differs; the log's end where none does.
        """
        if self.here.last_stable < self.here.latest:
            raise GapRefused(
                f"{self.topic!r} partition {self.partition}: offsets from {self.here.last_stable} belong to an open "
                "transaction, so that they cannot be compared with what was sealed: try again when it is decided"
            )
        point = min(self.here.latest, self.begin)
        for decided in reversed(self.cuts):
            start, end = self._range(decided)
            low, high = max(start, self.here.earliest), min(end, self.here.latest)
            sealed = find_sealed(self.history, decided.window)
            if sealed is not None and low < high:
                gaps = self._accepted(decided.window)
                ranges = [(begin, stop) for begin, stop, there in pieces(low, high, gaps) if there]
                same, differs = _compare(self._sealed(sealed, low, high), self._logged(ranges))
                point = point if differs is None else min(point, differs)
                if same:
                    break
        return point

    def _logged(self, ranges: list[tuple[int, int]]) -> Iterator[Row]:
        for start, end in ranges:
            for batch in self.log.read(self.topic, self.partition, start, end):
                for record in batch:
                    yield record.offset, record.timestamp, record.key

    def _sealed(self, sealed: SealedWindow, low: int, high: int) -> Iterator[Row]:
        """Rows and rejects of a sealed window, by offset."""
        tables = [read_sealed(self.root, sealed, self.topic, ENVELOPE.names)]
        if sealed.rejects_file is not None:
            file = sealed.rejects_file
            rejects = store.table(store.get(self.root, file.path, file.sha256))
            rejects = rejects.filter(pc.equal(rejects["_topic"], self.topic))
            tables.append(rejects.rename_columns({"key": "_key"}).select(ENVELOPE.names))
        return merge(*(_rows(table, self.partition, low, high) for table in tables))


def _rows(table: pa.Table, partition: int, low: int, high: int) -> Iterator[Row]:
    at = table["_offset"]
    mine = pc.and_(pc.equal(table["_partition"], partition), pc.and_(pc.greater_equal(at, low), pc.less(at, high)))
    for batch in table.filter(mine).sort_by("_offset").to_batches(max_chunksize=_ROWS_AT_ONCE):
        stamps = batch["_timestamp"].cast(pa.int64())
        yield from zip(batch["_offset"].to_pylist(), stamps.to_pylist(), batch["_key"].to_pylist(), strict=True)


def _compare(kept: Iterator[Row], there: Iterator[Row]) -> tuple[int, int | None]:
    """How many records are as they were, and the offset of the first that is not; None when all are."""
    same = 0
    for old, new in zip_longest(kept, there):
        if old != new:
            return same, min(row[0] for row in (old, new) if row is not None)
        same += 1
    return same, None
