"""The journal: nothing is lost, nothing forks, nothing can be changed afterwards. Run on SQLite and on PostgreSQL."""

from __future__ import annotations

import multiprocessing
import sqlite3
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from security.journal import Conflict, Draft, Journal, JournalUnreachable, Projection, stamp, unstamp

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WRITERS, APPENDS = 4, 2500


def test_entries_come_back_in_order_with_their_bodies(journal):
    journal.append(Draft("cut/a", "cut.decided", {"window": "w1", "text": "é"}), actor="pipeline", at=NOW)
    journal.append(Draft("cut/b", "cut.decided", {"window": "w1"}), actor="pipeline", at=NOW)
    journal.append(Draft("cut/a", "cut.decided", {"window": "w2"}), actor="pipeline", at=NOW)
    assert [(e.seq, e.stream_seq, e.body["window"]) for e in journal.read("cut/a")] == [(1, 1, "w1"), (3, 2, "w2")]
    assert [e.seq for e in journal.tail(after=1)] == [2, 3]
    assert journal.read("cut/a")[0].at == NOW and journal.head_at() == NOW
    assert (journal.head(), journal.length("cut/a"), journal.streams()) == (3, 2, ["cut/a", "cut/b"])


def test_several_streams_change_together_or_not_at_all(journal):
    journal.append(Draft("routing/a", "routing.set", {"epoch": 1}), actor="x", at=NOW)
    drafts = [Draft("rollout/a", "rollout.advanced", {}), Draft("routing/a", "routing.set", {"epoch": 2}, expected=0)]
    with pytest.raises(Conflict, match=r"routing/a has 1 entries, routing.set expected 0"):
        journal.append_all(drafts, actor="x", at=NOW)
    assert journal.length("rollout/a") == 0
    drafts[1] = Draft("routing/a", "routing.set", {"epoch": 2}, expected=1)
    assert [e.seq for e in journal.append_all(drafts, actor="x", at=NOW)] == [2, 3]


def test_expected_zero_is_put_if_absent(journal):
    journal.append(Draft("update/1", "reserve", {}, expected=0), actor="x", at=NOW)
    with pytest.raises(Conflict):
        journal.append(Draft("update/1", "reserve", {}, expected=0), actor="y", at=NOW)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE journal SET kind = 'other' WHERE seq = 1",
        "DELETE FROM journal",
        "INSERT INTO journal SELECT 9, 's', 9, kind, body, actor, at, 'p', 'h' FROM journal",
        "INSERT OR REPLACE INTO journal SELECT 1, 's', 9, kind, body, actor, at, 'p', 'h' FROM journal",
        "TRUNCATE journal",
    ],
)
def test_the_database_itself_refuses_changes(journal, statement):
    dialect = journal.engine.dialect.name
    if ("REPLACE" in statement and dialect != "sqlite") or ("TRUNCATE" in statement and dialect == "sqlite"):
        statement = "DELETE FROM journal WHERE seq = 1"
    journal.append(Draft("s", "k", {}), actor="x", at=NOW)
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), journal.engine.begin() as connection:
        connection.exec_driver_sql(statement)
    assert journal.verify().faults == ()


def test_verify_finds_an_edited_entry_and_a_cut_off_tail(tmp_path):
    journal = Journal(f"sqlite:///{tmp_path}/j.db")
    for n in range(3):
        journal.append(Draft("s", "k", {"n": n}), actor="x", at=NOW)
    with journal.engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER journal_no_update")
        connection.exec_driver_sql("UPDATE journal SET body = '{\"n\":7}' WHERE seq = 2")
    assert journal.verify().faults == ("entry 2 was changed after it was written",)
    with journal.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE journal SET body = '{\"n\":1}' WHERE seq = 2")
        connection.exec_driver_sql("DROP TRIGGER journal_no_delete")
        connection.exec_driver_sql("DELETE FROM journal WHERE seq = 3")
    assert "the head row says entry 3, the table ends at 2" in journal.verify().faults[0]


def test_a_locked_journal_says_so_and_writes_nothing(tmp_path):
    journal = Journal(f"sqlite:///{tmp_path}/j.db", busy_seconds=0.2)
    holder = sqlite3.connect(tmp_path / "j.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(JournalUnreachable, match=r"within 0.2 s: database is locked; no decision was taken"):
        journal.append(Draft("s", "k", {}), actor="x", at=NOW)
    holder.execute("ROLLBACK")
    assert journal.length("s") == 0


def test_a_password_never_appears_in_an_error():
    with pytest.raises(JournalUnreachable) as caught:
        Journal("postgresql+psycopg://me:hunter2@127.0.0.1:1/none", busy_seconds=1)
    assert "hunter2" not in str(caught.value)


def test_a_projection_folds_only_what_is_new(journal):
    seen = []
    total = Projection(journal, "s", 0, lambda state, entry: seen.append(entry.seq) or state + entry.body["n"])
    journal.append(Draft("s", "k", {"n": 1}), actor="x", at=NOW)
    assert total.refresh() == 1
    journal.append(Draft("s", "k", {"n": 2}), actor="x", at=NOW)
    assert total.refresh() == 3 and total.refresh() == 3 and seen == [1, 2]


def test_naive_times_and_nan_are_refused(journal):
    with pytest.raises(ValueError, match="no time zone"):
        journal.append(Draft("s", "k", {}), actor="x", at=datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.append(Draft("s", "k", {"loss": float("nan")}), actor="x", at=NOW)
    assert unstamp(stamp(NOW)) == NOW


def _write(url: str, writer: int) -> None:
    journal = Journal(url, busy_seconds=120)
    for n in range(APPENDS):
        while n % 10 == 0:  # every tenth append races on one stream by compare-and-set
            try:
                journal.append(Draft("raced", "k", {"n": n}, expected=journal.length("raced")), actor="w", at=NOW)
                break
            except Conflict:
                continue
        else:
            journal.append(Draft(f"own/{writer % 2}", "k", {"n": n}), actor="w", at=NOW)


def test_four_processes_append_ten_thousand_entries_without_gap_or_fork(journal_url):
    journal = Journal(journal_url)
    spawn = multiprocessing.get_context("spawn").Process
    processes = [spawn(target=_write, args=(journal_url, writer)) for writer in range(WRITERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0] * WRITERS
    found = journal.verify()
    assert (found.entries, found.faults) == (WRITERS * APPENDS, ())
    assert journal.length("raced") == WRITERS * APPENDS // 10
