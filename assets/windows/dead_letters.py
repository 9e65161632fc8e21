"""Dead letters: the rejected records of a sealed window, copied to `<topic>.dlq` for whoever can correct them.

Headers carry the names Kafka Connect gives them (DeadLetterQueueReporter), so that tools for its dead letters read these.
At least once: a crash between copying and journalling copies again, and `__connect.errors.partition` with `.offset` says
which record it is. It knows the reject file of a window and the log; not why a record was rejected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from assets.stream.log import EventLog, Outgoing, RecordRefused, UnknownTopic, check_record
from assets.windows import store
from assets.windows.history import History
from assets.windows.seal import SealedWindow

PUBLISHED = "dead_letters.published"
SUFFIX = ".dlq"
MESSAGE_CHARACTERS = 500
_PREFIX = "__connect.errors."


def publish_once(
    history: History, log: EventLog, root: Path, sealed: SealedWindow, *, suffix: str = SUFFIX, now: datetime, actor: str
) -> Mapping[str, int]:
    """Publish the dead letters of a window unless the journal says that it was done; letters by topic.

    Journals `dead_letters.published` {window, topics: {topic.dlq: letters}}, nothing for a window without rejects.
    """
    known = history.refresh().find(PUBLISHED, sealed.window)
    if known is None and sealed.rejects_file is not None:
        topics = publish_dead_letters(log, root, sealed, suffix=suffix)
        known = history.once(PUBLISHED, {"window": sealed.window, "topics": topics}, actor=actor, at=now)
    return {} if known is None else dict(known.body["topics"])


def publish_dead_letters(log: EventLog, root: Path, sealed: SealedWindow, *, suffix: str = SUFFIX) -> dict[str, int]:
    """Copy every reject of the window to its topic + `suffix`, made with one partition when missing; letters by topic.

    root: the store. Key, value and time stamp stay as they were, with two exceptions: the log takes no record without
    both key and value, so its value becomes empty; and of a record that is too large with its headers only they go, the
    record stays in the reject file. Raises StoreDamaged, StreamUnreachable.
    """
    if not suffix:
        raise ValueError("suffix = '': the rejects would be read, and rejected, again; give one such as \".dlq\"")
    counts: dict[str, int] = {}
    if sealed.rejects_file is None:
        return counts
    rejects = store.table(store.get(root, sealed.rejects_file.path, sealed.rejects_file.sha256))
    for topic in sorted(rejects.column("_topic").unique().to_pylist()):
        chosen, target = rejects.filter(pc.equal(rejects.column("_topic"), topic)), topic + suffix
        try:
            log.partitions(target)
        except UnknownTopic:
            log.create_topic(target, 1)
        counts[target] = log.append(target, _letters(target, chosen, sealed.rejects_file.path))
    return counts


def _letters(target: str, rejects: Any, path: str) -> Iterator[Outgoing]:
    stamps = rejects.column("_timestamp").cast("int64").to_pylist()
    for row, timestamp in zip(rejects.drop_columns(["_timestamp"]).to_pylist(), stamps, strict=True):
        letter = Outgoing(row["key"], row["value"], timestamp, headers=_headers(row, row["error"]))
        if row["key"] is None and row["value"] is None:
            letter = replace(letter, value=b"")
        try:
            check_record(target, letter)
        except RecordRefused:
            note = f"too large for a dead letter, the record is in {path}: {row['error']}"
            letter = Outgoing(None, b"", timestamp, headers=_headers(row, note))
        yield letter


def _headers(row: Mapping[str, Any], message: str) -> tuple[tuple[str, bytes], ...]:
    named = {
        "topic": row["_topic"],
        "partition": row["_partition"],
        "offset": row["_offset"],
        "connector.name": "headgate",
        "task.id": 0,  # a number in Kafka Connect, where a connector has several tasks
        "stage": "VALUE_CONVERTER",
        "class.name": "headgate.seal",
        "exception.class.name": "headgate.Rejected",
        "exception.message": message[:MESSAGE_CHARACTERS],
    }
    return tuple((_PREFIX + name, str(value).encode()) for name, value in named.items())
