"""Faults of a real Kafka under a seal: after each, nothing lost, nothing doubled and the same bytes, or a stop by name.

Here: brokers that die, freeze and come back, leaders that move, records and topics that vanish, aborted transactions, huge
records. Bad connections are in test_path_faults.py, full disks in test_disk_faults.py. Elsewhere on a real Kafka: a read
(not a seal) under a killed broker and a rotten or missing batch in test_log.py and test_broker.py; a killed leader under
a read in test_clusters.py; partitions that are added, open transactions by every clock, wrong clocks in test_cut_kafka.py;
records deleted between cut and seal in test_gap.py; a log truncated by a crash in test_gap_kafka.py; our own process
killed in test_window_faults.py and test_kill_points.py; the gateway and Kafka killed in turn in test_gateway_faults.py.
"""

from __future__ import annotations

import base64
import os
import random
import signal
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from assets.stream.formats import formats_of
from assets.stream.kafka import KafkaLog
from assets.stream.log import MAX_RECORD_BYTES, IdentityChanged, OffsetsGone, StreamUnreachable, Topics
from assets.windows.clock import WindowPolicy
from assets.windows.cut import HeldBack
from assets.windows.join import read_examples
from assets.windows.seal import find_sealed
from assets.windows.verify import verify
from pipelines.broker_folder import is_locked
from tests.clusters import cluster, wait_for
from tests.faults.undisturbed import FaultAt, Undisturbed, fill, left_over, sealed_names, sealed_nothing, small_fetches
from tests.test_cut_kafka import Transactions, cut_when_decided
from tests.test_gap import accept, rows, seal, spans
from tests.windows import EVENT, LABEL, Stream, at, event, label, new_topics

__all__ = ["cluster"]
PATIENT = 30.0  # seconds: longer than a broker needs to start, or a cluster to choose another leader


@pytest.fixture
def small(monkeypatch):
    small_fetches(monkeypatch)


@pytest.fixture
def world(kafka, tmp_path, small):
    """Three hours on the shared broker, and what they give undisturbed."""
    with closing(KafkaLog(kafka)) as log:
        stream = Stream(log, new_topics(log), tmp_path / "undisturbed")
        yield Undisturbed.of(stream, fill(stream))


@pytest.fixture
def whole(cluster, tmp_path, small):
    """The same on three brokers, in topics of one partition."""
    with closing(KafkaLog(cluster.bootstrap, timeout=PATIENT)) as log:
        stream = Stream(log, new_topics(log, partitions=1), tmp_path / "undisturbed")
        yield Undisturbed.of(stream, fill(stream))


@pytest.fixture
def admin(kafka):
    with closing(KafkaAdminClient(bootstrap_servers=kafka)) as client:
        yield client


def findings(stream, number=0):
    """State -> what it is said of, of files and log, compared anew."""
    found = {}
    for each in verify(stream.history, stream.log, stream.root, stream.window(number), formats_of(stream.topics, EVENT, LABEL)):
        found.setdefault(each.state, []).append(each)
    return found


# -- brokers and leaders -----------------------------------------------------------------------------------------------


def test_a_broker_killed_in_the_middle_of_a_seal_that_comes_back_in_time_is_read_on(world, local_broker):
    with closing(KafkaLog(local_broker.bootstrap, timeout=PATIENT)) as log:
        stream = world.another("patient", log)
        stream.cut(0)
        fault = FaultAt(log, stream.topics.events, 3, lambda: (kill(local_broker), back(local_broker)))
        stream.seal(0)
        assert fault.acted
        world.check(stream)


def test_a_broker_killed_in_the_middle_of_a_seal_that_stays_away_stops_it_with_nothing_sealed(world, local_broker):
    with closing(KafkaLog(local_broker.bootstrap, timeout=2.0)) as log:
        stream = world.another("hasty", log)
        stream.cut(0)
        fault = FaultAt(log, stream.topics.events, 3, lambda: kill(local_broker))
        try:
            with pytest.raises(StreamUnreachable, match=r"Kafka at 127\.0\.0\.1:\d+.*check that the broker runs"):
                stream.seal(0)
        finally:
            back(local_broker)
        assert fault.acted and sealed_nothing(stream) and left_over(stream.root) == []
    with closing(KafkaLog(local_broker.bootstrap)) as log:
        world.check(world.another("hasty", log))


def kill(broker):
    """Its watcher, and with it Java, which holds the lock of the folder as long as it lives."""
    os.kill(broker.pid, signal.SIGKILL)
    wait_for(lambda: not is_locked(broker.folder), lambda: "the broker still lives")


