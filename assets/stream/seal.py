"""The seal: the records of a cut as immutable Parquet files, one for each topic partition, and one for the rejected.

A pure function of the cut: the same bytes on every run, whatever the log's batches were. Files first, then the journal
entry `window.sealed` with their hashes; a crash between the two is repaired by running again. It knows the log and the
store; it does not know when a window is due, nor how events and labels belong together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from assets.stream import store
from assets.stream.clock import NotDue
from assets.stream.cut import Cut, Topics, check_identity, find_cut
from assets.stream.decode import Decoder, Rejected
from assets.stream.history import SEALED, History
from assets.stream.log import EventLog, OffsetsGone, Record
from assets.stream.predictions import PREDICTION_SCHEMA

EVENT_ID = "event_id"
REASONS_SHOWN = 3
REJECT_SCHEMA = pa.schema(
    [
        pa.field("_topic", pa.string(), nullable=False),
        pa.field("_partition", pa.int32(), nullable=False),
        pa.field("_offset", pa.int64(), nullable=False),
        pa.field("_timestamp", store.MILLISECONDS, nullable=False),
        pa.field("key", pa.binary()),
        pa.field("value", pa.binary()),
        pa.field("error", pa.string(), nullable=False),
    ]
)


class SealIncomplete(Exception):
    """The log did not give every record of the cut, in order, once."""


class SealDiffers(Exception):
    """Sealing the window again gives other bytes than the journal names: the log or the schema has changed."""


class TooManyRejects(Exception):
    """More records of a topic are poison than `stream.max_reject_share` allows."""


@dataclass(frozen=True, slots=True)
class SealedFile:
    """A Parquet file of the store. `path` is relative to it; `topic` and `partition` are None in the reject file."""

    path: str
    topic: str | None
    partition: int | None
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class SealedWindow:
    """What `window.sealed` says.

    rows, rejects: records that are in the files, and those that are in the reject file. gaps: offsets of the cut that
    hold no record (markers of transactions, aborted records). arrived: the smallest and largest time stamp of a topic's
    rows, in ms since 1970; None without rows.
    """

    window: str
    files: tuple[SealedFile, ...]
    rows: Mapping[str, int]
    rejects: int
    rejects_file: SealedFile | None
    gaps: Mapping[str, int]
    arrived: Mapping[str, tuple[int, int] | None]
    cut_hash: str
    pyarrow: str

    def body(self) -> dict[str, Any]:
        """As it is journalled."""
        rejected = self.rejects_file
        return {
            "window": self.window,
            "files": [
                {"path": f.path, "topic": f.topic, "partition": f.partition, "sha256": f.sha256, "rows": f.rows}
                for f in self.files
            ],
            "rows": dict(self.rows),
            "rejects": self.rejects,
            "rejects_file": rejected and {"path": rejected.path, "sha256": rejected.sha256, "rows": rejected.rows},
            "gaps": dict(self.gaps),
            "arrived": {topic: span and list(span) for topic, span in self.arrived.items()},
            "cut_hash": self.cut_hash,
            "pyarrow": self.pyarrow,
        }

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> SealedWindow:
        """The inverse of `body`."""
        rejected = body["rejects_file"]
        return cls(
            window=body["window"],
            files=tuple(SealedFile(**file) for file in body["files"]),
            rows=body["rows"],
            rejects=body["rejects"],
            rejects_file=rejected and SealedFile(topic=None, partition=None, **rejected),
            gaps=body["gaps"],
            arrived={topic: span and (span[0], span[1]) for topic, span in body["arrived"].items()},
            cut_hash=body["cut_hash"],
            pyarrow=body["pyarrow"],
        )

    def all_files(self) -> list[SealedFile]:
        """Every file of the window, the reject file included."""
        return [*self.files, *([self.rejects_file] if self.rejects_file else [])]


def schemas_of(topics: Topics, event: pa.Schema, label: pa.Schema) -> dict[str, pa.Schema]:
    """Topic -> schema of its values, for a task's event and label schemas."""
    return {topics.events: event, topics.labels: label, topics.predictions: PREDICTION_SCHEMA}


