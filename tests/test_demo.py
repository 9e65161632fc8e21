"""The demo as a newcomer runs it, on a real Kafka: the story happens, and Ctrl-C leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.streams import JARS
from tests.test_broker import hear_ctrl_c

COMMAND = [sys.executable, "-m", "pipelines.cli", "demo", "--fast"]
ROOT = Path(__file__).parents[1]
KEYS = {
    "broker", "events", "labels", "lost", "duplicates", "windows", "updates", "epsilon_per_event", "refused", "withdrawn",
    "promoted", "requests", "request_errors", "watermark_z", "loss_frozen", "loss_served", "loss_retrained", "seconds",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, local_broker) -> Path:
    """A folder to run in, with the broker's jars at hand; skips visibly where no broker can start."""
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "jars").symlink_to(JARS)
    return tmp_path


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_an_honest_version_is_promoted_a_bad_one_stopped_and_nothing_lost_or_doubled(folder):
    done = subprocess.run(COMMAND, cwd=folder, env=environment(), capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((folder / "var/demo/summary.json").read_text())
    assert found.keys() >= KEYS and found["faults"] == []
    assert (found["lost"], found["duplicates"], found["windows"], found["updates"]) == (0, 0, 84, 12)
    assert found["broker"].startswith("Apache Kafka") and found["epsilon_per_event"] <= 0.5
    assert found["promoted"][0]["day"] < found["refused"][0]["day"] and found["withdrawn"]
    assert found["loss_retrained"] < found["loss_served"] < found["loss_frozen"], "between frozen and a full retrain"
    assert "v000007" in (folder / "var/demo/dashboard.html").read_text()
    assert "By window" in done.stdout and "kafka" not in done.stderr.lower().replace("apache kafka", "")


def test_ctrl_c_in_the_middle_leaves_nothing_running(folder):
    demo = subprocess.Popen(
        COMMAND, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=hear_ctrl_c,
    )  # fmt: skip
    assert demo.stderr is not None
    for line in demo.stderr:
        if line.startswith("gateway:"):
            break
    time.sleep(3)
    os.killpg(demo.pid, signal.SIGINT)
    assert demo.wait(60) == 130
    assert not _group(demo.pid), "the broker, its watcher and the gateway have ended"


def _group(pid: int) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pid=,sid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if int(line.split()[1]) == pid]
