"""The seal: the records of a cut as immutable Parquet files, one for each topic partition, and one for the rejected.

A pure function of the cut: the same bytes on every run, whatever the log's batches were and however many processes read
it. Files first, then the journal entry `window.sealed` with their hashes; a crash between the two is repaired by running
again. It knows the store and the journal; it does not know when a window is due, nor how events and labels belong
together. What happens to one partition is in part.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from assets.stream.formats import ValueFormat
from assets.stream.log import EventLog, OffsetsGone, StreamUnreachable, TopicBounds
from assets.windows import store
from assets.windows.clock import NotDue
from assets.windows.crew import seal_parts
from assets.windows.cut import Cut, check_identity, find_cut, rewritten
from assets.windows.gap import accepted_gaps
from assets.windows.history import SEALED, History
from assets.windows.part import CURE, REJECT_SCHEMA, PartJob, SealedPart, TooManyRejects, reasons
from security.disk import settle
from security.journal import Conflict

Gaps = Mapping[tuple[str, int], list[tuple[int, int]]]


class SealDiffers(Exception):
    """Sealing the window again gives other bytes than the journal names: the log or the schema has changed."""


@dataclass(frozen=True, slots=True)
class SealPolicy:
    """max_reject_share: more unreadable records of a topic fail the window. processes: see crew.seal_parts."""

    max_reject_share: float = 0.01
    processes: int = 0


@dataclass(frozen=True, slots=True)
class SealedFile:
    """A Parquet file of the store. `path` is relative to it; `topic` and `partition` are None in the reject file.

    fingerprint: of the part of the log it was made of (proof.py); "" in the reject file, and before 0.2.
    """

    path: str
    topic: str | None
    partition: int | None
    sha256: str
    rows: int
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class SealedWindow:
    """What `window.sealed` says.

    rows, rejects: records that are in the files, and those that are in the reject file. gaps: offsets of the cut that
    hold no record (markers of transactions, aborted records). accepted: [topic, partition, start, end] of offsets that
    were lost, and accepted as lost. arrived: the smallest and largest time stamp of a topic's rows, in ms since 1970;
    None without rows. schema_ids: by topic, of the writers' schemas in a registry. pyarrow, layout: with others, the
    same rows are other bytes.
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
    layout: int = 1
    accepted: tuple[tuple[str, int, int, int], ...] = ()
    schema_ids: Mapping[str, list[int]] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """As it is journalled."""
        rejected = self.rejects_file
        return {
            "window": self.window,
            "files": [
                {
                    "path": f.path, "topic": f.topic, "partition": f.partition, "sha256": f.sha256, "rows": f.rows,
                    "fingerprint": f.fingerprint,
                }
                for f in self.files
            ],
            "rows": dict(self.rows),
            "rejects": self.rejects,
            "rejects_file": rejected and {"path": rejected.path, "sha256": rejected.sha256, "rows": rejected.rows},
            "gaps": dict(self.gaps),
            "arrived": {topic: span and list(span) for topic, span in self.arrived.items()},
            "cut_hash": self.cut_hash,
            "pyarrow": self.pyarrow,
            "layout": self.layout,
            "accepted": [list(gap) for gap in self.accepted],
            "schema_ids": dict(self.schema_ids),
        }  # fmt: skip

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> SealedWindow:
        """The inverse of `body`; one written before 0.2 lacks the last three."""
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
            layout=body.get("layout", 1),
            accepted=tuple((gap[0], gap[1], gap[2], gap[3]) for gap in body.get("accepted", ())),
            schema_ids=body.get("schema_ids", {}),
        )

    def files_of(self, topic: str) -> list[SealedFile]:
        """The files of one topic, by partition. Raises KeyError with the topics there are."""
        files = [file for file in self.files if file.topic == topic]
        if not files:
            raise KeyError(f"window {self.window} has no topic {topic!r}: its topics are {', '.join(self.rows)}")
        return files

    def all_files(self) -> list[SealedFile]:
        """Every file of the window, the reject file included."""
        return [*self.files, *([self.rejects_file] if self.rejects_file else [])]


def find_sealed(history: History, window: str) -> SealedWindow | None:
    """The journalled seal of a window, as of the history's last refresh."""
    entry = history.find(SEALED, window)
    return None if entry is None else SealedWindow.of(entry.body)


