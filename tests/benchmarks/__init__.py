"""Benchmarks: each module prints one JSON object when it is run (`python -m tests.benchmarks.NAME`, or `headgate bench`).

Here is only what they share: the form of the result, and the CPU seconds of a process with its children.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]


def cpu_seconds(command: Sequence[str], folder: Path, environ: Mapping[str, str]) -> float:
    """User and system seconds of a fresh process and of every child it waited for. Its output is shown when it fails."""
    with (folder / "bench.log").open("w+") as said:
        surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environ}
        process = subprocess.Popen(command, cwd=folder, env=surroundings, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(command)} ended with code {process.returncode}:\n{said.read()[-2000:]}")
    return used.ru_utime + used.ru_stime


def result(
    name: str,
    unit: str,
    ours: Sequence[float],
    peer: str,
    theirs: Sequence[float],
    packages: Sequence[str],
    peers: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """The object a benchmark prints: medians of both sides, their ratio, how many samples, which versions.

    peers: all that were measured beside it, by name; their medians are added.
    """
    figure, peer_figure = median(ours), median(theirs)
    versions = {"python": sys.version.split()[0], **{package: version(package) for package in packages}}
    others = {} if peers is None else {"peers": {name: round(median(values), 4) for name, values in peers.items()}}
    return {
        "name": name, "figure": round(figure, 4), "unit": unit, "peer": peer, "peer_figure": round(peer_figure, 4),
        "ratio": round(figure / peer_figure, 4), "samples": len(ours), "versions": versions,
        **others,
    }  # fmt: skip


def show(found: Mapping[str, Any]) -> None:
    """Print it as one line of JSON."""
    print(json.dumps(found))
