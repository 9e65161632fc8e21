"""The recorder: what was put into it reaches the log, whoever dies in between, and what cannot be taken is counted."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from assets.stream.embedded import EmbeddedLog
from assets.stream.log import EventLog
from pipelines.gateway import recorder as recording
from pipelines.gateway import spool as spools
from pipelines.gateway.recorder import Recorder
from tests.gateways import wait_until

REPOSITORY = Path(__file__).parents[1]
TOPIC = "predictions"


def make_topic(log: EventLog) -> None:
    log.create_topic(TOPIC, 3)


@contextmanager
def running(folder: Path, log: EventLog | Callable[[], EventLog], name: str = "8900", **more: int) -> Iterator[Recorder]:
    made = Recorder(log if callable(log) else lambda: log, TOPIC, make_topic, **more)
    made.start(folder / "spool", name)
    try:
        yield made
    finally:
        made.stop(5.0)


def put(recorder: Recorder, numbers: range) -> list[int]:
    return [recorder.put(b"%d" % each, b"%d" % each, int(time.time() * 1000)) for each in numbers]


def in_log(log: EventLog) -> dict[int, list[int]]:
    """Partition -> the numbers in it, in the log's order."""
    bounds = log.bounds(TOPIC, datetime.now(UTC)).partitions
    return {
        part: [int(record.value or b"") for batch in log.read(TOPIC, part, at.earliest, at.latest) for record in batch]
        for part, at in bounds.items()
    }


def in_order(log: EventLog, wanted: range) -> bool:
    """Every number is there, once, those of each partition in order."""
    found = in_log(log).values()
    return sorted(each for numbers in found for each in numbers) == list(wanted) and all(n == sorted(n) for n in found)


@pytest.fixture
def log(tmp_path):
    made = EmbeddedLog(tmp_path / "log.db")
    yield made
    made.close()


def test_rows_reach_the_log_in_order_once_and_nothing_stays_on_the_disk(tmp_path, event_log):
    topic = f"predictions-{time.time_ns()}"
    made = Recorder(lambda: event_log, topic, lambda log: log.create_topic(topic, 1))
    made.start(tmp_path / "spool", "8900")
    assert put(made, range(1_200)) == list(range(1, 1_201))
    wait_until(lambda: made.recorded == 1_200, seconds=10.0)
    assert made.stop(5.0) == 0 and (made.waiting, made.dropped, made.age(time.time())) == (0, 0, 0.0)
    values = [record.value for batch in event_log.read(topic, 0, 0, 1_200) for record in batch]
    assert values == [b"%d" % each for each in range(1_200)]
    assert list((tmp_path / "spool").iterdir()) == []


def test_while_the_log_is_away_rows_wait_on_the_disk_and_their_number_size_and_age_are_shown(tmp_path, log):
    back = threading.Event()

    def absent() -> EventLog:
        if not back.is_set():
            raise ConnectionError("nobody there")
        return log

    with running(tmp_path, absent) as made:
        put(made, range(30))
        wait_until(lambda: made.failures > 0)
        assert (made.waiting, made.recorded, made.dropped) == (30, 0, 0)
        assert made.size == sum(path.stat().st_size for path in (tmp_path / "spool").rglob("*.rows"))
        assert 0 <= made.age(time.time()) < 5 and made.age(time.time() + 100) > 100
        back.set()
        wait_until(lambda: made.recorded == 30)
    assert in_order(log, range(30))


def test_what_stays_at_a_stop_is_recorded_by_the_next_start_before_its_own_rows(tmp_path, log):
    away = KeyError("no log")

    def absent() -> EventLog:
        raise away

    first = Recorder(absent, TOPIC, make_topic)
    first.start(tmp_path / "spool", "8900")
    put(first, range(20))
    assert first.stop(0.2) == 20
    wait_until(lambda: not first._drainer.is_alive())  # it lets go of the folder
    for name, numbers in (("8900", range(20, 40)), ("8901", range(40, 60))):
        with running(tmp_path, log, name) as made:
            put(made, numbers)
    assert in_order(log, range(60))


def test_the_rows_of_a_gateway_that_died_are_recorded_by_one_that_lives(tmp_path, log, monkeypatch):
    monkeypatch.setattr(recording, "LOOK_SECONDS", 0.1)
    dead = spools.Spool.own(tmp_path / "spool", "8900")
    for each in range(700):
        dead.append(b"%d" % each, b"%d" % each, 1)
    with running(tmp_path, log, "8901") as made:
        put(made, range(700, 720))
        wait_until(lambda: made.recorded == 20)
        time.sleep(0.3)
        assert dead.rows == 700 and dead.folder.exists()  # it lives: nobody touches its rows
        dead.close()  # as the end of its process does
        wait_until(lambda: made.recorded == 720)
        wait_until(lambda: not dead.folder.exists())


def test_a_full_spool_drops_and_counts_what_comes_last(tmp_path, log, caplog):
    blocked = threading.Event()

    def absent() -> EventLog:
        if not blocked.is_set():
            raise ConnectionError
        return log

    with running(tmp_path, absent, spool_bytes=4096) as made:
        numbers = put(made, range(300))
        kept = sum(1 for each in numbers if each)
        assert 50 < kept < 200 and numbers == [*range(1, kept + 1), *[0] * (300 - kept)]
        assert made.dropped == 300 - kept and "is full" in made.fault and "is full" in caplog.text
        blocked.set()
        wait_until(lambda: made.recorded == kept)
        wait_until(lambda: made.fault == "")
        put(made, range(kept, kept + 1))
        wait_until(lambda: made.recorded == kept + 1)
    assert in_order(log, range(kept + 1))


