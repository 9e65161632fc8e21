"""What everybody writes first: kafka-python's consumer, `json.loads`, `Table.from_pylist`, a Parquet file.

On our own packages, so that nothing but the way of reading differs. It keeps no key, offset or time stamp, and checks
nothing. The clock starts when the consumer is connected and has its offsets, before the first fetch.
"""

from __future__ import annotations

import json

import pyarrow as pa
from kafka import KafkaConsumer, TopicPartition

from tests.benchmarks.peers import FETCH_BYTES, Job, Meter, arrow_schema, parquet_writer, recount

ROWS = 65_536


def main() -> None:
    job, schema = Job.given(), arrow_schema()
    meter, moments = Meter(job), schema.get_field_index("at")
    texts = schema.set(moments, pa.field("at", pa.string()))  # from_pylist takes no ISO text for a time
    consumer = KafkaConsumer(
        bootstrap_servers=job.bootstrap, enable_auto_commit=False, metrics_enabled=False, max_poll_records=ROWS,
        max_partition_fetch_bytes=FETCH_BYTES, fetch_max_bytes=8 * FETCH_BYTES,
    )  # fmt: skip
    parts = [TopicPartition(job.topic, part) for part in job.partitions]
    consumer.assign(parts)
    consumer.end_offsets(parts)
    for part in parts:
        consumer.seek(part, job.partitions[part.partition][0])
    waiting: list[dict[str, object]] = []

    def write() -> None:
        table = pa.Table.from_pylist(waiting, texts)
        writer.write_table(table.set_column(moments, schema.field(moments), table["at"].cast(schema.field(moments).type)))
        waiting.clear()

    with parquet_writer(job.folder / "naive.parquet", schema) as writer:
        done = False
        meter.start()
        while not done:
            for records in consumer.poll(timeout_ms=500).values():
                waiting += [json.loads(record.value) for record in records]
                done = meter.add(len(records), 0)
            if done or len(waiting) >= ROWS:
                write()
    meter.stop()
    consumer.close()
    recount(meter, job.folder)
    meter.report()


if __name__ == "__main__":
    main()
