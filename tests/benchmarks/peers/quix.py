"""Quix Streams: its JSON deserializer (orjson) and one `sdf.update` on each dict, and no further.

It connects inside `run`, so the clock starts at the first record: what was fetched before is in its favour.
"""

from __future__ import annotations

import uuid
from typing import Any

from quixstreams import Application

from tests.benchmarks.peers import FETCH_BYTES, Job, Meter


def main() -> None:
    job = Job.given()
    meter = Meter(job)
    app = Application(
        broker_address=job.bootstrap, consumer_group=f"ingest-{uuid.uuid4().hex[:8]}", auto_offset_reset="earliest",
        auto_create_topics=False, use_changelog_topics=False, state_dir=job.folder, loglevel="WARNING",
        consumer_extra_config={"fetch.message.max.bytes": FETCH_BYTES, "queued.min.messages": 100_000},
    )  # fmt: skip

    def count(row: dict[str, Any]) -> None:
        if not meter.rows:
            meter.start()
        if meter.add(1, row["number"]):
            meter.stop()
            app.stop()

    app.dataframe(app.topic(job.topic, value_deserializer="json")).update(count)
    app.run()
    meter.report()


if __name__ == "__main__":
    main()
