"""What the operations page knows: one fold over every stream of a task, entry by entry, in the journal's order.

An entry that cannot be read is named in `faults` and the fold goes on: a page that goes dark over one bad entry would
hide the other thousand. It keeps what the page shows and forgets the rest. It decides nothing, formats nothing and has
no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from models import release_board
from models.release_board import Board
from monitoring import alarms, evidence
from monitoring.evidence import Evidence
from security import charges
from security.charges import Books, LedgerError
from security.journal import Entry, Journal, unstamp

KEPT_WINDOWS = 120
KEPT_DECISIONS = 200
READ_AT_ONCE = 5000  # entries; a year of hourly windows is some 60,000
UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, LedgerError)
BOARD_ROOMS = frozenset({"rollout", "routing", "lineage"})
# What somebody, or a rule, decided. The steps of a window that decided nothing are not in it.
SILENT = frozenset({"rollout.stepped", "update.trained"})
# What the page reads of a body without asking whether it is there; an entry without it is a fault, not a dark page.
NEEDED = {
    "window.sealed": ("window", "rows"),
    "examples.joined": ("window", "duplicate_events", "duplicate_labels"),
    "drift.tested": ("window", "state", "message", "tested", "drifted", "share", "threshold", "top", "evidently"),
    "base.registered": ("version",),
    "update.trained": ("update", "number", "windows"),
    "update.interrupted": ("update", "number", "windows"),
    "version.registered": ("version", "number"),
}
PRIVACY_DECISIONS = frozenset({"REFUSE", "CRASH"})


@dataclass(frozen=True, slots=True)
class WindowLoss:
    """Mean loss of a window's examples under three models. Who was stable, and who the lineage head, is as of the
    moment they were scored."""

    window: str
    examples: int
    base: float | None
    stable: float | None
    head: float | None


@dataclass
class Facts:
    """The state of the fold. `ages` has the time of the newest entry of each kind; `seq` is the last entry folded."""

    task: str
    seq: int = 0
    board: Board = field(default_factory=Board)
    evidence: Evidence = field(default_factory=Evidence)
    alarms: alarms.Alarms = field(default_factory=dict)
    books: dict[str, Books] = field(default_factory=dict)
    base: Mapping[str, Any] | None = None
    updates: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    routings: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT_WINDOWS))
    losses: deque[WindowLoss] = field(default_factory=lambda: deque(maxlen=KEPT_WINDOWS))
    drifts: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT_WINDOWS))
    windows: dict[str, dict[str, Mapping[str, Any]]] = field(default_factory=dict)
    window_length: timedelta | None = None
    decisions: deque[tuple[Entry, str | None]] = field(default_factory=lambda: deque(maxlen=KEPT_DECISIONS))
    clock: str | None = None  # the task's clock as the newest entry that carries it says: an alarm carries none
    ages: dict[str, datetime] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)  # the first of each stream

    def refresh(self, journal: Journal) -> bool:
        """Fold what is new; whether anything was. Raises JournalUnreachable."""
        before = self.seq
        while self.seq < journal.head():
            for entry in journal.tail(self.seq, READ_AT_ONCE):
                self.take(entry)
        return self.seq > before

    def take(self, entry: Entry) -> None:
        """Fold one entry; entries of other tasks only move `seq`."""
        self.seq = entry.seq
        room, _, of = entry.stream.partition("/")
        if room != "privacy" and of != self.task:
            return
        try:
            self._fold(room, entry)
        except UNREADABLE as error:
            cause = f"{type(error).__name__}: {error}"
            text = f"entry {entry.seq} ({entry.kind}) of {entry.stream} cannot be read and is left out: {cause}"
            self.faults.setdefault(entry.stream, text)

    def age(self, *kinds: str) -> datetime | None:
        """The time of the newest entry of these kinds; a name that ends with a dot is a family, `rollout.`."""
        found = [at for kind, at in self.ages.items() if kind in kinds or kind.partition(".")[0] + "." in kinds]
        return max(found, default=None)

    def charges(self) -> list[charges.Charge]:
        """The task's privacy charges, over every labels topic it has read."""
        return [c for books in self.books.values() for c in books.charges.values() if c.task == self.task]

    def _fold(self, room: str, entry: Entry) -> None:
        if room == "privacy":
            self._fold_privacy(entry)
            return
        missing = [name for name in NEEDED.get(entry.kind, ()) if name not in entry.body]
        if missing:
            raise KeyError(", ".join(missing))
        if room in BOARD_ROOMS:
            self.board = release_board.fold(self.board, entry.kind, entry.body)
        match room:
            case "cut":
                self.window_length = unstamp(entry.body["end"]) - unstamp(entry.body["start"])
            case "window":
                self._fold_window(entry)
            case "lineage":
                self._fold_lineage(entry)
            case "routing" if entry.kind == "routing.set":
                self.routings.append(entry.body)
            case "alarm":
                self.alarms = alarms.fold(self.alarms, entry)
        self.ages[entry.kind] = entry.at
        self.clock = entry.body.get("clock") or self.clock
        if room in BOARD_ROOMS | {"alarm"} and entry.kind not in SILENT:
            self.decisions.append((entry, self.clock))

    def _fold_window(self, entry: Entry) -> None:
        body = entry.body
        match entry.kind:
            case "window.sealed" | "examples.joined":
                self.windows.setdefault(body["window"], {})[entry.kind] = body
                while len(self.windows) > KEPT_WINDOWS:
                    del self.windows[min(self.windows)]
            case evidence.COUNTED:
                self.evidence = evidence.fold_entry(self.evidence, entry.kind, body)
            case evidence.SCORED:
                self.evidence = evidence.fold(self.evidence, body)
                self.losses.append(self._loss(body))
            case "drift.tested":
                self.drifts.append(body)

    def _loss(self, body: Mapping[str, Any]) -> WindowLoss:
        losses = body.get("losses") or {}
        base = self.base["version"] if self.base else ""
        stable, head = self.board.stable or base, self.board.head or base
        return WindowLoss(
            body["window"], int(body.get("examples") or 0), losses.get(base), losses.get(stable), losses.get(head)
        )

    def _fold_lineage(self, entry: Entry) -> None:
        body = entry.body
        match entry.kind:
            case "base.registered":
                self.base = body
            case "update.trained" | "update.interrupted":
                self.updates[body["update"]] = {**body, "outcome": entry.kind}
            case "version.registered":
                self.versions[body["version"]] = body

    def _fold_privacy(self, entry: Entry) -> None:
        """The ledger is shared by all tasks on one labels topic, so all of it is folded; only ours is shown."""
        books = self.books.setdefault(entry.stream, Books())
        charges.apply(books, entry)
        charge = books.charges.get(entry.body.get("update", ""))
        ours = entry.body.get("task") == self.task or (charge is not None and charge.task == self.task)
        if ours and entry.kind in PRIVACY_DECISIONS:
            self.decisions.append((entry, self.clock))
        if ours:
            self.ages[f"privacy.{entry.kind}"] = entry.at
