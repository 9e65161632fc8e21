"""The benchmark of the join on a tiny size: its windows are what they claim to be, and every side finds the same pairs."""

from __future__ import annotations

import shutil

import pytest

from assets.windows.join import find_examples
from tests.benchmarks import join as benchmark
from tests.benchmarks import result
from tests.benchmarks._join_data import HOUR, TOPICS, fill, ids_of

WINDOWS, EVENTS, HORIZON = 6, 4000, 2 * HOUR


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealed")
    fill(folder, WINDOWS, EVENTS, HORIZON)
    return folder


def test_its_ids_are_20_characters_and_different():
    ids = ids_of(benchmark.np.arange(50_000)).to_pylist()
    assert {len(each) for each in ids} == {20} and len(set(ids)) == len(ids)


def test_its_windows_have_copies_late_records_and_labels_of_every_kind(sealed, tmp_path):
    shutil.copytree(sealed, tmp_path / "a")
    benchmark.one_round(tmp_path / "a", WINDOWS, HORIZON, "ours")
    held = benchmark.Store(tmp_path / "a", HORIZON)
    found = [find_examples(held.history, held.window(number)) for number in range(WINDOWS)]
    assert 0.95 < sum(each.events_matured for each in found) / (EVENTS * (WINDOWS - 2)) < 1.02
    assert min(found[-1].duplicate_events, found[-1].late_labels, found[-1].labels_without_event) > 5
    assert 0.55 < found[-1].coverage < 0.65, "some of the labels come too late"
    first = held.read(1, TOPICS.events, ["event_id", "_timestamp"])["at"].to_pylist()
    assert first != sorted(first)


def test_every_side_makes_the_same_examples_but_for_the_copies_some_do_not_know(sealed, tmp_path):
    shutil.copytree(sealed, tmp_path / "a")
    rates = benchmark.one_round(tmp_path / "a", WINDOWS, HORIZON, "all")  # exits when they differ by more than 3 %
    assert {"ours", benchmark.NAIVE, "pyarrow: Table.join"} <= set(rates)
    ours, theirs = benchmark.matching(tmp_path / "a", WINDOWS, HORIZON)
    assert min(*ours, *theirs, *rates.values()) > 0


def test_the_result_names_every_peer_with_its_median():
    found = result("join", "a s", [3.0, 1.0, 2.0], "naive", [1.0], [], {"naive": [1.0], "other": [4.0, 6.0]})
    assert (found["figure"], found["ratio"], found["peers"]) == (2.0, 2.0, {"naive": 1.0, "other": 5.0})
    assert "peers" not in result("join", "a s", [1.0], "naive", [1.0], [])
