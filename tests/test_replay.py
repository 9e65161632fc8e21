"""The replayer: every record once, at its true time, and a count that a reader can check."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from assets.stream.embedded import EmbeddedLog
from assets.stream.log import Outgoing
from pipelines.demo.prepared import prepare
from pipelines.demo.replay import Published, Replayer, TopicNotFresh, Topics
from pipelines.demo.source import NEVER

START = datetime(2013, 7, 8, 8, tzinfo=UTC)
DAY = timedelta(days=1)
END = START + 3 * DAY
HORIZON = timedelta(hours=36)
TOPICS = Topics()


@pytest.fixture
def log(tmp_path):
    opened = EmbeddedLog(tmp_path / "log.db")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def flights():
    return prepare(START, END)


def replayer(log, **options):
    return Replayer(log, TOPICS, start=START, end=END, **options)


def records(log, topic):
    """Partition by partition, in offset order."""
    found = {}
    for part, bounds in log.bounds(topic, START).partitions.items():
        found[part] = [r for batch in log.read(topic, part, bounds.earliest, bounds.latest) for r in batch]
    return found


def values(log, topic):
    """event_id -> (document, timestamp); fails where an id comes twice."""
    everything = [record for part in records(log, topic).values() for record in part]
    found = {json.loads(r.value)["event_id"]: (json.loads(r.value), r.timestamp) for r in everything}
    assert len(found) == len(everything)
    return found


def test_every_event_and_label_is_published_once_at_its_true_time(log, flights):
    played = replayer(log)
    published = played.publish_until(END + HORIZON)
    events, labels = values(log, TOPICS.events), values(log, TOPICS.labels)
    arrived = flights.arrival < NEVER
    assert published == played.totals == Published(len(flights), int(arrived.sum()))
    assert played.remaining == Published(0, 0)
    ids = flights.columns["event_id"].tolist()
    assert {i: stamp for i, (_, stamp) in events.items()} == dict(zip(ids, flights.scheduled * 1000, strict=True))
    wanted = {i: a * 1000 for i, a in zip(ids, flights.arrival.tolist(), strict=True) if a < NEVER}
    assert {i: stamp for i, (_, stamp) in labels.items()} == wanted
    minutes = dict(zip(ids, flights.arr_delay, strict=True))
    assert all(label["arr_delay"] == minutes[i] for i, (label, _) in labels.items())


def test_records_lie_in_the_order_of_time_in_every_partition_and_keyed_by_event(log):
    replayer(log).publish_until(END + HORIZON)
    for topic in (TOPICS.events, TOPICS.labels):
        parts = records(log, topic)
        assert len(parts) == 3 and all(len(part) > 500 for part in parts.values())
        for part in parts.values():
            assert (np.diff([r.timestamp for r in part]) >= 0).all()
            assert all(json.loads(r.value)["event_id"].encode() == r.key for r in part)
    assert log.bounds(TOPICS.events, START).timestamp_type == "CreateTime"


def test_publishing_day_by_day_is_publishing_at_once(tmp_path):
    logs = [EmbeddedLog(tmp_path / name) for name in ("days.db", "once.db")]
    stepwise, once = (replayer(log) for log in logs)
    moments = [START + k * timedelta(hours=7) for k in range(20)]
    steps = [stepwise.publish_until(moment) for moment in moments]
    once.publish_until(moments[-1])
    assert sum(steps, Published()) == once.totals
    for topic in (TOPICS.events, TOPICS.labels):
        assert records(logs[0], topic) == records(logs[1], topic)
    for log in logs:
        log.close()


def test_nothing_is_published_before_its_time_and_the_moment_itself_is_excluded(log, flights):
    played = replayer(log)
    moment = datetime.fromtimestamp(int(flights.scheduled[700]), UTC)
    played.publish_until(moment)
    for topic in (TOPICS.events, TOPICS.labels):
        assert max(stamp for _, stamp in values(log, topic).values()) < moment.timestamp() * 1000
    assert played.totals.events == int((flights.scheduled < flights.scheduled[700]).sum())


def test_an_earlier_moment_publishes_nothing(log):
    played = replayer(log)
    played.publish_until(START + DAY)
    before = played.totals
    assert played.publish_until(START) == Published(0, 0)
    assert played.totals == before


def test_labels_that_arrive_after_the_end_are_published_when_asked(log, flights):
    played = replayer(log)
    played.publish_until(END)
    late = int(((flights.arrival >= END.timestamp()) & (flights.arrival < NEVER)).sum())
    assert played.remaining == Published(0, late) and late > 0
    assert played.publish_until(END + HORIZON) == Published(0, late)


def test_only_labels_that_arrive_in_the_wrong_stretch_change_their_sign(log, flights):
    wrong = (START + DAY, START + 2 * DAY)
    replayer(log, wrong_labels=wrong).publish_until(END + HORIZON)
    true = dict(zip(flights.columns["event_id"].tolist(), flights.arr_delay, strict=True))
    flipped = 0
    for event_id, (label, stamp) in values(log, TOPICS.labels).items():
        inside = wrong[0].timestamp() <= stamp / 1000 < wrong[1].timestamp()
        assert label["arr_delay"] == (-true[event_id] if inside else true[event_id])
        flipped += inside
    assert 800 < flipped < 1100


def test_the_count_of_labelled_events_equals_what_lies_in_the_log(log):
    played = replayer(log)
    played.publish_until(START + 2 * DAY)
    events, labels = values(log, TOPICS.events), values(log, TOPICS.labels)
    first_day = {i for i, (_, stamp) in events.items() if stamp / 1000 < (START + DAY).timestamp()}
    assert played.published_events(START, START + DAY) == first_day
    assert played.labelled_events(START, START + DAY) == first_day & set(labels)
    assert played.published_events(START, END) == set(events)  # what is not out yet is not counted
    assert played.labelled_events(START, END) == set(labels)


@pytest.mark.parametrize("topic", [TOPICS.events, TOPICS.labels])
def test_a_topic_that_was_used_before_is_refused_with_its_count(log, topic):
    log.create_topic(topic, TOPICS.partitions)
    log.append(topic, [Outgoing(b"a", b"{}", 0), Outgoing(b"b", b"{}", 0)])
    with pytest.raises(TopicNotFresh, match=rf"'{topic}' has 2 offsets in use, a replay needs 0.*fresh topics"):
        replayer(log)


def same(a, b):
    pairs = [(a.columns[name], b.columns[name]) for name in a.columns]
    columns = all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in pairs)
    return columns and list(a.columns) == list(b.columns) and np.array_equal(a.arrival, b.arrival)


def test_the_cache_gives_back_what_was_computed(tmp_path, flights, monkeypatch):
    prepare(START, END, tmp_path)
    assert [file.suffix for file in tmp_path.iterdir()] == [".npz"]
    monkeypatch.setattr("pipelines.demo.source.load", lambda: pytest.fail("the cache was not used"))
    assert same(prepare(START, END, tmp_path), flights)


def test_a_damaged_cache_is_computed_again_and_says_so(tmp_path, flights, caplog):
    prepare(START, END, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:5000])
    with caplog.at_level(logging.WARNING):
        assert same(prepare(START, END, tmp_path), flights)
    assert "cannot be read" in caplog.text and "computed again" in caplog.text
    assert same(prepare(START, END, tmp_path), flights)


def test_another_stretch_or_another_code_has_another_cache_file(tmp_path, monkeypatch):
    prepare(START, START + DAY, tmp_path)
    prepare(START, START + 2 * DAY, tmp_path)
    monkeypatch.setattr("pipelines.demo.source.package_version", lambda: "9.9")
    prepare(START, START + DAY, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
