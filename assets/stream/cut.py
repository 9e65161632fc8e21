"""The cut: which offsets of each partition belong to a window, decided once and written to the journal.

`start` of a partition is its `end` in the cut before. That chain, not the time stamps, makes it exactly-once: clocks,
late and out-of-order records can move a record to a neighbouring window, never lose or double it. The decision is pure
(`decide_cut`); `cut` only carries it out. This file reads offsets, never records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from assets.stream.clock import (
    NotDue,
    WindowPolicy,
    check_due,
    next_window,
    parse_window,
    previous_window,
    window_at,
    window_bounds,
    window_id,
    window_index,
    windows_between,
    windows_from,
)
from assets.stream.history import CUT, SEALED, History
from assets.stream.log import EventLog, IdentityChanged, OffsetsGone, TopicBounds
from security.journal import Conflict, canonical, stamp, unstamp

__all__ = [
    "Cut",
    "CutRefused",
    "NotDue",
    "TopicCut",
    "Topics",
    "WindowPolicy",
    "check_identity",
    "cut",
    "decide_cut",
    "due",
    "find_cut",
    "next_due_window",
    "next_window",
    "parse_window",
    "previous_window",
    "window_at",
    "window_bounds",
    "window_id",
    "window_index",
    "windows_between",
    "windows_from",
]


class CutRefused(Exception):
    """The topics, or the window asked for, cannot give a cut that is exactly-once. Waiting does not help."""


@dataclass(frozen=True, slots=True)
class Topics:
    """The names of a task's topics."""

    events: str
    labels: str
    predictions: str

    @property
    def all(self) -> tuple[str, str, str]:
        return self.events, self.labels, self.predictions


@dataclass(frozen=True, slots=True)
class TopicCut:
    """The ranges of one topic: partition -> (start, end), end excluded."""

    topic_id: str
    timestamp_type: str
    partitions: Mapping[int, tuple[int, int]]


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
            topics[name] = TopicCut(topic["topic_id"], topic["timestamp_type"], dict(sorted(spans.items())))
        return cls(body["window"], unstamp(body["start"]), unstamp(body["end"]), body["cluster_id"], topics)

    def digest(self) -> str:
        """sha256 of the journalled form: what a sealed window says it is a function of."""
        return hashlib.sha256(canonical(self.body()).encode()).hexdigest()


# -- the decision, pure -----------------------------------------------------------------------------------------------


def decide_cut(
    previous: Cut | None, bounds: Mapping[str, TopicBounds], window: str, policy: WindowPolicy, topics: Topics
) -> Cut:
    """The cut of a window that is due, from the cut before it and what the log says (`bounds` asked at the window end).

    Raises NotDue while an open transaction holds records of the window back, CutRefused for a window that does not
    follow `previous` or a topic whose time stamps cannot be searched, IdentityChanged and OffsetsGone for another log.
    """
    start, end = window_bounds(policy, window)
    _check_follows(previous, window, start, policy)
    cut_topics = {}
    for name in topics.all:
        found = bounds[name]
        _check_timestamps(found, policy, stamped_by_stream=name != topics.predictions)
        before = None
        if previous is not None:
            check_identity(previous, found)
            before = previous.topics[name].partitions
        # The gateway stamps predictions by the wall, whatever the clock of the stream: all there is belongs to now.
        by_time = policy.clock == "wall" or name != topics.predictions
        spans = _spans(before, found, window, by_time=by_time)
        cut_topics[name] = TopicCut(found.topic_id, found.timestamp_type, spans)
    clusters = {found.cluster_id for found in bounds.values()}
    if len(clusters) != 1:
        raise CutRefused(f"window {window}: the topics lie in different clusters ({', '.join(sorted(clusters))})")
    return Cut(window, start, end, clusters.pop(), cut_topics)


