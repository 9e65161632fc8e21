"""The proof that a range of a partition was read whole, and the fingerprint by which it can be read again.

Whole: the batches account for every offset of the range, one after the other, and hold no record outside of it or out
of order. Fingerprint: sha256 over (first offset, last offset, checksum) of every unit the log gave, which a log that was
truncated and written again, or restored from another copy, cannot repeat. Kafka's checksum of a record batch covers
neither offsets nor leader epoch, so a change of leader leaves the fingerprint as it is. A range in which some records can
only be read one by one has the fingerprint of single records from its start, however it was fetched.

It does not decode, and does not know what becomes of the records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from assets.stream.batch import Batch, pack
from assets.stream.log import EventLog


class SealIncomplete(Exception):
    """The log did not give every record of a range, in order, once."""


class Proof:
    """Of one partition's range [start, end): `read` it to its end, or pass every batch through `add`; then `fingerprint`."""

    def __init__(self, topic: str, partition: int, start: int, end: int) -> None:
        self._place, self._topic, self._start = f"{topic!r} partition {partition}", topic, start
        self._partition, self._position, self._end = partition, start, end
        self._digest, self._kind = hashlib.sha256(), ""
        self._last = -1
        self.records = self.skipped = 0

    def read(self, log: EventLog, gaps: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        """The batches of the range without the accepted gaps, each proved. Raises SealIncomplete, and as EventLog.read."""
        for begin, end, there in pieces(self._start, self._end, tuple(gaps)):
            if not there:
                self.skip(begin, end)
                continue
            for batch in log.read(self._topic, self._partition, begin, end):
                if (self._kind, batch.kind) == ("batches", "records"):
                    yield from self._by_records(log, gaps)
                elif (self._kind, batch.kind) == ("records", "batches"):
                    batch = pack(batch.partition, batch.begin, batch.end, list(batch))
                self.add(batch)
                yield batch

    def _by_records(self, log: EventLog, gaps: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        """Read what was read once more, for the fingerprint of its records; its batches come empty, as signs of life."""
        again = Proof(self._topic, self._partition, self._start, self._position)
        again._kind = "records"
        for batch in again.read(log, gaps):
            yield batch.take(np.zeros(len(batch), dtype=bool))
        self._digest, self._kind, self._last = again._digest, again._kind, again._last

    def skip(self, start: int, end: int) -> None:
        """An accepted gap: nothing is read of [start, end), and nothing is proved of it."""
        self._reach(start)
        self._position = end
        self.skipped += end - start
        self._digest.update(b"gap %d %d" % (start, end))

    def add(self, batch: Batch) -> None:
        """Raises SealIncomplete when this is not the next part of the range."""
        offsets = batch.offsets
        self._reach(batch.begin)
        outside = (offsets < batch.begin) | (offsets >= min(batch.end, self._end))
        if batch.partition != self._partition or outside.any() or (np.diff(offsets) <= 0).any():
            raise SealIncomplete(
                f"{self._place}: the log gave a batch of partition {batch.partition} for offsets "
                f"[{batch.begin}, {batch.end}) with records out of order or outside of it: nothing was sealed"
            )
        if self._kind not in ("", batch.kind):
            raise SealIncomplete(f"{self._place}: read partly by {self._kind}, partly by {batch.kind}: run it again")
        self._kind, self._position = batch.kind, batch.end
        self.records += len(offsets)
        # A unit that a second fetch began in the middle of is seen twice, and counts once.
        fresh = batch.marks[batch.marks[:, 0] > self._last]
        self._digest.update(fresh.astype("<i8").tobytes())
        self._last = int(batch.marks[:, 0].max(initial=self._last))

    def fingerprint(self) -> str:
        """ "batches:<sha256>" or "records:<sha256>": two of one kind can be compared. Raises SealIncomplete."""
        self._reach(self._end)
        return f"{self._kind or 'none'}:{self._digest.hexdigest()}"

    def _reach(self, begin: int) -> None:
        if begin != self._position:
            raise SealIncomplete(
                f"{self._place}: the log accounts for offset {begin} where {self._position} of the range up to "
                f"{self._end} was due: nothing was sealed, run the window again"
            )


def pieces(start: int, end: int, gaps: tuple[tuple[int, int], ...]) -> list[tuple[int, int, bool]]:
    """[start, end) in order as (begin, end, is there): without the gaps, and the gaps between.

    >>> pieces(0, 10, ((2, 4), (8, 12)))
    [(0, 2, True), (2, 4, False), (4, 8, True), (8, 10, False)]
    """
    found, position = [], start
    for low, high in sorted(gaps):
        low, high = max(low, position), min(high, end)
        if low < high:
            found += [(position, low, True)] if position < low else []
            found.append((low, high, False))
            position = high
    return [*found, *([(position, end, True)] if position < end else [])]
