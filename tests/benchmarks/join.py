"""Events that mature, a CPU second, over whole joins: sealed Parquet in, examples in Parquet out. Goal: 3 M.

Hourly windows (`_join_data.py` says what is in them) are joined in order by every side, in turns, window by window, in one
process. Ours does what it always does: hashes checked, ids known for ever, labels that come late or before their event,
counts, an index for the joins to come, files flushed to the disk, the journal. The peers join and write the examples, and
keep what they need in memory: what everybody writes (a dict of labels by id, a loop over the events), pyarrow's Table.join,
and polars, where it can be imported. A crash would cost them the horizon.

`matching` is the middle part alone, ids and times in memory to the pairs: ours against the dict.

    python -m tests.benchmarks.join --windows 48 --horizon 40 --only ours   # peak memory, 10 M events in the horizon
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.windows import seen, store
from assets.windows.clock import window_id
from assets.windows.history import History
from assets.windows.idhash import IdHash
from assets.windows.index import Index
from assets.windows.join import Examples, find_examples, join
from assets.windows.match import Grid, Part, match
from assets.windows.seal import find_sealed, read_sealed
from security.journal import Journal
from tests.benchmarks import result, show
from tests.benchmarks._join_data import BEGIN, HOUR, NOW, POLICY, TASK, TOPICS, fill

os.environ.setdefault("POLARS_MAX_THREADS", "1")
COLUMNS = ["event_id", "_timestamp", "amount", "score", "shop"]
LABEL = ["event_id", "_timestamp", "outcome"]
NAIVE = "python: dict of labels, loop over events"


class Store:
    """The sealed windows, and a history that reads their journal."""

    def __init__(self, folder: Path, horizon: int) -> None:
        self.root, self.horizon = folder / "store", horizon
        self.history = History(Journal(f"sqlite:///{folder}/journal.db"), TASK).refresh()

    def window(self, number: int) -> str:
        return window_id(POLICY.start + number * POLICY.every)

    def read(self, number: int, topic: str, columns: list[str]) -> pa.Table:
        sealed = find_sealed(self.history, self.window(number))
        table = read_sealed(self.root, sealed, topic, columns)
        return table.set_column(1, "at", table["_timestamp"].cast(pa.int64()))

    def write(self, name: str, number: int, table: pa.Table) -> int:
        with store.RowGroups(self.root / f"{name}-{number}.parquet", table.schema) as writer:
            writer.add(table)
        (self.root / f"{name}-{number}.parquet").unlink()
        return table.num_rows


def ours(held: Store) -> Callable[[int], int]:
    def one(number: int) -> int:
        horizon = timedelta(milliseconds=held.horizon)
        window = held.window(number)
        found = join(held.history, held.root, POLICY, TOPICS, window, horizon=horizon, now=NOW, actor="bench")
        return found.examples

    return one


def naive(held: Store) -> Callable[[int], int]:
    labels: dict[str, tuple[int, int]] = {}
    waiting: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    known: set[str] = set()

    def one(number: int) -> int:
        for name, at, outcome in zip(*held.read(number, TOPICS.labels, LABEL).to_pydict().values(), strict=True):
            if name not in labels or at < labels[name][0]:
                labels[name] = at, outcome
        for event in zip(*held.read(number, TOPICS.events, COLUMNS).to_pydict().values(), strict=True):
            waiting[max(number, (event[1] + held.horizon - BEGIN) // HOUR)].append(event)
        rows = []
        for event in waiting.pop(number, ()):
            name, at = event[:2]
            if name not in known:
                known.add(name)
                label = labels.pop(name, None)
                if label is not None and abs(label[0] - at) <= held.horizon:
                    rows.append((*event, label[1]))
        rows.sort(key=lambda row: (row[1], row[0]))
        columns = zip(*rows, strict=True) if rows else ((),) * 6
        named = zip(["event_id", "at", *COLUMNS[2:], "outcome"], columns, strict=True)
        return held.write("naive", number, pa.table(dict(named)))

    return one


def arrow(held: Store) -> Callable[[int], int]:
    events, labels = deque[pa.Table](), deque[pa.Table]()

    def one(number: int) -> int:
        begin = BEGIN + number * HOUR - held.horizon
        _keep(events, held.read(number, TOPICS.events, COLUMNS), held.horizon)
        _keep(labels, held.read(number, TOPICS.labels, LABEL), held.horizon)
        at = pc.field("at")
        mature = pa.concat_tables(table.filter((at >= begin) & (at < begin + HOUR)) for table in events)
        near = pa.concat_tables(labels).rename_columns(["event_id", "label_at", "outcome"]).sort_by("label_at")
        first = near.group_by("event_id", use_threads=False).aggregate([("label_at", "first"), ("outcome", "first")])
        found = mature.join(first, "event_id", join_type="inner", use_threads=False)
        lag = pc.field("label_at_first") - at
        found = found.filter((lag <= held.horizon) & (lag >= -held.horizon))
        once = found.sort_by([("at", "ascending"), ("event_id", "ascending")]).group_by("event_id", use_threads=False)
        table = once.aggregate([(name, "first") for name in ("at", *COLUMNS[2:], "outcome_first")])
        return held.write("arrow", number, table)

    return one


def polars(held: Store) -> Callable[[int], int]:
    import polars as pl

    events, labels = deque[Any](), deque[Any]()

    def one(number: int) -> int:
        begin = BEGIN + number * HOUR - held.horizon
        _keep(events, pl.from_arrow(held.read(number, TOPICS.events, COLUMNS)), held.horizon)
        _keep(labels, pl.from_arrow(held.read(number, TOPICS.labels, LABEL)), held.horizon)
        mature = pl.concat(table.filter(pl.col("at").is_between(begin, begin + HOUR, closed="left")) for table in events)
        first = pl.concat(labels).rename({"at": "label_at"}).sort("label_at").unique("event_id", keep="first")
        found = mature.unique("event_id", keep="first").join(first, on="event_id", how="inner")
        found = found.filter((pl.col("label_at") - pl.col("at")).abs() <= held.horizon).sort("at", "event_id")
        return held.write("polars", number, found.to_arrow().cast(_plain(found.to_arrow().schema)))

    return one


def _keep(tables: deque[Any], table: Any, horizon: int) -> None:
    """What came within the horizon, and one window more for what was sealed late."""
    tables.append(table)
    while len(tables) > horizon // HOUR + 2:
        tables.popleft()


def _plain(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_type(pa.string()) if field.name == "event_id" else field for field in schema])


SIDES = {"ours": ours, NAIVE: naive, "pyarrow: Table.join": arrow, "polars: DataFrame.join": polars}


def one_round(folder: Path, windows: int, horizon: int, only: str) -> dict[str, float]:
    """Matured events a CPU second of each side, over the windows in which events mature."""
    held = Store(folder, horizon)
    sides = {name: side(held) for name, side in SIDES.items() if only in (name, "all") and (name[:6] != "polars" or _polars())}
    spent, made = defaultdict[str, float](float), defaultdict[str, int](int)
    for number in range(windows):
        for name in [*sides][number % len(sides) :] + [*sides][: number % len(sides)]:  # taking turns in going first
            began = time.process_time()
            made[name] += sides[name](number)
            if number >= horizon // HOUR:
                spent[name] += time.process_time() - began
            gc.collect()
    for name, count in made.items():
        if abs(count / made["ours"] - 1) > 0.03:  # those that know no id for ever take some copies for events
            sys.exit(f"{name} made {count} examples, ours {made['ours']}")
    joined = [find_examples(held.history, held.window(number)) for number in range(windows)]
    matured = sum(each.events_matured for each in joined if each is not None)
    held.history.journal.close()
    return {name: matured / seconds for name, seconds in spent.items()}


def matching(folder: Path, windows: int, horizon: int) -> tuple[list[float], list[float]]:
    """Matured events a CPU second of the matching alone, for the last windows: ours, and a dict."""
    held = Store(folder, horizon)
    ids = IdHash(b"bench")
    hours = {topic: [_in_memory(held, number, topic, ids) for number in range(windows)] for topic in TOPICS.all[:2]}
    blocks = [_block(held, number) for number in range(windows)]
    figures: tuple[list[float], list[float]] = [], []
    for number in range(windows - 3, windows):
        grid = Grid(BEGIN, HOUR, horizon, number)
        began = time.process_time()
        for topic in hours:  # its own ids are hashed, as in a join
            ids(hours[topic][number][1])
        events, labels = (partial(_recent, hours[topic][: number + 1]) for topic in TOPICS.all[:2])
        found = match(events(grid.low), labels, grid, partial(seen.known, lambda n: blocks[n - 1], number))
        figures[0].append(len(found.mature) / (time.process_time() - began))
        figures[1].append(_dict_alone(hours, number, horizon, int((found.chosen >= 0).sum())))
    held.history.journal.close()
    return figures


def _recent(hours: list[Any], since: int) -> list[Part]:
    return [part for part, _, _ in hours if part.span[1] >= since]


def _dict_alone(hours: dict[str, list[Any]], number: int, horizon: int, pairs: int) -> float:
    """Its labels of earlier windows are in the dict already, and its ids and times are Python objects: what costs it most."""
    labels: dict[str, int] = {}
    new = None
    for hour in range(number - horizon // HOUR - 1, number + 1):
        new = list(zip(hours[TOPICS.labels][hour][1].to_pylist(), hours[TOPICS.labels][hour][2].tolist(), strict=True))
        if hour < number:
            _add(labels, new)
    events = [
        (name, at)
        for hour in (number - horizon // HOUR, number - horizon // HOUR + 1)
        for name, at in zip(hours[TOPICS.events][hour][1].to_pylist(), hours[TOPICS.events][hour][2].tolist(), strict=True)
        if 0 <= at + horizon - BEGIN - number * HOUR < HOUR
    ]
    known: set[str] = set()
    chosen = []
    began = time.process_time()
    _add(labels, new or [])
    for name, at in events:
        if name not in known:
            known.add(name)
            label = labels.get(name)
            if label is not None and abs(label - at) <= horizon:
                chosen.append((name, at, label))
    spent = time.process_time() - began
    if abs(len(chosen) / pairs - 1) > 0.03:
        sys.exit(f"the dict made {len(chosen)} pairs, ours {pairs}")
    return len(known) / spent


def _add(labels: dict[str, int], new: list[tuple[str, int]]) -> None:
    for name, at in new:
        if name not in labels or at < labels[name]:
            labels[name] = at


def _in_memory(held: Store, number: int, topic: str, ids: IdHash) -> tuple[Part, pa.ChunkedArray, np.ndarray]:
    table = held.read(number, topic, ["event_id", "_timestamp"])
    at = table["at"].to_numpy()
    hashes = ids(table["event_id"])
    sealed = find_sealed(held.history, held.window(number))
    files = [file for file in sealed.files if file.topic == topic]
    columns = np.array([[file.partition, file.rows] for file in files]).T
    span = (int(at.min()), int(at.max()))
    return Part(number, span, lambda: (hashes, at), columns[0], np.cumsum(columns[1])), table["event_id"], at


def _block(held: Store, number: int) -> seen.Block:
    """The same number of known ids as after that window's join."""
    joined: Examples = find_examples(held.history, held.window(number))
    block = Index(held.root, joined.seen_path, joined.seen_rows).block()
    return seen.Block(np.array(block.hashes), np.array(block.bits))


