"""A truncated log on a real Kafka: what a disk gives back after a crash, or a leader that never had the records."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from assets.stream.kafka import KafkaLog
from assets.stream.log import OffsetsGone
from pipelines.broker import BrokerFailed, LocalBroker
from pipelines.broker_folder import is_locked
from tests.streams import JARS
from tests.test_gap import accept, events, rows, seal, spans
from tests.windows import Stream, new_topics


def cut_off(folder: Path, topic: str, share: float) -> None:
    """Take the end of a partition's file away; the broker finds the last whole batch by itself."""
    (file,) = folder.glob(f"data/{topic}-0/*.log")
    size = len(file.read_bytes().rstrip(b"\0"))
    with file.open("r+b") as opened:
        opened.truncate(int(size * share))


@pytest.mark.parametrize("grown", ["xy", "uvwxyz"], ids=["shorter than before", "longer than before"])
def test_a_log_that_was_truncated_under_a_sealed_window_is_taken_up_where_it_went_on(tmp_path, grown):
    folder, broker = tmp_path / "broker", LocalBroker(jars=JARS)
    try:
        broker.start(folder)
    except BrokerFailed as error:
        pytest.skip(f"no local Kafka on this machine: {error}")
    log = KafkaLog(broker.bootstrap)
    stream = Stream(log, new_topics(log, partitions=1), tmp_path / "a")
    topic = stream.topics.events
    stream.end(60 * 20)
    for name in "abcdefgh":
        stream.publish(*events(name, 10))  # a batch each
    stream.cut(0)
    before = seal(stream, 0)
    os.kill(broker.pid, signal.SIGKILL)  # so that it looks at its files when it starts again
    while is_locked(folder):
        time.sleep(0.05)
    broker.stop()
    cut_off(folder, topic, 0.7)
    try:
        broker.start(folder)
        assert log.bounds(topic, stream.policy.start).partitions[0].latest == 5
        stream.publish(*events(grown, 70))
        told = "ends at offset 7, the last cut ended at 8" if grown == "xy" else "truncated at offset 5 and written again"
        with pytest.raises(OffsetsGone, match=told):
            stream.cut(1)
        (gap,) = accept(stream, 1, topic)
        assert (gap.start, gap.end, gap.resume_at) == (5, 5, 5)
        stream.publish(*events("!", 71))
        assert spans(stream, 1) == {0: (5, 6 + len(grown))}
        seal(stream, 1)
        assert [*rows(stream, 0).values(), *rows(stream, 1).values()] == [*"abcdefgh", *grown, "!"]
        assert seal(stream, 0) == before
        assert spans(stream, 2) == {0: (6 + len(grown), 6 + len(grown))}
    finally:
        log.close()
        broker.stop()
