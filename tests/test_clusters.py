"""Three brokers: a reader and a writer survive the death of a leader, and the fixture can bring about what it promises."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pytest

from assets.stream.batch import Batch
from assets.stream.kafka import KafkaLog
from assets.stream.log import Outgoing
from tests.clusters import cluster, wait_for

__all__ = ["cluster"]
NOW = datetime.now(UTC)
RECORDS, SIZE = 10_000, 2_000  # more than two fetches of 8 MiB


@pytest.fixture
def log(cluster) -> Iterator[KafkaLog]:
    made = KafkaLog(cluster.bootstrap, timeout=30.0)
    yield made
    made.close()


def columns(batches: list[Batch]) -> tuple[list[object], np.ndarray]:
    """All records, and the log's own checksums of them; the batches must tile what they account for."""
    assert all(left.end == right.begin for left, right in pairwise(batches))
    return [record for batch in batches for record in batch], np.concatenate([batch.marks for batch in batches])


def test_a_leader_killed_in_the_middle_of_a_read_costs_no_record_and_changes_no_byte(cluster, log, topic):
    rng = random.Random(3)
    sent = [rng.randbytes(SIZE) for _ in range(RECORDS)]
    cluster.create(topic)
    log.append(topic, (Outgoing(None, value) for value in sent))
    whole = list(log.read(topic, 0, 0, RECORDS))

    reading = log.read(topic, 0, 0, RECORDS)
    batches, leader = [next(reading)], cluster.leader(topic)
    assert batches[0].end < RECORDS
    cluster.kill(leader)
    batches += reading
    (records, marks), (expected, expected_marks) = columns(batches), columns(whole)
    assert [record.value for record in records] == sent and records == expected
    # A batch of the log that two fetches share is marked twice.
    assert np.array_equal(np.unique(marks, axis=0), np.unique(expected_marks, axis=0))
    assert cluster.leader(topic) != leader and log.append(topic, [Outgoing(None, b"after")]) == 1


@pytest.mark.slow
def test_an_unclean_election_takes_acknowledged_records_out_of_the_log(cluster, log, topic):
    cluster.create(topic, replicas=2, configs={"unclean.leader.election.enable": "true", "min.insync.replicas": "1"})
    log.append(topic, [Outgoing(None, b"in both copies")] * 10)
    leader, [follower] = cluster.leader(topic), [node for node in cluster.replicas(topic)[1] if node != cluster.leader(topic)]
    cluster.kill(follower)
    wait_for(lambda: cluster.replicas(topic) == (leader, [leader]), cluster.nodes[leader].log)
    assert log.append(topic, [Outgoing(None, b"in one")]) == 1
    cluster.kill(leader)
    cluster.restart(follower)
    wait_for(lambda: cluster.leader(topic) == follower, cluster.nodes[follower].log)
    bounds = log.bounds(topic, NOW).partitions[0]
    assert (bounds.earliest, bounds.latest) == (0, 10)
    cluster.restart(leader)
