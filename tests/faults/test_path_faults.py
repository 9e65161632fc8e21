"""Bad connections between a seal and a real Kafka: slow, silent for ever, broken off in the middle of an answer.

The seal ends in the same bytes, or says within its time limit that the log gave no answer; it never hangs, and the next
run over a good path makes the same bytes. Brokers that do not answer from the beginning are in test_log.py, frozen ones
in test_kafka_faults.py, a process that hangs whatever the path in test_part.py.
"""

from __future__ import annotations

import random
import time
from contextlib import closing

import pytest

from assets.stream import kafka as kafka_log
from assets.stream.kafka import KafkaLog
from assets.stream.log import Outgoing, StreamUnreachable
from assets.windows import crew
from tests.faults import bad_path
from tests.faults.bad_path import BadPath
from tests.faults.undisturbed import Undisturbed, fill, left_over, sealed_nothing, small_fetches
from tests.windows import Stream, new_topics

LIMIT = 2.0  # seconds a client waits for an answer
LATEST = 8 * LIMIT + 2  # seconds within which a seal ends: each of three sizes of an answer is waited for, and asked about


@pytest.fixture(scope="module")
def world(kafka, tmp_path_factory):
    with closing(KafkaLog(kafka)) as log:
        stream = Stream(log, new_topics(log), tmp_path_factory.mktemp("paths") / "undisturbed")
        yield Undisturbed.of(stream, fill(stream))


def test_a_path_that_breaks_now_and_then_and_becomes_slow_changes_no_byte(world, kafka, monkeypatch):
    bad = {1: "closes", 2: "closes", 6: "closes", 9: "slow", 15: "closes"}
    small_fetches(monkeypatch)
    with BadPath(kafka, bad) as path, closing(KafkaLog(path.bootstrap, timeout=4 * LIMIT)) as log:
        stream = world.another("breaks", log)
        stream.run(0)
        assert path.met == sorted(bad)
        world.check(stream)


def test_a_link_too_slow_for_a_large_answer_is_asked_for_smaller_ones(kafka, topic, monkeypatch, caplog):
    """40 kB/s: all of it takes 2 s, and 1 s is the limit; 8 KiB arrive in a fifth of that."""
    monkeypatch.setattr(bad_path, "PAUSE", 0.1)
    monkeypatch.setattr(kafka_log, "FETCH_BYTES", (8 << 20, 8 << 10))
    sent = [Outgoing(None, random.Random(number).randbytes(4_000), 1) for number in range(20)]
    with BadPath(kafka, {1: "slow"}) as path, closing(KafkaLog(path.bootstrap, timeout=1.0)) as log:
        log.create_topic(topic, 1)
        for record in sent:
            log.append(topic, [record])
        found = [record.value for batch in log.read(topic, 0, 0, len(sent)) for record in batch]
    assert found == [record.value for record in sent]
    assert caplog.text.count("from now on at most 8 KiB are asked for at once") == 1


SLOW = [pytest.param(kind, raw, marks=pytest.mark.slow) for kind, raw in (("stops", True), ("dies", False), ("drips", False))]


@pytest.mark.parametrize(("kind", "raw"), [("dies", True), ("drips", True), *SLOW])
def test_a_path_on_which_nothing_arrives_any_more_ends_the_seal_in_time_and_a_good_one_makes_it(
    world, kafka, monkeypatch, request, kind, raw
):
    """A connection that falls silent takes all the time there is: a client waits for an answer as long as a call does."""
    if kind != "drips":  # in the middle of the partition; the whole of it is one answer that drips for too long
        small_fetches(monkeypatch)
    bad = {1 if kind == "drips" else 3: kind}
    with BadPath(kafka, bad) as path, closing(KafkaLog(path.bootstrap, timeout=LIMIT, raw=raw)) as hasty:
        stream = world.another(request.node.name, hasty)
        stream.cut(0)
        begun = time.monotonic()
        with pytest.raises(StreamUnreachable, match="check that the broker runs"):
            stream.seal(0)
        assert time.monotonic() - begun < LATEST
        assert path.met and sealed_nothing(stream) and left_over(stream.root) == []
        path.heal()
        with closing(KafkaLog(path.bootstrap, timeout=LIMIT, raw=raw)) as log:
            world.check(world.another(request.node.name, log))


def test_processes_that_hang_on_a_silent_path_are_replaced(world, kafka, monkeypatch, caplog):
    """Their clients would wait for longer than the watch over them."""
    monkeypatch.setattr(crew, "STALL_SECONDS", 5.0)
    with BadPath(kafka, {1: "stops", 2: "stops"}) as path, closing(KafkaLog(path.bootstrap, timeout=60.0)) as log:
        stream = world.another("crew", log, processes=2)
        stream.cut(0)
        stream.seal(0)
        assert path.met == [1, 2] and caplog.text.count("killed, and begun anew") == 2
    world.check(world.another("crew"))


@pytest.mark.slow
def test_processes_on_a_path_that_died_end_with_the_error_of_their_client(world, kafka):
    with BadPath(kafka, {1: "dies"}) as path, closing(KafkaLog(path.bootstrap, timeout=LIMIT)) as log:
        stream = world.another("dead crew", log, processes=2)
        stream.cut(0)
        with pytest.raises(StreamUnreachable, match="check that the broker runs"):
            stream.seal(0)
        assert path.met and sealed_nothing(stream) and left_over(stream.root) == []
    world.check(world.another("dead crew"))
