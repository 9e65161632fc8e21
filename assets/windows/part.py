"""One partition of a window: its range of the log becomes one Parquet file, a row group at a time.

A pure function of range and format: the same bytes however the log was fetched, in whatever process. Memory is bounded
by a fetch and a row group, whatever the size of the range. It does not know windows, the journal, or which parts there
are; the file is written under a name the caller chose, and it is the caller who publishes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from assets.stream.decode import Rejected
from assets.stream.formats import ValueFormat, schema_ids
from assets.stream.log import EventLog
from assets.stream.spans import MILLISECONDS
from assets.windows import store
from assets.windows.proof import Proof

REASONS_SHOWN = 3
REJECTS_IN_MEMORY = 10_000  # of one part, before it is asked whether the window can be sealed at all
REJECT_SCHEMA = pa.schema(
    [
        pa.field("_topic", pa.string(), nullable=False),
        pa.field("_partition", pa.int32(), nullable=False),
        pa.field("_offset", pa.int64(), nullable=False),
        pa.field("_timestamp", MILLISECONDS, nullable=False),
        pa.field("key", pa.binary()),
        pa.field("value", pa.binary()),
        pa.field("error", pa.string(), nullable=False),
    ]
)


class TooManyRejects(Exception):
    """More records of a topic are poison than `stream.max_reject_share` allows."""


@dataclass(frozen=True, slots=True)
class PartJob:
    """What to seal, and where to. gaps: ranges that are gone for good and accepted. max_rejects: stop beyond it."""

    topic: str
    partition: int
    start: int
    end: int
    gaps: tuple[tuple[int, int], ...]
    format: ValueFormat
    file: Path
    max_rejects: float


@dataclass(frozen=True, slots=True)
class SealedPart:
    """What became of it. arrived: smallest and largest time stamp of the rows, ms since 1970; None without rows.

    empty: offsets that hold no record (markers of transactions, aborted records). rejects: of REJECT_SCHEMA.
    schema_ids: writers' schemas that were met (registry formats only). See proof.py for the fingerprint.
    """

    topic: str
    partition: int
    sha256: str
    rows: int
    empty: int
    arrived: tuple[int, int] | None
    rejects: pa.Table
    schema_ids: tuple[int, ...]
    fingerprint: str


def seal_part(log: EventLog, job: PartJob, on_progress: Callable[[int], None] = lambda offset: None) -> SealedPart:
    """Read, decode and write one part; `on_progress(offset)` after each batch.

    Raises TooManyRejects, SealIncomplete, OSError, and what EventLog.read raises.
    """
    # Arrow's own allocator clears its first gigabyte page by page: 1.1 us of system time a row in the first 300,000 rows of
    # a process, 0.3 with the system's.
    pa.set_memory_pool(pa.system_memory_pool())
    columns = job.format.columns()
    proof = Proof(job.topic, job.partition, job.start, job.end)
    poison: list[pa.Table] = []
    rejected, stamps = 0, list[int]()
    with store.RowGroups(job.file, columns.schema) as rows:
        for batch in proof.read(log, job.gaps):
            decoded = columns.decode(batch)
            rows.add(decoded.table)
            if decoded.rejects:
                poison.append(_rejects(job.topic, decoded.rejects))
                rejected += len(decoded.rejects)
                _check_few(job, rejected, poison)
            if decoded.table.num_rows:
                span = pc.min_max(decoded.table["_timestamp"].cast(pa.int64())).as_py()
                stamps += (span["min"], span["max"])
            on_progress(batch.end)
        fingerprint = proof.fingerprint()
    return SealedPart(
        job.topic, job.partition, rows.sha256, rows.rows, job.end - job.start - proof.skipped - proof.records,
        (min(stamps), max(stamps)) if stamps else None,
        pa.concat_tables(poison) if poison else REJECT_SCHEMA.empty_table(),
        tuple(schema_ids(columns)), fingerprint,
    )  # fmt: skip


def _check_few(job: PartJob, rejected: int, poison: list[pa.Table]) -> None:
    """Stop where the share is exceeded whatever follows: poison is kept in memory, and must not fill it."""
    if rejected > max(job.max_rejects, REJECTS_IN_MEMORY):
        raise TooManyRejects(
            f"topic {job.topic!r} partition {job.partition}: {rejected} records were rejected > {job.max_rejects:.0f}, "
            "more than max_reject_share allows even if all others are good; nothing was sealed. First: "
            f"{reasons(poison[0])}. {CURE}"
        )


CURE = "Correct the producer or the task's schema, or raise stream.max_reject_share to seal without them"


def reasons(rejects: pa.Table) -> str:
    """The first reasons, for a message."""
    rows = rejects.slice(0, REASONS_SHOWN).to_pylist()
    return "; ".join(f"partition {row['_partition']} offset {row['_offset']}: {row['error']}" for row in rows)


def _rejects(topic: str, rejects: list[Rejected]) -> pa.Table:
    records = [rejected.record for rejected in rejects]
    columns = [
        pa.array([topic] * len(records), pa.string()),
        pa.array([record.partition for record in records], pa.int32()),
        pa.array([record.offset for record in records], pa.int64()),
        pa.array([record.timestamp for record in records], pa.int64()).cast(MILLISECONDS),
        pa.array([record.key for record in records], pa.binary()),
        pa.array([record.value for record in records], pa.binary()),
        pa.array([rejected.error for rejected in rejects], pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=REJECT_SCHEMA)
