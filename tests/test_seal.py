"""The seal: every record of a cut, in files that are the same bytes on every run, with the poison beside them."""

from __future__ import annotations

import hashlib
import sqlite3
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

import assets.stream.embedded
from assets.stream.embedded import EmbeddedLog
from assets.stream.log import IdentityChanged, OffsetsGone, Outgoing
from assets.windows import store
from assets.windows.clock import NotDue
from assets.windows.part import TooManyRejects
from assets.windows.proof import SealIncomplete
from assets.windows.seal import (
    SealDiffers,
    SealedWindow,
    find_sealed,
    read_sealed,
    verify_sealed,
)
from assets.windows.store import StoreDamaged
from tests.windows import Stream, event, label, new_topics


@pytest.fixture
def stream(event_log, tmp_path):
    return Stream(event_log, new_topics(event_log), tmp_path / "a")


@pytest.fixture
def small(tmp_path):
    """A stream on the embedded log, where the broker does not matter."""
    log = EmbeddedLog(tmp_path / "log.db")
    yield Stream(log, new_topics(log), tmp_path / "a")
    log.close()


def some(stream, hours=2):
    for minute in range(0, 60 * hours, 7):
        stream.publish(event(f"e{minute}", minute), label(f"e{minute}", minute + 30, minute % 2))
    stream.end(60 * hours)


def test_a_sealed_window_holds_every_record_of_its_cut_in_offset_order(stream):
    some(stream)
    for number in range(2):
        decided, sealed = stream.cut(number), stream.seal(number)
        assert sealed.gaps == dict.fromkeys(stream.topics.all, 0)
        assert sealed.cut_hash == decided.digest()
        for topic in stream.topics.all:
            table = read_sealed(stream.root, sealed, topic)
            found = list(zip(table["_partition"].to_pylist(), table["_offset"].to_pylist(), strict=True))
            ranges = decided.topics[topic].partitions.items()
            assert found == [(part, offset) for part, (start, end) in ranges for offset in range(start, end)]
            assert sealed.rows[topic] == len(found)


def test_the_journal_names_each_file_with_its_hash(small):
    some(small)
    small.cut(0)
    sealed = small.seal(0)
    assert len(sealed.files) == 6
    for file in sealed.files:
        assert file.path == f"delays/windows/2024-01-01T0000Z/{file.topic}-{file.partition}.parquet"
        assert hashlib.sha256((small.root / file.path).read_bytes()).hexdigest() == file.sha256
    assert SealedWindow.of(sealed.body()) == sealed == find_sealed(small.history.refresh(), sealed.window)


def test_a_second_run_over_the_same_log_gives_the_same_bytes(stream, tmp_path):
    some(stream)
    again = Stream(stream.log, stream.topics, tmp_path / "b")
    again.end(120)
    for number in range(2):
        stream.run(number)
        again.run(number)
    assert stream.hashes() == again.hashes()
    assert len(stream.hashes()) == 2 * 8


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_how_much_is_fetched_at_a_time_leaves_no_trace(small, tmp_path, monkeypatch, batch):
    some(small)
    monkeypatch.setattr(assets.stream.embedded, "BATCH_RECORDS", batch)
    other = Stream(small.log, small.topics, tmp_path / str(batch))
    other.end(120)
    monkeypatch.undo()
    small.run(0)
    monkeypatch.setattr(assets.stream.embedded, "BATCH_RECORDS", batch)
    other.run(0)
    assert small.hashes() == other.hashes()


def test_a_window_is_not_sealed_before_it_is_cut(small):
    with pytest.raises(NotDue, match="not cut yet"):
        small.seal(0)


def test_a_sealed_window_is_checked_and_returned(small):
    some(small)
    small.cut(0)
    sealed = small.seal(0)
    assert small.seal(0) == sealed
    assert small.history.journal.length("window/delays") == 2  # the end of the stream and one seal
    verify_sealed(small.root, sealed)


def test_poison_is_kept_beside_the_window_with_its_reason(stream):
    poison = Outgoing(b"k", b'{"event_id": "x", "y": NaN}', event("x", 5).timestamp, 1)
    tombstone = Outgoing(b"gone", None, event("x", 5).timestamp, 0)
    stream.log.append(stream.topics.labels, [poison, tombstone])
    some(stream)
    stream.cut(0)
    sealed = stream.seal(0)
    kept = store.table(store.get(stream.root, sealed.rejects_file.path, sealed.rejects_file.sha256)).to_pylist()
    assert sealed.rejects == len(kept) == 2
    assert [(row["_topic"], row["_partition"], row["key"], row["value"], row["error"]) for row in kept] == [
        (stream.topics.labels, 0, b"gone", None, "tombstone: the record has no value"),
        (stream.topics.labels, 1, b"k", poison.value, "NaN is no JSON number"),
    ]
    stream.cut(1)
    assert stream.seal(1).rejects_file is None


