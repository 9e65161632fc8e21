"""Random histories of a stream: late and jumping clocks, partitions added, retention, truncation, accepted gaps.

Whatever happens, each record is in exactly one window, or was gone before its window was sealed and lies in a gap.
One thing is left out: a log that was truncated below what is sealed and has grown past the last cut again before anybody
looked. Its offsets alone do not show it.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest

from assets.stream.log import OffsetsGone, Topics
from assets.windows.acceptance import GapRefused
from assets.windows.clock import WindowPolicy
from assets.windows.cut import Cut, resumed
from assets.windows.gap import accepted_gaps
from assets.windows.history import CUT, GAP, SEALED
from tests.test_gap import Failing, accept, rows, seal
from tests.windows import HOURLY, START, Stream, event, label, new_topics

WINDOWS = 6
LAST_MINUTE = 60 * (WINDOWS - 1)  # the last window has what is late


class Story:
    """One random history, and what is true of each record: where it lies, whether it is sealed, whether it is gone."""

    def __init__(self, folder, draw, clock):
        self.draw, self.minute, self.clock = draw, 0.0, clock
        log = Failing(folder / "log.db")
        topics = new_topics(log, partitions=1)
        if clock == "wall":
            topics = Topics(*(f"{name}-wall" for name in topics.all))
            for name in topics.all:
                log.create_topic(name, 1, timestamp_type="LogAppendTime")
        self.stream = Stream(log, topics, folder / "a", policy=WindowPolicy(HOURLY.every, START, timedelta(0), clock))
        self.stream.end(60 * WINDOWS)
        self.log, self.made = log, 0
        self.places = {(name, 0): {} for name in (topics.events, topics.labels)}  # offset -> name
        self.latest = dict.fromkeys(self.places, 0)
        self.sealed, self.lost, self.hidden = Counter(), set(), set()

    def now(self):
        """The broker's clock, for the log."""
        return int((START + timedelta(minutes=self.minute)).timestamp() * 1e9)

    def run(self):
        steps = [self.publish] * 5 + [self.cut] * 2 + [self.seal] * 2 + [self.trim, self.truncate, self.grow, self.look]
        for _ in range(40):
            self.draw.choice(steps)()
        while len(self.stream.history.refresh().entries(CUT)) < WINDOWS:
            self.cut(WINDOWS)
        while len(self.stream.history.refresh().entries(SEALED)) < WINDOWS:
            self.seal()
        self.check()

    def publish(self):
        place = topic, part = self.draw.choice(list(self.places))
        jump = self.draw.choice([0, 1, 5, 20, 60, -30, -90])
        self.minute = min(LAST_MINUTE, max(0.0, self.minute + jump * self.draw.random()))
        for _ in range(self.draw.randrange(1, 8)):
            if place in self.hidden and self.latest[place] + 1 >= self._begin(place):
                return
            make = event if topic == self.stream.topics.events else label
            name = f"r{self.made}"
            self.log.append(topic, [replace(make(name, self.minute), partition=part)])
            self.places[place][self.latest[place]] = name
            self.latest[place] += 1
            self.made += 1

    def cut(self, until=WINDOWS - 1):
        number = len(self.stream.history.refresh().entries(CUT))
        early = self.draw.randrange(3)  # a host's clock that runs ahead of the broker's is due at once
        moment = START + timedelta(hours=number + 1 + early)
        if number < until:
            try:
                self.stream.cut(number, now=moment)
            except OffsetsGone:
                self.accept(number)

    def seal(self):
        entries = self.stream.history.refresh().entries(CUT)
        waiting = [n for n in range(len(entries)) if self.stream.history.find(SEALED, self.stream.window(n)) is None]
        if not waiting:
            return
        number = self.draw.choice(waiting)
        try:
            seal(self.stream, number)
        except OffsetsGone:
            self.accept(number)
            return
        for topic in {topic for topic, _ in self.places}:
            sealed = self.stream.history.refresh().find(SEALED, self.stream.window(number)).body
            for file in sealed["files"]:
                if file["topic"] == topic:
                    self.sealed.update(self._names(number, topic, file["partition"]))

    def _names(self, number, topic, part):
        return rows(self.stream, number, topic, part).values()

    def accept(self, number):
        for topic, part in self.places:
            for each in range(number + 1):
                try:
                    gaps = accept(self.stream, each, topic, part)
                except GapRefused:
                    continue
                if any(gap.resume_at is not None for gap in gaps):
                    self.hidden.discard((topic, part))

    def look(self):
        """Somebody accepts what is missing in a window nobody asked about."""
        if entries := self.stream.history.refresh().entries(CUT):
            self.accept(self.draw.randrange(len(entries) + 1))

    def trim(self):
        place = self.draw.choice(list(self.places))
        before = self.draw.randint(0, self.latest[place])
        self.log.trim(*place, before)
        self._gone(place, [at for at in self.places[place] if at < before])

    def truncate(self):
        place = topic, part = self.draw.choice(list(self.places))
        earliest = self.log.bounds(topic, START).partitions[part].earliest
        end = self.draw.randint(earliest, self.latest[place])
        self.log.truncate(topic, part, end)
        self._gone(place, [at for at in self.places[place] if at >= end])
        self.latest[place] = end
        if end < self._sealed_end(place):
            self.hidden.add(place)

    def grow(self):
        topic = self.draw.choice([topic for topic, _ in self.places])
        part = max(part for name, part in self.places if name == topic) + 1
        if part < 4:
            self.log.grow(topic, part + 1)
            self.places[topic, part], self.latest[topic, part] = {}, 0

    def _gone(self, place, offsets):
        names = [self.places[place].pop(at) for at in offsets]
        self.lost |= {name for name in names if not self.sealed[name]}

    def _begin(self, place):
        history = self.stream.history.refresh()
        last = history.last(CUT)
        ended = Cut.of(last.body).topics[place[0]].partitions.get(place[1], (0, 0))[1] if last else 0
        return resumed(history).get(place, ended)

    def _sealed_end(self, place):
        history, ends = self.stream.history.refresh(), [0]
        for entry in history.entries(CUT):
            if history.find(SEALED, entry.body["window"]) is not None:
                ends.append(Cut.of(entry.body).topics[place[0]].partitions.get(place[1], (0, 0))[1])
        return max(ends)

    def check(self):
        names = {f"r{number}" for number in range(self.made)}
        assert not [name for name, count in self.sealed.items() if count > 1]
        assert set(self.sealed) | self.lost == names and not set(self.sealed) & self.lost
        assert {name for there in self.places.values() for name in there.values()} <= set(self.sealed)
        self.check_chain()

    def check_chain(self):
        history = self.stream.history.refresh()
        entries = history.entries(CUT)
        for before, after in pairwise(entries):
            between = [gap.body for gap in history.entries(GAP) if before.stream_seq < gap.stream_seq < after.stream_seq]
            old, new = Cut.of(before.body), Cut.of(after.body)
            for topic, part in self.places:
                start = new.topics[topic].partitions.get(part, (0, 0))[0]
                at = [b["resume_at"] for b in between if (b["topic"], b["partition"]) == (topic, part)]
                resumes = [each for each in at if each is not None]
                assert start == min(resumes, default=old.topics[topic].partitions.get(part, (0, 0))[1])
        for number, entry in enumerate(entries):
            gaps = accepted_gaps(history, self.stream.window(number))
            for topic, part in self.places:
                start, end = Cut.of(entry.body).topics[topic].partitions.get(part, (0, 0))
                holes = {at for span in gaps.get((topic, part), ()) for at in range(*span)}
                found = set(rows(self.stream, number, topic, part)) if start < end else set()
                assert found | holes == set(range(start, end)) and not found & holes


def tell(folder, clock, seed, count, monkeypatch):
    print(f"seed {seed}, {count} histories")
    for number in range(count):
        story = Story(folder / f"{number}", random.Random(f"{seed}-{number}"), clock)
        with monkeypatch.context() as patched:
            patched.setattr(time, "time_ns", story.now)
            try:
                story.run()
            except BaseException as error:
                error.add_note(f"seed {seed}, history {number}, clock {clock}")
                raise
        story.log.close()


@pytest.mark.parametrize("clock", ["stream", "wall"])
def test_every_record_is_in_one_window_or_was_gone_and_lies_in_a_gap(tmp_path, monkeypatch, clock):
    tell(tmp_path, clock, random.randrange(2**32), 6, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("clock", ["stream", "wall"])
def test_every_record_is_in_one_window_in_many_histories(tmp_path, monkeypatch, clock):
    tell(tmp_path, clock, random.randrange(2**32), 100, monkeypatch)