def _polars() -> bool:
    try:
        version("polars")
    except PackageNotFoundError:
        return False
    return True


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--windows", type=int, default=12)
    arguments.add_argument("--events", type=int, default=250_000, help="new ones a window")
    arguments.add_argument("--horizon", type=int, default=4, help="hours")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--only", default="all", choices=["all", "ours"])
    given = arguments.parse_args()
    horizon = given.horizon * HOUR
    with tempfile.TemporaryDirectory() as name:
        sealed = Path(name) / "sealed"
        sealed.mkdir()
        filling = multiprocessing.get_context("spawn").Process(target=fill, args=(sealed, given.windows, given.events, horizon))
        filling.start()  # in a process of its own, so that its memory is not ours
        filling.join()
        if filling.exitcode:
            sys.exit("the sealed windows could not be made")
        rates = defaultdict[str, list[float]](list)
        for number in range(1 if given.only == "ours" else given.rounds):
            folder = Path(name) / f"round-{number}"
            shutil.copytree(sealed, folder, copy_function=_link)
            for side, rate in one_round(folder, given.windows, horizon, given.only).items():
                rates[side].append(rate)
            print({side: f"{values[-1]:,.0f}" for side, values in rates.items()}, file=sys.stderr)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        own = rates.pop("ours")
        packages = ["pyarrow", "numpy", *(["polars"] if _polars() else [])]
        found = result("join", "matured events a CPU s, whole joins", own, NAIVE, rates.get(NAIVE, own), packages, rates)
        if given.only == "ours":
            found |= {"peer": None, "peer_figure": None, "ratio": None}
        else:
            alone = matching(folder, given.windows, horizon)
            found["matching"] = result("matching", "matured events a CPU s", alone[0], "python: dict", alone[1], [])
        if not _polars():
            found["absent"] = "polars cannot be imported here"
        show(found | {"horizon_events": given.horizon * given.events, "peak_rss_mb": peak})


def _link(source: str, target: str) -> str:
    """The journal is written to; the sealed files are only read."""
    if source.endswith(".parquet"):
        os.link(source, target)
        return target
    return str(shutil.copy(source, target))


if __name__ == "__main__":
    main()
