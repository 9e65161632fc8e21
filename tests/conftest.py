"""Fixtures every test may use; the servers behind them start once and only when a test asks."""

from tests.databases import journal, journal_url, postgres

__all__ = ["journal", "journal_url", "postgres"]
