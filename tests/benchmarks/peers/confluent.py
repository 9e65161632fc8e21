"""The strongest Python peer: confluent-kafka's C client in large batches, `pyarrow.json` on the joined values, Parquet.

Avro: fastavro, one record at a time, to dicts and no further. It keeps no key, offset or time stamp, and a value that is
not a row breaks it. The clock starts when the consumer is connected, before it is told what to read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from tests.benchmarks.peers import AVRO_SCHEMA, FETCH_BYTES, ROWS_PER_GROUP, Job, Meter, arrow_schema, parquet_writer, recount

BATCH = 20_000


def values(job: Job, meter: Meter) -> Iterator[list[bytes]]:
    """The values of every record, in batches as they come; starts the clock."""
    consumer = Consumer(
        {
            "bootstrap.servers": job.bootstrap, "group.id": "ingest", "enable.auto.commit": False,
            "auto.offset.reset": "error", "fetch.message.max.bytes": FETCH_BYTES, "queued.min.messages": 100_000,
        }
    )  # fmt: skip
    for part in job.partitions:
        consumer.get_watermark_offsets(TopicPartition(job.topic, part), timeout=10)
    meter.start()
    consumer.assign([TopicPartition(job.topic, part, start) for part, (start, _) in job.partitions.items()])
    done = False
    while not done:
        messages = consumer.consume(BATCH, 0.5)
        if any(message.error() for message in messages):
            raise SystemExit(next(str(message.error()) for message in messages if message.error()))
        done = meter.add(len(messages), 0)
        yield [message.value() for message in messages]
    consumer.close()


def to_parquet(job: Job, meter: Meter) -> None:
    import pyarrow as pa
    import pyarrow.json as pj

    schema = arrow_schema()
    parse = pj.ParseOptions(explicit_schema=pa.schema([field.with_nullable(True) for field in schema]))
    waiting: list[bytes] = []

    def write() -> None:
        lines = b"\n".join(waiting)
        read = pj.ReadOptions(use_threads=False, block_size=len(lines) + 1)
        writer.write_table(pj.read_json(pa.BufferReader(lines), read, parse).cast(schema))
        waiting.clear()

    with parquet_writer(job.folder / "confluent.parquet", schema) as writer:
        for batch in values(job, meter):
            waiting += batch
            if len(waiting) >= ROWS_PER_GROUP:
                write()
        if waiting:
            write()
    meter.stop()
    recount(meter, job.folder)


def to_dicts(job: Job, meter: Meter) -> None:
    from fastavro import parse_schema, schemaless_reader

    schema = parse_schema(AVRO_SCHEMA)
    for batch in values(job, meter):
        rows: list[Any] = [schemaless_reader(io.BytesIO(value[5:]), schema) for value in batch]  # 5: Confluent's header
        meter.add(0, sum(row["number"] for row in rows))
    meter.stop()


def main() -> None:
    job = Job.given()
    meter = Meter(job)
    {"json": to_parquet, "avro": to_dicts}[job.step](job, meter)
    meter.report()


if __name__ == "__main__":
    main()
