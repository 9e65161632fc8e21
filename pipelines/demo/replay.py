"""Plays the recorded flights into the event log: each event at its scheduled departure, each label at its arrival.

The time stamps of the records are the true times of 2013, and each topic is written in the order of time. What was
published is counted, so that a reader at the other end of the loop can say what was lost or doubled. A fault can be put
in: labels that arrive in a given stretch carry the delay with the wrong sign, as an error in a source system would
make them; the feature system upstream has its own feed and keeps the truth.

It computes no feature and does not know what anybody does with the records.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from assets.stream.log import EventLog, Outgoing
from pipelines.demo import event
from pipelines.demo.prepared import prepare
from pipelines.demo.source import NEVER


class TopicNotFresh(Exception):
    """The replay would be appended to records that are already there."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Where the replay writes. Both topics are made with CreateTime and endless retention."""

    events: str = "flights"
    labels: str = "arrivals"
    partitions: int = 3


@dataclass(frozen=True, slots=True)
class Published:
    """Numbers of records."""

    events: int = 0
    labels: int = 0

    def __add__(self, other: Published) -> Published:
        return Published(self.events + other.events, self.labels + other.labels)


class Replayer:
    """Publishes the flights scheduled in [start, end), up to any moment, oldest first.

    wrong_labels: labels that arrive in [first, second) have the sign of `arr_delay` flipped. cache: a folder for the
    prepared columns. Raises TopicNotFresh when a topic holds, or has ever held, a record.
    """

    def __init__(
        self,
        log: EventLog,
        topics: Topics,
        *,
        start: datetime,
        end: datetime,
        wrong_labels: tuple[datetime, datetime] | None = None,
        cache: Path | None = None,
    ) -> None:
        self._log, self._topics = log, topics
        for topic in (topics.events, topics.labels):
            log.create_topic(topic, topics.partitions, timestamp_type="CreateTime", retention_ms=-1)
            _refuse_used(log, topic, start)
        flights = prepare(start, end, cache)
        self._ids = flights.columns["event_id"]
        self._scheduled, self._arrival = flights.scheduled, flights.arrival
        # Labels in the order of arrival: the rows of the flights that arrive at all.
        self._arrivals = np.lexsort((self._ids, self._arrival))[: int((self._arrival < NEVER).sum())]
        self._events_json = list(event.documents(flights.columns, event.EVENT))
        self._delay = _delays(flights.arr_delay, self._arrival, wrong_labels)
        self._next = Published()

    @property
    def totals(self) -> Published:
        """Everything published so far."""
        return self._next

    @property
    def remaining(self) -> Published:
        """What has not been published yet."""
        return Published(len(self._ids) - self._next.events, len(self._arrivals) - self._next.labels)

    def publish_until(self, moment: datetime) -> Published:
        """Publish every record with a time stamp before `moment` that is not out yet; how many that were.

        Labels that arrive after the end of the stretch are published when asked until then (the last label of the year
        lags 32.7 hours). A moment before an earlier one publishes nothing.
        """
        until = int(moment.timestamp())
        last_event = max(self._next.events, int(np.searchsorted(self._scheduled, until, "left")))
        arrived = self._arrival[self._arrivals]
        last_label = max(self._next.labels, int(np.searchsorted(arrived, until, "left")))
        done = Published(
            self._log.append(self._topics.events, self._event_records(self._next.events, last_event)),
            self._log.append(self._topics.labels, self._label_records(self._next.labels, last_label)),
        )
        self._next += done
        return done

    def published_events(self, start: datetime, end: datetime) -> frozenset[str]:
        """Ids of the published events that were scheduled in [start, end)."""
        return frozenset(self._ids[self._rows(start, end)].tolist())

    def documents(self, start: datetime, end: datetime) -> list[bytes]:
        """The published events that were scheduled in [start, end), as their JSON: what a client would ask about."""
        return self._events_json[self._rows(start, end)]

    def labelled_events(self, start: datetime, end: datetime) -> frozenset[str]:
        """Ids of the events scheduled in [start, end) whose label has been published as well: what the examples of a
        window must be, with `start` and `end` one label horizon before the window's."""
        rows = self._rows(start, end)
        labelled = np.zeros(len(self._ids), bool)
        labelled[self._arrivals[: self._next.labels]] = True
        return frozenset(self._ids[rows][labelled[rows]].tolist())

    def _rows(self, start: datetime, end: datetime) -> slice:
        first, last = np.searchsorted(self._scheduled, [int(start.timestamp()), int(end.timestamp())])
        return slice(int(first), min(int(last), self._next.events))

    def _event_records(self, first: int, last: int) -> Iterator[Outgoing]:
        for row in range(first, last):
            yield self._record(row, self._events_json[row], int(self._scheduled[row]))

    def _label_records(self, first: int, last: int) -> Iterator[Outgoing]:
        rows = self._arrivals[first:last]
        labels = {
            "event_id": self._ids[rows],
            "arr_delay": self._delay[rows],
            "arrived": np.array([event.iso(t) for t in self._arrival[rows].tolist()], dtype=str),
        }
        for row, document in zip(rows.tolist(), event.documents(labels, event.LABEL), strict=True):
            yield self._record(row, document, int(self._arrival[row]))

    def _record(self, row: int, document: bytes, seconds: int) -> Outgoing:
        return Outgoing(key=str(self._ids[row]).encode(), value=document, timestamp=seconds * 1000)


def _refuse_used(log: EventLog, topic: str, at: datetime) -> None:
    held = sum(p.latest for p in log.bounds(topic, at).partitions.values())
    if held:
        raise TopicNotFresh(
            f"topic {topic!r} has {held} offsets in use, a replay needs 0 (its records would lie behind others with "
            "other time stamps): give it fresh topics, or remove the log of the earlier run"
        )


def _delays(delay: np.ndarray, arrival: np.ndarray, wrong: tuple[datetime, datetime] | None) -> np.ndarray:
    """Minutes as they are published: the sign flipped where the label arrives in [wrong[0], wrong[1])."""
    if wrong is None:
        return delay
    first, last = (int(moment.astimezone(UTC).timestamp()) for moment in wrong)
    return np.where((arrival >= first) & (arrival < last), -delay, delay)
