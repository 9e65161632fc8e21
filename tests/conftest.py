"""Fixtures every test may use; the servers behind them start once and only when a test asks."""

from tests.databases import journal, journal_url, postgres
from tests.ledgers import ledger, sqlite_journal
from tests.streams import event_log, kafka, local_broker, topic, trim

__all__ = [
    "event_log", "journal", "journal_url", "kafka", "ledger", "local_broker", "postgres", "sqlite_journal", "topic", "trim",
]  # fmt: skip
