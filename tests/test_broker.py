"""The local Apache Kafka: starts from pinned parts, keeps its data, ends with its owner, says why it cannot start."""

from __future__ import annotations

import http.server
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from assets.stream.embedded import EmbeddedLog
from assets.stream.kafka import KafkaLog
from assets.stream.log import Outgoing, StreamUnreachable
from pipelines import broker_jars, broker_watch
from pipelines.broker import (
    BrokerFailed,
    FolderInUse,
    LocalBroker,
    PortInUse,
    open_log,
    running,
    start_detached,
    stop_detached,
)
from pipelines.broker_folder import Running, free_port, is_locked, is_open, note, noted
from tests.streams import JARS

AT = datetime(2013, 6, 3, 8, tzinfo=UTC)

OWNER = """
import sys, time
from pathlib import Path
from assets.stream.kafka import KafkaLog
from assets.stream.log import Outgoing
from pipelines.broker import LocalBroker
with LocalBroker(jars=Path(sys.argv[1])) as broker:
    log = KafkaLog(broker.start(Path(sys.argv[2])))
    log.create_topic("t", 1)
    log.append("t", [Outgoing(b"k", b"written before the kill")])
    print(broker.bootstrap, flush=True)
    time.sleep(600)
"""


def until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


def is_running(pid: int) -> bool:
    """Whether the process still works: a dead one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def owner_of(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OWNER, str(JARS), str(folder)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=hear_ctrl_c
    )


def hear_ctrl_c() -> None:
    """A test run in the background has SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def parts(folder: Path, script: str) -> dict[str, Path]:
    """A stand-in for Java that runs a shell script, and a folder that looks as if it held the jars."""
    (folder / "libs").mkdir(parents=True)
    (folder / "libs" / "kafka_2.13-4.1.1.jar").touch()
    java = folder / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o700)
    return {"java": java, "jar_folder": folder / "libs"}


# -- a real broker, killed ---------------------------------------------------------------------------------------------


def test_a_broker_killed_in_the_middle_of_a_read_and_restarted_loses_and_doubles_nothing(local_broker, topic):
    patient, hasty = KafkaLog(local_broker.bootstrap, timeout=30.0), KafkaLog(local_broker.bootstrap, timeout=2.0)
    patient.create_topic(topic, 1)
    rng = random.Random(1)
    sent = [rng.randbytes(2_000) for _ in range(10_000)]  # more than two fetches
    patient.append(topic, (Outgoing(None, value) for value in sent))
    read, hasty_read = patient.read(topic, 0, 0, len(sent)), hasty.read(topic, 0, 0, len(sent))
    got, next_of_hasty = list(next(read)), next(hasty_read)
    assert len(got) < len(sent) and len(next_of_hasty) < len(sent)

    address, folder = local_broker.bootstrap, local_broker.folder
    os.kill(local_broker.pid, signal.SIGKILL)
    assert until(lambda: not is_locked(folder), 5)
    with pytest.raises(StreamUnreachable, match=rf"{address}.*'{topic}' partition 0 offset \d+"):
        list(hasty_read)
    local_broker.stop()
    assert local_broker.start(folder) == address

    for batch in read:  # begun before the kill
        got += batch
    assert [(record.offset, record.value) for record in got] == list(enumerate(sent))
    again = [record for batch in hasty.read(topic, 0, 0, len(sent)) for record in batch]  # the one that gave up
    assert again == got
    assert hasty.append(topic, [Outgoing(None, b"after")]) == 1
    patient.close()
    hasty.close()


@pytest.fixture(scope="module")
def orphaned(local_broker, tmp_path_factory) -> tuple[Path, str]:
    """A folder whose broker's owner was killed with -9, and the address it had."""
    folder = tmp_path_factory.mktemp("orphaned")
    owner = owner_of(folder)
    address = owner.stdout.readline().strip()
    assert is_locked(folder) and running(folder) == address, owner.stderr.read()
    owner.kill()
    owner.wait()
    return folder, address


def test_a_broker_ends_when_its_owner_is_killed(orphaned):
    folder, address = orphaned
    assert until(lambda: not is_locked(folder), 15)
    assert not is_open(int(address.rpartition(":")[2]))
    assert running(folder) is None


@pytest.fixture(scope="module")
def detached(orphaned):
    folder, address = orphaned
    assert until(lambda: not is_locked(folder), 15)
    assert start_detached(folder, jars=JARS) == address
    yield folder, address
    stop_detached(folder)


