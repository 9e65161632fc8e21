"""Rows a CPU second from a real Kafka to Parquet, beside what else reads Kafka in Python. Goals: 250,000; Avro 800,000.

Four partitions of 20-field JSON events (about 330 bytes, lz4), and the same as Avro, are written once. Then every side
reads them all, each in a fresh process, in turns; `peers/` says what each does and when its clock starts. A side that
does not give back every row exactly once has no figure but a reason. `figure` is ours, `peer_figure` the naive path's.

    python -m tests.benchmarks.ingest --rows 10000000 --only ours    # the peak memory of a large window; goal 1.5 GB
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from assets.stream.kafka import KafkaLog
from pipelines.broker import LocalBroker
from tests.benchmarks import ROOT, result, show
from tests.benchmarks.peers import AVRO_SCHEMA, SCHEMA_ID, Job
from tests.registries import LocalRegistry, serving

ROWS, ROUNDS, PARTITIONS = 1_000_000, 3, 4
PEERS = ROOT / "var" / "bench-peers"
OWN = ("kafka-python", "crc32c", "lz4", "numpy", "pyarrow")
UNIT = "rows a CPU s, broker to Parquet"
PEER = "naive: kafka-python, json.loads, Table.from_pylist, Parquet"

# Quix Streams takes no confluent-kafka from 2.13 on; one environment holds one version, so all get this one.
CONFLUENT = "confluent-kafka==2.12.2"
PYARROW = f"pyarrow=={version('pyarrow')}"


@dataclass(frozen=True, slots=True)
class Side:
    """One that reads. pins: the packages it needs in the peers' environment; none = it runs on our own packages."""

    name: str
    module: str
    step: str
    does: str
    topic: str = "json"
    pins: tuple[str, ...] = ()


SIDES = (
    Side("ours", "ours", "parquet", "to Parquet: every row checked, with key, offset, time stamp; proof, fingerprint, hash"),
    Side("ours: read", "ours", "read", "to batches of records"),
    Side("ours: table", "ours", "table", "to Arrow tables"),
    Side("ours: avro", "ours", "parquet", "as ours, from Avro", "avro"),
    Side("naive", "naive", "json", "kafka-python, json.loads, Table.from_pylist, to Parquet"),
    Side("confluent", "confluent", "json", "confluent-kafka, pyarrow.json, to Parquet", "json", (CONFLUENT, PYARROW)),
    Side("aiokafka", "aio", "json", "json.loads, to dicts only", "json", ("aiokafka[lz4]==0.14.0", "cramjam==2.14.0")),
    Side("quix", "quix", "json", "orjson, to dicts only", "json", ("quixstreams==3.28.1", CONFLUENT, "orjson==3.13.0")),
    Side("bytewax", "wax", "json", "json.loads, to dicts only", "json", ("bytewax==0.21.1", CONFLUENT)),
    Side("confluent: avro", "confluent", "avro", "fastavro, to dicts only", "avro", (CONFLUENT, "fastavro==1.13.1")),
)


def quiet() -> dict[str, str]:
    """The environment of every side: one thread for what asks, and no reports to anybody."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1"}


def installed(side: Side, folder: Path) -> str | None:
    """Put what a peer needs into the environment -> why that could not be done."""
    if not side.pins:
        return None
    try:
        if not (folder / "bin" / "python").exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, text=True)
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *side.pins]
        subprocess.run(pip, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        return f"not installed: {_last(error.stderr)}"
    return None


def measured(side: Side, job: Job) -> dict[str, Any] | str:
    """What the meter found in a fresh process -> or why it found nothing that counts."""
    python = str(PEERS / "bin" / "python") if side.pins else sys.executable
    with tempfile.TemporaryDirectory(dir=job.folder) as folder:
        given = replace(job, folder=Path(folder), step=side.step)
        command = [python, "-m", f"tests.benchmarks.peers.{side.module}", given.command()]
        limit = 60 + job.rows / 5000
        try:
            done = subprocess.run(command, cwd=folder, env=quiet(), capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return f"not done after {limit:.0f} s"
    if done.returncode:
        return f"ended with code {done.returncode}: {_last(done.stderr)}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    counted = side.step in ("read", "table")  # these look at no value
    if found["rows"] != job.rows or (not counted and found["numbers"] != job.rows * (job.rows - 1) // 2):
        return f"wrong rows: {found['rows']:.0f} of {job.rows} came, with numbers that add up to {found['numbers']:.0f}"
    return found


def _last(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it said nothing"


def fill(bootstrap: str, folder: Path, encoding: str, rows: int) -> Job:
    """Write the events into a new topic -> the job to read them."""
    with closing(KafkaLog(bootstrap, timeout=60.0)) as log:
        log.create_topic(encoding, PARTITIONS)
        command = [sys.executable, "-m", "tests.benchmarks._ingest_data", bootstrap, encoding, encoding, str(rows)]
        subprocess.run(command, env=quiet(), cwd=ROOT, check=True)
        found = log.bounds(encoding, datetime.now(UTC)).partitions
    return Job(bootstrap, encoding, {part: (bound.earliest, bound.latest) for part, bound in found.items()}, folder)


def registered(registry: LocalRegistry) -> None:
    """Give the schema the id that the events carry."""
    if (number := registry.register(AVRO_SCHEMA)) != SCHEMA_ID:
        sys.exit(f"the registry gave the schema id {number}, the events carry {SCHEMA_ID}")


def rounds(
    sides: Sequence[Side], jobs: dict[str, Job], count: int, why: dict[str, str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every side once a round, each round beginning with another. One that fails is left out from then on: `why`."""
    for turn in range(count):
        first = turn * len(sides) // count
        for side in (*sides[first:], *sides[:first]):
            if side.name in why:
                continue
            found = measured(side, jobs[side.topic])
            if isinstance(found, str):
                if side.name in ("ours", "naive"):
                    sys.exit(f"{side.name}: {found}; without it the benchmark has no figure")
                why[side.name] = found
                print(f"{side.name}: {found}", file=sys.stderr)
                continue
            rate = jobs[side.topic].rows / found["cpu"]
            print(f"{side.name}: {rate:,.0f} rows/CPU s, peak {found['peak_mb']:.0f} MB", file=sys.stderr)
            yield side.name, found


