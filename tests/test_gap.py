"""Gaps: what the log has lost is accepted exactly, once, and the chain of windows goes on around it."""

from __future__ import annotations

import threading
from datetime import timedelta

import pyarrow.compute as pc
import pytest
from click.testing import CliRunner

from assets.steps.window import decide
from assets.stream.embedded import EmbeddedLog
from assets.stream.formats import formats_of
from assets.stream.log import IdentityChanged, OffsetsGone, UnknownTopic
from assets.windows import seal as sealing
from assets.windows.acceptance import GapRefused, accept_gap
from assets.windows.cut import cut, find_cut, next_due_window
from assets.windows.gap import Gap, accepted_gaps, touched
from assets.windows.history import GAP
from assets.windows.join import read_examples
from assets.windows.seal import SealPolicy, find_sealed, read_sealed
from monitoring.alarms import all_alarms, open_alarms
from pipelines.cli.gap import accept_gap as accept_gap_command
from pipelines.run_window import run_window
from security.journal import Draft
from tests.windows import EVENT, LABEL, NOW, Stream, event, label, new_topics
from tests.worlds import Blobs, make_world


class Failing(EmbeddedLog):
    """The file, and what a cluster can do to it besides retention (`trim`)."""

    def grow(self, topic: str, partitions: int) -> None:
        number, before, *_ = self._topic(topic)
        self._db.execute("UPDATE topics SET partitions = ? WHERE number = ?", (partitions, number))
        rows = [(number, part) for part in range(before, partitions)]
        self._db.executemany("INSERT INTO partitions VALUES (?, ?, 0, 0, -1)", rows)

    def truncate(self, topic: str, partition: int, end: int) -> None:
        """As a leader that never had the records from `end` on."""
        place = (end, self._topic(topic)[0], partition)
        self._db.execute("DELETE FROM records WHERE at >= ? AND topic = ? AND part = ?", place)
        self._db.execute("UPDATE partitions SET latest = ? WHERE topic = ? AND number = ?", place)

    def forget(self, topic: str) -> None:
        """Deleted, so that it can be made anew."""
        number = self._topic(topic)[0]
        for table in ("records", "partitions"):
            self._db.execute(f"DELETE FROM {table} WHERE topic = ?", (number,))
        self._db.execute("DELETE FROM topics WHERE number = ?", (number,))


def accept(stream, number, topic, partition=0, reason="retention, ticket 7"):
    return accept_gap(
        stream.history, stream.log, stream.root, stream.window(number), topic, partition, reason=reason, now=NOW, actor="ann"
    )


def seal(stream, number):
    window = stream.window(number)
    return sealing.seal(
        stream.history, stream.log, stream.root, window, formats_of(stream.topics, EVENT, LABEL), policy=SealPolicy(0.5, 1),
        now=NOW, actor="test",
    )  # fmt: skip


def spans(stream, number, topic=None):
    return dict(stream.cut(number).topics[topic or stream.topics.events].partitions)


def rows(stream, number, topic=None, partition=0):
    """event_id by offset."""
    sealed = find_sealed(stream.history.refresh(), stream.window(number))
    found = read_sealed(stream.root, sealed, topic or stream.topics.events, ["_partition", "_offset", "event_id"])
    found = found.filter(pc.equal(found["_partition"], partition))
    return dict(zip(found["_offset"].to_pylist(), found["event_id"].to_pylist(), strict=True))


def events(names, minutes):
    return [event(name, minutes + 0.1 * n) for n, name in enumerate(names)]


@pytest.fixture
def stream(event_log, tmp_path):
    return Stream(event_log, new_topics(event_log, partitions=1), tmp_path / "a")


@pytest.fixture
def failing(tmp_path):
    """On a log that can be truncated; window 0 has a to e, and is cut."""
    log = Failing(tmp_path / "log.db")
    stream = Stream(log, new_topics(log, partitions=1), tmp_path / "a")
    stream.end(60 * 20)
    stream.publish(*events("abcde", 10))
    stream.cut(0)
    return stream