def test_too_much_poison_in_one_topic_seals_nothing_and_says_where_it_begins(small):
    small.max_reject_share = 0.01
    for minute in range(50):
        small.publish(event(f"e{minute}", minute))
    small.publish(label("e1", 20, y="late"), label("e2", 30))
    small.end(60)
    small.cut(0)
    with pytest.raises(TooManyRejects) as stopped:
        small.seal(0)
    for part in ("1 of 2 records", small.topics.labels, "share 0.5000 > max_reject_share 0.01", "'y': wrong type"):
        assert part in str(stopped.value)
    assert small.hashes() == {}
    assert find_sealed(small.history.refresh(), small.window(0)) is None
    small.max_reject_share = 0.5
    assert small.seal(0).rejects == 1


def test_a_lost_file_is_restored_from_the_log_and_a_changed_one_stops(small):
    some(small)
    small.cut(0)
    sealed = small.seal(0)
    before = small.hashes()
    path = small.root / sealed.files[0].path
    path.unlink()
    assert small.seal(0) == sealed
    assert small.hashes() == before
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreDamaged, match="was changed"):
        small.seal(0)
    with pytest.raises(StoreDamaged):
        read_sealed(small.root, sealed, sealed.files[0].topic)


def test_a_log_that_was_rewritten_after_the_seal_stops_it(small, tmp_path):
    some(small)
    small.cut(0)
    sealed = small.seal(0)
    (small.root / sealed.files[0].path).unlink()
    with sqlite3.connect(tmp_path / "log.db") as db:
        db.execute("UPDATE records SET value = CAST(replace(value, '0.5', '0.6') AS BLOB)")
    left = small.hashes()
    with pytest.raises(SealDiffers, match=r"sealed again.*the journal says"):
        small.seal(0)
    assert small.hashes() == left


def test_a_topic_made_anew_between_cut_and_seal_stops_with_both_names(small, tmp_path):
    some(small)
    decided = small.cut(0)
    with sqlite3.connect(tmp_path / "log.db") as db:
        db.execute("UPDATE topics SET id = 'another'")
    with pytest.raises(IdentityChanged) as stopped:
        small.seal(0)
    old = [topic.topic_id for topic in decided.topics.values()]
    assert "another" in str(stopped.value)
    assert any(name in str(stopped.value) for name in old)


def test_records_that_retention_took_before_the_seal_are_an_exact_gap(stream, trim):
    some(stream)
    start, end = stream.cut(0).topics[stream.topics.events].partitions[0]
    trim(stream.topics.events, 0, 2)
    with pytest.raises(OffsetsGone, match=rf"offsets \[{start}, 2\)"):
        stream.seal(0)
    assert end > 2
    assert stream.hashes() == {}


def test_a_log_that_answers_with_the_wrong_records_is_not_believed(small):
    class Doubled(EmbeddedLog):
        def read(self, topic, partition, start, end):
            for batch in super().read(topic, partition, start, end):
                yield batch
                yield batch.take(np.arange(len(batch)) == len(batch) - 1)

    some(small)
    small.cut(0)
    small.log = Doubled(small.log.path)
    with pytest.raises(SealIncomplete, match=r"accounts for offset .* was due: nothing was sealed|out of order"):
        small.seal(0)


def test_a_large_record_passes(stream):
    stream.publish(event("a" * 1_000_000, 5), label("a", 6))
    stream.end(60)
    stream.cut(0)
    assert stream.seal(0).rows[stream.topics.events] == 1


def test_the_time_stamps_of_the_rows_are_kept_as_a_range(small):
    some(small)
    small.cut(0)
    sealed = small.seal(0)
    events = read_sealed(small.root, sealed, small.topics.events)["_timestamp"].cast(pa.int64()).to_pylist()
    assert sealed.arrived[small.topics.events] == (min(events), max(events))
    assert sealed.arrived[small.topics.predictions] is None
    assert max(events) - min(events) < timedelta(hours=1) / timedelta(milliseconds=1)
