"""A routing epoch counts as taken up when every gateway that is alive has said so. On SQLite and on PostgreSQL."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from security.journal import Journal, JournalUnreachable
from security.replicas import Replica, Replicas

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def after(seconds):
    return NOW + timedelta(seconds=seconds)


@pytest.fixture
def replicas(journal):
    return Replicas(journal.engine)


def test_the_last_word_of_each_replica_counts(replicas):
    replicas.acknowledge("flights", "b", 1, NOW)
    replicas.acknowledge("flights", "a", 1, NOW)
    replicas.acknowledge("flights", "b", 2, after(1))
    assert replicas.live("flights", after(2)) == [Replica("a", 1, NOW), Replica("b", 2, after(1))]


def test_a_word_from_the_future_keeps_nobody_alive(replicas):
    replicas.acknowledge("flights", "ahead", 1, after(400 * 24 * 3600))
    assert replicas.live("flights", NOW) == []


def test_an_epoch_is_acknowledged_when_no_live_replica_lags(replicas):
    replicas.acknowledge("flights", "a", 3, NOW)
    replicas.acknowledge("flights", "b", 2, NOW)
    assert not replicas.all_acknowledged("flights", 3, after(1))
    assert replicas.lagging("flights", 3, after(1)) == [Replica("b", 2, NOW)]
    replicas.acknowledge("flights", "b", 4, after(1))
    assert replicas.all_acknowledged("flights", 3, after(2))


def test_a_replica_counts_until_its_lease_ends(replicas):
    replicas.acknowledge("flights", "slow", 1, NOW)
    assert not replicas.all_acknowledged("flights", 2, after(29.999))
    assert replicas.live("flights", after(30)) == []
    assert replicas.all_acknowledged("flights", 2, after(30))
    assert replicas.live("flights", after(30), lease=timedelta(minutes=1))


def test_with_no_replica_everything_is_acknowledged_and_the_list_says_why(replicas):
    assert replicas.all_acknowledged("flights", 9, NOW) and replicas.live("flights", NOW) == []


def test_tasks_do_not_see_each_other(replicas):
    replicas.acknowledge("flights", "a", 1, NOW)
    assert replicas.live("fraud", NOW) == []


def test_replicas_gone_for_a_day_are_forgotten(replicas, journal):
    for pod in range(5):
        replicas.acknowledge("flights", f"pod-{pod}", 1, NOW)
    replicas.acknowledge("flights", "new", 1, NOW + timedelta(days=1, seconds=1))
    with journal.engine.begin() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM gateway_replicas")).scalar() == 1


def test_several_processes_may_start_and_acknowledge_at_once(journal_url):
    def start(number):
        replicas = Replicas(Journal(journal_url).engine)
        for epoch in range(5):
            replicas.acknowledge("flights", f"r{number % 2}", epoch, NOW)

    Journal(journal_url).close()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(start, range(4)))
    assert [replica.epoch for replica in Replicas(Journal(journal_url).engine).live("flights", NOW)] == [4, 4]


def test_a_database_that_does_not_answer_is_called_unreachable(tmp_path):
    opened = Journal(f"sqlite:///{tmp_path}/journal.db", busy_seconds=0.1)
    replicas = Replicas(opened.engine)
    with opened.engine.execution_options(writes=True).begin(), pytest.raises(JournalUnreachable, match="locked"):
        replicas.acknowledge("flights", "a", 1, NOW)
