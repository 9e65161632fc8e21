"""What the small mutable tables beside the journal share: how one is made, written and found absent.

Operating state is overwritten and forgotten, and no decision is read from it without being journalled first. It knows no
table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from security.journal import JournalUnreachable

_made: WeakKeyDictionary[sa.Engine, set[int]] = WeakKeyDictionary()  # metadata, by id, whose tables are there


class Beside:
    """Tables on the journal's engine, made when they are absent: looked for once an engine, since that takes the database's one
    writer. `what` names them where the database does not answer."""

    def __init__(self, engine: sa.Engine, metadata: sa.MetaData, what: str) -> None:
        self._engine, self._what = engine, what
        self._writer = engine.execution_options(writes=True)
        made = _made.setdefault(engine, set())
        if id(metadata) in made:
            return
        try:
            self._make(metadata)
        except (sa.exc.ProgrammingError, sa.exc.IntegrityError):  # another process made it at the same moment
            self._make(metadata)
        made.add(id(metadata))

    def _make(self, metadata: sa.MetaData) -> None:
        with self.writing() as connection:
            metadata.create_all(connection)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that reads. Raises JournalUnreachable."""
        with self._reachable(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that may write. Raises JournalUnreachable."""
        with self._reachable(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.OperationalError, sa.exc.TimeoutError) as error:
            cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise JournalUnreachable(
                f"{self._what} does not answer: {cause}; check that the journal's database runs"
            ) from error


def put(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert each row, or overwrite the one with its primary key."""
    made = postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)
    keys = [column.name for column in table.primary_key]
    changed = {column.name: made.excluded[column.name] for column in table.columns if column.name not in keys}
    connection.execute(made.on_conflict_do_update(index_elements=keys, set_=changed), list(rows))
