"""Dead letters: every reject of a window in its topic's .dlq, as it was, with Kafka Connect's headers, once a window."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from assets.stream.log import MAX_RECORD_BYTES, Outgoing, Record, StreamUnreachable
from assets.windows import store
from assets.windows.dead_letters import MESSAGE_CHARACTERS, PUBLISHED, publish_dead_letters, publish_once
from assets.windows.part import REJECT_SCHEMA
from assets.windows.seal import SealedFile, SealedWindow
from tests.windows import NOW, Stream, at, event, label, new_topics

BAD = [  # as in a stream of events: what is wrong with a value, and its key
    Outgoing(b"k1", b"{", at(1), 0),
    Outgoing(None, b'{"event_id":"e","x":1}{', at(2), 1),
    Outgoing(b"k3", None, at(3), 0),
    Outgoing(b"\xff\x00", b"\xff\xfe", at(4), 1),
]


@pytest.fixture
def stream(event_log, tmp_path):
    return Stream(event_log, new_topics(event_log), tmp_path, max_reject_share=1.0)


@pytest.fixture
def sealed(stream) -> SealedWindow:
    """A window with rejects in two topics."""
    stream.log.append(stream.topics.events, [*BAD, event("good", 5)])
    stream.log.append(stream.topics.labels, [label("good", 6), Outgoing(b"l", b"[]", at(7), 1)])
    stream.end(60)
    stream.cut(0)
    return stream.seal(0)


def letters(stream: Stream, topic: str) -> list[Record]:
    bounds = stream.log.bounds(topic, datetime.now(UTC)).partitions
    assert list(bounds) == [0]
    return [record for batch in stream.log.read(topic, 0, bounds[0].earliest, bounds[0].latest) for record in batch]


def made(stream: Stream, rows: list[dict[str, object]], sealed: SealedWindow) -> SealedWindow:
    """The window with another reject file."""
    common = {"_topic": stream.topics.events, "_partition": 1, "_timestamp": at(1), "error": "not JSON"}
    table = pa.Table.from_pylist([{**common, **row} for row in rows], schema=REJECT_SCHEMA)
    with store.RowGroups(stream.root / "made.parquet", REJECT_SCHEMA) as writer:
        writer.add(table)
    return replace(sealed, rejects_file=SealedFile("made.parquet", None, None, writer.sha256, len(rows)))


def test_every_reject_arrives_as_it_was_with_where_it_lay_and_why(stream, sealed):
    events, labels = f"{stream.topics.events}.dlq", f"{stream.topics.labels}.dlq"
    assert publish_dead_letters(stream.log, stream.root, sealed) == {events: 4, labels: 1}
    found = letters(stream, events)
    wanted = sorted(BAD, key=lambda record: (record.partition, record.timestamp))
    assert [(r.key, r.value, r.timestamp) for r in found] == [(r.key, r.value, r.timestamp) for r in wanted]
    rejects = store.table((stream.root / sealed.rejects_file.path).read_bytes()).to_pylist()
    rejects.sort(key=lambda row: row["_topic"] == stream.topics.labels)
    for letter, row in zip([*found, *letters(stream, labels)], rejects, strict=True):
        assert dict(letter.headers) == {
            "__connect.errors.topic": row["_topic"].encode(),
            "__connect.errors.partition": b"%d" % row["_partition"],
            "__connect.errors.offset": b"%d" % row["_offset"],
            "__connect.errors.connector.name": b"headgate",
            "__connect.errors.task.id": b"0",
            "__connect.errors.stage": b"VALUE_CONVERTER",
            "__connect.errors.class.name": b"headgate.seal",
            "__connect.errors.exception.class.name": b"headgate.Rejected",
            "__connect.errors.exception.message": row["error"].encode(),
        }


def test_a_window_is_published_once_and_again_only_when_a_crash_came_before_the_journal(stream, sealed):
    topic = f"{stream.topics.events}.bad"

    def publish() -> object:
        return publish_once(stream.history, stream.log, stream.root, sealed, suffix=".bad", now=NOW, actor="test")

    publish_dead_letters(stream.log, stream.root, sealed, suffix=".bad")  # and killed before the journal entry
    counts = {topic: 4, f"{stream.topics.labels}.bad": 1}
    assert publish() == publish() == publish() == counts
    assert len(letters(stream, topic)) == 8
    entry = stream.history.refresh().find(PUBLISHED, sealed.window)
    assert entry.body == {"window": sealed.window, "topics": counts} and entry.stream == f"window/{stream.task}"


def test_a_window_without_rejects_publishes_nothing_and_makes_no_topic(stream):
    stream.publish(event("good", 5))
    stream.end(60)
    stream.cut(0)
    sealed = stream.seal(0)
    assert publish_once(stream.history, stream.log, stream.root, sealed, now=NOW, actor="test") == {}
    assert stream.history.refresh().find(PUBLISHED, sealed.window) is None


def test_what_the_log_would_refuse_is_sent_without_its_content_and_says_where_that_is(stream, sealed):
    large = b"x" * (MAX_RECORD_BYTES - 10)  # it fits the log, but not with headers
    rows = [
        {"_offset": 0, "key": None, "value": None, "error": "no value"},
        {"_offset": 1, "key": b"k", "value": large},
        {"_offset": 2, "key": b"k", "value": b"{", "error": "é" * 9_000},
    ]
    assert publish_dead_letters(stream.log, stream.root, made(stream, rows, sealed), suffix=".odd") == {
        f"{stream.topics.events}.odd": 3
    }
    nothing, big, long = letters(stream, f"{stream.topics.events}.odd")
    assert (nothing.key, nothing.value) == (None, b"")
    assert (big.key, big.value) == (None, b"")
    message = dict(big.headers)["__connect.errors.exception.message"]
    assert message == b"too large for a dead letter, the record is in made.parquet: not JSON"
    assert dict(big.headers)["__connect.errors.offset"] == b"1"
    assert dict(long.headers)["__connect.errors.exception.message"].decode() == "é" * MESSAGE_CHARACTERS


def test_a_topic_that_is_there_is_used_as_it_is(stream, sealed):
    topic = f"{stream.topics.events}.dlq"
    stream.log.create_topic(topic, 3)
    publish_dead_letters(stream.log, stream.root, sealed)
    bounds = stream.log.bounds(topic, datetime.now(UTC)).partitions
    assert len(bounds) == 3 and sum(each.latest for each in bounds.values()) == 4


def test_a_log_that_is_away_leaves_the_window_unpublished(stream, sealed, tmp_path):
    from assets.stream.kafka import KafkaLog

    nobody = KafkaLog("127.0.0.1:1", timeout=0.3)
    with pytest.raises(StreamUnreachable):
        publish_once(stream.history, nobody, stream.root, sealed, now=NOW, actor="test")
    assert stream.history.refresh().find(PUBLISHED, sealed.window) is None
    nobody.close()


def test_letters_never_go_to_the_topic_they_came_from(stream, sealed):
    with pytest.raises(ValueError, match="suffix = ''"):
        publish_dead_letters(stream.log, stream.root, sealed, suffix="")


def test_a_changed_reject_file_is_not_published(stream, sealed):
    path = stream.root / sealed.rejects_file.path
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(store.StoreDamaged):
        publish_dead_letters(stream.log, stream.root, sealed)