def test_without_a_folder_to_write_to_rows_are_dropped_and_counted_until_there_is_one(tmp_path, log, monkeypatch):
    monkeypatch.setattr(recording, "SYNC_SECONDS", 0.05)
    (tmp_path / "spool").write_text("in the way")
    with running(tmp_path, log) as made:
        assert put(made, range(3)) == [0, 0, 0] and made.dropped == 3
        assert "no spool in" in made.fault and made.failures > 0
        (tmp_path / "spool").unlink()
        wait_until(lambda: made.fault == "")
        assert put(made, range(2)) == [1, 2]
        wait_until(lambda: made.recorded == 2)


def test_damaged_rows_are_counted_as_lost_and_the_others_are_recorded(tmp_path, log, caplog):
    dead = spools.Spool.own(tmp_path / "spool", "8900", 4096)
    for each in range(60):
        dead.append(b"%d" % each, b"%d" % each, 1)
    first = min(dead.folder.glob("*.rows"))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    dead.close()
    with running(tmp_path, log) as made:
        wait_until(lambda: made.waiting == 0)
        assert made.dropped >= 1 and made.recorded + made.dropped == 60
        assert "cannot be read" in caplog.text and len(list((tmp_path / "spool" / "8900").glob("*.damaged"))) == 1


def test_one_flush_makes_all_rows_durable_that_wait_and_none_is_before_it(tmp_path, log, monkeypatch):
    kept, began, go, flushes = spools.flush, threading.Event(), threading.Event(), []

    def slow(handle: int) -> None:
        flushes.append(handle)
        began.set()
        assert go.wait(5)
        kept(handle)

    monkeypatch.setattr(spools, "flush", slow)
    with running(tmp_path, log) as made:
        first = made.durable(put(made, range(1))[0])
        assert began.wait(5)  # the flush of the first row runs, and knows nothing of those that come now
        later = [made.durable(number) for number in put(made, range(1, 50))]
        time.sleep(0.1)
        assert not first.done() and not any(each.done() for each in later)
        go.set()
        assert first.result(5) is None and not wait(later, 5).not_done
        assert len(flushes) == 2


def test_a_flush_that_fails_fails_the_rows_that_waited_for_it_and_no_others(tmp_path, log, monkeypatch):
    kept = spools.flush

    def broken(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with running(tmp_path, log) as made:
        monkeypatch.setattr(spools, "flush", broken)
        with pytest.raises(OSError, match="Input/output"):
            made.durable(put(made, range(1))[0]).result(5)
        assert "cannot be flushed: Input/output error" in made.fault and made.failures == 1
        monkeypatch.setattr(spools, "flush", kept)
        assert made.durable(put(made, range(1, 2))[0]).result(5) is None
        assert made.fault == "" and made.dropped == 0
    assert in_order(log, range(2))  # it was in the file all the same


# -- killed at random -------------------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from assets.stream.embedded import EmbeddedLog
from pipelines.gateway.recorder import Recorder
folder, first = Path(sys.argv[1]), int(sys.argv[2])
recorder = Recorder(lambda: EmbeddedLog(folder / "log.db", timeout=0.05), "predictions", lambda log: None)
recorder.start(folder / "spool", "8900")
for number in range(first, 10**9):
    assert recorder.put(b"%d" % number, b"%d" % number, number)
    print(number, flush=True)  # the answer
"""


@pytest.mark.parametrize("rounds", [8, pytest.param(150, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments_with_the_log_away_now_and_then_loses_no_answered_row(tmp_path, log, rounds):
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    random_, answered, next_one = random.Random(seed), set[int](), 0
    make_topic(log)
    for _ in range(rounds):
        holder = sqlite3.connect(tmp_path / "log.db", timeout=5, isolation_level=None, check_same_thread=False)
        if random_.random() < 0.5:
            holder.execute("BEGIN IMMEDIATE")  # the log takes nothing
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), str(next_one)],
            cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout
        told = [child.stdout.readline()]
        killer = threading.Timer(random_.expovariate(1 / 0.15), child.kill)
        killer.start()
        release = threading.Timer(random_.random() * 0.3, holder.close)  # the log is back, before the kill or after
        release.start()
        told += child.stdout.readlines()
        child.wait()
        release.join()
        answered |= {int(line) for line in told if line.endswith("\n")}
        next_one = max(answered) + 2  # the row in between may have been written, and was not answered
        if random_.random() < 0.5:
            with running(tmp_path, log):
                pass
    with running(tmp_path, log) as made:
        wait_until(lambda: made.waiting == 0, seconds=20.0)
    found = in_log(log).values()
    every = [each for numbers in found for each in numbers]
    print(f"{rounds} kills, {len(answered)} rows answered, {len(every) - len(set(every))} of them twice in the log")
    assert answered <= set(every) <= answered | {each + 1 for each in answered}
    assert all(firsts == sorted(firsts) for firsts in (list(dict.fromkeys(numbers)) for numbers in found))
