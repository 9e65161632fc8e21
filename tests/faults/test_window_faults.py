"""Faults between a log and its examples: whatever dies, the next run ends in the same files and the same journal."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from assets.stream.embedded import EmbeddedLog
from assets.stream.kafka import KafkaLog
from assets.stream.log import StreamUnreachable
from assets.windows.history import History
from tests.windows import Stream, event, label, new_topics

HOURS = 4


@pytest.fixture
def log(tmp_path):
    opened = EmbeddedLog(tmp_path / "log.db")
    yield opened
    opened.close()


def filled(stream):
    """Three windows with examples, a duplicate, an orphan, a poison record."""
    stream.publish(event("e0", 0), label("e0", 121, y="poison", partition=0))
    for minute in range(0, 180, 13):
        stream.publish(event(f"e{minute}", minute), label(f"e{minute}", minute + 5))
    stream.publish(event("e0", 181), label("nobody", 182))
    stream.end(60 * HOURS)
    return stream


def run_all(stream):
    for number in range(HOURS):
        stream.run(number)
    return stream.hashes()


def journal_of(stream):
    """Kinds and windows, in order; each at most once."""
    entries = [entry for name in ("cut", "window") for entry in stream.history.journal.read(f"{name}/delays")]
    found = [(entry.kind, entry.body.get("window")) for entry in entries]
    assert max(Counter(found).values()) == 1
    assert stream.history.journal.verify().faults == ()
    return sorted(found, key=str)


class Trip:
    """Counts the calls of some functions and fails one of them, before or after it did its work."""

    def __init__(self, monkeypatch, number, after):
        self.left, self.after, self.tripped = number, after, False
        for owner, name in ((os, "fsync"), (Path, "replace"), (History, "extend")):
            monkeypatch.setattr(owner, name, self._wrapped(getattr(owner, name)))

    def _wrapped(self, call):
        def wrapped(*args, **kwargs):
            self.left -= 1
            if self.left == 0 and not self.after:
                self._fail()
            result = call(*args, **kwargs)
            if self.left == 0:
                self._fail()
            return result

        return wrapped

    def _fail(self):
        self.tripped = True
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_failure_at_any_write_leaves_a_state_from_which_the_next_run_ends_in_the_same_bytes(log, tmp_path, after):
    reference = filled(Stream(log, new_topics(log, 1), tmp_path / "reference"))
    reference.run(0), reference.run(1)
    reference.history.journal.close()
    shutil.copytree(reference.folder, tmp_path / "begun")
    reference.run(2)
    whole, entries = reference.hashes(), journal_of(reference)
    points = 0
    for number in range(1, 100):
        folder = Path(shutil.copytree(tmp_path / "begun", tmp_path / f"{number}"))
        with pytest.MonkeyPatch.context() as monkeypatch:
            trip = Trip(monkeypatch, number, after)
            try:
                Stream(log, reference.topics, folder).run(2)
            except OSError as error:
                assert error.errno == errno.ENOSPC
        if not trip.tripped:
            break
        points += 1
        restarted = Stream(log, reference.topics, folder)
        assert restarted.run(2)[2].examples > 0
        assert restarted.hashes() == whole
        assert journal_of(restarted) == entries
        assert not [path for path in restarted.root.rglob(".*") if path.is_file()], "a temporary file is left"
    # entries; the folders down to the window's, twice; sealed files, folder; joined files, folder
    assert points == 3 + 2 * 3 + 2 * 4 + 1 + 2 * 2 + 1


CHILD = """
import os, signal, sys
from pathlib import Path
from assets.stream.log import Topics
from assets.stream.embedded import EmbeddedLog
from assets.windows.history import History
from tests.windows import Stream

folder, kind, moment, *topics = sys.argv[1:]
extend = History.extend

def dying(self, what, *args, **kwargs):
    if what == kind and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    entry = extend(self, what, *args, **kwargs)
    if what == kind:
        os.kill(os.getpid(), signal.SIGKILL)
    return entry

History.extend = dying
stream = Stream(EmbeddedLog(Path(folder).parent / "log.db"), Topics(*topics), Path(folder))
for number in range(4):
    stream.run(number)
"""


@pytest.mark.parametrize(
    ("kind", "moment"),
    [("window.sealed", "before"), ("examples.joined", "before"), ("cut.decided", "after"), ("window.sealed", "after")],
)
def test_a_process_killed_around_a_journal_entry_is_continued_by_the_next_one(log, tmp_path, kind, moment):
    reference = filled(Stream(log, new_topics(log), tmp_path / "reference"))
    whole, entries = run_all(reference), journal_of(reference)
    killed = Stream(log, reference.topics, tmp_path / "killed")
    killed.end(60 * HOURS)
    arguments = [str(killed.folder), kind, moment, *reference.topics.all]
    child = subprocess.run([sys.executable, "-c", CHILD, *arguments], cwd=Path(__file__).parents[2], check=False)
    assert child.returncode == -signal.SIGKILL
    before = killed.hashes()
    assert before.items() <= whole.items()
    assert bool(before) == (kind != "cut.decided")
    assert run_all(killed) == whole
    assert journal_of(killed) == entries


def test_two_processes_that_run_the_same_windows_make_them_once(log, tmp_path):
    reference = filled(Stream(log, new_topics(log), tmp_path / "reference"))
    whole, entries = run_all(reference), journal_of(reference)
    Stream(log, reference.topics, tmp_path / "raced").end(60 * HOURS)
    racers = [Stream(EmbeddedLog(log.path), reference.topics, tmp_path / "raced") for _ in range(3)]
    gate, failures = threading.Barrier(len(racers)), []

    def race(racer):
        try:
            for number in range(HOURS):
                gate.wait(30)
                racer.cut(number)
                gate.wait(30)
                racer.seal(number)
                gate.wait(30)
                racer.join(number)
        except Exception as error:  # noqa: BLE001
            gate.abort()
            failures.append(error)

    threads = [threading.Thread(target=race, args=(racer,)) for racer in racers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert racers[0].hashes() == whole
    assert journal_of(racers[0]) == entries


def test_a_broker_killed_in_the_middle_of_a_window_is_waited_for_and_nothing_is_lost(local_broker, tmp_path):
    log = KafkaLog(local_broker.bootstrap, timeout=3.0)
    reference = filled(Stream(log, new_topics(log), tmp_path / "reference"))
    whole, entries = run_all(reference), journal_of(reference)
    cut_off = Stream(log, reference.topics, tmp_path / "cut off")
    cut_off.end(60 * HOURS)
    cut_off.run(0), cut_off.cut(1)
    folder = local_broker.folder
    os.kill(local_broker.pid, signal.SIGKILL)
    try:
        with pytest.raises(StreamUnreachable, match=r"bootstrap_servers|Kafka"):
            cut_off.seal(1)
    finally:
        local_broker.stop()
        local_broker.start(folder)
    log.close()
    again = Stream(KafkaLog(local_broker.bootstrap), reference.topics, cut_off.folder)
    assert run_all(again) == whole
    assert journal_of(again) == entries
    again.log.close()