def test_a_second_start_on_a_folder_keeps_its_data_and_its_address(detached):
    log = KafkaLog(detached[1])
    latest = log.bounds("t", AT).partitions[0].latest
    assert [r.value for batch in log.read("t", 0, 0, latest) for r in batch] == [b"written before the kill"]
    log.close()


def test_a_folder_has_one_broker_and_everybody_finds_it(detached, capsys):
    folder, address = detached
    before = noted(folder)
    assert start_detached(folder, jars=JARS) == address
    log, broker, servers = open_log("", folder, jars=JARS)
    assert (log.partitions("t"), broker, servers) == ([0], None, address)
    log.close()
    with pytest.raises(FolderInUse, match=r"a broker runs on .*broker\.json"):
        LocalBroker(jars=JARS).start(folder)
    with pytest.raises(FolderInUse, match=f"runs at {address}, not at port 1"):
        start_detached(folder, port=1, jars=JARS)
    assert noted(folder) == before and is_running(before.pid)
    assert capsys.readouterr().err == ""


def test_stopping_a_detached_broker_ends_exactly_its_process(detached, local_broker):
    folder, address = detached
    pid = noted(folder).pid
    assert stop_detached(folder) == address
    assert not is_running(pid) and not is_locked(folder)
    assert stop_detached(folder) is None
    assert is_running(local_broker.pid)


def test_the_broker_of_a_running_process_is_not_stopped_from_outside(local_broker):
    with pytest.raises(FolderInUse, match="belongs to a running process"):
        stop_detached(local_broker.folder)
    assert is_running(local_broker.pid)


