"""How many requests each gateway replica has answered so far, by routing epoch and arm: a small mutable table beside the
journal.

This is operating state: a replica overwrites its own rows, and rows that nobody has touched for a week are forgotten; by then
the sealed predictions have the counts. What a decision has used of it is in the journal. It does not know what an arm is.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa

from security.journal import stamp
from security.operating import Beside, put

FORGOTTEN_AFTER = timedelta(days=7)
Count = tuple[int, str, int, int, int]  # epoch, arm, requests, errors, slow

_metadata = sa.MetaData()
_served = sa.Table(
    "gateway_served",
    _metadata,
    sa.Column("task", sa.String, primary_key=True),
    sa.Column("replica", sa.String, primary_key=True),
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("arm", sa.String, primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("errors", sa.BigInteger, nullable=False),
    sa.Column("slow", sa.BigInteger, nullable=False),
    sa.Column("seen", sa.String, nullable=False),
)


class LiveCounts:
    """The table, on the journal's engine. Every method raises JournalUnreachable when the database does not answer."""

    def __init__(self, engine: sa.Engine) -> None:
        self._table = Beside(engine, _metadata, "the table of live counts")

    def publish(self, task: str, replica: str, counts: Sequence[Count], now: datetime) -> None:
        """What the replica has counted since it started. A name is used by one process once: counts only grow under it."""
        named = ("epoch", "arm", "requests", "errors", "slow")
        rows = [{"task": task, "replica": replica, **dict(zip(named, row, strict=True)), "seen": stamp(now)} for row in counts]
        old = (_served.c.task == task) & (_served.c.seen < stamp(now - FORGOTTEN_AFTER))
        with self._table.writing() as connection:
            connection.execute(sa.delete(_served).where(old))
            if rows:
                put(connection, _served, rows)

    def total(self, task: str) -> list[Count]:
        """The sums over all replicas, by epoch and arm."""
        figures = [sa.func.sum(column) for column in (_served.c.requests, _served.c.errors, _served.c.slow)]
        query = sa.select(_served.c.epoch, _served.c.arm, *figures).where(_served.c.task == task)
        query = query.group_by(_served.c.epoch, _served.c.arm).order_by(_served.c.epoch, _served.c.arm)
        with self._table.reading() as connection:
            rows = connection.execute(query).all()
        return [(int(epoch), arm, int(requests), int(errors), int(slow)) for epoch, arm, requests, errors, slow in rows]
