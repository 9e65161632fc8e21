"""Our side: the product's own path from the broker to Parquet files on the disk, or only its first steps.

The clock starts after the client has connected and read one record, before the first fetch of the job.
"""

from __future__ import annotations

from assets.stream.formats import ValueFormat
from assets.stream.kafka import KafkaLog
from assets.stream.registry import Registry
from assets.windows.part import PartJob, seal_part
from tests.benchmarks.peers import Job, Meter, arrow_schema, recount


def form_of(job: Job) -> ValueFormat:
    """The format of the job's topic."""
    if job.registry:
        return ValueFormat(arrow_schema(), "confluent", Registry(job.registry))
    return ValueFormat(arrow_schema())


def to_parquet(log: KafkaLog, job: Job, form: ValueFormat, meter: Meter) -> None:
    """What a seal does for each partition: proof, fingerprint, file, flush, hash."""
    for part, (start, end) in job.partitions.items():
        file = job.folder / f"{part}.parquet"
        asked = PartJob(job.topic, part, start, end, (), form, file, max_rejects=0)
        seal_part(log, asked, on_progress=meter.alive)


def to_tables(log: KafkaLog, job: Job, form: ValueFormat, meter: Meter) -> None:
    """Arrow tables, dropped."""
    columns = form.columns()
    for part, (start, end) in job.partitions.items():
        for batch in log.read(job.topic, part, start, end):
            meter.add(columns.decode(batch).table.num_rows, 0)


def to_batches(log: KafkaLog, job: Job, form: ValueFormat, meter: Meter) -> None:
    """Batches as the log gives them, dropped."""
    for part, (start, end) in job.partitions.items():
        for batch in log.read(job.topic, part, start, end):
            meter.add(len(batch), 0)


STEPS = {"read": to_batches, "table": to_tables, "parquet": to_parquet}


def main() -> None:
    job = Job.given()
    meter, log, form = Meter(job), KafkaLog(job.bootstrap), form_of(job)
    columns, (first, (start, _)) = form.columns(), next(iter(job.partitions.items()))
    for batch in log.read(job.topic, first, start, start + 1):
        columns.decode(batch)
    meter.start()
    STEPS[job.step](log, job, form, meter)
    meter.stop()
    log.close()
    if job.step == "parquet":
        recount(meter, job.folder)
    meter.report(path=log.path)


if __name__ == "__main__":
    main()
