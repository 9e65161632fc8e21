"""The join: the events whose label is mature in a window, each with its label, each event in one window for ever.

match.py has the rules. Here the examples are written as one Parquet file, beside it the window's index for the joins to
come, and `examples.joined` is journalled. With `negative_if_absent` a mature event without label is an example with null
label columns and `_label_absent` true, and the task's `target` fills it; else it is unlabelled: counted, no example.

Memory: what matures in one window, and a table of the hashes of that; never the stream, and of the horizon one window at
a time. It knows the store and the journal. It does not know the log, and not what an example is used for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.stream.decode import SchemaRefused
from assets.stream.formats import EVENT_ID
from assets.stream.log import Topics
from assets.stream.spans import MILLISECONDS
from assets.windows import index, seen, store
from assets.windows.clock import WindowPolicy, window_bounds
from assets.windows.gap import touched
from assets.windows.golden import marked
from assets.windows.history import JOINED, History
from assets.windows.horizon import NEVER, Horizon
from assets.windows.match import Bools, Grid, Ints, Match, match, ranked
from assets.windows.seal import SealDiffers
from security.disk import settle
from security.journal import stamp, unstamp

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_PERCENTILES = (50, 90, 99)
_OUTCOMES = 10  # a label with more values than this is no outcome
_LABELS_SHOWN = 20  # of an outcome, at least: the 90th of fewer says nothing, and rare text stays out of the journal

Percentiles = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Examples:
    """What `examples.joined` says of a window.

    events_matured: the public count, = examples + unlabelled + unknown. unlabelled: 0 with `negative_if_absent`. unknown: 0
    without; with it, events of a time whose labels may lie in an accepted gap, also those that have one: else of that time
    only one outcome would be learnt. labels: label records sealed in this window. duplicate_events, duplicate_labels: further
    copies, not used. late_labels: came after their event was mature. labels_without_event: no event came within the horizon.
    coverage: share of mature events with a label, None without events. lag_seconds: label - arrival, percentiles "p50",
    "p90", "p99".
    arrived: [low, high) holds the arrival of every mature event, for the privacy ledger.
    seen_path, seen_sha256, seen_rows: the window's file of index.py, and how many hashes its block of known ids has.
    latest: the largest time stamp of an event or label sealed through this window, ms since 1970; how far back a join has
    to look. lag_by_outcome: lag_seconds by the value of the first label column, where that is an outcome: an integer,
    boolean or text of at most 10 values; values with fewer than 20 labels are left out. None before 0.2, both of them.
    golden: examples, of those that are counted, which no update learns from (golden.py); golden_share: of the ids.
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
    lag_seconds: Percentiles
    arrived: tuple[datetime, datetime]
    seen_path: str
    seen_sha256: str
    seen_rows: int
    latest: int | None = None
    lag_by_outcome: Mapping[str, Percentiles] | None = None
    unknown: int = 0
    golden: int = 0
    golden_share: float = 0.0

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
    golden_share: float = 0.0,
    now: datetime,
    actor: str,
) -> Examples:
    """Join a window; one that is joined is checked against its hashes and returned. `now` is the wall clock.

    Raises NotDue until every window through this one is sealed and every one before it is joined; SchemaRefused for
    event and label schemas that do not go together; IndexOutdated; SealDiffers and StoreDamaged as seal.py.
    """
    known = find_examples(history.refresh(), window)
    if known is not None and all(store.present(root, path) for path in known.files()):
        for path, digest in known.files().items():
            store.check(root, path, digest)
        return known
    if known is not None:
        index.refuse_outdated(known.seen_path)
        golden_share = known.golden_share  # the file is made as it was, whatever the settings say by now
    past = Horizon(history, root, policy, window, topics.events, topics.labels)
    grid = Grid((policy.start - _EPOCH) // _MS, policy.every // _MS, horizon // _MS, past.number)
    negative_from = _negative_from(history.refresh(), policy, topics.labels, window, grid) if negative_if_absent else None
    folder = store.window_folder(history.task, window)
    with store.attempt(root, folder) as attempt:
        made, files = _make(past, grid, topics, negative_from, golden_share, folder, attempt)
        with store.locked(root / folder):  # two that join it: the second must not write over what the first has promised
            if (known := find_examples(history.refresh(), window)) is not None:
                _check_same(known, made)
            for path, file in files.items():
                store.publish(file, root, path)
            settle(root / folder)
            entry = history.once(JOINED, made.body(), actor=actor, at=now)
    _check_same(Examples.of(entry.body), made)
    return made


def _negative_from(history: History, policy: WindowPolicy, labels: str, window: str, grid: Grid) -> int:
    """Of events that arrived before it, in ms since 1970, a label that counts here may be in an accepted gap.

    A label lies within the horizon of its event's arrival, and before the end of the window it was sealed in. Refresh the
    history after the seals were seen: a sealed window gets no further gap, so the answer is the same for ever.
    """
    lacking = [name for name in touched(history, (labels,)) if name <= window]
    return (window_bounds(policy, lacking[-1])[1] - _EPOCH) // _MS + grid.horizon if lacking else NEVER


def _check_same(known: Examples, made: Examples) -> None:
    for path, digest in known.files().items():
        found = made.files().get(path, "no such file")
        if found != digest:
            raise SealDiffers(
                f"window {known.window}: joined again, {path} has sha256 {found[:16]}, the journal says {digest[:16]}: "
                "the task's label_horizon or negative_if_absent, golden_share, pyarrow or the layout of the files has changed. "
                "Joined examples never change: bring the old setting back, or restore the file from a backup"
            )


# -- making it: no journal ---------------------------------------------------------------------------------------------


def _make(
    past: Horizon, grid: Grid, topics: Topics, negative_from: int | None, golden_share: float, folder: str, attempt: Path
) -> tuple[Examples, dict[str, Path]]:
    """The examples, and their files: path in the store -> where the file was made, inside `attempt`."""
    found = match(
        past.parts(topics.events, grid.low),
        lambda since: past.parts(topics.labels, since),
        grid,
        past.dealt_with,
    )
    matured, labelled = len(found.mature), found.chosen >= 0
    with_label = int(labelled.sum())
    lag = found.labels.at[found.chosen[labelled]] - found.mature.at[labelled]
    table, outcome = _table(past, found, grid, topics, negative_from)
    table, golden = marked(table, past.salt, golden_share)
    made = {f"{folder}/examples.parquet": attempt / "examples.parquet", f"{folder}/{index.NAME}": attempt / index.NAME}
    (path, examples_file), (index_path, index_file) = made.items()
    with store.RowGroups(examples_file, table.schema) as writer:
        writer.add(table)
    blocks = past.blocks()
    left_out = matured - table.num_rows
    seen_rows = matured + sum(map(len, blocks))
    block = seen.merged(blocks, found.hashes)
    examples = Examples(
        window=past.window,
        path=path,
        sha256=writer.sha256,
        examples=table.num_rows,
        events_matured=matured,
        unlabelled=left_out if negative_from is None else 0,
        labels=past.rows(topics.labels),
        duplicate_events=found.duplicate_events,
        duplicate_labels=found.duplicate_labels,
        late_labels=found.late_labels,
        labels_without_event=found.labels_without_event,
        coverage=with_label / matured if matured else None,
        lag_seconds=_percentiles(lag),
        arrived=(_moment(int(found.mature.at.min(initial=grid.low))), _moment(grid.high)),
        seen_path=index_path,
        seen_sha256=index.write(index_file, past.own[topics.events], past.own[topics.labels], seen_rows, block),
        seen_rows=seen_rows,
        latest=past.latest,
        lag_by_outcome=_by_outcome(lag, outcome),
        unknown=0 if negative_from is None else left_out,
        golden=golden,
        golden_share=golden_share,
    )
    return examples, made


def _table(
    past: Horizon, found: Match, grid: Grid, topics: Topics, negative_from: int | None
) -> tuple[pa.Table, pa.ChunkedArray | None]:
    """The examples, and the first label column: one value for each event with a label, in the order of `found`."""
    labelled, negatives = found.chosen >= 0, negative_from is not None
    kept = labelled if negative_from is None else found.mature.at >= negative_from
    events, used = found.mature.take(kept), found.chosen[kept]
    table = past.payload(topics.events, events.places)
    order = _by_arrival(events.at, table[EVENT_ID])
    table, at, used = table.take(pa.array(order)), events.at[order], used[order]

    wanted = np.zeros(len(found.labels), dtype=np.bool_)
    wanted[found.chosen[labelled]] = True
    label = past.payload(topics.labels, found.labels.places[wanted], without=(EVENT_ID,))
    if both := set(table.schema.names) & set(label.schema.names):
        raise SchemaRefused(f"field {min(both)!r} is in the event and in the label schema: rename one of them")
    place = np.append(np.cumsum(wanted) - 1, -1)  # of each label in `label`; the last is for "no label"
    absent = used < 0
    moment = MILLISECONDS
    table = table.append_column(pa.field("_arrived", moment, nullable=False), _moments(at))
    table = table.append_column(pa.field("_matured", moment, nullable=False), _moments(at + grid.horizon))
    values = label.take(pa.array(place[used], mask=absent))
    for field, column in zip(label.schema, values.columns, strict=True):
        table = table.append_column(field.with_nullable(field.nullable or negatives), column)
    label_at = pa.field("_label_at", moment, nullable=negatives)
    table = table.append_column(label_at, _moments(np.append(found.labels.at, 0)[used], absent))
    table = table.append_column(pa.field("_label_absent", pa.bool_(), nullable=False), pa.array(absent))
    outcome = label.column(0).take(pa.array(place[found.chosen[labelled]])) if label.num_columns else None
    return table, outcome


def _by_arrival(at: Ints, ids: pa.ChunkedArray) -> Ints:
    """Indices that sort events by arrival, then id: the examples of the same events are always in the same order."""

    def within(group: Ints) -> Ints:
        some = pa.table({"at": at[group], "id": ids.take(pa.array(group))})
        return pc.sort_indices(some, sort_keys=[("at", "ascending"), ("id", "ascending")]).to_numpy().astype(np.int64)

    return ranked(at, within)[0]


def _moments(milliseconds: Ints, absent: Bools | None = None) -> pa.Array:
    return pa.array(milliseconds, pa.int64(), mask=absent).cast(MILLISECONDS)


def _moment(milliseconds: int) -> datetime:
    return _EPOCH + milliseconds * _MS


def _percentiles(milliseconds: Ints) -> Percentiles:
    """In seconds: the smallest value that so many percent do not exceed; None without values."""
    values, n = np.sort(milliseconds), len(milliseconds)
    return {f"p{p}": float(values[-(-n * p // 100) - 1]) / 1000 if n else None for p in _PERCENTILES}


def _by_outcome(lag: Ints, outcome: pa.ChunkedArray | None) -> Mapping[str, Percentiles]:
    if outcome is None or not any(is_(outcome.type) for is_ in (pa.types.is_integer, pa.types.is_boolean, pa.types.is_string)):
        return {}
    coded = outcome.combine_chunks().dictionary_encode()
    if len(coded.dictionary) > _OUTCOMES:
        return {}
    codes = coded.indices.fill_null(-1).to_numpy()
    found = {str(value): lag[codes == code] for code, value in enumerate(coded.dictionary.to_pylist())}
    return {name: _percentiles(lags) for name, lags in sorted(found.items()) if len(lags) >= _LABELS_SHOWN}
