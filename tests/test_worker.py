"""The resident worker: what is due runs in order, what fails is tried again and holds back the rest, silence is an alarm."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from assets.steps.window import decide
from assets.stream.embedded import EmbeddedLog
from assets.stream.kafka import KafkaLog
from assets.stream.log import StreamUnreachable
from assets.windows.acceptance import accept_gap
from assets.windows.seal import find_sealed
from monitoring.alarms import open_alarms
from pipelines import worker
from pipelines.attempts import attempts_of, newest_failure
from pipelines.broker_folder import free_port
from pipelines.opening import workspace_of
from pipelines.run_window import run_window
from tests.gateways import wait_until
from tests.worlds import make_world


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(worker, "POLL", timedelta(milliseconds=20))


@pytest.fixture
def no_broker():
    """A log on a port where nobody listens."""
    log = KafkaLog(f"127.0.0.1:{free_port()}", timeout=0.2)
    yield log
    log.close()


@pytest.fixture
def begin(quick):
    """Run the worker in a thread; it is told to stop, and does, at the end of the test."""
    stop, threads = threading.Event(), []

    def start(workspace, **options):
        threads.append(threading.Thread(target=worker.work, args=(workspace, stop), kwargs=options))
        threads[-1].start()
        return stop

    start.stop = stop
    yield start
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def run_what_is_due(world):
    return worker.work(world.workspace, threading.Event(), until_idle=True)


def finished(world):
    return [entry.body["window"] for entry in world.journal.read("window/blobs") if entry.kind == "window.finished"]


def test_due_windows_run_in_order_and_then_nothing_waits(world):
    world.publish(3)
    assert run_what_is_due(world) == worker.Shift(3)
    assert finished(world) == [world.window(day) for day in range(3)]
    assert run_what_is_due(world) == worker.Shift(0)


def test_it_waits_while_none_is_due_and_stops_when_it_is_told_to(world, begin):
    stop = begin(world.workspace)
    assert not stop.wait(0.3) and finished(world) == []
    world.publish(1)
    wait_until(lambda: finished(world) == [world.window(0)], 20.0)
    assert attempts_of(world.journal, "blobs", world.window(1)).count == 0, "a window that is not due is not attempted"


def test_it_finishes_the_window_it_is_in_when_it_is_told_to_stop(world, begin):
    world.publish(2)
    begin(world.workspace, on_step=lambda name: begin.stop.set() if name == "adapter" else None)
    wait_until(lambda: begin.stop.is_set() and finished(world), 20.0)
    assert finished(world) == [world.window(0)]


def test_a_failing_window_is_tried_again_ever_later_and_nothing_behind_it_runs(world):
    world.publish(2)
    bases = world.folder / "store" / "blobs" / "bases"
    bases.rename(world.folder / "away")
    clock = datetime.now(UTC) + timedelta(days=1)
    tries = []
    for minute in range(17):  # looked at each minute: tried at 0, then 1, 2, 4, 8 minutes after the one before
        world.workspace.wall = lambda now=clock + timedelta(minutes=minute): now
        before = attempts_of(world.journal, "blobs", world.window(0)).count
        shift = run_what_is_due(world)
        assert shift.done == 0 and shift.waits.startswith(f"window {world.window(0)} ")
        if attempts_of(world.journal, "blobs", world.window(0)).count > before:
            tries.append(minute)
    assert tries == [0, 1, 3, 7, 15]
    failure = newest_failure(world.journal, "blobs")
    assert (failure["window"], failure["attempt"]) == (world.window(0), 5) and "FileNotFoundError" in failure["error"]
    (alarm,) = [alarm for alarm in open_alarms(world.journal, "blobs") if alarm.kind == "stale"]
    assert alarm.limit == 2.0 and world.window(0) in alarm.message
    assert attempts_of(world.journal, "blobs", world.window(1)).count == 0 and finished(world) == []
    (world.folder / "away").rename(bases)
    world.workspace.wall = lambda: clock + timedelta(hours=1)
    assert run_what_is_due(world).done == 2
    assert newest_failure(world.journal, "blobs") is None
    assert finished(world) == [world.window(0), world.window(1)]


def test_a_broker_that_does_not_answer_raises_one_alarm_and_is_waited_for(world, begin, no_broker, caplog):
    begin(workspace_of(world.settings, world.journal, no_broker))
    wait_until(lambda: "(try 5)" in caplog.text, 30.0)
    (alarm,) = open_alarms(world.journal, "blobs")
    assert (alarm.kind, alarm.figure, alarm.limit) == ("stream_unreachable", 3.0, 3.0)
    assert "127.0.0.1" in alarm.message and "3 times in a row" in alarm.message


def test_one_that_must_not_wait_leaves_with_the_error_after_three_tries(world, quick, no_broker):
    workspace = workspace_of(world.settings, world.journal, no_broker)
    with pytest.raises(StreamUnreachable):
        worker.work(workspace, threading.Event(), until_idle=True)
    assert [alarm.kind for alarm in open_alarms(world.journal, "blobs")] == ["stream_unreachable"]


def test_a_broker_that_comes_back_at_once_is_no_alarm(world, begin, no_broker, caplog, monkeypatch):
    monkeypatch.setattr(worker, "POLL", timedelta(seconds=1))
    world.publish(1)
    there, world.workspace.log = world.workspace.log, no_broker
    begin(world.workspace)
    wait_until(lambda: "(try 1)" in caplog.text, 20.0)
    world.workspace.log = there
    wait_until(lambda: finished(world), 20.0)
    assert open_alarms(world.journal, "blobs") == ()


def test_a_journal_that_is_away_is_waited_for(tmp_path, begin):
    world = make_world(tmp_path, journal={"url": f"sqlite:///{tmp_path / 'books' / 'journal.db'}"})
    world.publish(1)
    world.journal.close()
    (tmp_path / "books").rename(tmp_path / "books-away")
    (tmp_path / "books").write_text("in the way: nothing can be opened here")
    stop = begin(world.workspace)
    assert not stop.wait(0.5)
    (tmp_path / "books").unlink()
    (tmp_path / "books-away").rename(tmp_path / "books")
    wait_until(lambda: finished(world), 20.0)


class HeldBack(EmbeddedLog):
    """A log in which a transaction is open from the beginning."""

    open = True

    def bounds(self, topic, at):
        found = super().bounds(topic, at)
        if not self.open:
            return found
        return replace(found, partitions={part: replace(b, last_stable=0) for part, b in found.partitions.items()})


def test_a_window_that_an_open_transaction_holds_back_is_waited_for_and_uses_no_attempt(world):
    world.publish(1)
    log = world.workspace.log = HeldBack(world.log.path)
    for _ in range(3):
        assert "waits for an open transaction" in run_what_is_due(world).waits
    assert attempts_of(world.journal, "blobs", world.window(0)).count == 0
    log.open = False
    assert run_what_is_due(world).done == 1
    log.close()


def test_a_known_stop_is_told_in_one_line_and_a_defect_with_its_traceback(world, caplog, monkeypatch):
    world.publish(1)
    decide(world.window(0), world.workspace)
    world.log.trim(world.settings.stream.events, 0, 5)
    run_what_is_due(world)
    (known,) = [record for record in caplog.records if record.name == "pipelines.worker" and "failed" in record.message]
    assert "OffsetsGone: offsets" in known.message and "accept-gap" in known.message and not known.exc_info
    caplog.clear()
    monkeypatch.setattr(worker, "run_window", lambda *_: {}["a defect"])
    world.workspace.wall = lambda: datetime.now(UTC) + timedelta(days=1)
    run_what_is_due(world)
    assert "KeyError: 'a defect'" in caplog.text and "Traceback" in caplog.text


def test_records_that_were_deleted_before_they_were_read_are_an_alarm_and_can_be_gone_on_without(world):
    world.publish(1)
    decide(world.window(0), world.workspace)
    events = world.settings.stream.events
    world.log.trim(events, 0, 5)
    assert "are gone: the log begins at 5" in run_what_is_due(world).waits
    assert [alarm.kind for alarm in open_alarms(world.journal, "blobs")] == ["stream_gap"]
    workspace, window = world.workspace, world.window(0)
    arguments = (workspace.history, workspace.log, workspace.store, window, events, 0)
    accept_gap(*arguments, reason="the disk was full", now=workspace.now(), actor="test")
    run_window(window, workspace)
    sealed = find_sealed(workspace.history.refresh(), window)
    assert sealed.accepted == ((events, 0, 0, 5),)
    assert sealed.rows[events] == 240 - 5
