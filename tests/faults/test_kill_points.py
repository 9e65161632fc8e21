"""Killed with signal 9 at any place where it touches the outside, a window ends in the bytes of an undisturbed one.

The short form tries every 15th point of one run, and a short random schedule on a real Kafka. The long form tries every
point, 1,000 random kills on the embedded log and 100 on Kafka. Seeds are printed with what was found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def tried(folder, *words, seconds=900):
    command = [sys.executable, "-m", "tests.faults.kill_points", str(folder), *map(str, words)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["examples"] > 40
    return found


def test_kill_9_at_places_all_along_a_run_changes_nothing(tmp_path):
    found = tried(tmp_path, "--step", 15, "--seed", 7)
    assert found["kills"] == found["worlds"] >= 20 and found["faults"] == []
    # every kind of place is among the points, or the hooks have come off
    assert {"statement", "commit", "bounds", "read", "batch", "open", "write", "fsync", "os.rename"} <= set(found["kinds"])


def test_kill_9_while_a_real_kafka_is_read_changes_nothing(tmp_path, kafka):
    found = tried(tmp_path, "--servers", kafka, "--kills", 8, "--seed", 11)
    assert found["kills"] >= 8 and found["faults"] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_9_at_every_place_changes_nothing(tmp_path):
    found = tried(tmp_path, seconds=3500)
    assert found["kills"] == found["points"] > 300 and found["faults"] == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_thousand_random_kills_change_nothing(tmp_path):
    found = tried(tmp_path, "--kills", 1000, "--seed", 1, seconds=7000)
    assert found["kills"] >= 1000 and found["faults"] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_random_kills_on_a_real_kafka_change_nothing(tmp_path, kafka):
    found = tried(tmp_path, "--servers", kafka, "--kills", 100, "--seed", 2, seconds=3500)
    assert found["kills"] >= 100 and found["faults"] == []