def test_ctrl_c_while_it_starts_leaves_nothing_running(local_broker, tmp_path):
    owner = owner_of(tmp_path)
    assert until(lambda: (tmp_path / "broker.json").exists(), 30)
    pid = noted(tmp_path).pid
    os.killpg(owner.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, errors = owner.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    assert not is_locked(tmp_path) and not is_running(pid)


# -- choosing a log ----------------------------------------------------------------------------------------------------


def test_a_configured_address_is_used_as_it_is(kafka, tmp_path):
    log, broker, servers = open_log(kafka, tmp_path)
    assert isinstance(log, KafkaLog) and broker is None and servers == kafka
    assert KafkaLog(kafka).cluster_id() == log.cluster_id()
    log.close()


def test_the_embedded_log_is_chosen_silently_by_name(tmp_path, capsys):
    log, broker, servers = open_log("embedded", tmp_path)
    assert isinstance(log, EmbeddedLog) and broker is None and servers == "embedded"
    assert capsys.readouterr().err == ""


def test_without_a_route_to_the_registry_the_embedded_log_is_used_with_one_line_that_says_why(tmp_path, capsys):
    log, broker, servers = open_log("", tmp_path, jars=tmp_path / "jars", maven=f"http://127.0.0.1:{free_port()}")
    assert isinstance(log, EmbeddedLog) and broker is None and servers == "embedded"
    [line] = capsys.readouterr().err.splitlines()
    assert "NO KAFKA" in line and "cannot fetch 46 of the 46 Kafka jars" in line and "Connect once" in line
    log.create_topic("t", 1)
    again, _, _ = open_log(servers, tmp_path)  # another process reaches the same log by what was returned
    assert again.partitions("t") == [0]


def test_a_port_in_use_is_named_with_the_cure_and_never_answered_with_an_empty_log(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for start in (lambda: LocalBroker().start(tmp_path, port), lambda: open_log("", tmp_path, port=port)):
            with pytest.raises(PortInUse, match=rf"port {port} on 127\.0\.0\.1 is in use: stop the process"):
                start()
    assert not is_locked(tmp_path) and not (tmp_path / "embedded.db").exists()


# -- what can be wrong with Java and the jars --------------------------------------------------------------------------


def test_java_that_does_not_start_is_reported_with_the_last_lines_it_wrote(tmp_path):
    broker = LocalBroker(**parts(tmp_path / "a", "echo class file version 61.0 >&2; exit 3"))
    with pytest.raises(BrokerFailed, match=r"(?s)Java ended with code 3 while formatting.*class file version 61\.0"):
        broker.start(tmp_path / "folder")
    with pytest.raises(BrokerFailed, match=r"cannot run /no/java.*name a Java >= 17"):
        LocalBroker(java=Path("/no/java"), jar_folder=tmp_path / "a" / "libs").start(tmp_path / "folder")
    assert not is_locked(tmp_path / "folder")


def test_a_broker_that_ends_before_it_answers_is_reported_with_its_last_lines(tmp_path):
    script = 'case "$*" in *StorageTool*) exit 0;; esac; echo no space left on device; exit 4'
    with pytest.raises(BrokerFailed, match=r"(?s)Kafka ended with code 4 before it answered.*no space left on device"):
        LocalBroker(**parts(tmp_path / "a", script)).start(tmp_path / "folder")
    assert not is_locked(tmp_path / "folder")


def test_a_free_port_lost_to_another_process_is_replaced_twice_then_reported(tmp_path):
    script = f'echo >> {tmp_path}/runs; case "$*" in *StorageTool*) exit 0;; esac; echo Address already in use; exit 1'
    with pytest.raises(BrokerFailed, match="Address already in use"):
        LocalBroker(**parts(tmp_path / "a", script)).start(tmp_path / "folder")
    assert len((tmp_path / "runs").read_text().splitlines()) == 2 * 3  # formatting is asked for each time: nothing was


def test_a_folder_without_kafka_s_jars_is_refused(tmp_path):
    with pytest.raises(BrokerFailed, match=rf"no kafka_2.*jar in {tmp_path}: name the `libs` folder"):
        LocalBroker(jar_folder=tmp_path).start(tmp_path / "folder")


def test_every_jar_is_pinned_with_its_hash():
    jars = broker_jars.pinned()
    assert len(jars) == len({(jar.group, jar.name) for jar in jars}) == 46
    assert all(len(bytes.fromhex(jar.sha256)) == 32 for jar in jars)
    assert {jar.version for jar in jars if jar.group == "org.apache.kafka"} == {"4.1.1"}


def test_a_changed_jar_is_fetched_again_and_other_bytes_are_refused(local_broker, tmp_path):
    class Liar(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"not the jar")

        def log_message(self, *args):
            pass

    shutil.copytree(JARS, tmp_path / "jars", copy_function=os.link)
    changed = broker_jars.pinned()[7].path(tmp_path / "jars")
    changed.unlink()
    changed.write_bytes(b"half a download")
    with pytest.raises(broker_jars.JarsMissing, match="cannot fetch 1 of the 46"):
        broker_jars.classpath(tmp_path / "jars", maven=f"http://127.0.0.1:{free_port()}")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Liar) as registry:
        threading.Thread(target=registry.serve_forever, daemon=True).start()
        with pytest.raises(broker_jars.JarsMissing, match=f"{changed.name}.*does not have the pinned SHA-256"):
            broker_jars.classpath(tmp_path / "jars", maven=f"http://127.0.0.1:{registry.server_port}")
        registry.shutdown()


# -- stale notes and the watcher ---------------------------------------------------------------------------------------


def test_a_stale_note_names_nobody_and_its_pid_is_left_alone(tmp_path):
    innocent = subprocess.Popen(["sleep", "60"])
    note(tmp_path, Running(innocent.pid, 9092, 9093, detached=True, ready=True))
    (tmp_path / "broker.lock").touch()
    assert running(tmp_path) is None and stop_detached(tmp_path) is None
    assert innocent.poll() is None
    innocent.kill()
    innocent.wait()


@pytest.mark.parametrize("victim", ["owner", "watcher"])
def test_what_is_watched_ends_when_its_owner_or_its_watcher_is_killed(victim):
    command = "sys.executable, '-I', '-S', sys.argv[1], str(os.getpid()), 'sh', '-c', 'echo $$; exec sleep 60'"
    script = f"import os, subprocess, sys; p = subprocess.Popen([{command}]); print(p.pid, flush=True); p.wait()"
    owner = subprocess.Popen(
        [sys.executable, "-c", script, broker_watch.__file__], stdout=subprocess.PIPE, text=True
    )
    watcher, child = (int(owner.stdout.readline()) for _ in range(2))
    assert is_running(watcher) and is_running(child)
    os.kill(owner.pid if victim == "owner" else watcher, signal.SIGKILL)
    assert until(lambda: not is_running(watcher) and not is_running(child), 5)
    owner.wait()


def test_a_process_that_ignores_the_polite_signal_is_ended_all_the_same():
    script = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    deaf = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)
    deaf.stdout.readline()
    broker_watch.end(deaf, grace=0.3)
    assert deaf.returncode == -signal.SIGKILL
