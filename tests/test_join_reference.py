"""The join against a naive reference: random streams, read record by record from the log, give the same examples."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from random import Random

import pyarrow as pa
import pytest

import tests.windows
from assets.stream.embedded import EmbeddedLog
from assets.windows.clock import NotDue
from assets.windows.join import read_examples
from assets.windows.seal import find_sealed
from tests.windows import Stream, at, event, label, new_topics


@pytest.fixture
def unsafe(monkeypatch):
    """Flushing to the disk is most of the time of a test that writes hundreds of small files."""
    monkeypatch.setattr(os, "fsync", lambda _handle: None)


def random_stream(rng, minutes):
    """Publish in bursts while windows are being cut: duplicates, late and early labels, out of order, orphans."""
    records = []
    for n in range(rng.randint(20, 70)):
        arrived = rng.uniform(0, minutes)
        for _ in range(1 + (rng.random() < 0.25)):
            delay = rng.choice([0, 0, rng.uniform(0, 40), rng.uniform(0, 300)])
            records.append((arrived + delay, event(f"e{n}", arrived, x=rng.random())))
            arrived += rng.choice([0, rng.uniform(-50, 200)])
        for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
            came = arrived + rng.choice([rng.uniform(0, 100), rng.uniform(-60, 300)])
            records.append((came + rng.choice([0, 0, rng.uniform(0, 90)]), label(f"e{n}", max(0, came), y=n)))
        if rng.random() < 0.1:
            records.append((arrived, label(f"orphan{n}", max(0, arrived))))
    records = [(sent, replace(record, timestamp=max(at(0), record.timestamp))) for sent, record in records]
    return [record for _, record in sorted(records, key=lambda pair: pair[0])]


def cut_while_it_comes(stream, rng, records, windows):
    """Cut as soon as a window is due, so that what comes out of order is in a later window than its time says."""
    done = 0
    while records:
        burst = rng.randint(1, 12)
        stream.publish(*records[:burst])
        del records[:burst]
        try:
            while done < windows:
                stream.cut(done)
                done += 1
        except NotDue:
            continue
    stream.end(windows * stream.policy.every / timedelta(minutes=1))
    for number in range(windows):
        stream.cut(number), stream.seal(number)


def read_all(stream, topic, windows):
    """(window, record) of everything in the log, by the offset ranges of the cuts."""
    found = []
    for number in range(windows):
        for part, (start, end) in stream.cut(number).topics[topic].partitions.items():
            found += [(number, record) for batch in stream.log.read(topic, part, start, end) for record in batch]
    return found


def naive(stream, windows):
    """{event_id: (window, arrival, label's value)} and the counts, record by record, over the whole stream at once."""
    every, horizon = stream.policy.every // timedelta(milliseconds=1), stream.horizon // timedelta(milliseconds=1)
    events, labels = ({} for _ in range(2))
    for topic, into in ((stream.topics.events, events), (stream.topics.labels, labels)):
        for window, record in read_all(stream, topic, windows):
            order = (window, record.timestamp, record.partition, record.offset)
            into.setdefault(record.key.decode(), []).append((*order, record))
    examples, counts = {}, Counter()
    for name, copies in events.items():
        sealed, arrived, *_ = min(copies, key=lambda copy: copy[:4])
        window = max(sealed, (arrived + horizon - at(0)) // every)
        counts["matured"] += 1
        counts["duplicate_events"] += len(copies) - 1
        timely = [each for each in labels.get(name, []) if each[0] <= window and abs(each[1] - arrived) <= horizon]
        counts["late"] += sum(each[0] > window or each[1] > arrived + horizon for each in labels.get(name, []))
        if timely:
            counts["duplicate_labels"] += len(timely) - 1
            first = min(timely, key=lambda each: each[1:4])
            examples[name] = (window, arrived, json.loads(first[4].value)["y"])
    return examples, counts


def spelled(name, style):
    """The id of e7 or orphan7 in one of the forms an id may have."""
    number = int(name.lstrip("ephanor"))
    number += 1000 * name.startswith("orphan")
    return {"plain": name, "unicode": f"ключ-{name}-日本", "long": name * 200, "integer": number}[style]


def respelled(record, style):
    value = json.loads(record.value)
    return replace(record, value=json.dumps(value | {"event_id": spelled(value["event_id"], style)}).encode())


@pytest.mark.parametrize("seed", range(16))
def test_random_streams_give_what_a_naive_reference_gives_none_lost_none_doubled(tmp_path, unsafe, monkeypatch, seed):
    rng = Random(seed)
    log = EmbeddedLog(tmp_path / "log.db")
    stream = Stream(log, new_topics(log, partitions=rng.randint(1, 3)), tmp_path / "a")
    every = rng.choice([30, 60, 120, 180, 240, 360])
    stream.policy = replace(stream.policy, every=timedelta(minutes=every), grace=timedelta(minutes=rng.choice([0, 10])))
    stream.horizon = timedelta(minutes=rng.choice([1, 45, 120, 121]))
    style, negative = ("plain", "unicode", "long", "integer")[seed % 4], seed % 3 == 0
    if style == "integer":
        for name in ("EVENT", "LABEL"):
            whole = pa.field("event_id", pa.int64(), nullable=False)
            monkeypatch.setattr(tests.windows, name, getattr(tests.windows, name).set(0, whole))
    windows = 840 // every + 1
    records = [respelled(record, style) for record in random_stream(rng, 300)]
    cut_while_it_comes(stream, rng, records, windows)
    joined = [stream.join(number, negative) for number in range(windows)]
    found = [
        (row["event_id"], (number, int(row["_arrived"].timestamp() * 1000), row["y"]))
        for number, each in enumerate(joined)
        for row in read_examples(stream.root, each).to_pylist()
        if row["y"] is not None or not row["_label_absent"]
    ]
    plain, counts = naive(stream, windows)
    examples = {spelled(name, style): example for name, example in plain.items()}
    made = sum(each.examples for each in joined)
    assert made == (counts["matured"] if negative else len(examples))
    assert sum(each.unlabelled for each in joined) == (0 if negative else counts["matured"] - len(examples))
    assert len(found) == len(dict(found)), "an event is in two windows"
    assert dict(found) == examples
    assert sum(each.events_matured for each in joined) == counts["matured"]
    assert sum(each.duplicate_events for each in joined) == counts["duplicate_events"]
    assert sum(each.duplicate_labels for each in joined) == counts["duplicate_labels"]
    assert sum(each.late_labels for each in joined) == counts["late"]
    sealed = [find_sealed(stream.history, stream.window(number)) for number in range(windows)]
    rows = sum(each.rows[stream.topics.events] for each in sealed)
    assert rows == counts["matured"] + counts["duplicate_events"]
    log.close()


def test_the_random_streams_contain_what_they_are_meant_to_test(tmp_path, unsafe):
    """Else the test above could not fail: there must be late events, late labels and copies across windows."""
    seen_cases = Counter()
    for seed in range(4):
        rng = Random(seed)
        log = EmbeddedLog(tmp_path / f"{seed}.db")
        stream = Stream(log, new_topics(log), tmp_path / f"{seed}")
        cut_while_it_comes(stream, rng, random_stream(rng, 300), 15)
        windows = {}
        for window, record in read_all(stream, stream.topics.events, 15):
            seen_cases["sealed late"] += window > (record.timestamp - at(0)) // 3_600_000
            seen_cases["sealed after maturity"] += window > (record.timestamp + 7_200_000 - at(0)) // 3_600_000
            seen_cases["copy in another window"] += windows.setdefault(record.key, window) != window
        examples, counts = naive(stream, 15)
        seen_cases.update(counts)
        seen_cases["labelled"] += len(examples)
        log.close()
    assert min(seen_cases.values()) > 3, seen_cases
