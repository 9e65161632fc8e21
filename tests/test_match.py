"""The rules of the join on arrays, against a reference that goes through the records one by one; and the table it asks."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from random import Random

import numpy as np
import pyarrow as pa
import pytest

from assets.windows import lookup
from assets.windows.idhash import IdHash
from assets.windows.lookup import Lookup
from assets.windows.match import Grid, Part, match, windows_and_rows

HASH = IdHash(b"test")
WINDOWS = 12


@dataclass(frozen=True, order=True)
class Sent:
    """One record: an event or a label of `name`, sealed in a window."""

    sealed: int
    at: int
    partition: int
    offset: int
    name: str


def random_records(rng, every, horizon, partitions):
    """Events and labels: copies, out of order, sealed late, labels before their events, late, without any."""
    events, labels, length = [], [], every * WINDOWS
    for n in range(rng.randint(5, 40)):
        arrived = rng.randrange(length)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            events.append((arrived, f"e{n}"))
            arrived += rng.choice([0, rng.randint(-every, every), rng.randint(-length, length)])
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            lag = rng.choice([0, 1, horizon, horizon + 1, -horizon, -horizon - 1, rng.randint(-horizon, 3 * horizon + every)])
            labels.append((arrived + lag, f"e{n}"))
        if rng.random() < 0.2:
            labels.append((rng.randrange(length), f"nobody{n}"))
    return _sealed(rng, events, every, partitions), _sealed(rng, labels, every, partitions)


def _sealed(rng, records, every, partitions):
    """In its own window, in a later one, or in one before (a fast clock); offsets go up from window to window."""
    placed = []
    for at, name in records:
        at = max(0, at)
        window = at // every + rng.choice([0, 0, 0, 0, 1, rng.randint(0, WINDOWS), -rng.randint(0, WINDOWS)])
        if window < WINDOWS:
            placed.append((max(0, window), rng.random(), at, rng.randrange(partitions), name))
    ends = Counter()
    found = []
    for window, _, at, partition, name in sorted(placed):
        found.append(Sent(window, at, partition, ends[partition], name))
        ends[partition] += 1
    return found


def parts_of(records):
    """The parts, and the records by place."""
    parts, by_place = [], {}
    for window in range(WINDOWS):
        mine = sorted((r for r in records if r.sealed == window), key=lambda r: (r.partition, r.offset))
        if not mine:
            continue
        at = np.array([r.at for r in mine])
        columns = HASH(pa.chunked_array([[r.name for r in mine]], pa.string())), at
        rows = Counter(r.partition for r in mine)
        partitions = np.array(sorted(rows))
        ends = np.cumsum([rows[partition] for partition in sorted(rows)])
        parts.append(Part(window, (int(at.min()), int(at.max())), lambda columns=columns: columns, partitions, ends))
        by_place |= {(window, row): record for row, record in enumerate(mine)}
    return parts, by_place


def windows_of(events, labels, every, horizon):
    """For each window what `match` finds: {name: (event, label or None)} and its four counts."""
    parts, event_at = parts_of(events)
    label_parts, label_at = parts_of(labels)
    dealt_with, found = np.empty(0, dtype=np.uint64), []
    for this in range(WINDOWS):
        grid = Grid(0, every, horizon, this)

        def since(parts, low, this=this):
            return [part for part in parts if part.window == this or (part.window < this and part.span[1] >= low)]

        one = match(
            since(parts, grid.low), lambda low, since=since: since(label_parts, low), grid,
            lambda hashes, known=dealt_with: np.isin(hashes, known),
        )  # fmt: skip
        dealt_with = np.concatenate([dealt_with, one.hashes])
        pairs = {}
        for place, chosen in zip(zip(*windows_and_rows(one.mature.places), strict=True), one.chosen, strict=True):
            event = event_at[tuple(map(int, place))]
            label = None if chosen < 0 else label_at[tuple(int(n) for n in windows_and_rows(one.labels.places[chosen]))]
            pairs[event.name] = event, label
        assert len(pairs) == len(one.mature) == len(one.hashes)
        found.append((pairs, (one.duplicate_events, one.duplicate_labels, one.late_labels, one.labels_without_event)))
    return found


def one_by_one(events, labels, every, horizon):
    """The same by the rules as they are written, for every record of the stream at once."""
    firsts, rows = {}, Counter()
    for event in sorted(events):  # by sealed window, time stamp, partition, offset
        firsts.setdefault(event.name, event)
        rows[max(event.sealed, (event.at + horizon) // every)] += 1
    home = {name: max(event.sealed, (event.at + horizon) // every) for name, event in firsts.items()}
    pairs = [{name: (firsts[name], None) for name in firsts if home[name] == this} for this in range(WINDOWS)]
    counts = defaultdict(Counter)
    for label in sorted(labels, key=lambda r: (r.at, r.partition, r.offset)):
        event, expires = firsts.get(label.name), max(label.sealed, (label.at + horizon) // every)
        if event is None or min(e.sealed for e in events if e.name == label.name) > expires:
            counts[expires]["lost"] += 1
        if event is None:
            continue
        belongs = home[label.name]
        if label.sealed > belongs:
            counts[label.sealed]["late"] += 1
        elif label.at > event.at + horizon:
            counts[belongs]["late"] += 1
        elif label.at >= event.at - horizon and belongs < WINDOWS:
            if pairs[belongs][label.name][1] is None:
                pairs[belongs][label.name] = event, label
            else:
                counts[belongs]["again"] += 1
    return [
        (pairs[this], (rows[this] - len(pairs[this]), *(counts[this][what] for what in ("again", "late", "lost"))))
        for this in range(WINDOWS)
    ]


@pytest.mark.parametrize("hundred", range(8))
def test_eight_hundred_random_streams_give_in_every_window_what_a_reference_gives_record_by_record(hundred):
    cases = Counter()
    for seed in range(100 * hundred, 100 * (hundred + 1)):
        rng = Random(seed)
        every, horizon = rng.choice([1, 10, 60]), rng.choice([0, 1, 10, 47, 60, 200])
        events, labels = random_records(rng, every, horizon, rng.randint(1, 3))
        found, wanted = windows_of(events, labels, every, horizon), one_by_one(events, labels, every, horizon)
        for this in range(WINDOWS):
            assert found[this] == wanted[this], f"seed {seed}, window {this}"
            cases.update(dict(zip(("copies", "further labels", "late", "lost"), wanted[this][1], strict=True)))
            cases["labelled"] += sum(label is not None for _, label in wanted[this][0].values())
            cases["overtaken"] += sum(label is not None and label.at < event.at for event, label in wanted[this][0].values())
            cases["sealed after maturity"] += sum(event.at + horizon < this * every for event, _ in wanted[this][0].values())
    assert len(cases) == 7 and min(cases.values()) > 50, cases


def test_a_part_is_read_only_when_one_of_its_rows_can_matter():
    read = []

    def part(window, at):
        columns = HASH(pa.chunked_array([[f"{window}"]])), np.array([at])
        return Part(window, (at, at), lambda: read.append(window) or columns, np.array([0]), np.array([1]))

    events = [part(number, 10 * number + 5) for number in range(8)]
    found = match(events, lambda _: [], Grid(0, 10, 20, 7), lambda hashes: np.zeros(len(hashes), dtype=bool))
    assert (len(found.mature), read) == (1, [5])


@pytest.mark.parametrize("seed", range(20))
def test_a_lookup_finds_what_is_in_it_and_nothing_else(seed, monkeypatch):
    monkeypatch.setattr(lookup, "_BITS", (2, 24) if seed % 2 else (2, 6))  # at most 64 places: many hashes share one
    rng = np.random.default_rng(seed)
    edges = np.array([0, 1, 2, 2**63, 2**64 - 2, 2**64 - 1], dtype=np.uint64)
    crowd = edges[3] + rng.integers(0, 50, 30, dtype=np.uint64)  # many in one place, as hashes never are
    spread = rng.integers(0, 2**64, rng.integers(0, 5000), dtype=np.uint64)
    everything = np.unique(np.concatenate([edges, crowd, spread]))
    inside = np.sort(rng.choice(everything, rng.integers(0, len(everything) + 1), replace=False))
    asked = rng.permutation(np.concatenate([everything, everything]))
    rows, places = Lookup(inside).find(asked)
    assert rows.tolist() == np.flatnonzero(np.isin(asked, inside)).tolist()
    assert (inside[places] == asked[rows]).all()
    assert [len(found) for found in Lookup(inside).find(asked[:0])] == [0, 0]