def find_sealed(history: History, window: str) -> SealedWindow | None:
    """The journalled seal of a window, as of the history's last refresh."""
    entry = history.find(SEALED, window)
    return None if entry is None else SealedWindow.of(entry.body)


def seal(
    history: History,
    log: EventLog,
    root: Path,
    window: str,
    schemas: Mapping[str, pa.Schema],
    *,
    max_reject_share: float,
    now: datetime,
    actor: str,
) -> SealedWindow:
    """Seal a window that is cut; one that is sealed is checked against its hashes and returned.

    root: the store. schemas: topic -> pyarrow schema of its values, each with a field `event_id`. now: the wall clock.
    A missing file of a sealed window is restored from the log. Raises NotDue without a cut; TooManyRejects,
    SealIncomplete, OffsetsGone, IdentityChanged with nothing journalled; SealDiffers, StoreDamaged.
    """
    decided = find_cut(history.refresh(), window)
    if decided is None:
        raise NotDue(f"window {window} is not cut yet")
    known = find_sealed(history, window)
    if known is not None and all(store.present(root, file.path) for file in known.all_files()):
        verify_sealed(root, known)
        return known
    made, payloads = _seal(history.task, log, decided, schemas, max_reject_share if known is None else 1.0)
    if known is not None:
        _check_same(known, made)
    for path, payload in payloads.items():
        store.put(root, path, payload)
    store.settle(root, store.window_folder(history.task, window))
    entry = history.once(SEALED, made.body(), actor=actor, at=now)
    _check_same(SealedWindow.of(entry.body), made)
    return made


def verify_sealed(root: Path, sealed: SealedWindow) -> None:
    """Raises StoreDamaged when a file of the window is missing or has other bytes than were journalled."""
    for file in sealed.all_files():
        store.get(root, file.path, file.sha256)


def read_sealed(root: Path, sealed: SealedWindow, topic: str, columns: list[str] | None = None) -> pa.Table:
    """The rows of one topic, by partition and offset: the envelope columns, then the schema's. Raises StoreDamaged."""
    files = [file for file in sealed.files if file.topic == topic]
    if not files:
        raise KeyError(f"window {sealed.window} has no topic {topic!r}: its topics are {', '.join(sealed.rows)}")
    return pa.concat_tables(store.table(store.get(root, file.path, file.sha256), columns) for file in files)


def _check_same(known: SealedWindow, made: SealedWindow) -> None:
    hashes = {file.path: file.sha256 for file in made.all_files()}
    for file in known.all_files():
        found = hashes.pop(file.path, "no such file")
        if found != file.sha256:
            raise SealDiffers(
                f"window {known.window}: sealed again, {file.path} has sha256 {found[:16]}, the journal says "
                f"{file.sha256[:16]} (pyarrow {made.pyarrow}, then {known.pyarrow}): the log was rewritten, or the "
                "task's schema changed. A sealed window never changes: bring the old schema, log or file back"
            )
    if hashes:
        extra = min(hashes)
        raise SealDiffers(f"window {known.window}: sealed again, it has {extra}, which the journal does not name")


# -- the pure part ----------------------------------------------------------------------------------------------------


def _seal(
    task: str, log: EventLog, decided: Cut, schemas: Mapping[str, pa.Schema], max_reject_share: float
) -> tuple[SealedWindow, dict[str, bytes]]:
    """The sealed window, and the bytes of its files by path."""
    folder = store.window_folder(task, decided.window)
    files: list[SealedFile] = []
    payloads: dict[str, bytes] = {}
    rejects: list[tuple[str, Rejected]] = []
    rows, gaps, arrived = dict[str, int](), dict[str, int](), dict[str, tuple[int, int] | None]()
    for topic in decided.topics:
        decoder = Decoder(schemas[topic], required=(EVENT_ID,))
        tables, poison, gaps[topic] = _decode_topic(log, decided, topic, decoder)
        rows[topic] = sum(table.num_rows for table in tables.values())
        _check_share(decided.window, topic, rows[topic], poison, max_reject_share)
        rejects += [(topic, rejected) for rejected in poison]
        arrived[topic] = _arrived(tables)
        for part, table in tables.items():
            path = f"{folder}/{topic}-{part}.parquet"
            files.append(_file(path, topic, part, table, payloads))
    rejects_file = _file(f"{folder}/rejects.parquet", None, None, _rejects(rejects), payloads) if rejects else None
    sealed = SealedWindow(
        window=decided.window,
        files=tuple(files),
        rows=rows,
        rejects=len(rejects),
        rejects_file=rejects_file,
        gaps=gaps,
        arrived=arrived,
        cut_hash=decided.digest(),
        pyarrow=pa.__version__,
    )
    return sealed, payloads


