"""The append-only journal: every decision is an entry, every state is a fold of entries.

One table holds all streams in one total order. `seq` has no gap and each entry carries the hash of the one before it,
so a reader that has seen `seq` has seen everything earlier, and an edited row breaks the chain. `append_all` writes
entries of several streams in one transaction, each with an optional compare-and-set on the length of its stream.

It knows SQLite and PostgreSQL through SQLAlchemy Core. It knows neither what the kinds mean nor any event's content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

S = TypeVar("S")

GENESIS = "0" * 64
HEAD_ROW = 1

_metadata = sa.MetaData()
_journal = sa.Table(
    "journal",
    _metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("stream", sa.String, nullable=False),
    sa.Column("stream_seq", sa.Integer, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("actor", sa.String, nullable=False),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("prev_hash", sa.String, nullable=False, unique=True),
    sa.Column("hash", sa.String, nullable=False, unique=True),
    sa.UniqueConstraint("stream", "stream_seq"),
)
# One mutable row: the lock every writer takes, and the head it extends. `verify` checks it against the table.
_head = sa.Table(
    "journal_head",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.String, nullable=False),
)

_SQLITE_TRIGGERS = (
    "CREATE TRIGGER IF NOT EXISTS journal_no_update BEFORE UPDATE ON journal "
    "BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END",
    "CREATE TRIGGER IF NOT EXISTS journal_no_delete BEFORE DELETE ON journal "
    "BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END",
    # INSERT OR REPLACE fires no DELETE trigger by default: the sequence check refuses it instead.
    "CREATE TRIGGER IF NOT EXISTS journal_in_order BEFORE INSERT ON journal "
    "WHEN NEW.seq <> (SELECT COALESCE(MAX(seq), 0) + 1 FROM journal) "
    "BEGIN SELECT RAISE(ABORT, 'the journal is append-only: seq must be the head + 1'); END",
)
_POSTGRES_TRIGGERS = (
    "CREATE OR REPLACE FUNCTION journal_refuse() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'the journal is append-only'; END $$",
    "CREATE OR REPLACE FUNCTION journal_order() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "IF NEW.seq <> (SELECT COALESCE(MAX(seq), 0) + 1 FROM journal) THEN "
    "RAISE EXCEPTION 'the journal is append-only: seq must be the head + 1'; END IF; RETURN NEW; END $$",
    "CREATE OR REPLACE TRIGGER journal_no_change BEFORE UPDATE OR DELETE ON journal "
    "FOR EACH ROW EXECUTE FUNCTION journal_refuse()",
    "CREATE OR REPLACE TRIGGER journal_no_truncate BEFORE TRUNCATE ON journal "
    "FOR EACH STATEMENT EXECUTE FUNCTION journal_refuse()",
    "CREATE OR REPLACE TRIGGER journal_in_order BEFORE INSERT ON journal "
    "FOR EACH ROW EXECUTE FUNCTION journal_order()",
)


class JournalError(Exception):
    """Something about the journal that a caller has to decide on."""


class Conflict(JournalError):
    """Another writer extended the stream first; nothing of this transaction was written."""


class JournalUnreachable(JournalError):
    """The database did not answer, or stayed locked longer than the time-out; nothing was written."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row. `seq` orders all streams, `stream_seq` (from 1) its own; `at` is the wall clock, UTC."""

    seq: int
    stream: str
    stream_seq: int
    kind: str
    body: dict[str, Any]
    actor: str
    at: datetime
    prev_hash: str
    hash: str


@dataclass(frozen=True, slots=True)
class Draft:
    """An entry to be. `expected` is the length its stream must have before this transaction; None compares nothing."""

    stream: str
    kind: str
    body: Mapping[str, Any]
    expected: int | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """What a walk of the chain found: `entries` read, `head` hash, and every fault as one sentence."""

    entries: int
    head: str
    faults: tuple[str, ...]


