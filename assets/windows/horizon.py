"""What a join can see: the sealed windows through its own, by number, and the indexes of those before it.

A window is joined when the one before it is, so all before it are sealed and have an index: the journal says so of each,
and nobody has to look at more of them than the horizon reaches. It knows the store and the journal; it does not know
the rules of the join.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assets.stream.decode import SchemaRefused
from assets.stream.formats import EVENT_ID
from assets.windows import seen, store
from assets.windows.clock import NotDue, WindowPolicy, previous_window, window_bounds, window_id, window_index
from assets.windows.history import JOINED, SEALED, History
from assets.windows.idhash import Hashes, IdHash
from assets.windows.index import Columns, Index, refuse_outdated
from assets.windows.match import Bools, Ints, Part, windows_and_rows
from assets.windows.seal import SealedFile, SealedWindow

NEVER = -(1 << 62)  # before any time stamp


class Horizon:
    """The windows through one. number: of that window, from 0. latest: the largest time stamp of an event or a label. salt:
    of the hashes of ids, the digest of the first cut.

    Raises NotDue until every window through this one is sealed and every one before it is joined; IndexOutdated when
    the one before was joined by an older version; SchemaRefused for ids of two types.
    """

    def __init__(self, history: History, root: Path, policy: WindowPolicy, window: str, events: str, labels: str) -> None:
        self._history, self._root, self._policy = history, root, policy
        self.window, self.number = window, window_index(policy, window_bounds(policy, window)[0])
        _check_turn(history, policy, window)
        if self.number:
            refuse_outdated(self._entry(JOINED, self.number - 1)["seen_path"])
        self.salt = str(self._entry(SEALED, 0)["cut_hash"])
        self._hash = IdHash(bytes.fromhex(self.salt))
        self._sealed = SealedWindow.of(self._entry(SEALED, self.number))
        self._topics = {events: Index.events, labels: Index.labels}
        (event_type, own_events), (label_type, own_labels) = self._own(events), self._own(labels)
        if event_type != label_type:
            raise SchemaRefused(
                f"{EVENT_ID} is {event_type} in the event schema, {label_type} in the label schema: make them equal"
            )
        self.own = {events: own_events, labels: own_labels}
        spans = [self._sealed.arrived[topic] for topic in self._topics]
        self.latest = max([self._latest(self.number - 1), *(span[1] for span in spans if span is not None)])

    def rows(self, topic: str) -> int:
        """How many records of a topic the window itself has."""
        return self._sealed.rows[topic]

    def parts(self, topic: str, since: int) -> list[Part]:
        """The windows with a time stamp of `since` or later, and the window itself, the oldest first."""
        found, number = [], self.number
        while number >= 0 and (number == self.number or self._latest(number) >= since):
            sealed = self._sealed_window(number)
            span = sealed.arrived[topic]
            if span is not None and (number == self.number or span[1] >= since):
                files = sealed.files_of(topic)
                partitions = np.array([file.partition for file in files], dtype=np.int64)
                ends = np.cumsum([file.rows for file in files], dtype=np.int64)
                found.append(Part(number, span, partial(self._columns, number, topic), partitions, ends))
            number -= 1
        return found[::-1]

    def payload(self, topic: str, places: Ints, without: tuple[str, ...] = ()) -> pa.Table:
        """Payload columns of the rows at these places (match.py), ascending, in that order. Raises StoreDamaged."""
        windows, rows = windows_and_rows(places)
        tables, begin = [], 0
        while begin < len(places):
            number = int(windows[begin])
            first = begin
            begin = int(np.searchsorted(windows, number, side="right"))
            sealed = self._sealed_window(number)
            files = sealed.files_of(topic)
            ends = np.cumsum([file.rows for file in files])
            cuts = first + np.searchsorted(rows[first:begin], [0, *ends])
            for file, end, low, high in zip(files, ends.tolist(), cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
                if low < high:
                    tables.append(_picked(self._root, file, rows[low:high] - (end - file.rows), without))
        return pa.concat_tables(tables or [_nothing(self._root, self._sealed.files_of(topic)[0], without)])

    def dealt_with(self, hashes: Hashes) -> Bools:
        """Which of the ids with these hashes were in the examples of an earlier window, (n,)."""
        return seen.known(lambda number: self._index(number - 1).block(), self.number, hashes)

    def blocks(self) -> list[Hashes]:
        """The hashes of the blocks that are parts of this window's."""
        return [self._index(number - 1).block().hashes for number in seen.parts(self.number + 1)]

    def _entry(self, kind: str, number: int) -> Any:
        name = window_id(self._policy.start + number * self._policy.every)
        entry = self._history.find(kind, name)
        if entry is None:
            raise NotDue(f"window {self.window} waits for the entry {kind} of window {name}")
        return entry.body

    def _sealed_window(self, number: int) -> SealedWindow:
        return self._sealed if number == self.number else SealedWindow.of(self._entry(SEALED, number))

    def _latest(self, number: int) -> int:
        return NEVER if number < 0 else int(self._entry(JOINED, number)["latest"])

    def _index(self, number: int) -> Index:
        body = self._entry(JOINED, number)
        return Index(self._root, body["seen_path"], body["seen_rows"])

    def _columns(self, number: int, topic: str) -> Columns:
        return self.own[topic] if number == self.number else self._topics[topic](self._index(number))

    def _own(self, topic: str) -> tuple[pa.DataType, Columns]:
        """The type of the ids, and the columns of this window's own rows: the one time they are read for their ids."""
        files, columns = self._sealed.files_of(topic), [EVENT_ID, "_timestamp"]
        table = pa.concat_tables(_open(self._root, file).read(columns, use_threads=False) for file in files)
        at = table["_timestamp"].cast(pa.int64()).to_numpy()
        return table.schema.field(EVENT_ID).type, (self._hash(table[EVENT_ID]), at)


