"""Sealed windows for the join's benchmark: events and labels of hours, as the seal writes them, without a log.

Ids of 20 characters, four partitions, records up to 30 s out of order, one of a hundred sealed an hour late; 2 % of the
events come twice, 70 % get a label (exponential, one hour in the mean, the rare longest after their event is mature), one
label of two hundred has no event. The same seed gives the same windows.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from assets.stream.log import Topics
from assets.stream.spans import MILLISECONDS
from assets.windows import store
from assets.windows.clock import WindowPolicy, window_id
from assets.windows.history import SEALED, History
from assets.windows.seal import SealedFile, SealedWindow
from security.journal import Journal

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = WindowPolicy(timedelta(hours=1), datetime(2024, 1, 1, tzinfo=UTC), timedelta(0), "stream")
TOPICS = Topics("events", "labels", "predictions")
TASK, PARTITIONS, HOUR = "bench", 4, 3_600_000
BEGIN = int(POLICY.start.timestamp() * 1000)


def ids_of(numbers: np.ndarray) -> pa.Array:
    """20 characters each: "evt-" and 16 hexadecimal digits without a pattern."""
    mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    digits = (mixed[:, None] >> np.arange(0, 64, 4, dtype=np.uint64)).astype(np.uint8) & 15
    letters = np.empty((len(numbers), 20), dtype=np.uint8)
    letters[:, :4] = np.frombuffer(b"evt-", dtype=np.uint8)
    letters[:, 4:] = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)[digits]
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * 20
    return pa.Array.from_buffers(pa.string(), len(numbers), [None, pa.py_buffer(offsets), pa.py_buffer(letters.tobytes())])


def hour(number: int, events: int, horizon: int, topic: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the events and time stamps of the records that are sent in an hour, (n,)."""
    draw = np.random.default_rng((seed, number))
    names = np.arange(number * events, (number + 1) * events)
    at = BEGIN + number * HOUR + draw.integers(0, HOUR, events)
    copies = draw.random(events) < 0.02
    again = np.minimum(at[copies] + draw.integers(1, 3 * HOUR, int(copies.sum())), BEGIN + (number + 3) * HOUR)
    if topic == TOPICS.events:
        return np.concatenate([names, names[copies]]), np.concatenate([at, again])
    lag = draw.exponential(HOUR, events).astype(np.int64)
    labelled = draw.random(events) < 0.7
    orphans = np.flatnonzero(labelled)[:: 200]
    names[orphans] += 1 << 40
    return names[labelled], np.minimum(at + lag, at + horizon + HOUR // 2)[labelled]


def fill(folder: Path, windows: int, events: int, horizon: int, seed: int = 4) -> None:
    """Write the sealed windows into `folder`/store, and their entries into `folder`/journal.db."""
    journal = Journal(f"sqlite:///{folder}/journal.db")
    history = History(journal, TASK).refresh()
    waiting: dict[str, list[tuple[np.ndarray, ...]]] = {topic: [] for topic in TOPICS.all[:2]}
    offsets = np.zeros((2, PARTITIONS), dtype=np.int64)
    for number in range(windows):
        files, rows, arrived = [], {}, {}
        for which, topic in enumerate(TOPICS.all[:2]):
            names, at = hour(number, events, horizon, topic, seed)
            draw = np.random.default_rng((seed, number, which))
            sent = at + draw.integers(0, 30_000, len(at))
            sent[draw.random(len(at)) < 0.01] += HOUR
            waiting[topic].append((names, at, sent))
            names, at, sent = (np.concatenate(column) for column in zip(*waiting[topic], strict=True))
            now = (sent < BEGIN + (number + 1) * HOUR) & (at < BEGIN + (number + 1) * HOUR)
            waiting[topic] = [(names[~now], at[~now], sent[~now])]
            order = np.flatnonzero(now)[np.argsort(sent[now], kind="stable")]
            for part in range(PARTITIONS):
                mine = order[names[order] % PARTITIONS == part]
                table = _table(topic, part, int(offsets[which, part]), names[mine], at[mine])
                offsets[which, part] += len(mine)
                files.append(_file(folder / "store", number, topic, part, table))
            rows[topic], arrived[topic] = len(order), (int(at[order].min()), int(at[order].max()))
        sealed = SealedWindow(_name(number), tuple(files), rows, 0, None, {}, arrived, "5e" * 32, pa.__version__, store.LAYOUT)
        history.refresh().extend(SEALED, sealed.body(), actor="bench", at=NOW)
    journal.close()


def _name(number: int) -> str:
    return window_id(POLICY.start + number * POLICY.every)


def _table(topic: str, part: int, offset: int, names: np.ndarray, at: np.ndarray) -> pa.Table:
    """Payload: of an event a float64, a float32 and an integer of 50 values; of a label one bit as an integer."""
    ids, draw = ids_of(names), np.random.default_rng((part, offset))
    columns: dict[str, Any] = {
        "_partition": pa.array(np.full(len(names), part, dtype=np.int32)),
        "_offset": pa.array(np.arange(offset, offset + len(names))),
        "_timestamp": pa.array(at).cast(MILLISECONDS),
        "_key": ids.cast(pa.binary()),
        "event_id": ids,
    }
    if topic == TOPICS.events:
        columns |= {"amount": pa.array(draw.normal(size=len(names))), "score": pa.array(draw.random(len(names), np.float32))}
        columns["shop"] = pa.array(draw.integers(0, 50, len(names)))
    else:
        columns["outcome"] = pa.array((names % 7 == 0).astype(np.int64))
    table = pa.table(columns)
    return table.cast(pa.schema([field.with_nullable(field.name == "_key") for field in table.schema]))


def _file(root: Path, number: int, topic: str, part: int, table: pa.Table) -> SealedFile:
    path = f"{store.window_folder(TASK, _name(number))}/{topic}-{part}.parquet"
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    with store.RowGroups(root / path, table.schema) as writer:
        writer.add(table)
    return SealedFile(path, topic, part, writer.sha256, table.num_rows)