def stamp(moment: datetime) -> str:
    """A moment as journal text: UTC, microseconds, `Z`. A naive datetime is refused."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone: pass an aware datetime")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def unstamp(text: str) -> datetime:
    """The inverse of `stamp`."""
    return datetime.fromisoformat(text)


def canonical(body: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN: the same value is always the same text."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def _entry_hash(row: Mapping[Any, Any]) -> str:
    keys = ("seq", "stream", "stream_seq", "kind", "body", "actor", "at", "prev_hash")
    return hashlib.sha256(canonical([row[key] for key in keys]).encode()).hexdigest()


def _engine(url: str, busy_seconds: float) -> sa.Engine:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(parsed, connect_args={"timeout": busy_seconds})
        sa.event.listen(engine, "connect", _sqlite_connect)
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(_begin_of(connection)))
        return engine
    if parsed.drivername != "postgresql+psycopg":
        raise JournalError(
            f"journal url {parsed.render_as_string()}: driver {parsed.drivername!r} is not supported; "
            "use sqlite:///FILE or postgresql+psycopg://..."
        )
    return sa.create_engine(parsed, connect_args={"connect_timeout": max(2, int(busy_seconds))}, pool_pre_ping=True)


def _sqlite_connect(connection: Any, _record: Any) -> None:
    # Python's sqlite3 would open transactions by itself, and late; we say BEGIN ourselves, at the right strength.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _begin_of(connection: sa.Connection) -> str:
    return "BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN"


class Journal:
    """The journal behind one database URL; makes its tables and triggers when they are absent."""

    def __init__(self, url: str, *, busy_seconds: float = 10.0) -> None:
        self.url = sa.make_url(url).render_as_string(hide_password=True)
        self._busy_seconds = busy_seconds
        self.engine = _engine(url, busy_seconds)
        self._writer = self.engine.execution_options(writes=True)
        with self._reachable("open"), self._writer.begin() as connection:
            _make_tables(connection)

    @contextmanager
    def _reachable(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sa.exc.OperationalError, sa.exc.TimeoutError) as error:
            cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise JournalUnreachable(
                f"cannot {what} the journal at {self.url} within {self._busy_seconds:g} s: {cause}; no decision was "
                "taken. Check that the database runs and that no other process holds its lock"
            ) from error

    def append(self, draft: Draft, *, actor: str, at: datetime) -> Entry:
        """Append one entry. See `append_all`."""
        return self.append_all([draft], actor=actor, at=at)[0]

    def append_all(
        self, drafts: Sequence[Draft], *, actor: str, at: datetime, unmoved: Mapping[str, int] | None = None
    ) -> list[Entry]:
        """Append all drafts in one transaction, or none. `unmoved`: stream -> length, of streams that were only read.

        Raises Conflict when a draft's `expected`, or what was read, is not its stream's length before the transaction, and
        JournalUnreachable when the database does not answer.
        """
        compared = unmoved or {}
        with self._reachable("write to"), self._writer.begin() as connection:
            head = connection.execute(sa.select(_head).where(_head.c.id == HEAD_ROW).with_for_update()).one()
            streams = {draft.stream for draft in drafts} | set(compared)
            lengths = {stream: self._length(connection, stream) for stream in streams}
            _compare(drafts, lengths)
            _compare([Draft(stream, "what follows from it", {}, length) for stream, length in compared.items()], lengths)
            rows, entries, seq, prev = [], [], head.seq, head.hash
            for draft in drafts:
                seq += 1
                lengths[draft.stream] += 1
                row = {
                    "seq": seq,
                    "stream": draft.stream,
                    "stream_seq": lengths[draft.stream],
                    "kind": draft.kind,
                    "body": canonical(draft.body),
                    "actor": actor,
                    "at": stamp(at),
                    "prev_hash": prev,
                }
                row["hash"] = prev = _entry_hash(row)
                rows.append(row)
                entries.append(_entry(**row))
            if rows:
                connection.execute(sa.insert(_journal), rows)
                connection.execute(sa.update(_head).where(_head.c.id == HEAD_ROW).values(seq=seq, hash=prev))
        return entries

    def read(self, stream: str, after: int = 0, kinds: Sequence[str] | None = None) -> list[Entry]:
        """Entries of one stream with `stream_seq` > `after`, in order; of all kinds, or of these."""
        query = sa.select(_journal).where(_journal.c.stream == stream, _journal.c.stream_seq > after)
        if kinds is not None:
            query = query.where(_journal.c.kind.in_(kinds))
        return self._entries(query.order_by(_journal.c.stream_seq))

    def tail(
        self, after: int = 0, limit: int | None = None, streams: Sequence[str] | None = None, without: Sequence[str] = ()
    ) -> list[Entry]:
        """Entries with `seq` > `after`, in order, at most `limit`; of all streams, or of the named ones; `without` these
        kinds."""
        query = sa.select(_journal).where(_journal.c.seq > after)
        if streams is not None:
            query = query.where(_journal.c.stream.in_(streams))
        if without:
            query = query.where(_journal.c.kind.not_in(without))
        return self._entries(query.order_by(_journal.c.seq).limit(limit))

    def place(self, stream: str, kinds: Sequence[str], before: int) -> int:
        """The `stream_seq` of the stream's newest entry of these kinds with `seq` < `before`, 0 when there is none."""
        query = sa.select(_journal.c.stream_seq).where(
            _journal.c.stream == stream, _journal.c.kind.in_(kinds), _journal.c.seq < before
        )
        with self._reachable("read"), self.engine.begin() as connection:
            found = connection.execute(query.order_by(_journal.c.stream_seq.desc()).limit(1)).scalar()
        return int(found or 0)

    def length(self, stream: str) -> int:
        """How many entries the stream has."""
        with self._reachable("read"), self.engine.begin() as connection:
            return self._length(connection, stream)

    def head(self) -> int:
        """The newest `seq`, 0 when empty."""
        with self._reachable("read"), self.engine.begin() as connection:
            return int(connection.execute(sa.select(_head.c.seq)).scalar_one())

    def head_at(self) -> datetime | None:
        """The time stamp of the newest entry; None when empty."""
        newest = sa.select(_journal.c.at).order_by(_journal.c.seq.desc()).limit(1)
        with self._reachable("read"), self.engine.begin() as connection:
            text = connection.execute(newest).scalar()
        return None if text is None else unstamp(text)

    def now(self, wall: datetime) -> datetime:
        """`wall`, never before the newest entry: clocks of two machines differ, and a slow one would shorten what it begins."""
        newest = self.head_at()
        return wall if newest is None else max(wall, newest)

    def streams(self) -> list[str]:
        """The names of all streams."""
        with self._reachable("read"), self.engine.begin() as connection:
            return sorted(connection.execute(sa.select(_journal.c.stream).distinct()).scalars())

    def verify(self) -> Verification:
        """Walk the chain: numbering, stream numbering, links, hashes and the head row."""
        faults: list[str] = []
        seq, prev, lengths = 0, GENESIS, dict[str, int]()
        with self._reachable("read"), self.engine.begin() as connection:
            head = connection.execute(sa.select(_head).where(_head.c.id == HEAD_ROW)).one()
            for row in connection.execute(sa.select(_journal).order_by(_journal.c.seq)).mappings():
                faults += _row_faults(row, seq, prev, lengths)
                seq, prev = row["seq"], row["hash"]
        if (head.seq, head.hash) != (seq, prev):
            faults.append(f"the head row says entry {head.seq}, the table ends at {seq}: entries were cut off or added")
        return Verification(seq, prev, tuple(faults))

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    def _entries(self, query: sa.Select[Any]) -> list[Entry]:
        with self._reachable("read"), self.engine.begin() as connection:
            return [_entry(*row) for row in connection.execute(query)]

    @staticmethod
    def _length(connection: sa.Connection, stream: str) -> int:
        query = sa.select(sa.func.coalesce(sa.func.max(_journal.c.stream_seq), 0)).where(_journal.c.stream == stream)
        return int(connection.execute(query).scalar_one())


