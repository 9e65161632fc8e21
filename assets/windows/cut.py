"""The cut: which offsets of each partition belong to a window, decided once and written to the journal.

`start` of a partition is its `end` in the cut before. That chain, not the time stamps, makes it exactly-once: clocks,
late and out-of-order records can move a record to a neighbouring window, never lose or double it. That holds for every
clock: where this machine's runs ahead, or the broker's steps back, a window is cut too early or its search stops too
early, and what it leaves out is in the next one. Only after a truncation that a person has accepted (gap.py) does a
partition go on from somewhere else. The decision is pure (`decide_cut`); `cut` only carries it out. This file reads
offsets; records only to see what a search by time has found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from statistics import median
from typing import Any

from assets.stream.log import EventLog, IdentityChanged, OffsetsGone, Record, TopicBounds, Topics, UnknownTopic, milliseconds
from assets.windows.clock import NotDue, WindowPolicy, check_due, window_bounds, window_id
from assets.windows.history import CUT, GAP, SEALED, History
from models.duration import spell
from monitoring.alarms import raise_alarm
from security.journal import Conflict, Entry, canonical, stamp, unstamp

# Kafka's own transaction.max.timeout.ms: no producer may keep a transaction open for longer, one that does hangs.
LONGEST_TRANSACTION = timedelta(minutes=15)
# A record this many windows ahead of most of the (up to 100) behind it carries a wrong clock, it is not a quiet time.
AHEAD_WINDOWS, LOOKED_AT, LEAST_BEHIND = 100, 100, 10


class CutRefused(Exception):
    """The topics, or the window asked for, cannot give a cut that is exactly-once. Waiting does not help."""


class HeldBack(NotDue):
    """An open transaction: its records are neither in the log nor out of it yet. `place`: topic and partition."""

    def __init__(self, reason: str, place: tuple[str, int]) -> None:
        super().__init__(reason)
        self.place = place


@dataclass(frozen=True, slots=True)
class TopicCut:
    """The ranges of one topic: partition -> (start, end), end excluded; and the leader's epoch then, where there is one."""

    topic_id: str
    timestamp_type: str
    partitions: Mapping[int, tuple[int, int]]
    epochs: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cut:
    """The decided ranges of one window [start, end), for all topics of the task."""

    window: str
    start: datetime
    end: datetime
    cluster_id: str
    topics: Mapping[str, TopicCut]

    def body(self) -> dict[str, Any]:
        """As it is journalled."""
        return {
            "window": self.window,
            "start": stamp(self.start),
            "end": stamp(self.end),
            "cluster_id": self.cluster_id,
            "topics": {
                name: {
                    "topic_id": topic.topic_id,
                    "timestamp_type": topic.timestamp_type,
                    "partitions": {str(part): list(span) for part, span in sorted(topic.partitions.items())},
                    **({"epochs": {str(part): epoch for part, epoch in sorted(topic.epochs.items())}} if topic.epochs else {}),
                }
                for name, topic in self.topics.items()
            },
        }

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Cut:
        """The inverse of `body`."""
        topics = {}
        for name, topic in body["topics"].items():
            spans = {int(part): (int(span[0]), int(span[1])) for part, span in topic["partitions"].items()}
            epochs = {int(part): int(epoch) for part, epoch in topic.get("epochs", {}).items()}
            topics[name] = TopicCut(topic["topic_id"], topic["timestamp_type"], dict(sorted(spans.items())), epochs)
        return cls(body["window"], unstamp(body["start"]), unstamp(body["end"]), body["cluster_id"], topics)

    def digest(self) -> str:
        """sha256 of the journalled form: what a sealed window says it is a function of."""
        return hashlib.sha256(canonical(self.body()).encode()).hexdigest()


# -- the decision, pure -----------------------------------------------------------------------------------------------