def _decode_topic(
    log: EventLog, decided: Cut, topic: str, decoder: Decoder
) -> tuple[dict[int, pa.Table], list[Rejected], int]:
    tables: dict[int, pa.Table] = {}
    rejects: list[Rejected] = []
    gaps = 0
    try:
        for part, (start, end) in decided.topics[topic].partitions.items():
            records = _read(log, topic, part, start, end)
            gaps += end - start - len(records)
            decoded = decoder.decode(records)
            tables[part] = decoded.table
            rejects += decoded.rejects
    except OffsetsGone:
        check_identity(decided, log.bounds(topic, decided.end))  # of another topic, any offset may be gone
        raise
    check_identity(decided, log.bounds(topic, decided.end))
    return tables, rejects, gaps


def _read(log: EventLog, topic: str, part: int, start: int, end: int) -> list[Record]:
    """Every record of [start, end): the log says so by ending without an error, the offsets are checked here."""
    records: list[Record] = []
    position = start
    for batch in log.read(topic, part, start, end):
        for record in batch:
            if record.partition != part or not position <= record.offset < end:
                raise SealIncomplete(
                    f"{topic!r} partition {part}: the log gave offset {record.offset} of partition {record.partition} "
                    f"where one of [{position}, {end}) was due: nothing was sealed, run the window again"
                )
            position = record.offset + 1
            records.append(record)
    return records


def _check_share(window: str, topic: str, rows: int, poison: list[Rejected], limit: float) -> None:
    """By topic: a topic of rare labels that are all poison must not hide behind the many good events."""
    share = len(poison) / max(1, rows + len(poison))
    if share > limit:
        shown = [(bad.record.partition, bad.record.offset, bad.error) for bad in poison[:REASONS_SHOWN]]
        first = "; ".join(f"partition {part} offset {offset}: {error}" for part, offset, error in shown)
        raise TooManyRejects(
            f"window {window}: {len(poison)} of {rows + len(poison)} records of topic {topic!r} are rejected, share "
            f"{share:.4f} > max_reject_share {limit:g}; nothing was sealed. First: {first}. Correct the producer or "
            "the task's schema, or raise stream.max_reject_share to seal without them"
        )


def _arrived(tables: Mapping[int, pa.Table]) -> tuple[int, int] | None:
    stamps = pa.chunked_array([table["_timestamp"].combine_chunks() for table in tables.values()], store.MILLISECONDS)
    if not len(stamps):
        return None
    values = stamps.cast(pa.int64()).to_numpy()
    return int(values.min()), int(values.max())


def _rejects(rejects: list[tuple[str, Rejected]]) -> pa.Table:
    records = [rejected.record for _, rejected in rejects]
    columns = [
        pa.array([topic for topic, _ in rejects], pa.string()),
        pa.array([record.partition for record in records], pa.int32()),
        pa.array([record.offset for record in records], pa.int64()),
        pa.array([record.timestamp for record in records], pa.int64()).cast(store.MILLISECONDS),
        pa.array([record.key for record in records], pa.binary()),
        pa.array([record.value for record in records], pa.binary()),
        pa.array([rejected.error for _, rejected in rejects], pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=REJECT_SCHEMA)


def _file(
    path: str, topic: str | None, part: int | None, table: pa.Table, payloads: dict[str, bytes]
) -> SealedFile:
    payloads[path] = store.parquet_bytes(table)
    return SealedFile(path, topic, part, store.sha256(payloads[path]), table.num_rows)
