"""Gaps, seals and truncations that meet in one moment: nothing is written over, no record is in two windows or in none."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from assets.stream.batch import pack
from assets.stream.formats import ValueFormat, formats_of
from assets.stream.log import OffsetsGone, Record, StreamUnreachable
from assets.windows import seal as sealing
from assets.windows.clock import NotDue
from assets.windows.history import SEALED, History
from assets.windows.seal import find_sealed, verify_sealed
from assets.windows.verify import verify
from tests.test_gap import Failing, accept, rows, seal
from tests.windows import EVENT, LABEL, Stream, event, label, new_topics


class Electing(Failing):
    """With epochs of leaders: `elect(end)` is a new one, who has the log only up to `end`."""

    def __init__(self, path):
        super().__init__(path)
        self.epoch, self.ends = 1, {}

    def elect(self, topic, end):
        self.truncate(topic, 0, end)
        self.ends = {epoch: min(at, end) for epoch, at in self.ends.items()} | {self.epoch: end}
        self.epoch += 1

    def bounds(self, topic, at):
        found = super().bounds(topic, at)
        return replace(found, partitions={part: replace(b, epoch=self.epoch) for part, b in found.partitions.items()})

    def kept(self, topic, epochs):
        return {part: self.ends.get(epoch, 1 << 40) for part, epoch in epochs.items()}


@pytest.fixture
def stream(tmp_path):
    log = Electing(tmp_path / "log.db")
    made = Stream(log, new_topics(log, 1), tmp_path / "a")
    made.publish(*[event(f"e{number}", number) for number in range(20)], label("e1", 3))
    made.end(240)
    made.cut(0)
    yield made
    log.close()


def meanwhile(monkeypatch, act):
    """Do something when a seal has read everything, and has written nothing that anybody may read."""
    make = sealing.make_window

    def made(*arguments):
        found = make(*arguments)
        monkeypatch.setattr(sealing, "make_window", make)
        act()
        return found

    monkeypatch.setattr(sealing, "make_window", made)


def test_who_loses_a_race_leaves_the_files_of_the_winner(stream, monkeypatch):
    other = Stream(stream.log, stream.topics, stream.folder)
    topic = stream.topics.events

    def win():
        stream.log.trim(topic, 0, 5)
        accept(stream, 0, topic)
        assert seal(stream, 0).rows[topic] == 15

    meanwhile(monkeypatch, win)
    with pytest.raises(sealing.SealDiffers, match="the journal says"):
        seal(other, 0)
    verify_sealed(stream.root, find_sealed(stream.history.refresh(), stream.window(0)))


def test_a_gap_that_is_accepted_while_a_window_is_sealed_makes_it_begin_again(stream, monkeypatch):
    topic = stream.topics.events

    def accept_now():
        stream.log.trim(topic, 0, 5)
        accept(Stream(stream.log, stream.topics, stream.folder), 0, topic)

    meanwhile(monkeypatch, accept_now)
    with pytest.raises(NotDue, match=r"a gap .* was accepted while it was sealed"):
        seal(stream, 0)
    assert stream.hashes() == {}
    assert seal(stream, 0).accepted == ((topic, 0, 0, 5),)


def test_a_gap_that_is_accepted_between_the_last_look_and_the_entry_is_seen(stream, monkeypatch):
    topic, extend = stream.topics.events, History.extend

    def late(history, kind, body, **who):
        if kind == SEALED:
            monkeypatch.setattr(History, "extend", extend)
            stream.log.trim(topic, 0, 5)
            accept(Stream(stream.log, stream.topics, stream.folder), 0, topic)
        return extend(history, kind, body, **who)

    monkeypatch.setattr(History, "extend", late)
    with pytest.raises(NotDue, match=r"a gap .* was accepted while it was sealed"):
        seal(stream, 0)
    assert seal(stream, 0).rows[topic] == 15


def test_a_second_truncation_before_the_next_cut_stops_again(stream):
    topic = stream.topics.events
    seal(stream, 0)
    stream.log.elect(topic, 10)
    assert [gap.resume_at for gap in accept(stream, 1, topic)] == [10]
    stream.log.elect(topic, 4)
    stream.publish(*[event(f"n{number}", 62 + number) for number in range(12)])
    with pytest.raises(OffsetsGone, match="truncated at offset 4 and written again, the next cut would begin at 10"):
        stream.cut(1)
    assert [gap.resume_at for gap in accept(stream, 1, topic)] == [4]
    stream.cut(1)
    seal(stream, 1)
    assert list(rows(stream, 1).values()) == [f"n{number}" for number in range(12)]


def test_a_log_that_is_truncated_and_written_anew_while_it_is_read_is_not_sealed(stream, monkeypatch):
    topic = stream.topics.events
    check = sealing._check_identity

    def elected(*arguments):
        monkeypatch.setattr(sealing, "_check_identity", check)
        stream.log.elect(topic, 5)
        stream.publish(*[event(f"n{number}", 30 + number) for number in range(20)])
        check(*arguments)

    monkeypatch.setattr(sealing, "_check_identity", elected)
    with pytest.raises(StreamUnreachable, match=r"truncated at offset 5 while window .* was read"):
        seal(stream, 0)
    assert stream.hashes() == {}
    assert seal(stream, 0).rows[topic] == 20


def test_a_truncated_log_differs_and_is_not_taken_for_retention(stream):
    seal(stream, 0)
    stream.log.truncate(stream.topics.events, 0, 10)
    found = verify(stream.history, stream.log, stream.root, stream.window(0), formats_of(stream.topics, EVENT, LABEL))
    assert [(each.state, "the log ends at 10" in each.detail) for each in found if each.state != "same"] == [("differs", True)]


def test_a_null_vector_is_rejected_because_it_could_not_be_read_back():
    schema = pa.schema([pa.field("event_id", pa.string()), pa.field("near", pa.list_(pa.float32(), 3))])
    values = [b'{"event_id": "a", "near": [1, 2, 3]}', b'{"event_id": "b", "near": null}']
    records = [Record(0, offset, 0, None, value) for offset, value in enumerate(values)]
    decoded = ValueFormat(schema).columns().decode(pack(0, 0, 2, records))
    assert decoded.table["event_id"].to_pylist() == ["a"]
    assert "wrong type: found null, wanted a list of numbers" in decoded.rejects[0].error