def versions(folder: Path) -> dict[str, str]:
    """Of the pinned packages, as they are in the peers' environment; {} when there is none."""
    pip = folder / "bin" / "pip"
    if not pip.exists():
        return {}
    names = {pin.partition("==")[0].partition("[")[0] for side in SIDES for pin in side.pins}
    listed = subprocess.run([str(pip), "list", "--format=freeze"], capture_output=True, text=True, check=True).stdout
    found = dict(line.split("==", 1) for line in listed.splitlines() if "==" in line)
    return {f"peers: {name}": found[name] for name in sorted(names & found.keys())}


def measure(rows: int, count: int, sides: Sequence[Side]) -> dict[str, Any]:
    """The object the benchmark prints."""
    why = {side.name: reason for side in sides if (reason := installed(side, PEERS))}
    rates: dict[str, list[float]] = {side.name: [] for side in sides}
    peak, path = 0.0, ""
    broker = LocalBroker(jars=ROOT / "var" / "jars")
    with tempfile.TemporaryDirectory() as name, broker, serving() as registry:
        folder = Path(name)
        bootstrap = broker.start(folder / "broker")
        jobs = {topic: fill(bootstrap, folder, topic, rows) for topic in sorted({side.topic for side in sides})}
        if "avro" in jobs:
            registered(registry)
            jobs["avro"] = replace(jobs["avro"], registry=registry.url)
        for side, found in rounds(sides, jobs, count, why):
            rates[side].append(rows / found["cpu"])
            if side == "ours":
                peak, path = max(peak, found["peak_mb"]), found["path"]
    return report(rows, rates, why, peak) | {"path": path}


def report(rows: int, rates: dict[str, list[float]], why: dict[str, str], peak: float) -> dict[str, Any]:
    middle = {name: None if name in why else round(median(found)) for name, found in rates.items()}
    peers = {name: rate for name, rate in middle.items() if not name.startswith("ours") and not name.endswith("avro")}
    found = result("ingest", UNIT, rates["ours"], PEER, rates.get("naive") or rates["ours"], OWN)
    if "naive" not in rates:
        found |= {"peer": None, "peer_figure": None, "ratio": None}
    stages = {name.removeprefix("ours: "): rate for name, rate in middle.items() if name in ("ours: read", "ours: table")}
    found["versions"] |= versions(PEERS)
    return found | {
        "peers": peers,
        "stages": {**stages, "parquet": middle["ours"]},
        "avro": {"figure": middle.get("ours: avro"), "peers": {"confluent": middle.get("confluent: avro")}},
        "does": {side.name: side.does for side in SIDES if side.name in rates},
        "failed": why,
        "rows": rows,
        "load": round(os.getloadavg()[2], 1),  # of 15 minutes: two threads of one core slow each other's CPU seconds
        "peak_rss_mb": round(peak),
        "spread": {name: [round(min(found)), round(max(found))] for name, found in rates.items() if found},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", nargs="+", metavar="SIDE", choices=[side.name for side in SIDES], help="these and ours")
    asked = parser.parse_args()
    sides = [side for side in SIDES if not asked.only or side.name in (*asked.only, "ours")]
    show(measure(asked.rows, asked.rounds, sides))


if __name__ == "__main__":
    main()
