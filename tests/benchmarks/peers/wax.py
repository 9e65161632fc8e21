"""Bytewax: its Kafka source, `json.loads` on whole batches to dicts in one worker, and no further.

It connects inside the run, so the clock starts at the first record: what was fetched before is in its favour.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

from tests.benchmarks.peers import FETCH_BYTES, Job, Meter

BATCH = 1000


class Counting(StatelessSinkPartition[dict[str, Any]], DynamicSink[dict[str, Any]]):
    """A sink that counts dicts and lets them go."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def build(self, step_id: str, worker_index: int, worker_count: int) -> Counting:
        return self

    def write_batch(self, items: list[dict[str, Any]]) -> None:
        if self._meter.add(len(items), sum(row["number"] for row in items)):
            self._meter.stop()


def main() -> None:
    job = Job.given()
    meter = Meter(job)
    fetch = {"fetch.message.max.bytes": str(FETCH_BYTES), "queued.min.messages": "100000"}
    flow = Dataflow("ingest")
    read = op.input("read", flow, KafkaSource([job.bootstrap], [job.topic], tail=False, add_config=fetch, batch_size=BATCH))

    def parse(messages: Iterable[Any]) -> list[dict[str, Any]]:
        if not meter.rows:
            meter.start()
        return [json.loads(message.value) for message in messages]

    op.output("count", op.flat_map_batch("parse", read, parse), Counting(meter))
    run_main(flow)
    meter.report()


if __name__ == "__main__":
    main()
