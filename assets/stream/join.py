"""The join: the events whose label is mature in a window, each with its label, each event in one window for ever.

match.py has the rules. Here the sealed windows that can matter are read, the examples are written as one Parquet file,
and `examples.joined` is journalled. With `negative_if_absent` a mature event without label is an example with null
label columns and `_label_absent` true, and the task's `target` fills it; else it is unlabelled: counted, no example.

It knows sealed windows and the journal. It does not know the log, and not what an example is used for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from assets.stream import seen, store
from assets.stream.clock import NotDue, WindowPolicy, previous_window, window_bounds, window_id, window_index
from assets.stream.cut import Topics
from assets.stream.decode import ENVELOPE, SchemaRefused
from assets.stream.history import JOINED, SEALED, History
from assets.stream.match import Bools, Grid, Ints, Match, Rows, match, rows_of
from assets.stream.seal import EVENT_ID, SealDiffers, SealedWindow, read_sealed
from security.journal import stamp, unstamp

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Examples:
    """What `examples.joined` says of a window.

    events_matured: the public count, = examples + unlabelled (with `negative_if_absent` all are examples). labels:
    label records sealed in this window. duplicate_events, duplicate_labels: further copies, not used. late_labels: came
    after their event was mature. labels_without_event: no event came within the horizon. coverage: share of mature
    events with a label, None without events. lag_seconds: label - arrival, percentiles "p50", "p90", "p99".
    arrived: [low, high) holds the arrival of every mature event, for the privacy ledger.
    seen_path, seen_sha256, seen_rows: the window's file of seen.py.
    """

    window: str
    path: str
    sha256: str
    examples: int
    events_matured: int
    unlabelled: int
    labels: int
    duplicate_events: int
    duplicate_labels: int
    late_labels: int
    labels_without_event: int
    coverage: float | None
    lag_seconds: Mapping[str, float | None]
    arrived: tuple[datetime, datetime]
    seen_path: str
    seen_sha256: str
    seen_rows: int

    def body(self) -> dict[str, Any]:
        """As it is journalled."""
        return {**asdict(self), "arrived": [stamp(moment) for moment in self.arrived]}

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Examples:
        """The inverse of `body`."""
        low, high = (unstamp(text) for text in body["arrived"])
        return cls(**{**body, "arrived": (low, high)})

    def files(self) -> dict[str, str]:
        """Path -> sha256."""
        return {self.path: self.sha256, self.seen_path: self.seen_sha256}


def find_examples(history: History, window: str) -> Examples | None:
    """The journalled examples of a window, as of the history's last refresh."""
    entry = history.find(JOINED, window)
    return None if entry is None else Examples.of(entry.body)


def read_examples(root: Path, examples: Examples) -> pa.Table:
    """Event columns, `_arrived`, `_matured`, label columns, `_label_at`, `_label_absent`; by (_arrived, event_id)."""
    return store.table(store.get(root, examples.path, examples.sha256))


