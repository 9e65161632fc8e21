"""Verifying a window: whatever was changed since the seal, in the store or in the log, is found and named."""

from __future__ import annotations

import json
import sqlite3

import pytest

from assets.stream.embedded import EmbeddedLog
from assets.stream.formats import FormatPolicy, formats_of
from assets.stream.log import Outgoing
from assets.stream.registry import Registry
from assets.windows import store
from assets.windows.clock import NotDue
from assets.windows.history import SEALED
from assets.windows.seal import SealedWindow, SealPolicy, seal
from assets.windows.verify import verify
from security.journal import Draft
from tests.windows import EVENT, LABEL, NOW, Stream, event, label, new_topics

NOBODY = Registry("http://127.0.0.1:1")


def filled(log, folder):
    stream = Stream(log, new_topics(log), folder)
    for minute in range(0, 60, 5):
        stream.publish(event(f"e{minute}", minute), label(f"e{minute}", minute, minute % 2))
    stream.log.append(stream.topics.labels, [Outgoing(b"k", b"poison", event("x", 1).timestamp)])
    stream.end(60)
    stream.cut(0)
    stream.seal(0)
    return stream


@pytest.fixture
def stream(event_log, tmp_path):
    return filled(event_log, tmp_path / "a")


@pytest.fixture
def small(tmp_path):
    log = EmbeddedLog(tmp_path / "log.db")
    yield filled(log, tmp_path / "a")
    log.close()


def check(stream, deep=False):
    formats = formats_of(stream.topics, EVENT, LABEL)
    return verify(stream.history, stream.log, stream.root, stream.window(0), formats, deep=deep)


def wrong(stream, deep=False):
    return [found for found in check(stream, deep) if found.state != "same"]


def rewrite(tmp_path, change):
    with sqlite3.connect(tmp_path / "log.db") as db:
        db.execute(change)


@pytest.mark.parametrize("deep", [False, True])
def test_a_window_nobody_touched_is_as_sealed(stream, deep):
    found = check(stream, deep)
    assert {each.state for each in found} == {"same"}
    assert len(found) == (7 + 6 + 7 if deep else 7 + 6)  # files with the rejects, partitions, files again
    assert not list(stream.root.rglob(".attempt*"))


def test_a_file_that_was_changed_or_lost_is_named(small):
    path = next(small.root.rglob("flights*-0.parquet"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    found = wrong(small)
    assert [each.state for each in found] == ["differs"] and "the file was changed" in found[0].detail
    path.unlink()
    assert "is missing" in wrong(small)[0].detail


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE records SET value = CAST(replace(value, '0.5', '0.6') AS BLOB)",
        "UPDATE records SET timestamp = timestamp + 1 WHERE at = 0",
        "UPDATE records SET key = CAST('another' AS BLOB) WHERE at = 1",
    ],
)
def test_a_log_that_was_written_anew_has_another_fingerprint(small, tmp_path, change):
    rewrite(tmp_path, change)
    found = wrong(small)
    assert found and {each.state for each in found} == {"differs"}
    assert all("the log was written anew" in each.detail for each in found)


def test_a_record_that_is_gone_from_the_middle_is_an_error_not_a_match(small, tmp_path):
    topic = f"(SELECT number FROM topics WHERE name = '{small.topics.events}')"
    rewrite(tmp_path, f"DELETE FROM records WHERE at = 1 AND topic = {topic}")
    assert {each.state for each in wrong(small)} == {"differs"}


def test_what_retention_took_cannot_be_compared_and_is_said_so(stream, trim):
    trim(stream.topics.events, 0, 3)
    found = wrong(stream, deep=True)
    assert [each.state for each in found] == ["gone"] and "the log begins at 3 now" in found[0].detail


def test_a_topic_made_anew_differs_with_both_names(small, tmp_path):
    rewrite(tmp_path, "UPDATE topics SET id = 'another'")
    assert "now it is another" in wrong(small)[0].detail


def test_an_entry_without_fingerprints_is_compared_row_by_row(small):
    """As windows were sealed before there were fingerprints, and with another layout of the files."""
    entry = small.history.refresh().find(SEALED, small.window(0))
    body = json.loads(json.dumps(entry.body))
    for file in body["files"]:
        del file["fingerprint"]
        table = store.table((small.root / file["path"]).read_bytes())
        with (small.root / file["path"]).open("wb") as out:
            store.pq.write_table(table, out, compression="gzip")
        file["sha256"] = store.sha256((small.root / file["path"]).read_bytes())
    for key in ("layout", "accepted", "schema_ids"):
        del body[key]
    assert SealedWindow.of(body).layout == 1
    other = Stream(small.log, small.topics, small.folder, task="old")
    other.history.journal.append(Draft("window/old", SEALED, body), actor="test", at=NOW)
    cut = small.history.journal.read("cut/delays")[0].body
    other.history.journal.append(Draft("cut/old", "cut.decided", cut), actor="test", at=NOW)
    assert {each.state for each in check(other)} == {"same", "unlike"}
    deep = [each for each in check(other, deep=True) if each.place.endswith("again")]
    assert {each.state for each in deep} == {"same"} and any("in other bytes" in each.detail for each in deep)


NOW_AND_THEN = {
    "headers": (FormatPolicy(headers=("trace",)), FormatPolicy(), "[stream] headers = ['trace'], now it is []"),
    "cloudevents": (FormatPolicy(), FormatPolicy(cloud_events=True), "[stream] cloudevents = false, now it is true"),
    "format": (FormatPolicy(), FormatPolicy("confluent", registry=NOBODY), '_format = "json", now it is "confluent"'),
    "schema": (FormatPolicy(), FormatPolicy(), "the task's schema has other fields than at the seal"),
}


@pytest.mark.parametrize("what", NOW_AND_THEN)
def test_what_is_read_by_other_settings_than_it_was_sealed_with_is_told_with_their_name(tmp_path, what):
    sealed, now, told = NOW_AND_THEN[what]
    log = EmbeddedLog(tmp_path / "log.db")
    stream = Stream(log, new_topics(log, partitions=1), tmp_path / "a")
    stream.publish(event("e", 5), label("e", 6))
    stream.end(60)
    cut, events = stream.cut(0), EVENT if what != "schema" else EVENT.remove(1)
    formats = [formats_of(stream.topics, schema, LABEL, policy) for schema, policy in ((EVENT, sealed), (events, now))]
    policy = SealPolicy(1.0)
    seal(stream.history, log, stream.root, cut.window, formats[0], policy=policy, now=NOW, actor="test")
    found = verify(stream.history, log, stream.root, cut.window, formats[1], deep=True)
    assert told in next(each.detail for each in found if each.state == "differs" and each.place.endswith("again"))


def test_a_window_that_is_not_sealed_has_nothing_to_verify(small):
    with pytest.raises(NotDue, match="is not sealed"):
        verify(small.history, small.log, small.root, small.window(1), formats_of(small.topics, EVENT, LABEL))