def _make_tables(connection: sa.Connection) -> None:
    _metadata.create_all(connection)
    postgres = connection.dialect.name == "postgresql"
    if postgres:  # two processes may open a new database at once
        connection.exec_driver_sql("LOCK TABLE journal_head IN ACCESS EXCLUSIVE MODE")
    if connection.execute(sa.select(_head.c.id)).first() is None:
        connection.execute(sa.insert(_head).values(id=HEAD_ROW, seq=0, hash=GENESIS))
        for statement in _POSTGRES_TRIGGERS if postgres else _SQLITE_TRIGGERS:
            connection.exec_driver_sql(statement)


def _compare(drafts: Sequence[Draft], lengths: Mapping[str, int]) -> None:
    for draft in drafts:
        if draft.expected is not None and draft.expected != lengths[draft.stream]:
            raise Conflict(
                f"stream {draft.stream} has {lengths[draft.stream]} entries, {draft.kind} expected {draft.expected}: "
                "another process decided first; nothing was written, read the stream again"
            )


def _entry(
    seq: int, stream: str, stream_seq: int, kind: str, body: str, actor: str, at: str, prev_hash: str, hash: str  # noqa: A002
) -> Entry:
    """A row in the order of the table's columns."""
    return Entry(seq, stream, stream_seq, kind, json.loads(body), actor, unstamp(at), prev_hash, hash)


def _row_faults(row: Mapping[Any, Any], seq: int, prev: str, lengths: dict[str, int]) -> list[str]:
    faults = []
    number = lengths[row["stream"]] = lengths.get(row["stream"], 0) + 1
    if row["seq"] != seq + 1:
        faults.append(f"entry {row['seq']} follows entry {seq}: a gap")
    if row["stream_seq"] != number:
        faults.append(f"entry {row['seq']} is number {row['stream_seq']} of {row['stream']}, not {number}")
    if row["prev_hash"] != prev:
        faults.append(f"entry {row['seq']} does not link to the entry before it")
    if row["hash"] != _entry_hash(row):
        faults.append(f"entry {row['seq']} was changed after it was written")
    return faults


@dataclass
class Projection(Generic[S]):
    """An incremental fold of one stream: `refresh` reads only what is new.

    `apply(state, entry)` must be pure; the projection can always be thrown away and folded again. `kinds`: what it reads,
    None = everything; `length` is the place of the newest entry it has read.
    """

    journal: Journal
    stream: str
    initial: S
    apply: Callable[[S, Entry], S]
    length: int = 0
    kinds: Sequence[str] | None = None
    state: S = field(init=False)

    def __post_init__(self) -> None:
        self.state = self.initial

    def refresh(self) -> S:
        """The state after every entry of the stream."""
        for entry in self.journal.read(self.stream, self.length, self.kinds):
            self.state = self.apply(self.state, entry)
            self.length = entry.stream_seq
        return self.state