def _check_follows(previous: Cut | None, window: str, start: datetime, policy: WindowPolicy) -> None:
    if previous is None and start != policy.start:
        first = window_id(policy.start)
        raise CutRefused(f"window {window} cannot be the first cut: start with {first} (window.start)")
    if previous is not None and previous.end != start:
        raise CutRefused(
            f"window {window} does not follow the last cut, {previous.window}, which ends {previous.end.isoformat()}: "
            "cut the windows between in order, and do not change window.every or window.start of a running task"
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
    before: Mapping[int, tuple[int, int]] | None, found: TopicBounds, window: str, *, by_time: bool
) -> dict[int, tuple[int, int]]:
    if missing := sorted(set(before or {}) - set(found.partitions)):
        raise IdentityChanged(
            f"topic {found.topic!r} has lost partition {missing[0]}: it had {len(before or {})}, now "
            f"{len(found.partitions)}; a topic never shrinks, so this is another one. Restore it, or start a new task"
        )
    spans = {}
    for part, here in sorted(found.partitions.items()):
        # A partition that was added later is read from its beginning; the first cut takes what retention has left.
        start = here.earliest if before is None else before[part][1] if part in before else 0
        if here.latest < start:
            raise OffsetsGone(
                f"{found.topic!r} partition {part} ends at offset {here.latest}, the last cut ended at {start}: the "
                "log was truncated or restored from an old copy; bring the lost records back, or start a new task"
            )
        searched = here.at_timestamp if by_time else None
        end = here.latest if searched is None else max(start, searched)
        if here.last_stable < end:
            raise NotDue(
                f"window {window} waits for an open transaction in {found.topic!r} partition {part}: offsets from "
                f"{here.last_stable} are not decided, the window ends at {end}"
            )
        spans[part] = (start, end)
    return spans


# -- carrying it out --------------------------------------------------------------------------------------------------


def _check_stamped(log: EventLog, decided: Cut, bounds: Mapping[str, TopicBounds], topics: Topics) -> None:
    """Under the stream's clock, refuse a topic written in transactions: their markers carry the broker's wall clock.

    A marker answers every search for an earlier time, so the cut would stand still in front of it for ever.
    """
    for name in (topics.events, topics.labels):
        for part, (start, end) in decided.topics[name].partitions.items():
            still = start == end == bounds[name].partitions[part].at_timestamp
            if still and not any(log.read(name, part, start, start + 1)):
                raise CutRefused(
                    f"window {decided.window}: {name!r} partition {part} offset {start} is a transaction's marker, "
                    "stamped by the broker's clock, and hides the records behind it from the search by time: write a "
                    'topic that is replayed with window.clock = "stream" without transactions'
                )


def find_cut(history: History, window: str) -> Cut | None:
    """The journalled cut of a window, as of the history's last refresh."""
    entry = history.find(CUT, window)
    return None if entry is None else Cut.of(entry.body)


def due(
    log: EventLog, policy: WindowPolicy, topics: Topics, window: str, *, now: datetime, ended: datetime | None
) -> None:
    """Return when the window may be cut, else raise NotDue. Asks the log only under the stream clock."""
    passed = False
    if policy.clock == "stream" and ended is None:
        ready = window_bounds(policy, window)[1] + policy.grace
        passed = all(_has_passed(log.bounds(topic, ready)) for topic in (topics.events, topics.labels))
    check_due(policy, window, now=now, passed=passed, ended=ended)


def _has_passed(found: TopicBounds) -> bool:
    return any(bounds.at_timestamp is not None for bounds in found.partitions.values())


def next_due_window(
    history: History, log: EventLog, policy: WindowPolicy, topics: Topics, *, now: datetime, kind: str = SEALED
) -> str | None:
    """The earliest window without an entry of `kind` (of the stream `window/<task>`) if it is due, else None.

    Drivers ask with the kind that means "finished" to them; the default is a sealed window.
    """
    history.refresh()
    window = next(name for name in windows_from(policy) if history.find(kind, name) is None)
    if history.find(CUT, window) is not None:
        return window
    try:
        due(log, policy, topics, window, now=now, ended=history.ended())
    except NotDue:
        return None
    return window


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
        due(log, policy, topics, window, now=now, ended=history.ended())
        end = window_bounds(policy, window)[1]
        bounds = {topic: log.bounds(topic, end) for topic in topics.all}
        decided = decide_cut(previous, bounds, window, policy, topics)
        if policy.clock == "stream":
            _check_stamped(log, decided, bounds, topics)
        try:
            history.extend(CUT, decided.body(), actor=actor, at=now)
        except Conflict:
            continue
        return decided