def _check_turn(history: History, policy: WindowPolicy, window: str) -> None:
    """Every window before a joined one is joined and sealed, by induction; so only those after the last one are asked."""
    waiting: list[str] = []
    name: str | None = window
    while name is not None and history.find(JOINED, name) is None:
        waiting.append(name)
        name = previous_window(policy, name)
    for name in reversed(waiting):
        if history.find(SEALED, name) is None:
            raise NotDue(f"examples of window {window} wait for window {name} to be sealed")
    if len(waiting) > 1:
        raise NotDue(f"examples of window {window} wait for those of window {waiting[1]}")


def _payload_names(schema: pa.Schema, without: tuple[str, ...]) -> list[str]:
    """A leading underscore marks the columns that are Headgate's own, whichever there are."""
    return [name for name in schema.names if not name.startswith("_") and name not in without]


def _nothing(root: Path, file: SealedFile, without: tuple[str, ...]) -> pa.Table:
    schema = pq.read_schema(root / file.path)
    return pa.schema([schema.field(name) for name in _payload_names(schema, without)]).empty_table()


def _open(root: Path, file: SealedFile) -> pq.ParquetFile:
    return pq.ParquetFile(pa.BufferReader(store.get(root, file.path, file.sha256)))


def _picked(root: Path, file: SealedFile, rows: Ints, without: tuple[str, ...]) -> pa.Table:
    """These rows of a file, in ascending order: only the row groups that hold one of them are decoded."""
    parquet = _open(root, file)
    sizes = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
    ends = np.cumsum(sizes)
    counts = np.diff(np.searchsorted(rows, ends), prepend=0)
    wanted = np.flatnonzero(counts)
    table = parquet.read_row_groups(
        wanted.tolist(), columns=_payload_names(parquet.schema_arrow, without), use_threads=False
    )
    if table.num_rows == len(rows):
        return table
    kept = np.array(sizes)[wanted]
    skipped = ends[wanted] - np.cumsum(kept)  # rows of groups that were not read, before each that was
    return table.take(pa.array(rows - np.repeat(skipped, counts[wanted])))
