"""Which gateway replicas are alive, and which routing epoch each serves: a small mutable table beside the journal.

This is operating state, not a decision: rows are overwritten and forgotten. It does not know what an epoch means.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from security.journal import stamp, unstamp
from security.operating import Beside, put

LEASE = timedelta(seconds=30)
FORGOTTEN_AFTER = timedelta(days=1)  # names of replicas change with each deployment; old rows would pile up

_metadata = sa.MetaData()
_replicas = sa.Table(
    "gateway_replicas",
    _metadata,
    sa.Column("task", sa.String, primary_key=True),
    sa.Column("replica", sa.String, primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("seen", sa.String, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Replica:
    """One gateway process: the routing epoch it serves and when it last said so (UTC)."""

    replica: str
    epoch: int
    seen: datetime


class Replicas:
    """The table, on the journal's engine. Every method raises JournalUnreachable when the database does not answer."""

    def __init__(self, engine: sa.Engine) -> None:
        self._table = Beside(engine, _metadata, "the table of gateway replicas")

    def acknowledge(self, task: str, replica: str, epoch: int, now: datetime) -> None:
        """The replica serves `epoch` at `now`. Also its sign of life: call it at each poll, at least once a lease."""
        row = {"task": task, "replica": replica, "epoch": epoch, "seen": stamp(now)}
        old = (_replicas.c.task == task) & (_replicas.c.seen < stamp(now - FORGOTTEN_AFTER))
        with self._table.writing() as connection:
            connection.execute(sa.delete(_replicas).where(old))
            put(connection, _replicas, [row])

    def forget(self, task: str, replica: str) -> None:
        """The replica has ended in good order: nobody has to wait for its lease."""
        gone = (_replicas.c.task == task) & (_replicas.c.replica == replica)
        with self._table.writing() as connection:
            connection.execute(sa.delete(_replicas).where(gone))

    def live(self, task: str, now: datetime, lease: timedelta = LEASE) -> list[Replica]:
        """Replicas of the task that were seen within `lease` of `now`, by name."""
        query = sa.select(_replicas.c.replica, _replicas.c.epoch, _replicas.c.seen).where(
            # a word from the future is of a clock that was wrong: it would count for as long as that clock was ahead
            _replicas.c.task == task, _replicas.c.seen > stamp(now - lease), _replicas.c.seen < stamp(now + lease)
        )
        with self._table.reading() as connection:
            rows = connection.execute(query.order_by(_replicas.c.replica)).all()
        return [Replica(name, int(epoch), unstamp(seen)) for name, epoch, seen in rows]

    def lagging(self, task: str, epoch: int, now: datetime, lease: timedelta = LEASE) -> list[Replica]:
        """Live replicas that still serve an epoch before `epoch`."""
        return [replica for replica in self.live(task, now, lease) if replica.epoch < epoch]

    def all_acknowledged(self, task: str, epoch: int, now: datetime, lease: timedelta = LEASE) -> bool:
        """Whether no live replica lags behind `epoch`. Also true when none is live: ask `live` where that matters."""
        return not self.lagging(task, epoch, now, lease)