def seal(
    history: History,
    log: EventLog,
    root: Path,
    window: str,
    formats: Mapping[str, ValueFormat],
    *,
    policy: SealPolicy,
    now: datetime,
    actor: str,
) -> SealedWindow:
    """Seal a window that is cut; one that is sealed is checked against its hashes and returned.

    root: the store. formats: topic -> how its values are read. now: the wall clock. Accepted gaps are left out and named.
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
    gaps = accepted_gaps(history, window)
    if known is not None:
        policy = SealPolicy(1.0, policy.processes)  # what was accepted once is only made again
        gaps = accepted(known)
    folder = store.window_folder(history.task, window)
    with store.attempt(root, folder) as attempt:
        made, files = make_window(log, decided, folder, formats, policy, gaps, attempt)
        with store.locked(root / folder):  # two that seal it: the second must not write over what the first has promised
            _check_still(history, made, gaps)
            for path, file in files.items():
                store.publish(file, root, path)
            settle(root / folder)
            return _enter(history, made, gaps, actor=actor, now=now)


def _check_still(history: History, made: SealedWindow, gaps: Gaps) -> bool:
    """Whether the window is sealed by now; if it is, what was made must be the same, else its gaps must be."""
    known = find_sealed(history.refresh(), made.window)
    if known is not None:
        _check_same(known, made)
    elif accepted_gaps(history, made.window) != gaps:
        raise NotDue(f"a gap of window {made.window} was accepted while it was sealed: run it again")
    return known is not None


def _enter(history: History, made: SealedWindow, gaps: Gaps, *, actor: str, now: datetime) -> SealedWindow:
    """Journal it, unless it is; who accepts a gap in this moment writes to the same stream, and one of both is refused."""
    while not _check_still(history, made, gaps):
        with suppress(Conflict):
            history.extend(SEALED, made.body(), actor=actor, at=now)
    return made


def verify_sealed(root: Path, sealed: SealedWindow) -> None:
    """Raises StoreDamaged when a file of the window is missing or has other bytes than were journalled."""
    for file in sealed.all_files():
        store.check(root, file.path, file.sha256)


def read_sealed(root: Path, sealed: SealedWindow, topic: str, columns: list[str] | None = None) -> pa.Table:
    """The rows of one topic, by partition and offset: the envelope columns, then the schema's. Raises StoreDamaged."""
    files = sealed.files_of(topic)
    return pa.concat_tables(store.table(store.get(root, file.path, file.sha256), columns) for file in files)


def accepted(sealed: SealedWindow) -> Gaps:
    """The gaps of a sealed window, as `seal` takes them."""
    found = defaultdict(list)
    for topic, part, start, end in sealed.accepted:
        found[topic, part].append((start, end))
    return found


def _check_same(known: SealedWindow, made: SealedWindow) -> None:
    hashes = {file.path: file for file in made.all_files()}
    for file in known.all_files():
        found = hashes.pop(file.path, None)
        if found is None or found.sha256 != file.sha256:
            raise SealDiffers(
                f"window {known.window}: sealed again, {file.path} has sha256 "
                f"{found.sha256[:16] if found else 'no such file'}, the journal says {file.sha256[:16]}: "
                f"{_why(known, made, file, found)}. A sealed window never changes: bring the old schema, log or file back"
            )
    if hashes:
        extra = min(hashes)
        raise SealDiffers(f"window {known.window}: sealed again, it has {extra}, which the journal does not name")


def _why(known: SealedWindow, made: SealedWindow, file: SealedFile, found: SealedFile | None) -> str:
    """What the fingerprint and the versions say about a difference."""
    prints = (file.fingerprint, found.fingerprint if found else "")
    if all(prints) and prints[0].split(":")[0] == prints[1].split(":")[0] and prints[0] != prints[1]:
        return "the log was rewritten (another fingerprint for the same offsets)"
    versions = ((known.pyarrow, known.layout), (made.pyarrow, made.layout))
    if versions[0] != versions[1]:
        return f"written by pyarrow {known.pyarrow} layout {known.layout}, now {made.pyarrow} layout {made.layout}"
    return "the log was rewritten, or the task's schema changed"


# -- making it: no journal ---------------------------------------------------------------------------------------------