def join(
    history: History,
    root: Path,
    policy: WindowPolicy,
    topics: Topics,
    window: str,
    *,
    horizon: timedelta,
    negative_if_absent: bool = False,
    now: datetime,
    actor: str,
) -> Examples:
    """Join a window; one that is joined is checked against its hashes and returned. `now` is the wall clock.

    Raises NotDue until every window through this one is sealed and every one before it is joined; SchemaRefused for
    event and label schemas that do not go together; SealDiffers and StoreDamaged as seal.py.
    """
    known = find_examples(history.refresh(), window)
    if known is not None and all(store.present(root, path) for path in known.files()):
        for path, digest in known.files().items():
            store.get(root, path, digest)
        return known
    sealed = _Sealed(history, root, policy, window)
    past = _Past(history, root, policy, window)
    grid = Grid((policy.start - _EPOCH) // _MS, policy.every // _MS, horizon // _MS, sealed.this)
    made, payloads = _make(sealed, past, grid, topics, negative_if_absent)
    if known is not None:
        _check_same(known, made)
    for path, payload in payloads.items():
        store.put(root, path, payload)
    store.settle(root, store.window_folder(history.task, window))
    entry = history.once(JOINED, made.body(), actor=actor, at=now)
    _check_same(Examples.of(entry.body), made)
    return made


def _check_same(known: Examples, made: Examples) -> None:
    for path, digest in known.files().items():
        found = made.files().get(path, "no such file")
        if found != digest:
            raise SealDiffers(
                f"window {known.window}: joined again, {path} has sha256 {found[:16]}, the journal says {digest[:16]}: "
                "the task's label_horizon or negative_if_absent, or pyarrow, has changed. Joined examples never "
                "change: bring the old setting back, or restore the file from a backup"
            )


# -- what was sealed, and what was joined before ----------------------------------------------------------------------


class _Sealed:
    """The sealed windows from the first to this one, by number. Raises NotDue when one is missing."""

    def __init__(self, history: History, root: Path, policy: WindowPolicy, window: str) -> None:
        self._root = root
        self.window, self.folder = window, store.window_folder(history.task, window)
        self.this = window_index(policy, window_bounds(policy, window)[0])
        self._bodies = []
        for number in range(self.this + 1):
            name = window_id(policy.start + number * policy.every)
            entry = history.find(SEALED, name)
            if entry is None:
                raise NotDue(f"examples of window {window} wait for window {name} to be sealed")
            self._bodies.append(entry.body)

    def rows(self, topic: str) -> int:
        """How many records of a topic this window has."""
        return int(self._bodies[self.this]["rows"][topic])

    def table(self, number: int, topic: str, columns: list[str] | None = None) -> pa.Table:
        """The rows of a topic in one window."""
        return read_sealed(self._root, SealedWindow.of(self._bodies[number]), topic, columns)

    def envelopes(self, topic: str, since: int) -> tuple[Ints, pa.Array]:
        """Numbers (5, n) and ids of this window, and of those before with a time stamp of `since` or later."""
        numbers, ids = [], []
        for number, body in enumerate(self._bodies):
            span = body["arrived"][topic]
            if number == self.this or (span is not None and span[1] >= since):
                table = self.table(number, topic, ["_timestamp", "_partition", "_offset", EVENT_ID]).combine_chunks()
                at = table["_timestamp"].cast(pa.int64()).to_numpy()
                row = [np.full(len(at), number), np.arange(len(at)), at]
                numbers.append(np.stack([*row, table["_partition"].to_numpy(), table["_offset"].to_numpy()]))
                ids.append(table[EVENT_ID].combine_chunks())
        return np.concatenate(numbers, axis=1), pa.chunked_array(ids).combine_chunks()

    def payload(self, topic: str, windows: Ints, rows: Ints) -> pa.Table:
        """The payload of rows given by window number and row in it, in that order; window -1 gives nulls."""
        tables, begins, length = [], {-1: 0}, 0
        for number in np.unique(windows[windows >= 0]).tolist() or [self.this]:  # one at least, for its schema
            tables.append(self.table(number, topic))
            begins[number] = length
            length += tables[-1].num_rows
        places = np.array([begins[number] for number in windows.tolist()], dtype=np.int64) + rows
        whole = pa.concat_tables(tables).drop_columns(ENVELOPE.names)
        return whole.take(pa.array(places, pa.int64(), mask=windows < 0))


class _Past:
    """The event ids of the windows before this one. Raises NotDue when the one before is not joined."""

    def __init__(self, history: History, root: Path, policy: WindowPolicy, window: str) -> None:
        before = previous_window(policy, window)
        if before is not None and history.find(JOINED, before) is None:
            raise NotDue(f"examples of window {window} wait for those of window {before}")
        self._history, self._root, self._policy = history, root, policy
        self._number = window_index(policy, window_bounds(policy, window)[0]) + 1

    def _block(self, number: int) -> tuple[str, int]:
        entry = self._history.find(JOINED, window_id(self._policy.start + (number - 1) * self._policy.every))
        if entry is None:
            raise NotDue(f"the examples of window number {number} are not joined")
        return entry.body["seen_path"], entry.body["seen_rows"]

    def has(self, ids: pa.Array) -> Bools:
        """Which of the ids were dealt with in an earlier window, (n,)."""
        return seen.known(self._root, self._block, self._number - 1, seen.hashes(ids.to_pylist()))

    def with_own(self, ids: pa.Array) -> bytes:
        """The file of this window, whose own ids these are."""
        return seen.block_bytes(self._root, self._block, self._number, seen.hashes(ids.to_pylist()))


# -- the pure part: sealed windows to bytes ---------------------------------------------------------------------------


def _make(
    sealed: _Sealed, past: _Past, grid: Grid, topics: Topics, negative_if_absent: bool
) -> tuple[Examples, dict[str, bytes]]:
    """The examples, and the bytes of their files by path."""
    events, labels = _rows(sealed, grid, topics)
    found = match(events, labels, grid, past.has)
    table = _table(sealed, found, labels, grid, topics, negative_if_absent)
    path, seen_path = f"{sealed.folder}/examples.parquet", f"{sealed.folder}/seen.u64"
    payloads = {path: store.parquet_bytes(table), seen_path: past.with_own(found.mature.ids)}
    matured, labelled = len(found.mature), found.chosen >= 0
    with_label = int(labelled.sum())
    low = min([grid.begin - grid.horizon, *found.mature.at.tolist()])
    examples = Examples(
        window=sealed.window,
        path=path,
        sha256=store.sha256(payloads[path]),
        examples=table.num_rows,
        events_matured=matured,
        unlabelled=0 if negative_if_absent else matured - with_label,
        labels=sealed.rows(topics.labels),
        duplicate_events=found.duplicate_events,
        duplicate_labels=found.duplicate_labels,
        late_labels=found.late_labels,
        labels_without_event=found.labels_without_event,
        coverage=with_label / matured if matured else None,
        lag_seconds=_percentiles((labels.at[found.chosen[labelled]] - found.mature.at[labelled]) / 1000),
        arrived=(_EPOCH + low * _MS, _EPOCH + (grid.begin + grid.every - grid.horizon) * _MS),
        seen_path=seen_path,
        seen_sha256=store.sha256(payloads[seen_path]),
        seen_rows=seen.rows_in(payloads[seen_path]),
    )
    return examples, payloads


def _rows(sealed: _Sealed, grid: Grid, topics: Topics) -> list[Rows]:
    """Events whose time is not up before this window, and every label within the horizon of one."""
    events = sealed.envelopes(topics.events, grid.begin - grid.horizon)
    oldest = min(grid.begin, int(events[0][2].min(initial=grid.begin)))
    labels = sealed.envelopes(topics.labels, oldest - grid.horizon)
    if events[1].type != labels[1].type:
        raise SchemaRefused(
            f"{EVENT_ID} is {events[1].type} in the event schema, {labels[1].type} in the label schema: make them equal"
        )
    return rows_of([events, labels])


def _table(
    sealed: _Sealed, found: Match, labels: Rows, grid: Grid, topics: Topics, negative_if_absent: bool
) -> pa.Table:
    kept = np.arange(len(found.chosen)) if negative_if_absent else np.flatnonzero(found.chosen >= 0)
    events, used = found.mature.take(kept), found.chosen[kept]
    absent = used < 0
    # Column n of `numbers` is label n; one more column for "no label", which is what index -1 takes.
    numbers = np.append(labels.numbers, np.full((5, 1), -1), axis=1)[:, used]
    table = sealed.payload(topics.events, events.sealed, events.row)
    label = sealed.payload(topics.labels, numbers[0], numbers[1]).drop_columns([EVENT_ID])
    if both := set(table.schema.names) & set(label.schema.names):
        raise SchemaRefused(f"field {min(both)!r} is in the event and in the label schema: rename one of them")
    moment = store.MILLISECONDS
    table = table.append_column(pa.field("_arrived", moment, nullable=False), _moments(events.at))
    table = table.append_column(pa.field("_matured", moment, nullable=False), _moments(events.at + grid.horizon))
    for field, column in zip(label.schema, label.columns, strict=True):
        table = table.append_column(field.with_nullable(field.nullable or negative_if_absent), column)
    label_at = pa.field("_label_at", moment, nullable=negative_if_absent)
    table = table.append_column(label_at, _moments(numbers[2], absent))
    table = table.append_column(pa.field("_label_absent", pa.bool_(), nullable=False), pa.array(absent))
    return table.sort_by([("_arrived", "ascending"), (EVENT_ID, "ascending")])


def _moments(milliseconds: Ints, absent: Bools | None = None) -> pa.Array:
    return pa.array(milliseconds, pa.int64(), mask=absent).cast(store.MILLISECONDS)


def _percentiles(seconds: npt.NDArray[np.float64]) -> dict[str, float | None]:
    if not len(seconds):
        return {"p50": None, "p90": None, "p99": None}
    values = np.percentile(seconds, [50, 90, 99], method="inverted_cdf")
    return {name: float(value) for name, value in zip(("p50", "p90", "p99"), values, strict=True)}
