"""What the privacy ledger's entries say: charges, refusals, releases, and which charges may hold the same event.

The fold of one `privacy/...` stream. It does not know any policy or budget, nor what a charge costs.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from security.accounting import Law
from security.journal import GENESIS, Entry

# journal.canonical, without making an encoder for each of the 35,040 texts of a year
_text = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode

Touched = Mapping[str, tuple[str, ...]]
"""{window: updates that may hold one event of it}"""


class LedgerError(Exception):
    """The ledger was used against its rules, or holds an entry this version cannot read."""


@dataclass(frozen=True, slots=True)
class Charge:
    """A reservation as the ledger holds it. Arrival is half open, [start, end); `state` open, committed or crashed.

    law.steps is what is paid for; `spare` of them are for going on after a crash. `metered`: under the Gaussian filter,
    not sealed. `taken`: steps said at COMMIT; more than were reserved make the update an overrun. `accounts`: digest
    of the subject accounts that the charge is in.
    """

    task: str
    update: str
    windows: tuple[str, ...]
    arrived: tuple[datetime, datetime]
    count: int
    law: Law
    max_grad_norm: float
    at: datetime
    state: Literal["open", "committed", "crashed"] = "open"
    artefact: str | None = None
    spare: int = 0
    metered: bool = False
    taken: int | None = None
    overrun: bool = False
    accounts: str | None = None


class Refusal(NamedTuple):
    """What was refused: epsilon `spent` on `window`, `asked` for by `update`, `budget`; `reason` is one sentence."""

    task: str
    update: str
    window: str
    spent: float
    asked: float
    budget: float
    delta: float
    reason: str


@dataclass
class Books:
    """The state of the fold. Windows and arrival are indexed: a year of hourly windows has thousands of charges.

    `entries` folded so far, and `chain` over their hashes: chain k = sha256(chain k-1 + hash k), hex, from 64 zeros.
    """

    policy: dict[str, Any] | None = None
    charges: dict[str, Charge] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    facts: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    retired: dict[tuple[str, str], str] = field(default_factory=dict)
    releases: dict[str, dict[str, Any]] = field(default_factory=dict)
    entries: int = 0
    chain: str = GENESIS
    _touched: dict[str, Touched] = field(default_factory=dict)
    _windows: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _arrivals: dict[str, list[tuple[datetime, datetime, str]]] = field(default_factory=dict)
    _longest: dict[str, timedelta] = field(default_factory=dict)
    _units: dict[tuple[str, ...], int] = field(default_factory=dict)

    def add(self, charge: Charge) -> None:
        """Enter a new charge."""
        if charge.update in self.charges:
            raise LedgerError(f"update {charge.update} is reserved twice in the ledger, which no version of it writes")
        found = self.touching(charge)
        self._touched[charge.update] = {window: (*found[window], charge.update) for window in charge.windows}
        self.charges[charge.update] = charge
        for window in charge.windows:
            self._windows.setdefault((charge.task, window), []).append(charge.update)
        start, end = charge.arrived
        insort(self._arrivals.setdefault(charge.task, []), (start, end, charge.update))
        self._longest[charge.task] = max(self._longest.get(charge.task, timedelta(0)), end - start)
        self._units[units_key(charge)] = max(self._units.get(units_key(charge), 0), charge.count)

    def touching(self, charge: Charge) -> Touched:
        """For each window of `charge`, the charges in the books that may hold an event of it too: those of that window
        in the same task, and those of other tasks whose arrival overlaps. The second are all added up, although they
        may be on different events: this can count too much, never too little."""
        start, end = charge.arrived
        others: list[str] = []
        for task, arrivals in self._arrivals.items():
            if task != charge.task:
                first = bisect_left(arrivals, (start - self._longest[task],))
                last = bisect_left(arrivals, (end,))
                others += [name for _, until, name in arrivals[first:last] if until > start]
        return {window: (*self._windows.get((charge.task, window), ()), *others) for window in charge.windows}

    def together(self, update: str) -> Iterator[list[Charge]]:
        """For each of its windows: this update's charge with all earlier ones that may hold the same event.

        Every set of charges on one event is within one of these: that of the last one entered.
        """
        for names in dict.fromkeys(self._touched[update].values()):
            yield [self.charges[name] for name in names]

    def of_window(self, task: str, window: str) -> Iterator[list[Charge]]:
        """The same for each update that has charged this window."""
        for update in self._windows.get((task, window), ()):
            yield [self.charges[name] for name in self._touched[update][window]]

    def on_events_of(self, updates: Collection[str]) -> Iterator[list[Charge]]:
        """Every such set that holds one of these updates: all that was ever charged on their events, by whomever."""
        wanted = set(updates)
        for touched in self._touched.values():
            for names in dict.fromkeys(touched.values()):
                if not wanted.isdisjoint(names):
                    yield [self.charges[name] for name in names]

    def units(self, asked: Charge | None = None) -> int:
        """Events charged over the ledger's life, with those `asked` for; events metered again count once."""
        total = sum(self._units.values())
        if asked is None:
            return total
        known = self._units.get(units_key(asked), 0)
        return total - known + max(known, asked.count)

    def windows(self) -> list[tuple[str, str]]:
        """Every (task, window) that was ever charged, in the order of the journal."""
        return list(self._windows)