def decide_cut(
    previous: Cut | None,
    bounds: Mapping[str, TopicBounds],
    window: str,
    policy: WindowPolicy,
    topics: Topics,
    resumed: Mapping[tuple[str, int], int] | None = None,
) -> Cut:
    """The cut of a window that is due, from the cut before it and what the log says (`bounds` asked at the window end).

    resumed: (topic, partition) -> where it begins instead of at the last end, after an accepted truncation.
    Raises HeldBack while an open transaction holds records of the window back, CutRefused for a window that does not
    follow `previous` or a topic whose time stamps cannot be searched, IdentityChanged and OffsetsGone for another log.
    """
    start, end = window_bounds(policy, window)
    _check_follows(previous, window, start, policy)
    cut_topics = {}
    for name in topics.all:
        found = bounds[name]
        _check_timestamps(found, policy, stamped_by_stream=name != topics.predictions)
        begins = None
        if previous is not None:
            check_identity(previous, found)
            ended = previous.topics[name].partitions
            begins = {part: (resumed or {}).get((name, part), end) for part, (_, end) in ended.items()}
        # The gateway stamps predictions by the wall, whatever the clock of the stream: all there is belongs to now.
        by_time = policy.clock == "wall" or name != topics.predictions
        spans = _spans(begins, found, window, by_time=by_time)
        epochs = {part: here.epoch for part, here in sorted(found.partitions.items()) if here.epoch is not None}
        cut_topics[name] = TopicCut(found.topic_id, found.timestamp_type, spans, epochs)
    clusters = {found.cluster_id for found in bounds.values()}
    if len(clusters) != 1:
        raise CutRefused(f"window {window}: the topics lie in different clusters ({', '.join(sorted(clusters))})")
    return Cut(window, start, end, clusters.pop(), cut_topics)


def _check_follows(previous: Cut | None, window: str, start: datetime, policy: WindowPolicy) -> None:
    if previous is None and start != policy.start:
        first = window_id(policy.start)
        raise CutRefused(f"window {window} cannot be the first cut: start with {first} (window.start)")
    if previous is not None and previous.end - previous.start != policy.every:
        raise CutRefused(
            f'window.every = "{spell(policy.every)}", but window {previous.window} was cut with '
            f'"{spell(previous.end - previous.start)}": a running task keeps it; write that, or start a new task'
        )
    if previous is not None and previous.end != start:
        raise CutRefused(
            f"window {window} does not follow the last cut, {previous.window}, which ends {previous.end.isoformat()}: "
            "cut the windows between in order, and do not change window.start of a running task"
        )


def _check_timestamps(found: TopicBounds, policy: WindowPolicy, *, stamped_by_stream: bool) -> None:
    """A search by time is as good as the stamps: one record from a fast clock would answer every search of its day."""
    grace_ms = round(policy.grace.total_seconds() * 1000)
    appended = found.timestamp_type == "LogAppendTime"
    if policy.clock == "stream":
        if appended and stamped_by_stream:
            raise CutRefused(
                f"topic {found.topic!r} has message.timestamp.type=LogAppendTime, but the stream's times are needed by "
                'window.clock = "stream": use a topic with CreateTime, or window.clock = "wall"'
            )
    elif not appended and (found.after_max_ms is None or found.after_max_ms > grace_ms):
        limit = "no limit" if found.after_max_ms is None else f"{found.after_max_ms} ms"
        raise CutRefused(
            f"topic {found.topic!r} has message.timestamp.type=CreateTime and message.timestamp.after.max.ms = {limit} "
            f"> window.grace = {grace_ms} ms: set message.timestamp.type=LogAppendTime, or "
            f'message.timestamp.after.max.ms={grace_ms}, on the topic; for a replay write window.clock = "stream"'
        )


def check_identity(decided: Cut, found: TopicBounds) -> None:
    """Raises IdentityChanged when a topic or the cluster is not the one the cut was decided on."""
    wanted = decided.topics.get(found.topic)
    if wanted is None:
        raise IdentityChanged(
            f"topic {found.topic!r} is not in the cut of {decided.window} (its topics: {', '.join(decided.topics)}): "
            "the names under [stream] were changed; a task keeps its topics, start a new task for others"
        )
    for what, old, new in (
        ("cluster", decided.cluster_id, found.cluster_id),
        ("topic id", wanted.topic_id, found.topic_id),
    ):
        if old != new:
            raise IdentityChanged(
                f"topic {found.topic!r}: window {decided.window} was cut on {what} {old}, now it is {new}: offsets of "
                "one mean nothing in the other. Restore the old one, or start a new task"
            )


