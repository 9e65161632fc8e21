"""The join: each labelled event is an example of exactly one window, whatever comes twice, late or out of order."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

import tests.windows
from assets.stream.decode import SchemaRefused
from assets.stream.embedded import EmbeddedLog
from assets.stream.log import Outgoing
from assets.stream.spans import MILLISECONDS
from assets.windows import store
from assets.windows.clock import NotDue
from assets.windows.index import IndexOutdated
from assets.windows.join import Examples, find_examples, read_examples
from assets.windows.seal import SealDiffers, SealedFile, SealedWindow
from assets.windows.store import StoreDamaged
from tests.windows import NOW, START, Stream, at, event, label, new_topics


@pytest.fixture
def stream(tmp_path):
    """Hourly windows; an event is mature two hours after it arrived."""
    log = EmbeddedLog(tmp_path / "log.db")
    yield Stream(log, new_topics(log), tmp_path / "a")
    log.close()


def names(stream, number):
    return read_examples(stream.root, stream.join(number))["event_id"].to_pylist()


def run(stream, hours):
    """Cut, seal and join the first windows of a stream that has ended; what each join found."""
    stream.end(60 * hours)
    return [stream.run(number)[2] for number in range(hours)]


def test_an_event_is_an_example_of_the_window_in_which_its_label_is_mature(stream):
    stream.publish(event("a", 0), event("b", 59.999), event("c", 60), label("a", 30), label("b", 70), label("c", 61))
    found = run(stream, 5)
    assert [names(stream, number) for number in range(5)] == [[], [], ["a", "b"], ["c"], []]
    assert [joined.events_matured for joined in found] == [0, 0, 2, 1, 0]
    assert found[2].arrived == (START, START + timedelta(hours=1))
    assert found[2].coverage == 1.0
    assert found[0].coverage is None


def test_an_example_has_the_columns_of_event_and_label_and_its_times(stream):
    stream.publish(event("a", 10, x=7), label("a", 25, y=4))
    table = read_examples(stream.root, run(stream, 3)[2])
    row = table.to_pylist()[0]
    assert (row["event_id"], row["x"], row["near"], row["y"]) == ("a", 7.0, [1.0, 2.5, -3.0], 4)
    assert [int(row[name].timestamp() * 1000) for name in ("_arrived", "_matured", "_label_at")] == [
        at(10),
        at(130),
        at(25),
    ]
    assert row["_label_absent"] is False
    assert not any(field.nullable for field in table.schema)


def test_examples_are_ordered_by_arrival_and_name(stream):
    for name, minutes in (("z", 5), ("b", 9), ("a", 9), ("c", 1)):
        stream.publish(event(name, minutes), label(name, 30))
    run(stream, 3)
    assert names(stream, 2) == ["c", "z", "a", "b"]


def test_the_first_label_by_time_counts_and_the_others_are_counted(stream):
    stream.publish(event("a", 0), label("a", 30, y=2, partition=1), label("a", 20, y=1, partition=0))
    stream.publish(label("a", 30, y=3, partition=0))
    found = run(stream, 3)
    assert read_examples(stream.root, found[2])["y"].to_pylist() == [1]
    assert (found[2].duplicate_labels, found[2].examples) == (2, 1)


def test_a_label_at_the_horizon_counts_and_one_a_millisecond_later_is_late(stream):
    late = replace(label("b", 120), timestamp=at(120) + 1)
    stream.publish(event("a", 0), event("b", 0), label("a", 120), late)
    found = run(stream, 4)
    assert names(stream, 2) == ["a"]
    assert (found[2].unlabelled, found[2].late_labels, found[3].late_labels) == (1, 1, 0)


def test_a_label_that_comes_windows_after_its_event_matured_is_late_and_never_used(stream):
    stream.publish(event("a", 0), event("b", 0), label("b", 10), label("a", 400), label("b", 400))
    found = run(stream, 9)
    assert [joined.late_labels for joined in found] == [0] * 6 + [2, 0, 0]
    assert [joined.examples for joined in found] == [0, 0, 1] + [0] * 6
    assert sum(joined.labels_without_event for joined in found) == 0


def test_a_label_may_overtake_its_event_by_the_horizon_at_most(stream):
    stream.publish(label("a", 0), label("b", 0), event("a", 120), event("b", 121))
    found = run(stream, 6)
    assert names(stream, 4) == ["a"]
    assert [joined.labels_without_event for joined in found] == [0, 0, 0, 0, 0, 0]
    assert found[4].unlabelled == 1


def test_a_label_without_an_event_is_counted_once_when_its_time_is_up(stream):
    stream.publish(event("a", 0), label("a", 1), label("nobody", 30))
    found = run(stream, 5)
    assert [joined.labels_without_event for joined in found] == [0, 0, 1, 0, 0]
    assert [joined.labels for joined in found] == [2, 0, 0, 0, 0]


def test_the_first_event_of_a_name_counts_and_the_others_are_counted(stream):
    stream.publish(event("a", 10, x=2), event("a", 5, x=1), event("a", 70, x=3), label("a", 20))
    found = run(stream, 4)
    assert read_examples(stream.root, found[2])["x"].to_pylist() == [1.0]
    assert [joined.duplicate_events for joined in found] == [0, 0, 1, 1]


def test_a_copy_that_matures_before_the_first_one_does_not_come_in_between(stream):
    """Sealed later, but with an older time stamp: if it counted as the first, the event would be learnt twice."""
    stream.publish(event("a", 50, 0), event("b", 61, 0), event("a", 1, 0), label("a", 55))
    found = run(stream, 4)
    assert [joined.examples for joined in found] == [0, 0, 1, 0]
    assert read_examples(stream.root, found[2])["_arrived"].cast(pa.int64()).to_pylist() == [at(50)]


def test_an_event_sent_again_long_after_is_known(stream):
    stream.publish(event("a", 0), label("a", 1), event("a", 600), label("a", 601))
    found = run(stream, 13)
    assert sum(joined.examples for joined in found) == 1
    assert found[12].duplicate_events == 1
    assert found[10].late_labels == 1


def test_an_event_that_is_sealed_after_its_maturity_belongs_to_the_window_it_was_sealed_in(stream):
    stream.publish(event("a", 1, 0), event("b", 250, 0), event("late", 2, 0), label("late", 3), label("a", 3))
    found = run(stream, 7)
    assert names(stream, 2) == ["a"]
    assert names(stream, 4) == ["late"]
    low, high = found[4].arrived
    assert int(low.timestamp() * 1000) == at(2)
    assert high == START + timedelta(hours=3)


def test_without_a_label_an_event_is_counted_and_with_negative_if_absent_it_is_an_example(stream, tmp_path):
    stream.publish(event("a", 0), event("b", 1), label("a", 30, y=9))
    assert run(stream, 3)[2].unlabelled == 1
    other = Stream(stream.log, stream.topics, tmp_path / "b")
    other.end(180)
    for number in range(3):
        other.cut(number), other.seal(number)
        found = other.join(number, negative_if_absent=True)
    rows = read_examples(other.root, found).to_pylist()
    assert [(row["event_id"], row["y"], row["_label_at"] is None, row["_label_absent"]) for row in rows] == [
        ("a", 9, False, False),
        ("b", None, True, True),
    ]
    assert (found.examples, found.events_matured, found.unlabelled, found.coverage) == (2, 2, 0, 0.5)


def test_the_lag_of_labels_is_shown(stream):
    for number in range(1, 101):
        stream.publish(event(f"{number}", 0), label(f"{number}", number))
    assert run(stream, 3)[2].lag_seconds == {"p50": 50 * 60, "p90": 90 * 60, "p99": 99 * 60}


def test_a_join_waits_for_every_seal_and_for_the_join_before(stream):
    stream.publish(event("a", 0), label("a", 30))
    stream.end(180)
    for number in range(3):
        stream.cut(number)
    stream.seal(0), stream.seal(2)
    stream.join(0)
    with pytest.raises(NotDue, match="wait for window 2024-01-01T01:00Z to be sealed"):
        stream.join(2)
    stream.seal(1)
    with pytest.raises(NotDue, match="wait for those of window 2024-01-01T01:00Z"):
        stream.join(2)
    stream.join(1)
    assert stream.join(2).examples == 1


def test_a_joined_window_is_checked_and_returned_and_a_lost_file_restored(stream):
    stream.publish(event("a", 0), label("a", 30), event("b", 70), label("b", 80))
    found = run(stream, 4)
    before = stream.hashes()
    assert stream.join(2) == found[2] == Examples.of(found[2].body()) == find_examples(stream.history, found[2].window)
    for path in found[2].files():
        (stream.root / path).unlink()
        assert stream.join(2) == found[2]
    assert stream.hashes() == before
    (stream.root / found[2].path).write_bytes(b"?")
    with pytest.raises(StoreDamaged):
        read_examples(stream.root, found[2])


def test_another_horizon_does_not_change_what_was_joined(stream):
    stream.publish(event("a", 0), label("a", 30))
    found = run(stream, 3)
    (stream.root / found[2].path).unlink()
    stream.horizon = timedelta(hours=3)
    with pytest.raises(SealDiffers, match="label_horizon"):
        stream.join(2)


def test_schemas_that_do_not_go_together_are_refused(stream, monkeypatch):
    both = pa.schema([*tests.windows.LABEL, pa.field("x", pa.float64())])
    monkeypatch.setattr(tests.windows, "LABEL", both)
    stream.end(60)
    stream.cut(0), stream.seal(0)
    with pytest.raises(SchemaRefused, match="'x' is in the event and in the label schema"):
        stream.join(0)


def test_a_file_of_ids_that_is_gone_stops_the_join(stream):
    stream.publish(event("a", 0), label("a", 30), event("b", 70), label("b", 80))
    stream.end(240)
    for number in range(4):
        stream.cut(number), stream.seal(number)
    for number in range(3):
        stream.join(number)
    (stream.root / find_examples(stream.history, stream.window(2)).seen_path).unlink()
    with pytest.raises(StoreDamaged, match="learnt from twice"):
        stream.join(3)


def test_a_join_opens_the_indexes_its_horizon_reaches_and_no_others(stream):
    """Two hours: a label may lie four hours back. What was known before lies in the blocks of windows 7 and 9."""
    for hour in range(12):
        stream.publish(event(f"{hour}", 60 * hour), label(f"{hour}", 60 * hour + 70))
    stream.end(720)
    for number in range(10):
        stream.run(number)
    stream.cut(10), stream.seal(10)
    for number in range(4):
        (stream.root / find_examples(stream.history, stream.window(number)).seen_path).unlink()
    assert stream.join(10).examples == 1
    (stream.root / find_examples(stream.history, stream.window(8)).seen_path).unlink()
    stream.cut(11), stream.seal(11)
    with pytest.raises(StoreDamaged, match="learnt from twice"):
        stream.join(11)
    assert stream.join(8).examples == 1, "made again from the sealed files and the indexes before it"
    assert stream.join(11).examples == 1


def test_a_damaged_index_stops_the_join_and_is_made_again_when_it_is_deleted(stream):
    stream.publish(event("a", 0), event("b", 61), label("a", 30), label("b", 90))
    run(stream, 3)
    path = stream.root / find_examples(stream.history, stream.window(1)).seen_path
    whole = path.read_bytes()
    path.write_bytes(whole[:70] + b"?" + whole[71:])
    stream.end(240)
    stream.cut(3), stream.seal(3)
    with pytest.raises(StoreDamaged, match="with another's label"):
        stream.join(3)
    path.unlink()
    stream.join(1)
    assert (path.read_bytes(), stream.join(3).examples) == (whole, 1)


def test_a_window_joined_by_an_older_version_still_opens_and_the_next_join_says_what_to_do(stream):
    stream.publish(event("a", 0), label("a", 30))
    stream.end(120)
    for number in range(2):
        stream.cut(number), stream.seal(number)
    twin = Stream(stream.log, stream.topics, stream.folder / "twin")
    twin.end(120)
    body = twin.run(0)[2].body()
    old = {key: value for key, value in body.items() if key not in ("latest", "lag_by_outcome")}
    stream.history.once("examples.joined", old | {"seen_path": "delays/windows/x/seen.u64"}, actor="test", at=NOW)
    known = find_examples(stream.history.refresh(), stream.window(0))
    assert (known.latest, known.lag_by_outcome, known.examples) == (None, None, 0)
    with pytest.raises(IndexOutdated, match="Give the task another name"):
        stream.join(1)
    with pytest.raises(IndexOutdated, match="Give the task another name"):
        stream.join(0)


def test_the_lag_is_shown_by_outcome_for_values_with_enough_labels(stream):
    for n in range(60):
        stream.publish(event(f"{n}", 0), label(f"{n}", 10 + n // 3 if n % 3 else 100, y=n % 3 if n != 5 else 7))
    found = run(stream, 3)[2]
    assert found.lag_by_outcome == {
        "0": {"p50": 6000.0, "p90": 6000.0, "p99": 6000.0},
        "1": {"p50": 1140.0, "p90": 1620.0, "p99": 1740.0},
    }
    assert found.examples == 60, "an outcome with 19 labels is left out of the entry, not of the examples"
    assert Examples.of(found.body()) == found


@pytest.mark.parametrize(
    ("kind", "values", "shown"),
    [
        (pa.bool_(), [True, False], {"True", "False"}),
        (pa.string(), ["late", "on time"], {"late", "on time"}),
        (pa.string(), [f"text {n}" for n in range(11)], set()),
        (pa.float64(), [0.0, 1.0], set()),
    ],
)
def test_what_is_no_outcome_has_no_lag_by_outcome(stream, monkeypatch, kind, values, shown):
    monkeypatch.setattr(tests.windows, "LABEL", pa.schema([tests.windows.LABEL.field(0), pa.field("y", kind, nullable=False)]))
    for n in range(20 * len(values)):
        stream.publish(event(f"{n}", 0), label(f"{n}", 10, y=values[n % len(values)]))
    assert set(run(stream, 3)[2].lag_by_outcome) == shown


# -- windows sealed by hand: columns and sizes the small stream does not have -----------------------------------------


def seal_by_hand(stream, number, events, labels):
    """Journal a window whose files hold these columns: (name -> values) with `_timestamp` in minutes, by partition."""
    files, rows, arrived = [], {}, {}
    for topic, parts in ((stream.topics.events, events), (stream.topics.labels, labels)):
        moments = []
        for part, columns in enumerate(parts):
            stamps = [at(minutes) for minutes in columns["_timestamp"]]
            moments += stamps
            envelope = {"_partition": [part] * len(stamps), "_offset": list(range(len(stamps)))}
            columns = {**envelope, **columns, "_timestamp": pa.array(stamps, MILLISECONDS)}
            path = f"{store.window_folder(stream.task, stream.window(number))}/{topic}-{part}.parquet"
            (stream.root / path).parent.mkdir(parents=True, exist_ok=True)
            with store.RowGroups(stream.root / path, pa.table(columns).schema) as writer:
                writer.add(pa.table(columns))
            files.append(SealedFile(path, topic, part, writer.sha256, len(stamps)))
        rows[topic], arrived[topic] = len(moments), (min(moments), max(moments)) if moments else None
    sealed = SealedWindow(stream.window(number), tuple(files), rows, 0, None, {}, arrived, "ab" * 32, pa.__version__)
    stream.history.refresh().once("window.sealed", sealed.body(), actor="test", at=NOW)


def test_columns_with_a_leading_underscore_are_headgates_own_and_in_no_example(stream):
    odd = {"_header_trace": ["t"], "_ce_id": ["c"]}
    nothing = {"event_id": pa.array([], pa.string()), "_timestamp": []}
    empty = [{**nothing, "a.b": pa.array([], pa.float64())}], [{**nothing, "near": pa.array([], pa.list_(pa.float64()))}]
    event_columns = {**odd, "event_id": ["é"], "_timestamp": [3], "a.b": [7.5]}
    label_columns = {**odd, "event_id": ["é"], "_timestamp": [4], "near": [[1.5]]}
    seal_by_hand(stream, 0, [event_columns], [label_columns])
    for number in (1, 2):
        seal_by_hand(stream, number, *empty)
        stream.join(number - 1)
    table = read_examples(stream.root, stream.join(2))
    assert table.column_names == ["event_id", "a.b", "_arrived", "_matured", "near", "_label_at", "_label_absent"]
    assert [table[name].to_pylist() for name in ("event_id", "a.b", "near")] == [["é"], [7.5], [[1.5]]]


def test_rows_are_found_in_the_row_groups_of_a_large_window(stream):
    """150,000 events in two files of several row groups; every 1,000th has a label, sealed out of order."""
    count = 75_000
    events = [
        {"event_id": [f"{part}-{n}" for n in range(count)], "_timestamp": (np.arange(count) % 60).tolist(),
         "x": np.arange(count) + 0.5 * part} for part in range(2)
    ]  # fmt: skip
    marked = [(part, n) for n in range(0, count, 1000) for part in range(2)][::-1]
    labels = [
        {"event_id": [f"{part}-{n}" for part, n in marked], "_timestamp": [70] * len(marked), "y": [n for _, n in marked]}
    ]
    none = [{name: pa.array([], pa.table(columns).schema.field(name).type) for name, columns in ((n, c) for n in c)}
            for c in (events[0], labels[0])]  # fmt: skip
    seal_by_hand(stream, 0, events, [none[1]])
    seal_by_hand(stream, 1, [none[0]], labels)
    seal_by_hand(stream, 2, [none[0]], [none[1]])
    stream.join(0), stream.join(1)
    found = stream.join(2)
    assert (found.events_matured, found.examples) == (2 * count, len(marked))
    rows = read_examples(stream.root, found).to_pylist()
    assert {(row["event_id"], row["x"], row["y"]) for row in rows} == {(f"{p}-{n}", n + 0.5 * p, n) for p, n in marked}


def test_a_window_of_two_thousand_events_is_joined_in_a_blink(stream):
    """2,000 events an hour for three hours; 0.5 CPU s are ten times what it takes on an idle machine."""
    values = [Outgoing(None, event(f"e{n}", 0).value, at(n * 0.03)) for n in range(6000)]
    stream.log.append(stream.topics.events, values)
    stream.log.append(stream.topics.labels, [replace(label(f"e{n}", n * 0.03 + 20), key=None) for n in range(6000)])
    stream.end(240)
    for number in range(4):
        stream.cut(number), stream.seal(number)
    stream.join(0), stream.join(1)
    began = time.process_time()
    assert stream.join(2).examples == 2000
    assert time.process_time() - began < 0.5
    assert np.isclose(stream.join(3).lag_seconds["p50"], 1200)
