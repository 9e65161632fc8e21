"""What the privacy ledger's entries say: charges, refusals, and which charges may hold the same event.

The fold of one `privacy/...` stream. It does not know any policy or budget, nor what a charge costs.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from security.accounting import Law
from security.journal import Entry, unstamp

KINDS_WITHOUT_CHARGE = frozenset({"WINDOW", "RELEASE", "RETIRE"})


class LedgerError(Exception):
    """The ledger was used against its rules, or holds an entry this version cannot read."""


@dataclass(frozen=True, slots=True)
class Charge:
    """A reservation as the ledger holds it. Arrival is half open, [start, end); `state` open, committed or crashed."""

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
    """The state of the fold. Windows and arrival are indexed: a year of hourly windows has thousands of charges."""

    policy: dict[str, Any] | None = None
    charges: dict[str, Charge] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    _windows: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _arrivals: dict[str, list[tuple[datetime, datetime, str]]] = field(default_factory=dict)
    _longest: dict[str, timedelta] = field(default_factory=dict)

    def add(self, charge: Charge) -> None:
        """Enter a new charge."""
        self.charges[charge.update] = charge
        for window in charge.windows:
            self._windows.setdefault((charge.task, window), []).append(charge.update)
        start, end = charge.arrived
        insort(self._arrivals.setdefault(charge.task, []), (start, end, charge.update))
        self._longest[charge.task] = max(self._longest.get(charge.task, timedelta(0)), end - start)

    def touching(self, charge: Charge) -> list[Charge]:
        """Charges that may hold an event of `charge` too: those of its windows in the same task, those of other tasks
        whose arrival overlaps. `charge` itself is in the list when it is in the books."""
        names = {name: None for window in charge.windows for name in self._windows.get((charge.task, window), ())}
        start, end = charge.arrived
        for task, arrivals in self._arrivals.items():
            if task != charge.task:
                first = bisect_left(arrivals, (start - self._longest[task],))
                last = bisect_left(arrivals, (end,))
                names |= {name: None for _, until, name in arrivals[first:last] if until > start}
        return [self.charges[name] for name in names]


def apply(books: Books, entry: Entry) -> Books:
    """One entry into the books, in place: a year of hourly windows is folded in well under a second."""
    body = entry.body
    if entry.kind == "POLICY":
        books.policy = body
    elif entry.kind == "RESERVE":
        books.add(_charge(body, entry.at))
    elif entry.kind == "COMMIT":
        charge = books.charges[body["update"]]
        law = charge.law._replace(steps=max(charge.law.steps, body["steps"]))
        books.charges[charge.update] = replace(charge, state="committed", artefact=body["artefact"], law=law)
    elif entry.kind == "CRASH":
        books.charges[body["update"]] = replace(books.charges[body["update"]], state="crashed")
    elif entry.kind == "REFUSE":
        books.refusals.append(Refusal(**body))
    elif entry.kind not in KINDS_WITHOUT_CHARGE:
        raise LedgerError(
            f"entry {entry.seq} of {entry.stream} has the kind {entry.kind}, which may be a charge this version cannot "
            "read: nothing is reserved; use the version that wrote it"
        )
    return books


def _charge(body: dict[str, Any], at: datetime) -> Charge:
    start, end = (unstamp(text) for text in body["arrived"])
    law = Law(body["sampling_rate"], body["noise_multiplier"], body["steps"])
    windows = tuple(body["windows"])
    return Charge(body["task"], body["update"], windows, (start, end), body["count"], law, body["max_grad_norm"], at)
