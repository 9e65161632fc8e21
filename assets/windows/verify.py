"""Verifies a sealed window: its files against the journal, and the journal against the log as it is now.

The log is read again. Its fingerprint must be the one of the seal (the same units with the same checksums tile the same
offsets); deep, every record is decoded again and compared with the row in the file. Nothing is changed. It decides what
differs, not what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa

from assets.stream.formats import ValueFormat
from assets.stream.header_columns import PREFIX as HEADER
from assets.stream.log import EventLog, IdentityChanged, OffsetsGone, StreamUnreachable
from assets.windows import store
from assets.windows.clock import NotDue
from assets.windows.cut import Cut, check_identity, find_cut
from assets.windows.history import History
from assets.windows.join import find_examples
from assets.windows.proof import Proof, SealIncomplete
from assets.windows.seal import Gaps, SealedFile, SealedWindow, SealPolicy, accepted, find_sealed, make_window

# "gone": the log does not hold these offsets any more, so that nothing can be said. "unlike": sealed by another path or
# before 0.2, so that fingerprints cannot be compared; `deep` can.
State = Literal["same", "differs", "gone", "unlike", "unreachable"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at (a file, or a partition of the log), and how it compares."""

    place: str
    state: State
    detail: str


def verify(
    history: History, log: EventLog, root: Path, window: str, formats: Mapping[str, ValueFormat], *, deep: bool = False
) -> list[Finding]:
    """One finding for each file, then one for each partition of the log. Raises NotDue for a window not sealed."""
    decided, sealed = find_cut(history.refresh(), window), find_sealed(history, window)
    if decided is None or sealed is None:
        raise NotDue(f"window {window} is not sealed: there is nothing to verify")
    files = [_file(root, file.path, file.sha256, f"{file.rows} rows") for file in sealed.all_files()]
    if (joined := find_examples(history, window)) is not None:
        files += [_file(root, path, digest, "joined") for path, digest in joined.files().items()]
    try:
        for topic in decided.topics:
            check_identity(decided, log.bounds(topic, decided.end))
    except IdentityChanged as changed:
        return [*files, Finding("log", "differs", str(changed))]
    except StreamUnreachable as silent:
        return [*files, Finding("log", "unreachable", str(silent))]
    gaps = accepted(sealed)
    prints = [_fingerprint(log, decided, file, gaps) for file in sealed.files]
    if not deep or any(found.state == "gone" for found in prints):
        return [*files, *prints]
    return [*files, *prints, *_deep(log, root, decided, sealed, formats, gaps)]


def _file(root: Path, path: str, digest: str, what: str) -> Finding:
    try:
        store.check(root, path, digest)
    except store.StoreDamaged as damaged:
        return Finding(path, "differs", str(damaged))
    return Finding(path, "same", f"{what}, sha256 {digest[:16]}")


def _fingerprint(log: EventLog, decided: Cut, file: SealedFile, gaps: Gaps) -> Finding:
    topic, part = str(file.topic), int(file.partition or 0)
    start, end = decided.topics[topic].partitions[part]
    place = f"{topic} partition {part} [{start}, {end})"
    proof = Proof(topic, part, start, end)
    try:
        for _ in proof.read(log, gaps.get((topic, part), ())):
            pass
        found = proof.fingerprint()
    except OffsetsGone as gone:
        earliest = log.bounds(topic, decided.end).partitions[part].earliest
        if earliest > start:
            return Finding(place, "gone", f"the log begins at {earliest} now: retention has taken what was sealed long before")
        return Finding(place, "differs", str(gone))
    except SealIncomplete as incomplete:
        return Finding(place, "differs", str(incomplete))
    if found == file.fingerprint:
        return Finding(place, "same", f"{proof.records} records, {found[:24]}")
    if file.fingerprint.split(":")[0] != found.split(":")[0]:
        return Finding(place, "unlike", f"sealed as {file.fingerprint[:24] or 'nothing'}, read now as {found[:24]}")
    return Finding(
        place, "differs", f"fingerprint {found[:24]}, sealed as {file.fingerprint[:24]}: the log was written anew since then"
    )


def _deep(
    log: EventLog, root: Path, decided: Cut, sealed: SealedWindow, formats: Mapping[str, ValueFormat], gaps: Gaps
) -> Iterator[Finding]:
    """Seal again beside it, and compare file by file."""
    folder = str(Path(sealed.files[0].path).parent)
    with store.attempt(root, folder) as attempt:
        made, places = make_window(log, decided, folder, formats, SealPolicy(1.0), gaps, attempt)
        again = {file.path: file for file in made.all_files()}
        for file in sealed.all_files():
            found = again.pop(file.path, None)
            if found is None:
                yield Finding(f"{file.path} again", "differs", "the log gives no such file now")
            elif found.sha256 == file.sha256:
                yield Finding(f"{file.path} again", "same", f"{file.rows} rows, the same bytes")
            else:
                compared = _compare(root / file.path, places[file.path], f"{file.path} again")
                cause = _other_format(sealed, file, formats) if compared.state == "differs" else ""
                yield replace(compared, detail=compared.detail + cause)
        for path in again:
            yield Finding(f"{path} again", "differs", "the log gives this file now, and the journal has none")


def _compare(kept: Path, made: Path, place: str) -> Finding:
    """The rows of two files whose bytes differ: another pyarrow writes other bytes for the same rows."""
    if not kept.is_file():
        return Finding(place, "differs", f"{kept.name} is missing in the store")
    old, new = (store.table(path.read_bytes()) for path in (kept, made))
    if old.schema.names == new.schema.names and old.cast(new.schema).equals(new):
        return Finding(place, "same", f"{old.num_rows} rows, the same values in other bytes (another pyarrow or layout)")
    offsets = [set(table["_offset"].to_pylist()) for table in (old, new)]
    lost, more = sorted(offsets[0] - offsets[1]), sorted(offsets[1] - offsets[0])
    cause = _other_columns(old.schema.names, new.schema.names)
    if lost or more:
        return Finding(place, "differs", f"offsets only in the file: {lost[:3]}, only in the log: {more[:3]}{cause}")
    return Finding(place, "differs", f"columns that differ: {', '.join(_columns(old, new))}{cause}")


def _other_columns(old: list[str], new: list[str]) -> str:
    """The settings that gave a file other columns than it would have now; "" when it has the same."""
    headers = [[name.removeprefix(HEADER) for name in names if name.startswith(HEADER)] for names in (old, new)]
    if headers[0] != headers[1]:
        return f"; it was sealed with [stream] headers = {headers[0]}, now it is {headers[1]}"
    events = [any(name.startswith("_ce_") for name in names) for names in (old, new)]
    if events[0] != events[1]:
        return f"; it was sealed with [stream] cloudevents = {str(events[0]).lower()}, now it is {str(events[1]).lower()}"
    return "; the task's schema has other fields than at the seal" if old != new else ""


def _other_format(sealed: SealedWindow, file: SealedFile, formats: Mapping[str, ValueFormat]) -> str:
    """Only values with a schema's id leave ids in the journal, and rows of such values always do."""
    if file.topic is None or not file.rows:
        return ""
    old, new = "confluent" if sealed.schema_ids.get(file.topic) else "json", formats[file.topic].values
    return "" if old == new else f'; it was sealed with [stream] events_format or labels_format = "{old}", now it is "{new}"'


def _columns(old: pa.Table, new: pa.Table) -> list[str]:
    if old.schema.names != new.schema.names:
        return sorted(set(old.schema.names) ^ set(new.schema.names))
    return [name for name in old.schema.names if not old[name].equals(new[name])]