def test_what_retention_took_is_accepted_exactly_and_the_rest_is_sealed(stream, trim):
    topic = stream.topics.events
    stream.publish(*events("abcde", 10), event("f", 70))
    stream.end(180)
    decided = stream.cut(0)
    trim(topic, 0, 3)
    with pytest.raises(OffsetsGone):
        seal(stream, 0)
    (gap,) = accept(stream, 0, topic)
    assert (gap.start, gap.end, gap.resume_at, gap.actor, gap.reason) == (0, 3, None, "ann", "retention, ticket 7")
    sealed = seal(stream, 0)
    assert rows(stream, 0) == {3: "d", 4: "e"} and sealed.accepted == ((topic, 0, 0, 3),)
    assert find_cut(stream.history, stream.window(0)) == decided and spans(stream, 1) == {0: (5, 6)}
    (entry,) = stream.history.refresh().entries(GAP)
    assert entry.stream == "cut/delays" and entry.body["lost"] == 3 and Gap.of(entry) == gap


def test_what_goes_later_is_a_second_gap_of_the_window_and_a_lost_window_is_empty(stream, trim):
    topic = stream.topics.events
    stream.publish(*events("abcde", 10))
    stream.end(180)
    stream.cut(0)
    for before in (2, 4):
        trim(topic, 0, before)
        accept(stream, 0, topic)
    assert accepted_gaps(stream.history.refresh(), stream.window(0)) == {(topic, 0): [(0, 2), (2, 4)]}
    trim(topic, 0, 5)
    accept(stream, 0, topic)
    assert seal(stream, 0).rows[topic] == 0


def test_only_what_is_gone_is_accepted_and_the_bounds_are_named(stream, trim):
    topic, other = stream.topics.events, stream.topics.labels
    with pytest.raises(GapRefused, match="not cut: no window is cut yet"):
        accept(stream, 0, topic)
    stream.publish(*events("abcde", 10), label("a", 20))
    stream.end(180)
    stream.cut(0)
    seal(stream, 0)
    stream.cut(1)
    trim(topic, 0, 5)
    for number, reason in (
        (0, "is sealed"), (1, r"is \[5, 5\) now, .* has offsets \[5, 5\) \(nothing"),
        (2, "has what comes from offset 5 on"),
        (3, "not cut: the next to be cut is"),
    ):  # fmt: skip
        with pytest.raises(GapRefused, match=reason):
            accept(stream, number, topic)
    with pytest.raises(GapRefused, match="needs a reason"):
        accept(stream, 1, topic, reason=" ")
    with pytest.raises(GapRefused, match="no partition 7, only 0 to 0"):
        accept(stream, 1, topic, partition=7)
    with pytest.raises(GapRefused, match=r"is \[0, 1\) now.*nothing is missing"):
        accept(stream, 2, other)
    assert stream.history.refresh().entries(GAP) == ()


def test_a_gap_is_accepted_once_also_by_two_at_once(tmp_path):
    log = Failing(tmp_path / "log.db")
    stream = Stream(log, new_topics(log, partitions=1), tmp_path / "a")
    stream.publish(*events("abcde", 10))
    stream.end(180)
    stream.cut(0)
    log.trim(stream.topics.events, 0, 3)
    both = [Stream(EmbeddedLog(log.path), stream.topics, stream.folder) for _ in range(4)]
    gate, outcomes = threading.Barrier(len(both)), []

    def race(one):
        gate.wait()
        try:
            outcomes.append(len(accept(one, 0, stream.topics.events)))
        except GapRefused:
            outcomes.append("refused")

    threads = [threading.Thread(target=race, args=(one,)) for one in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes, key=str) == [1, "refused", "refused", "refused"]
    assert accepted_gaps(stream.history.refresh(), stream.window(0)) == {(stream.topics.events, 0): [(0, 3)]}


def test_a_topic_made_anew_is_never_a_gap(failing):
    topic = failing.topics.events
    failing.log.forget(topic)
    failing.log.create_topic(topic, 1)
    with pytest.raises(IdentityChanged, match="start a new task"):
        accept(failing, 0, topic)


def test_a_topic_made_anew_stops_the_next_window_also_while_it_is_empty(tmp_path):
    """By the clock of the stream: it would be waited for, and nobody told why. Also when it is gone altogether."""
    log = Failing(tmp_path / "log.db")
    stream = Stream(log, new_topics(log, partitions=1), tmp_path / "a")
    stream.publish(event("a", 10), event("b", 70), label("a", 70))
    stream.cut(0)
    stream.history.journal.append(Draft("window/delays", "window.sealed", {"window": stream.window(0)}), actor="test", at=NOW)
    log.forget(stream.topics.labels)
    assert next_due_window(stream.history, log, stream.policy, stream.topics, now=NOW) == stream.window(1)
    with pytest.raises(UnknownTopic, match="Create it"):
        stream.cut(1)
    log.create_topic(stream.topics.labels, 1)
    assert next_due_window(stream.history, log, stream.policy, stream.topics, now=NOW) == stream.window(1)
    with pytest.raises(IdentityChanged, match="start a new task"):
        stream.cut(1)


