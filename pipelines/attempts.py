"""When may a window be tried again? A pure rule, and the journal's count of the tries.

Dagster never runs a used run key again, not even after a failure, so the key must hold the attempt; and an outage must not
become a storm of runs, so each failed attempt waits longer than the one before. Knows no Dagster.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from security.journal import Conflict, Draft, Journal, stamp

FIRST_WAIT, LONGEST_WAIT = timedelta(minutes=1), timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Attempts:
    """How often a window was tried and when last; None before the first."""

    count: int = 0
    last: datetime | None = None


def next_attempt(attempts: Attempts, now: datetime, *, running: bool) -> tuple[int, str]:
    """(attempt number, "") when the window may be tried now, else (0, the reason to wait)."""
    if running:
        return 0, f"attempt {attempts.count} is running"
    if attempts.last is None:
        return 1, ""
    wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempts.count - 1))
    again = attempts.last + wait
    if now < again:
        return 0, f"attempt {attempts.count} failed; the next is at {again:%Y-%m-%dT%H:%M:%SZ}, after {wait}"
    return attempts.count + 1, ""


def attempts_of(journal: Journal, task: str, window: str) -> Attempts:
    """The tries of a window, as journalled."""
    entries = journal.read(f"attempt/{task}")
    tries = [entry for entry in entries if entry.kind == "attempt.begun" and entry.body["window"] == window]
    return Attempts(len(tries), tries[-1].at) if tries else Attempts()


def failed(journal: Journal, task: str, window: str, attempt: int, error: str, *, at: datetime, actor: str) -> None:
    """Journal why the attempt failed, for `headgate status`."""
    body = {"window": window, "attempt": attempt, "error": error}
    journal.append(Draft(f"attempt/{task}", "attempt.failed", body), actor=actor, at=at)


def newest_failure(journal: Journal, task: str) -> dict[str, Any] | None:
    """The body of the newest `attempt.failed` that nothing has followed yet, with `next`, when it is tried again."""
    entries = journal.read(f"attempt/{task}")
    if not entries or entries[-1].kind != "attempt.failed":
        return None
    body = entries[-1].body
    tries = attempts_of(journal, task, body["window"])
    wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** max(0, tries.count - 1))
    return {**body, "next": stamp((tries.last or entries[-1].at) + wait)}


def begin(journal: Journal, task: str, window: str, attempt: int, *, at: datetime, actor: str) -> bool:
    """Journal the attempt; False when another driver began one in the same moment."""
    stream = f"attempt/{task}"
    draft = Draft(stream, "attempt.begun", {"window": window, "attempt": attempt}, expected=journal.length(stream))
    try:
        journal.append(draft, actor=actor, at=at)
    except Conflict:
        return False
    return True