def make_window(
    log: EventLog,
    decided: Cut,
    folder: str,
    formats: Mapping[str, ValueFormat],
    policy: SealPolicy,
    gaps: Gaps,
    attempt: Path,
) -> tuple[SealedWindow, dict[str, Path]]:
    """The sealed window, and its files: path in the store -> where the file was made, inside `attempt`."""
    jobs = _jobs(decided, formats, policy, gaps, attempt)
    epochs = {topic: _epochs(log.bounds(topic, decided.end)) for topic in decided.topics}
    try:
        parts = seal_parts(log, jobs, policy.processes)
    except OffsetsGone:  # of another topic, any offset may be gone
        _check_identity(log, decided, {})
        raise
    _check_identity(log, decided, epochs)
    rows, files, made = defaultdict[str, int](int), [], dict[str, Path]()
    for job, part in zip(jobs, parts, strict=True):
        path = f"{folder}/{part.topic}-{part.partition}.parquet"
        made[path] = job.file
        files.append(SealedFile(path, part.topic, part.partition, part.sha256, part.rows, part.fingerprint))
        rows[part.topic] += part.rows
    rejects = pa.concat_tables(part.rejects for part in parts)
    _check_share(decided.window, rows, parts, policy.max_reject_share)
    rejects_file = None
    if rejects.num_rows:
        path = f"{folder}/rejects.parquet"
        made[path] = attempt / "rejects.parquet"
        with store.RowGroups(made[path], REJECT_SCHEMA) as writer:
            writer.add(rejects)
        rejects_file = SealedFile(path, None, None, writer.sha256, rejects.num_rows)
    sealed = SealedWindow(
        window=decided.window,
        files=tuple(files),
        rows=dict(rows),
        rejects=rejects.num_rows,
        rejects_file=rejects_file,
        gaps={topic: sum(part.empty for part in parts if part.topic == topic) for topic in decided.topics},
        arrived={topic: _arrived(parts, topic) for topic in decided.topics},
        cut_hash=decided.digest(),
        pyarrow=pa.__version__,
        layout=store.LAYOUT,
        accepted=tuple((job.topic, job.partition, *gap) for job in jobs for gap in job.gaps),
        schema_ids=_schema_ids(parts),
    )
    return sealed, made


def _jobs(
    decided: Cut, formats: Mapping[str, ValueFormat], policy: SealPolicy, gaps: Gaps, attempt: Path
) -> list[PartJob]:
    jobs = []
    for number, (name, topic) in enumerate(decided.topics.items()):
        offsets = sum(end - start for start, end in topic.partitions.values())
        most = policy.max_reject_share * offsets
        for part, (start, end) in topic.partitions.items():
            holes, file = tuple(gaps.get((name, part), ())), attempt / f"{number}-{part}"
            jobs.append(PartJob(name, part, start, end, holes, formats[name], file, most))
    return jobs


def _check_identity(log: EventLog, decided: Cut, epochs: Mapping[str, Mapping[int, int]]) -> None:
    """It is still the log that was cut, and it was not truncated and written anew since those epochs."""
    for name, topic in decided.topics.items():
        bounds = log.bounds(name, decided.end)
        check_identity(decided, bounds)
        ends = {part: end for part, (_, end) in topic.partitions.items()}
        for part, offset in rewritten(log, epochs.get(name, {}), bounds, ends).items():
            raise StreamUnreachable(
                f"{name!r} partition {part} was truncated at offset {offset} while window {decided.window} was read: what was "
                "read may be from before and after, nothing was sealed; run the window again"
            )


def _epochs(bounds: TopicBounds) -> dict[int, int]:
    return {part: here.epoch for part, here in bounds.partitions.items() if here.epoch is not None}


def _check_share(window: str, rows: Mapping[str, int], parts: Sequence[SealedPart], limit: float) -> None:
    """By topic: a topic of rare labels that are all poison must not hide behind the many good events."""
    for topic, good in rows.items():
        poison = pa.concat_tables(part.rejects for part in parts if part.topic == topic)
        share = poison.num_rows / max(1, good + poison.num_rows)
        if share > limit:
            raise TooManyRejects(
                f"window {window}: {poison.num_rows} of {good + poison.num_rows} records of topic {topic!r} were rejected, "
                f"share {share:.4f} > max_reject_share {limit:g}; nothing was sealed. First: {reasons(poison)}. {CURE}"
            )


def _arrived(parts: Sequence[SealedPart], topic: str) -> tuple[int, int] | None:
    spans = [part.arrived for part in parts if part.topic == topic and part.arrived is not None]
    return (min(span[0] for span in spans), max(span[1] for span in spans)) if spans else None


def _schema_ids(parts: Sequence[SealedPart]) -> dict[str, list[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for part in parts:
        found[part.topic].update(part.schema_ids)
    return {topic: sorted(ids) for topic, ids in found.items() if ids}