def back(broker):
    folder, address = broker.folder, broker.bootstrap
    broker.stop()
    assert broker.start(folder) == address


@pytest.mark.parametrize("way", ["leave", "kill"])
def test_a_leader_that_goes_in_the_middle_of_a_seal_changes_no_byte_and_no_fingerprint(whole, cluster, way):
    with closing(KafkaLog(cluster.bootstrap, timeout=PATIENT)) as log:
        stream, topic = whole.another(way, log), whole.stream.topics.events
        stream.cut(0)
        old = cluster.leader(topic)
        fault = FaultAt(log, stream.topics.events, 3, lambda: getattr(cluster, way)(old))
        sealed = stream.seal(0)
        assert fault.acted and cluster.leader(topic) != old
        assert sealed == find_sealed(whole.stream.history, stream.window(0))  # fingerprints too: of another leader, the same
        assert all(file.fingerprint.startswith("batches:") for file in sealed.files if file.rows)
        whole.check(stream)
        assert set(findings(stream)) == {"same"}


@pytest.mark.slow
def test_a_cluster_that_freezes_in_the_middle_of_a_seal_stops_it_and_what_thaws_is_read_again(whole, cluster):
    with closing(KafkaLog(cluster.bootstrap, timeout=3.0)) as log:
        stream = whole.another("frozen", log)
        stream.cut(0)
        fault = FaultAt(log, stream.topics.events, 3, lambda: [cluster.freeze(node) for node in (1, 2, 3)])
        try:
            with pytest.raises(StreamUnreachable, match=r"Kafka at 127\.0\.0\.1:\d+.*check that the broker runs"):
                stream.seal(0)
        finally:
            cluster.heal()
        assert fault.acted and sealed_nothing(stream) and left_over(stream.root) == []
        whole.check(whole.another("frozen"))


# -- records that vanish -----------------------------------------------------------------------------------------------


def test_records_deleted_ahead_of_a_running_seal_stop_it_and_the_accepted_gap_is_all_that_is_missing(world, kafka, admin):
    topic = world.stream.topics.events
    with closing(KafkaLog(kafka)) as log:
        stream = world.another("overtaken", log)
        start, end = stream.cut(0).topics[topic].partitions[0]
        gone = end - 10  # most of what is not read yet, and what was read already
        fault = FaultAt(log, stream.topics.events, 3, lambda: admin.delete_records({TopicPartition(topic, 0): gone}))
        with pytest.raises(OffsetsGone, match=rf"offsets \[(\d+), {gone}\) of '{topic}' partition 0 are gone: the log begins"):
            stream.seal(0)
        assert fault.acted and start < fault.acted[1] < gone and sealed_nothing(stream)
    with closing(KafkaLog(kafka)) as log:  # of the seal nothing is kept, so that all that is deleted is lost
        stream = world.another("overtaken", log)
        with pytest.raises(OffsetsGone, match=rf"offsets \[{start}, {gone}\) .*{gone - start} offsets are lost"):
            stream.seal(0)
        (gap,) = accept(stream, 0, topic)
        assert (gap.start, gap.end, gap.resume_at) == (start, gone, None)
        assert seal(stream, 0).accepted == ((topic, 0, start, gone),)
        for number in range(1, 4):
            assert stream.cut(number) == world.stream.cut(number) and stream.seal(number) == world.stream.seal(number)
        lost = [name for offset, name in rows(world.stream, 0).items() if offset < gone]
        assert len(lost) == gone - start and sorted([*sealed_names(stream), *lost]) == sorted(world.names)
        assert set(findings(stream)) == {"same"} and "gone" in findings(world.stream)


@pytest.mark.slow
def test_real_retention_between_cut_and_seal_is_told_exactly_and_accepted(cluster, tmp_path):
    """Segments of ten minutes of the stream's time; the topic is then told to keep what is younger than minute 35."""
    with closing(KafkaLog(cluster.bootstrap, timeout=PATIENT)) as log:
        stream = Stream(log, new_topics(log, partitions=1), tmp_path / "a")
        topic = stream.topics.events
        configure(cluster, topic, {"segment.ms": "600000"})
        for minute in range(0, 120, 2):
            stream.publish(event(f"e{minute}", minute), label(f"e{minute}", minute))
        stream.end(240)
        start, end = stream.cut(0).topics[topic].partitions[0]
        kept = datetime.now(UTC).timestamp() * 1000 - at(35)
        configure(cluster, topic, {"retention.ms": str(int(kept))})
        wait_for(lambda: log.bounds(topic, stream.policy.start).partitions[0].earliest > start, lambda: "nothing was deleted")
        earliest = log.bounds(topic, stream.policy.start).partitions[0].earliest
        assert 0 < earliest < end
        with pytest.raises(OffsetsGone, match=rf"offsets \[0, {earliest}\) of '{topic}' partition 0 are gone"):
            stream.seal(0)
        accept(stream, 0, topic)
        seal(stream, 0)
        assert spans(stream, 1) == {0: (end, 60)}
        seal(stream, 1)
        assert sealed_names(stream, 2) == [f"e{2 * offset}" for offset in range(earliest, 60)]