def test_after_a_truncation_of_a_window_to_be_sealed_new_records_are_in_the_next_one(failing):
    log, topic = failing.log, failing.topics.events
    log.truncate(topic, 0, 3)
    failing.publish(event("new before", 20))
    (gap,) = accept(failing, 0, topic)
    assert (gap.start, gap.end, gap.resume_at) == (4, 5, 4)
    failing.publish(*events(["f", "g", "h"], 70))
    seal(failing, 0)
    assert spans(failing, 1) == {0: (4, 7)} and spans(failing, 2) == {0: (7, 7)}
    seal(failing, 1)
    assert list((rows(failing, 0) | {10 + at: name for at, name in rows(failing, 1).items()}).values()) == [
        "a", "b", "c", "new before", "f", "g", "h",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("end", "again", "resumes"), [(5, "", 5), (3, "", 3), (3, "xy", 3), (1, "xyz", 1), (0, "", 0), (2, "cd", 4)]
)
def test_under_sealed_windows_the_log_is_taken_up_where_it_stopped_being_what_was_sealed(failing, end, again, resumes):
    """The last row: the producer sent the same records again, and they came to lie where they were."""
    log, topic = failing.log, failing.topics.events
    seal(failing, 0)
    failing.publish(*events("fgh", 70))
    failing.cut(1)
    seal(failing, 1)
    log.truncate(topic, 0, end)
    same = dict(zip("abcde", events("abcde", 10), strict=True))
    failing.publish(*(same.get(name) or event(name, 130) for name in again))
    with pytest.raises(OffsetsGone, match="accept-gap"):
        failing.cut(2)
    (gap,) = accept(failing, 2, topic)
    assert (gap.window, gap.start, gap.end, gap.resume_at) == (failing.window(2), resumes, resumes, resumes)
    failing.publish(event("after", 131))
    assert spans(failing, 2) == {0: (resumes, end + len(again) + 1)}
    seal(failing, 2)
    fresh = [name for name in again if name not in same]
    assert [*rows(failing, 2).values()] == [*fresh, "after"]


def test_a_truncation_is_accepted_for_every_window_that_is_cut_at_once(failing):
    """Else the second would be sealed with new records, and the next cut would have them too."""
    log, topic = failing.log, failing.topics.events
    failing.publish(*events("fgh", 70))
    failing.cut(1)
    log.truncate(topic, 0, 2)
    with pytest.raises(GapRefused, match=r"not window .*02:00Z has lost offsets, but .*00:00Z \[2, 5\)"):
        accept(failing, 2, topic)
    gaps = accept(failing, 0, topic)
    assert [(gap.window, gap.start, gap.end, gap.resume_at) for gap in gaps] == [
        (failing.window(0), 2, 5, 2), (failing.window(1), 5, 8, 2),
    ]  # fmt: skip
    failing.publish(*events("uvwxyz", 130))  # past the end of both
    assert spans(failing, 2) == {0: (2, 8)}
    assert [[*rows(failing, n).values()] for n in range(3) if seal(failing, n)] == [["a", "b"], [], [*"uvwxyz"]]


def test_windows_are_touched_until_the_first_that_has_a_record_behind_the_gap(failing):
    log, topics = failing.log, (failing.topics.events,)
    assert touched(failing.history.refresh(), topics) == []
    log.trim(failing.topics.events, 0, 5)
    accept(failing, 0, failing.topics.events)
    failing.publish(event("first behind", 190))
    for number in range(1, 6):
        failing.cut(number)
    assert touched(failing.history.refresh(), topics) == [failing.window(number) for number in range(4)]
    assert touched(failing.history, (failing.topics.labels,)) == []


