"""`headgate up` as a real process: a stream goes in, predictions and a page come out, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from pipelines.broker_folder import free_port, is_open
from tests.gateways import EVENT, wait_until
from tests.worlds import make_world

ROOT = Path(__file__).parents[1]
START = 90.0  # seconds; three fresh interpreters on two busy cores


def process_ids(parent: int) -> list[int]:
    """The process and everything below it, by /proc."""
    found = [parent]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def world(tmp_path):
    ports = {"gateway": {"port": free_port()}, "dashboard": {"port": free_port()}}
    return make_world(tmp_path, **ports)


@pytest.fixture
def up(world):
    """Start `headgate up` in the world's folder; whatever it started is ended with the test."""
    started: list[subprocess.Popen[str]] = []
    below: set[int] = set()

    def start() -> subprocess.Popen[str]:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (world.folder / "up.log").open("a") as said:
            command = [sys.executable, "-m", "pipelines.cli", "up"]
            started.append(subprocess.Popen(command, cwd=world.folder, env=environ, stdout=said, stderr=said, text=True))
        return started[-1]

    def everything() -> set[int]:
        for process in started:
            below.update(process_ids(process.pid))
        return below

    start.everything = everything
    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
    for pid in below:
        if is_running(pid):  # only after a failure: these are ours, by their number
            os.kill(pid, signal.SIGKILL)


def said(world) -> str:
    return (world.folder / "up.log").read_text()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def token(world) -> str:
    command = [sys.executable, "-m", "pipelines.cli", "token", "issue", "--subject", "shop"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=world.folder, env=environ, capture_output=True, text=True, check=True).stdout.strip()


def finished(world) -> list[str]:
    return [entry.body["window"] for entry in world.journal.read("window/blobs") if entry.kind == "window.finished"]


def rows_of(world, topic: str) -> int:
    bounds = world.log.bounds(topic, world.settings.window.start).partitions.values()
    return sum(part.latest - part.earliest for part in bounds)


def test_a_stream_goes_in_and_predictions_and_a_page_come_out_and_nothing_is_left(world, up):
    gateway = f"http://127.0.0.1:{world.settings.gateway.port}"
    process = up()
    wait_until(lambda: process.poll() is not None or answers(f"{gateway}/readyz"), START)
    assert process.poll() is None, said(world)

    headers = {"authorization": f"Bearer {token(world)}"}
    answer = httpx.post(f"{gateway}/v1/predict", json=EVENT, headers=headers, trust_env=False)
    assert answer.status_code == 200 and 0 < answer.json()["score"] < 1, answer.text
    wait_until(lambda: rows_of(world, "predictions") == 1, 10.0)  # in the log that worker and producers use too

    world.publish(1)
    wait_until(lambda: finished(world), START)
    assert finished(world) == [world.window(0)]

    pids = up.everything()
    page = f"http://127.0.0.1:{world.settings.dashboard.port}/"
    wait_until(lambda: answers(page), START)
    assert "blobs" in httpx.get(page, trust_env=False).text
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, said(world)
    assert [pid for pid in pids if is_running(pid)] == []
    assert not is_open(world.settings.gateway.port) and not is_open(world.settings.dashboard.port)


def test_a_part_that_ends_by_itself_ends_the_rest_and_is_named(world, up):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", world.settings.gateway.port))
        taken.listen()
        process = up()
        wait_until(lambda: process.poll() is not None or not up.everything(), START)
    assert process.returncode == 1
    assert "gateway ended by itself: stopping the rest" in said(world) and "in use" in said(world)
    assert [pid for pid in up.everything() if is_running(pid)] == []


def test_its_parts_end_with_it_even_when_it_is_killed(world, up):
    process = up()
    wait_until(lambda: answers(f"http://127.0.0.1:{world.settings.gateway.port}/readyz"), START)
    pids = up.everything()
    assert len(pids) >= 7, "itself, three watchers, three parts"
    process.kill()
    process.wait()
    wait_until(lambda: not any(is_running(pid) for pid in pids), 30.0)