def _spans(
    begins: Mapping[int, int] | None, found: TopicBounds, window: str, *, by_time: bool
) -> dict[int, tuple[int, int]]:
    if missing := sorted(set(begins or {}) - set(found.partitions)):
        raise IdentityChanged(
            f"topic {found.topic!r} has lost partition {missing[0]}: it had {len(begins or {})}, now "
            f"{len(found.partitions)}; a topic never shrinks, so this is another one. Restore it, or start a new task"
        )
    spans = {}
    for part, here in sorted(found.partitions.items()):
        # A partition that was added later is read from its beginning; the first cut takes what retention has left.
        start = here.earliest if begins is None else begins.get(part, 0)
        if here.latest < start:
            raise OffsetsGone(
                f"{found.topic!r} partition {part} ends at offset {here.latest}, the last cut ended at {start}: the "
                "log was truncated or restored from an old copy; bring the lost records back, or go on without them: "
                f"`headgate window accept-gap {window} --topic {found.topic} --partition {part} --reason ...`"
            )
        # Asked of all records, also undecided ones: among the decided only, a search that ends in an open transaction
        # would find nothing, and the window would take in what belongs to the next.
        searched = here.at_timestamp if by_time else None
        end = here.latest if searched is None else max(start, searched)
        if here.last_stable < end:
            raise HeldBack(
                f"window {window} waits for an open transaction in {found.topic!r} partition {part}: offsets from "
                f"{here.last_stable} are not decided, the window ends at {end}",
                (found.topic, part),
            )
        spans[part] = (start, end)
    return spans


# -- carrying it out --------------------------------------------------------------------------------------------------


def _check_standing(log: EventLog, decided: Cut, bounds: Mapping[str, TopicBounds], topics: Topics) -> None:
    """Under the stream's clock, look at the record a cut stands still in front of: it answers every search up to its time.

    A transaction's marker carries the broker's wall clock, and so may the record of a producer that forgot to give it a
    time: the windows until then would be cut empty, and what lies behind it would wait for years.
    """
    for name in (topics.events, topics.labels):
        for part, (start, end) in decided.topics[name].partitions.items():
            here = bounds[name].partitions[part]
            if not start == end == here.at_timestamp or end >= here.last_stable:  # undecided, so no marker
                continue
            until = min(start + LOOKED_AT + 1, here.last_stable)
            found = list(islice((record for batch in log.read(name, part, start, until) for record in batch), LOOKED_AT))
            _check_record(decided, name, part, start, found)


def _check_record(decided: Cut, name: str, part: int, start: int, found: list[Record]) -> None:
    place = f"window {decided.window}: {name!r} partition {part} offset {start}"
    if not found or found[0].offset != start:
        raise CutRefused(
            f"{place} is a transaction's marker, or what it undid: stamped by the broker's clock, it hides the records behind "
            'it from the search by time. Write a topic that is replayed with window.clock = "stream" without transactions'
        )
    end, far = milliseconds(decided.end), AHEAD_WINDOWS * (decided.end - decided.start)
    stamped, behind = found[0].timestamp, [record.timestamp for record in found[1:]]
    if stamped - end >= far / timedelta(milliseconds=1) and len(behind) >= LEAST_BEHIND and median(behind) < end:
        raise CutRefused(
            f"{place} is stamped {stamped} ms, {(stamped - end) / 1000:.0f} s after the end of this window, and most of the "
            f"{len(behind)} records behind it are of this window or older: its clock is wrong, and it would hold back all "
            "that is behind it. Publish the stream again to a new topic without it, and start a new task"
        )


def epochs_of(history: History, last: Cut, topic: str) -> dict[int, int]:
    """Partition -> the leader's epoch at the last cut, or when a gap was accepted since."""
    found = dict(last.topics[topic].epochs)
    for (name, part), entry in _resuming(history).items():
        if name == topic:
            found.pop(part, None)
            if entry.body.get("epoch") is not None:
                found[part] = entry.body["epoch"]
    return found


def rewritten(log: EventLog, epochs: Mapping[int, int], found: TopicBounds, begins: Mapping[int, int]) -> dict[int, int]:
    """Partition -> up to which offset it is as it was in that epoch, for those that were truncated below `begins` since.

    A truncated log that has grown again looks whole; only a new leader can truncate, so only where there was one it is asked.
    """
    moved = {part: epoch for part, epoch in epochs.items() if part in begins and found.partitions[part].epoch != epoch}
    kept = log.kept(found.topic, moved) if moved else {}
    return {part: offset for part, offset in kept.items() if 0 <= offset < begins[part]}  # -1: it does not know


def _check_kept(history: History, log: EventLog, last: Cut, bounds: Mapping[str, TopicBounds]) -> None:
    goes_on = resumed(history)
    for name, found in bounds.items():
        spans = last.topics[name].partitions
        begins = {part: goes_on.get((name, part), end) for part, (_, end) in spans.items() if part in found.partitions}
        for part, offset in rewritten(log, epochs_of(history, last, name), found, begins).items():
            raise OffsetsGone(
                f"{name!r} partition {part} was truncated at offset {offset} and written again, the next cut would begin at "
                f"{begins[part]}: what was there is lost, what is there now is in no window; go on from there: `headgate "
                f"window accept-gap {window_id(last.end)} --topic {name} --partition {part} --reason ...`"
            )


