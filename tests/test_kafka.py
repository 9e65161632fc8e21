"""What only a real Kafka can do to a reader: die, rot on its disk, lose records between two others."""

from __future__ import annotations

import os
import random
import signal
from datetime import UTC, datetime

import pytest

from assets.stream.kafka import KafkaLog
from assets.stream.log import OffsetsGone, Outgoing, RecordRefused, milliseconds

AT = datetime(2013, 6, 3, 8, tzinfo=UTC)
T0 = milliseconds(AT)


def everything(log, topic, start, end):
    return [record for batch in log.read(topic, 0, start, end) for record in batch]


def test_a_broker_that_dies_in_the_middle_of_a_read_and_comes_back_is_read_on_without_a_gap(local_broker, topic):
    log = KafkaLog(local_broker.bootstrap, timeout=30.0)
    log.create_topic(topic, 1)
    log.append(topic, (Outgoing(b"k", random.Random(n).randbytes(1_000), T0 + n) for n in range(12_000)))
    read = log.read(topic, 0, 5, 12_000)
    batches = [next(read)]
    assert log.path == "raw" and len(batches[0]) < 11_000
    folder = local_broker.folder
    os.kill(local_broker.pid, signal.SIGKILL)
    local_broker.stop()
    local_broker.start(folder)
    batches += read
    assert [record.offset for batch in batches for record in batch] == list(range(5, 12_000))
    assert [batch.begin for batch in batches] == [5, *(batch.end for batch in batches[:-1])]
    log.close()


def segment(local_broker, topic):
    """The file that holds the partition's records."""
    return next((local_broker.folder / "data" / f"{topic}-0").glob("*.log"))


@pytest.mark.parametrize("raw", [True, False])
def test_a_record_that_rotted_on_the_broker_s_disk_is_gone_with_its_place_not_a_wait(local_broker, topic, raw):
    log = KafkaLog(local_broker.bootstrap, raw=raw)
    log.create_topic(topic, 1)
    for _ in range(3):
        log.append(topic, [Outgoing(b"k", b"v" * 100, T0)] * 5)
    path = segment(local_broker, topic)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        byte = file.read(1)
        file.seek(size // 2)
        file.write(bytes([byte[0] ^ 4]))
    with pytest.raises(OffsetsGone, match=f"offsets from 5 of '{topic}' partition 0 cannot be read, 3 times.*another replica"):
        everything(log, topic, 0, 15)
    assert len(everything(log, topic, 0, 5)) == len(everything(log, topic, 10, 15)) == 5
    log.close()


def test_a_hole_between_the_broker_s_batches_is_named_exactly(local_broker, topic):
    log = KafkaLog(local_broker.bootstrap)
    log.create_topic(topic, 1)
    for _ in range(3):
        log.append(topic, [Outgoing(b"k", b"v", T0)] * 5)
    path = segment(local_broker, topic)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 3)
        file.write((7).to_bytes(8, "big"))  # the first offset of the second batch, 5 before; no checksum covers it
    with pytest.raises(OffsetsGone, match=rf"offsets \[5, 7\) of topic '{topic}' partition 0 are not in the log"):
        everything(log, topic, 0, 15)
    log.close()


def test_a_header_without_value_is_refused_before_anything_is_written(kafka, topic):
    log = KafkaLog(kafka)
    log.create_topic(topic, 1)
    with pytest.raises(RecordRefused, match=f"header 'trace' of a record for topic '{topic}' has no value"):
        log.append(topic, [Outgoing(b"k", b"v"), Outgoing(b"k", b"v", headers=(("trace", None),))])
    assert log.bounds(topic, AT).partitions[0].latest == 0
    log.close()