def test_events_whose_label_may_be_among_lost_ones_are_unknown_and_not_negative(tmp_path):
    """p0, p1... get a label an hour later, n0, n1... none. The one of p2 is lost, in window 3; the one of q is behind it."""
    log = EmbeddedLog(tmp_path / "log.db")
    stream = Stream(log, new_topics(log, partitions=1), tmp_path / "a")
    topic = stream.topics.labels
    stream.publish(*(event(name, 60 * hour + 10) for hour in range(3) for name in (f"n{hour}", f"p{hour}")), event("q", 145))
    stream.publish(*(event(name, 60 * hour + 10) for hour in range(3, 9) for name in (f"n{hour}", f"p{hour}")))
    stream.publish(*(label(name, at) for name, at in (("p0", 70), ("p1", 130), ("p2", 190), ("q", 200))))
    stream.publish(*(label(f"p{hour}", 60 * hour + 70) for hour in range(3, 9)), event("sealed late", 5))
    stream.end(600)
    joined = []
    for number, lost in enumerate([0, 0, 0, 3, 0, 0, 0, 0, 0, 10]):
        stream.cut(number)
        if lost:
            log.trim(topic, 0, lost)
            accept(stream, number, topic)
        seal(stream, number)
        joined.append(stream.join(number, negative_if_absent=True))
    found = [{row["event_id"]: row["_label_absent"] for row in read_examples(stream.root, each).to_pylist()} for each in joined]
    assert found[2] == {"n0": True, "p0": False} and found[8] == {"n6": True, "p6": False}
    assert [len(names) for names in found] == [0, 0, 2, 0, 0, 0, 0, 0, 2, 0]
    assert [each.unknown for each in joined] == [0, 0, 0, 2, 3, 2, 2, 2, 1, 2]
    assert all(each.events_matured == each.examples + each.unlabelled + each.unknown for each in joined)
    for number in (2, 5, 8):  # before, in and after the first gap; all before the second
        (stream.root / joined[number].path).unlink()
        assert stream.join(number, negative_if_absent=True) == joined[number]


def test_evidence_of_days_that_touch_a_gap_does_not_count_and_the_journal_says_so(tmp_path, monkeypatch):
    """From the command line on. Labels of day 2 may be of what matured until two horizons after it: on day 4, at 2 o'clock."""
    monkeypatch.setattr(Blobs, "label_horizon", timedelta(hours=13))
    world = make_world(tmp_path)
    world.publish(6)
    for day in range(2):
        run_window(world.window(day), world.workspace)
    work, window = world.workspace, world.window(2)
    decided = cut(work.history, work.log, work.policies.window, work.topics, window, now=work.now(), actor="test")
    begin, _ = decided.topics["labels"].partitions[1]
    world.log.trim("labels", 1, begin + 2)
    monkeypatch.chdir(tmp_path)
    words = [window, "--topic", "labels", "--partition", "1", "--reason", "disk full", "--actor", "ann"]
    told = CliRunner().invoke(accept_gap_command, words, obj=tmp_path / "headgate.toml", catch_exceptions=False)
    assert told.output == f"window {window}  labels partition 1: [{begin}, {begin + 2}) accepted as lost, 2 offsets\n"
    bodies = [run_window(world.window(day), work).steps["evidence"] for day in (2, 3, 4, 5)]
    starts = [int((decided.start + timedelta(days=day)).timestamp() * 1000) for day in range(4)]
    blocks = [{block[0] for pair in body["pairs"] for block in pair["blocks"]} for body in bodies]
    assert blocks == [set(), set(), set(), {starts[3]}]
    assert [body.get("void") for body in bodies] == [
        *({"windows": [window], "blocks": [starts[n]], "examples": bodies[n]["examples"]} for n in range(3)), None,
    ]
    assert bodies[0]["examples"] > 200 and bodies[0]["pairs"]


def test_the_alarm_of_a_window_ends_when_all_that_it_lacks_is_accepted(tmp_path, monkeypatch):
    world = make_world(tmp_path)
    world.publish(1)
    work, window = world.workspace, world.window(0)
    decide(window, work)
    for part in (0, 1):
        world.log.trim("labels", part, 3)
    with pytest.raises(OffsetsGone):
        run_window(window, work)
    monkeypatch.chdir(tmp_path)
    said = []
    for part in ("0", "1"):
        words = [window, "--topic", "labels", "--partition", part, "--reason", "disk full", "--actor", "ann"]
        told = CliRunner().invoke(accept_gap_command, words, obj=tmp_path / "headgate.toml", catch_exceptions=False)
        said.append((told.stderr, [alarm.kind for alarm in open_alarms(world.journal, "blobs")]))
    assert "stays open: offsets [0, 3) of 'labels' partition 1 are gone" in said[0][0] and said[0][1] == ["stream_gap"]
    assert said[1] == ("", [])
    (alarm,) = all_alarms(world.journal, "blobs")
    assert (alarm.acknowledged_by, alarm.reason) == ("ann", "gap accepted: disk full")