def configure(cluster, topic, configs):
    from kafka.admin import ConfigResource

    with closing(KafkaAdminClient(bootstrap_servers=cluster.bootstrap.split(","))) as client:
        client.alter_configs([ConfigResource("topic", topic, configs)])


# -- topics that are made anew -----------------------------------------------------------------------------------------


def made_anew(log, admin, topic, records):
    """Delete a topic and fill another one of its name."""
    count = len(log.partitions(topic))
    admin.delete_topics([topic])
    wait_for(lambda: topic not in admin.list_topics(), lambda: f"{topic} is still there")
    log.create_topic(topic, count)
    log.append(topic, records)


MOMENTS = ["in the middle of a seal", "between two windows", pytest.param("between cut and seal", marks=pytest.mark.slow)]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_topic_made_anew_stops_with_both_ids_and_no_gap_can_be_accepted_for_it(world, kafka, admin, moment):
    topic = world.stream.topics.events
    old = world.stream.cut(0).topics[topic].topic_id
    others = [event(f"other-{name}", 1) for name in world.names]  # as many, so that every offset is there again
    with closing(KafkaLog(kafka)) as log, closing(KafkaLog(kafka)) as writer:
        stream = world.another("anew", log)
        stream.cut(0)
        number = 0
        if moment == "in the middle of a seal":
            fault = FaultAt(log, stream.topics.events, 3, lambda: made_anew(writer, admin, topic, others))
        elif moment == "between two windows":
            sealed, number = stream.seal(0), 1
        if moment != "in the middle of a seal":
            made_anew(writer, admin, topic, others)
        with pytest.raises(IdentityChanged) as stopped:
            (stream.cut if number else stream.seal)(number)
        new = writer.bounds(topic, stream.policy.start).topic_id
        assert f"topic id {old}, now it is {new}" in str(stopped.value)
        with pytest.raises(IdentityChanged, match="start a new task"):
            accept(stream, number, topic)
        if moment == "between two windows":
            assert stream.seal(0) == sealed and "differs" in findings(stream)
        else:
            assert sealed_nothing(stream) and left_over(stream.root) == []
        assert moment != "in the middle of a seal" or fault.acted


# -- an unclean election -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_unclean_election_under_a_sealed_window_is_found_and_no_record_is_in_two_windows(cluster, tmp_path):
    with closing(KafkaLog(cluster.bootstrap, timeout=PATIENT)) as log:
        stream = Stream(log, new_topics(log, partitions=1), tmp_path / "a")
        topic = f"{stream.topics.events}-unclean"
        unclean = {"retention.ms": "-1", "unclean.leader.election.enable": "true", "min.insync.replicas": "1"}
        cluster.create(topic, replicas=2, configs=unclean)
        stream.topics = replace(stream.topics, events=topic)
        stream.end(60 * 20)
        log.append(topic, [event(f"both{number}", 10) for number in range(10)])
        leader, nodes = cluster.replicas(topic)
        (follower,) = set(nodes) - {leader}
        cluster.kill(follower)
        wait_for(lambda: cluster.replicas(topic) == (leader, [leader]), cluster.nodes[leader].log)
        log.append(topic, [event(f"one{number}", 20) for number in range(5)])
        assert spans(stream, 0) == {0: (0, 15)}
        before = seal(stream, 0)
        cluster.kill(leader)
        cluster.restart(follower)
        wait_for(lambda: cluster.leader(topic) == follower, cluster.nodes[follower].log)
        (lost,) = findings(stream)["differs"]
        assert f"offsets [10, 15) of '{topic}' partition 0 are not there: the log ends at 10" in lost.detail
        log.append(topic, [event(f"new{number}", 70) for number in range(3)])
        with pytest.raises(OffsetsGone, match=r"ends at offset 13, the last cut ended at 15.*accept-gap"):
            stream.cut(1)
        (gap,) = accept(stream, 1, topic)
        assert (gap.start, gap.end, gap.resume_at) == (10, 10, 10)
        log.append(topic, [event(f"newer{number}", 71) for number in range(4)])
        (anew,) = findings(stream)["differs"]  # the log is as long again, and another one
        assert "the log was written anew" in anew.detail
        assert spans(stream, 1) == {0: (10, 17)}
        seal(stream, 1)
        names = [("both", 10), ("one", 5), ("new", 3), ("newer", 4)]
        assert sealed_names(stream, 2) == [f"{name}{number}" for name, many in names for number in range(many)]
        assert seal(stream, 0) == before
        cluster.restart(leader)  # which throws away what it alone had: the log stays as it is
        assert set(findings(stream, 1)) == {"same"}


