"""Seconds for the cut of a window over 1,000 partitions on a real Kafka, by the clock on the wall. Goal: 5 s.

Ours is the whole step: topics and settings described, four kinds of offsets asked for, the cut decided and journalled.
The naive way asks a KafkaConsumer partition by partition for the beginning, the end and the first offset of a time; the
second peer asks for all partitions of a topic at once. Both write nothing down, and know neither topic ids nor open
transactions. They take turns on one broker, and must agree.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

from kafka import KafkaConsumer, TopicPartition

from assets.stream.kafka import KafkaLog
from assets.stream.log import Outgoing, StreamUnreachable, Topics, milliseconds
from assets.windows.clock import WindowPolicy, nth_window
from assets.windows.cut import Cut, cut
from assets.windows.history import History
from pipelines.broker import LocalBroker
from security.journal import Journal
from tests.benchmarks import result, show

PARTITIONS, SAMPLES = 998, 5  # and one of labels, one of predictions
TOPICS = Topics("events", "labels", "predictions")
NAIVE = "KafkaConsumer, one by one"
POLICY = WindowPolicy(timedelta(hours=1), datetime(2026, 1, 1, tzinfo=UTC), timedelta(seconds=60))


def filled(bootstrap: str) -> KafkaLog:
    """The three topics, stamped by the broker, with two records in each partition of events."""
    log = KafkaLog(bootstrap, timeout=60.0)
    for topic in reversed(TOPICS.all):
        with suppress(StreamUnreachable):  # the client waits 10 s for a thousand partitions to have leaders
            log.create_topic(topic, PARTITIONS if topic == "events" else 1, timestamp_type="LogAppendTime")
    for _ in range(2):
        log.append("events", (Outgoing(b"a", b"{}", partition=part) for part in range(PARTITIONS)))
    return log


def ours(log: KafkaLog, history: History, number: int) -> tuple[float, Cut]:
    now = POLICY.start + (number + 1) * POLICY.every + POLICY.grace
    began = time.perf_counter()
    decided = cut(history, log, POLICY, TOPICS, nth_window(POLICY, number), now=now, actor="bench")
    return time.perf_counter() - began, decided


def asked(consumer: KafkaConsumer, at: datetime, at_once: int) -> tuple[float, dict[int, int]]:
    """The end of each partition of events, from questions about so many partitions."""
    ends: dict[int, int] = {}
    began = time.perf_counter()
    for topic in TOPICS.all:
        places = [TopicPartition(topic, part) for part in sorted(consumer.partitions_for_topic(topic) or ())]
        for first in range(0, len(places), at_once):
            some = places[first : first + at_once]
            consumer.beginning_offsets(some)
            last = consumer.end_offsets(some)
            found = consumer.offsets_for_times(dict.fromkeys(some, milliseconds(at)))
            if topic == "events":
                ends |= {each.partition: last[each] if found[each] is None else found[each].offset for each in some}
    return time.perf_counter() - began, ends


def main() -> None:
    mine: list[float] = []
    theirs: dict[str, list[float]] = {NAIVE: [], "KafkaConsumer, a topic at once": []}
    with tempfile.TemporaryDirectory() as folder, LocalBroker() as broker:
        broker.start(Path(folder) / "broker")
        history = History(Journal(f"sqlite:///{folder}/journal.db"), "bench")
        consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap, request_timeout_ms=60_000)
        with closing(filled(broker.bootstrap)) as log, closing(consumer):
            for number in range(SAMPLES):
                seconds, decided = ours(log, history, number)
                mine.append(seconds)
                wanted = {part: end for part, (_, end) in decided.topics["events"].partitions.items()}
                for name, at_once in zip(theirs, (1, PARTITIONS), strict=True):
                    seconds, ends = asked(consumer, decided.end, at_once)
                    theirs[name].append(seconds)
                    if ends != wanted:
                        sys.exit(f"window {decided.window}: ours and {name} do not agree on where it ends")
                said = "; ".join(f"{name} {each[-1]:.2f}" for name, each in theirs.items())
                print(f"cut {mine[-1]:.2f} s; {said}", file=sys.stderr)
        history.journal.close()
    found = result("cut", f"seconds for {PARTITIONS + 2} partitions", mine, NAIVE, theirs[NAIVE], ["kafka-python"])
    show(found | {"peers": {name: round(median(seconds), 4) for name, seconds in theirs.items()}})


if __name__ == "__main__":
    main()