def units_key(charge: Charge) -> tuple[str, ...]:
    """Charges with the same key hold the same events."""
    return (charge.task, *charge.windows) if charge.metered else (charge.task, *charge.windows, "", charge.update)


def intact(entry: Entry) -> bool:
    """Whether an entry is the one its hash was made of (the journal's rule: sha256 over canonical JSON of all fields)."""
    at = f"{entry.at.isoformat(timespec='microseconds').removesuffix('+00:00')}Z"  # journal.stamp, at a fifth of its time
    fields = (entry.seq, entry.stream, entry.stream_seq, entry.kind, _text(entry.body), entry.actor, at, entry.prev_hash)
    return hashlib.sha256(_text(fields).encode()).hexdigest() == entry.hash


def apply_checked(books: Books, entry: Entry) -> Books:
    """`apply`, for who is going to spend: an entry that was changed, or is missing, stops the ledger."""
    if entry.stream_seq != books.entries + 1 or not intact(entry):
        wrong = "was changed after it was written" if entry.stream_seq == books.entries + 1 else "follows a gap"
        raise LedgerError(
            f"entry {entry.seq} of {entry.stream} {wrong}: what was spent is not known and nothing is reserved; run "
            "`headgate journal verify` and restore the journal from a backup"
        )
    return apply(books, entry)


def apply(books: Books, entry: Entry) -> Books:
    """One entry into the books, in place: a year of hourly windows is folded in well under a second."""
    body = entry.body
    if entry.kind == "POLICY":
        books.policy = body
    elif entry.kind == "WINDOW":
        books.facts[body["task"], body["window"]] = body
    elif entry.kind == "RESERVE":
        books.add(_charge(body, entry.at))
    elif entry.kind in ("COMMIT", "CRASH"):
        if body["update"] not in books.charges:
            raise LedgerError(f"entry {entry.seq} of {entry.stream} closes update {body['update']}, which was never reserved")
        charge = books.charges[body["update"]]
        books.charges[charge.update] = _committed(charge, body) if entry.kind == "COMMIT" else replace(charge, state="crashed")
    elif entry.kind == "REFUSE":
        books.refusals.append(Refusal(**body))
    elif entry.kind == "RELEASE":
        books.releases[body["version"]] = body
    elif entry.kind == "RETIRE":
        books.retired.setdefault((body["task"], body["window"]), body["reason"])
    else:
        raise LedgerError(
            f"entry {entry.seq} of {entry.stream} has the kind {entry.kind}, which may be a charge this version cannot "
            "read: nothing is reserved; use the version that wrote it"
        )
    books.entries = entry.stream_seq
    books.chain = hashlib.sha256((books.chain + entry.hash).encode()).hexdigest()
    return books


def _charge(body: dict[str, Any], at: datetime) -> Charge:
    start, end = (datetime.fromisoformat(text) for text in body["arrived"])  # a fold of a year parses 17,520 of them
    law = Law(body["sampling_rate"], body["noise_multiplier"], body["steps"], body.get("m_max", 1))
    return Charge(
        body["task"], body["update"], tuple(body["windows"]), (start, end), body["count"], law, body["max_grad_norm"], at,
        spare=body.get("spare", 0), metered=body.get("metered", False),
        accounts=body.get("accounts"),
    )  # fmt: skip


def _committed(charge: Charge, body: dict[str, Any]) -> Charge:
    """Never fewer steps than were reserved; more are charged, even when the update was closed before."""
    steps = max(charge.law.steps, body["steps"])
    opened = charge.state == "open"
    return replace(
        charge, law=charge.law._replace(steps=steps), taken=max(charge.taken or 0, body["steps"]),
        overrun=charge.overrun or steps > charge.law.steps, state="committed" if opened else charge.state,
        artefact=body["artefact"] if opened else charge.artefact,
    )  # fmt: skip