# -- transactions ------------------------------------------------------------------------------------------------------


class Writer(Transactions):
    """One of several to the same topic."""

    def __init__(self, kafka, topic, name):
        self.topic = topic
        self.producer = KafkaProducer(bootstrap_servers=kafka, transactional_id=f"{topic}-{name}")
        self.producer.init_transactions()


def test_aborted_records_among_good_ones_are_in_no_window_and_no_example(kafka, tmp_path):
    """By the wall's clock: a week that contains today, read when it is over."""
    with closing(KafkaLog(kafka)) as log, closing(KafkaLog(kafka, raw=False)) as ordinary:
        topics = Topics(*(f"{name}-wall" for name in new_topics(log).all))
        for name in topics.all:
            log.create_topic(name, 1, timestamp_type="LogAppendTime")
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        policy = WindowPolicy(timedelta(days=7), today)
        stream = Stream(log, topics, tmp_path / "a", policy=policy)
        made = {topics.events: event, topics.labels: label}
        writers = {name: (Writer(kafka, name, "good"), Writer(kafka, name, "bad")) for name in made}
        for n in range(12):  # two transactions at once, plain records between them; of three rounds, one is undone
            for name, (good, bad) in writers.items():
                own, undone = ("unlabelled", "orphan") if name == topics.events else ("orphan", "unlabelled")
                good.begin(made[name](f"good{n}", 1))
                bad.begin(made[name](f"{undone}{n}", 1))
                log.append(name, [made[name](f"plain{n}", 1), made[name](f"{own}{n}", 1)])
                bad.abort()
                (good.abort if n % 3 == 2 else good.commit)()
        open_ = writers[topics.events][0]
        open_.begin(event("late", 1))
        later = today + timedelta(days=8)
        with pytest.raises(HeldBack, match="waits for an open transaction"):
            stream.cut(0, now=later)
        open_.abort()
        cut_when_decided(stream, 0, later)
        stream.seal(0)
        found = read_examples(stream.root, stream.join(0))
        rounds = range(12)
        kept = {f"plain{n}" for n in rounds} | {f"good{n}" for n in rounds if n % 3 != 2}
        assert sorted(found["event_id"].to_pylist()) == sorted(kept)
        assert sorted(sealed_names(stream, 1)) == sorted(kept | {f"unlabelled{n}" for n in rounds})
        assert stream.join(0).labels_without_event == stream.join(0).unlabelled == 12
        other = Stream(ordinary, topics, tmp_path / "b", policy=policy)
        assert other.cut(0, now=later) == stream.cut(0, now=later)
        other.seal(0), other.join(0)
        assert other.hashes() == stream.hashes()
        for pair in writers.values():
            for writer in pair:
                writer.producer.close()


# -- large records -----------------------------------------------------------------------------------------------------


def test_records_of_five_and_of_eight_megabytes_among_small_ones_are_sealed_at_any_fetch_size(kafka, tmp_path, monkeypatch):
    """One too large by a byte is refused where it is written: test_log.py."""
    with closing(KafkaLog(kafka)) as log:
        stream = Stream(log, new_topics(log, partitions=1), tmp_path / "a")
        names = []
        for number, size in enumerate([5 << 20, 100, MAX_RECORD_BYTES, 100, 5 << 20, MAX_RECORD_BYTES]):
            names += [f"small{number}", long_name(number, size)]
            log.append(stream.topics.events, [event(names[-2], number), replace(event(names[-1], number), key=None)])
        stream.end(240)
        assert stream.cut(0).topics[stream.topics.events].partitions[0] == (0, 12)
        stream.seal(0)
        assert sealed_names(stream, 1) == names
    small_fetches(monkeypatch)
    for raw in (True, False):
        with closing(KafkaLog(kafka, raw=raw)) as log:
            again = Stream(log, stream.topics, tmp_path / f"{raw}")
            again.end(240)
            again.cut(0), again.seal(0)
            assert again.hashes() == stream.hashes()


def long_name(number, size):
    """A name with which an event without key is so large; of random text, which no codec makes much smaller."""
    rest = size - len(event("", number).value or b"")
    return base64.b64encode(random.Random(number).randbytes(size)).decode()[:rest]