def find_cut(history: History, window: str) -> Cut | None:
    """The journalled cut of a window, as of the history's last refresh."""
    entry = history.find(CUT, window)
    return None if entry is None else Cut.of(entry.body)


def due(history: History, log: EventLog, policy: WindowPolicy, topics: Topics, window: str, *, now: datetime) -> None:
    """Return when the window may be cut, else raise NotDue. Asks the log only under the stream clock.

    One record with a wrong time in one topic makes nothing due: both topics must have passed. Raises IdentityChanged for
    topics other than those of the last cut: new ones that are empty would be waited for in vain.
    """
    passed, ended = False, history.ended()
    if policy.clock == "stream" and ended is None:
        ready = window_bounds(policy, window)[1] + policy.grace
        found = [log.bounds(topic, ready) for topic in (topics.events, topics.labels)]
        passed = all(any(here.at_timestamp is not None for here in each.partitions.values()) for each in found)
        if not passed and (last := history.last(CUT)) is not None:
            for bounds in found:
                check_identity(Cut.of(last.body), bounds)
    check_due(policy, window, now=now, passed=passed, ended=ended)


def next_due_window(
    history: History, log: EventLog, policy: WindowPolicy, topics: Topics, *, now: datetime, kind: str = SEALED
) -> str | None:
    """The earliest window without an entry of `kind` (of the stream `window/<task>`) if it is due, else None.

    Drivers ask with the kind that means "finished" to them; the default is a sealed window.
    """
    window = history.refresh().first_without(kind, policy)
    if history.find(CUT, window) is not None:
        return window
    try:
        due(history, log, policy, topics, window, now=now)
    except NotDue:
        return None
    except (IdentityChanged, UnknownTopic):
        return window  # waiting does not help: who runs it meets it again, and tells
    return window


def resumed(history: History) -> dict[tuple[str, int], int]:
    """(topic, partition) -> where the next cut begins, after truncations accepted since the last; as of the last refresh.

    The newest counts where there were several; it is the lowest, because a log that ends behind it was not truncated.
    """
    return {place: entry.body["resume_at"] for place, entry in _resuming(history).items()}


def _resuming(history: History) -> dict[tuple[str, int], Entry]:
    last = history.last(CUT)
    found: dict[tuple[str, int], Entry] = {}
    for entry in reversed(history.entries(GAP)):
        if last is not None and entry.stream_seq < last.stream_seq:
            break
        if entry.body["resume_at"] is not None:
            found.setdefault((entry.body["topic"], entry.body["partition"]), entry)
    return found


def cut(
    history: History, log: EventLog, policy: WindowPolicy, topics: Topics, window: str, *, now: datetime, actor: str
) -> Cut:
    """The cut of a window: the journalled one, else decided now. `now` is the wall clock.

    Two that race make one cut: the journal takes the first, the other reads it. Raises as `decide_cut`, and NotDue.
    """
    while True:
        found = find_cut(history.refresh(), window)
        if found is not None:
            return found
        last = history.last(CUT)
        previous = None if last is None else Cut.of(last.body)
        _check_follows(previous, window, window_bounds(policy, window)[0], policy)
        due(history, log, policy, topics, window, now=now)
        end = window_bounds(policy, window)[1]
        bounds = {topic: log.bounds(topic, end) for topic in topics.all}
        goes_on = resumed(history)
        try:
            decided = decide_cut(previous, bounds, window, policy, topics, goes_on)
        except HeldBack as held:
            who = "; ".join(log.open_transactions(*held.place)) or "by whom, the log does not say"
            told = HeldBack(f"{held} ({who})", held.place)
            _tell(history, policy, window, told, now=now, actor=actor)
            raise told from held
        if previous is not None:
            _check_kept(history, log, previous, bounds)
        if policy.clock == "stream":
            _check_standing(log, decided, bounds, topics)
        try:
            history.extend(CUT, decided.body(), actor=actor, at=now)
        except Conflict:
            continue
        return decided


def _tell(history: History, policy: WindowPolicy, window: str, held: HeldBack, *, now: datetime, actor: str) -> None:
    """An alarm once a transaction holds a window back for longer than any may last. A replay has no such hour."""
    late = now - window_bounds(policy, window)[1] - policy.grace
    if policy.clock == "wall" and late > LONGEST_TRANSACTION:
        raise_alarm(
            history.journal, history.task, kind="open_transaction", window=window, message=f"{held}; late by {late}",
            figure=late.total_seconds(), limit=LONGEST_TRANSACTION.total_seconds(), at=now, actor=actor,
        )  # fmt: skip
