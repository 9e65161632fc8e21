"""The benchmark of the gate on a small size: the form of what it prints, and that its control is as wrong as it must be."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.benchmarks import ROOT


def test_the_gate_holds_where_the_peeked_test_does_not():
    """50 rollouts: the z-test is wrong in about half of them, the gate in one of twenty; mixed up once in 1e9."""
    command = [sys.executable, "-m", "tests.benchmarks.gate", "--rollouts", "50"]
    found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert found["figure"] < found["peer_figure"] and 500 < found["samples_better"] < 5000
    assert found["cases"]["rolled back, worse by 0.05"]["share"] == 1.0
    assert {name.split(",")[0] for name in found["cases"]} >= {"equal", "clustered losses", "errors"}


def test_too_few_rollouts_are_refused():
    command = [sys.executable, "-m", "tests.benchmarks.gate", "--rollouts", "10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "give at least 50" in done.stderr
