"""The sides of the ingest benchmark, one a file: each reads the same topic in a process of its own, in its own environment.

Here is what they share, on the standard library alone: the fields of an event, the job a side is given, and the meter by
which each is measured. A side does not know the others.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIELDS = {
    "event_id": "string", "at": "time", "card": "string", "shop": "string", "country": "string", "via": "string",
    "is_new": "bool", "number": "int", "items": "int", "age": "int", "visits": "int", "till": "int",
    "amount": "float", "balance": "float", "lat": "float", "lon": "float", "km": "float", "rate": "float",
    "mean": "float", "risk": "float",
}  # fmt: skip
SCHEMA_ID = 1
STALLED_SECONDS = 30
FETCH_BYTES = 8 << 20  # of one partition, as we ask for; a peer that is faster with its own default keeps that
ROWS_PER_GROUP = 65_536

_AVRO: dict[str, Any] = {
    "string": "string", "bool": "boolean", "int": "long", "float": "double",
    "time": {"type": "long", "logicalType": "timestamp-millis"},
}  # fmt: skip
AVRO_SCHEMA = {
    "type": "record", "name": "Event", "fields": [{"name": name, "type": _AVRO[kind]} for name, kind in FIELDS.items()]
}  # fmt: skip


def arrow_schema() -> Any:
    """The fields as a pyarrow schema; none is null."""
    import pyarrow as pa

    kinds = {"string": pa.string(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}
    kinds["time"] = pa.timestamp("ms", tz="UTC")
    return pa.schema([pa.field(name, kinds[kind], nullable=False) for name, kind in FIELDS.items()])


def parquet_writer(file: Path, schema: Any) -> Any:
    """A Parquet file with the settings of our own: the cheapest in CPU that were found, and the peers get them too."""
    import pyarrow.parquet as pq

    return pq.ParquetWriter(
        file, schema, compression="zstd", compression_level=1, use_dictionary=False, write_statistics=False
    )


@dataclass(frozen=True, slots=True)
class Job:
    """What a side reads: every record of the partitions' offsets [start, end), `rows` in all.

    folder: for its files. step: which of what it can do. registry: where the schema of Avro values is, "" for JSON.
    """

    bootstrap: str
    topic: str
    partitions: dict[int, tuple[int, int]]
    folder: Path
    step: str = ""
    registry: str = ""

    @property
    def rows(self) -> int:
        return sum(end - start for start, end in self.partitions.values())

    def command(self) -> str:
        """As the one argument of the process."""
        partitions = list(self.partitions.items())
        return json.dumps([self.bootstrap, self.topic, partitions, str(self.folder), self.step, self.registry])

    @classmethod
    def given(cls) -> Job:
        """The job of this process."""
        bootstrap, topic, partitions, folder, *rest = json.loads(sys.argv[1])
        return cls(bootstrap, topic, {part: (start, end) for part, (start, end) in partitions}, Path(folder), *rest)


class Meter:
    """CPU seconds of this process, all its threads and the children it waited for, from `start` to `stop`.

    `add` counts rows and the sum of their `number`: by both it shows when one is lost or there twice. Ends the
    process with what it has when nothing was added for STALLED_SECONDS.
    """

    def __init__(self, job: Job) -> None:
        self._wanted = job.rows
        self._began: tuple[float, float] | None = None
        self._found: dict[str, float] = {}
        self.rows = self.numbers = self._moves = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def start(self) -> None:
        self._began = _cpu(), time.perf_counter()

    def add(self, rows: int, numbers: int) -> bool:
        """-> whether these were the last."""
        self.alive()
        self.rows += rows
        self.numbers += numbers
        return self.rows >= self._wanted

    def alive(self, *_: object) -> None:
        """A sign of life, where rows are counted later."""
        self._moves += 1

    def stop(self) -> None:
        if self._began is None:
            sys.exit("the clock was never started: no record came")
        cpu, wall = self._began
        self._found = {"cpu": _cpu() - cpu, "wall": time.perf_counter() - wall, "peak_mb": peak_mb()}

    def report(self, **more: str) -> None:
        """Print what was found; the last line of a side's output."""
        print(json.dumps({"rows": self.rows, "numbers": self.numbers, **self._found, **more}), flush=True)

    def _watch(self) -> None:
        seen, since = -1, time.monotonic()
        while not self._found:
            time.sleep(1)
            if seen != self._moves:
                seen, since = self._moves, time.monotonic()
            elif time.monotonic() - since > STALLED_SECONDS:
                said = f"read {self.rows} of {self._wanted} rows, then none for {STALLED_SECONDS} s"
                print(said, file=sys.stderr, flush=True)
                os._exit(3)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_mb() -> float:
    """The most memory this process has had resident. Not ru_maxrss, which a new process inherits from its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def recount(meter: Meter, folder: Path) -> None:
    """Count the rows in the Parquet files of a folder, after the clock has stopped."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    meter.rows = meter.numbers = 0
    for path in sorted(folder.glob("*.parquet")):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            column = file.read_row_group(group, columns=["number"])["number"]
            meter.add(len(column), pc.sum(column).as_py() or 0)
