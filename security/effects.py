"""How far the effects of decisions on other systems have come: a small mutable table beside the journal, which is the outbox.

One row an effect: the `seq` of the newest entry it has carried out. It is carried out before its row is raised, so after a
crash it is carried out again: it has to be idempotent. It does not know what an effect is.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from security.journal import stamp
from security.operating import Beside, put

_metadata = sa.MetaData()
_done = sa.Table(
    "effects_done",
    _metadata,
    sa.Column("effect", sa.String, primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("at", sa.String, nullable=False),
)


class EffectsDone:
    """The table, on the journal's engine. Every method raises JournalUnreachable when the database does not answer."""

    def __init__(self, engine: sa.Engine) -> None:
        self._table = Beside(engine, _metadata, "the table of effects")

    def of(self, effect: str) -> int:
        """The `seq` up to which the effect is carried out, 0 = never."""
        with self._table.reading() as connection:
            found = connection.execute(sa.select(_done.c.seq).where(_done.c.effect == effect)).scalar()
        return int(found or 0)

    def raise_to(self, effect: str, seq: int, now: datetime) -> None:
        """The effect is carried out up to `seq`; a mark is never lowered."""
        with self._table.writing() as connection:
            found = connection.execute(sa.select(_done.c.seq).where(_done.c.effect == effect)).scalar()
            if found is None or int(found) < seq:
                put(connection, _done, [{"effect": effect, "seq": seq, "at": stamp(now)}])
