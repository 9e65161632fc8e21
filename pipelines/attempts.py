"""When may a window be tried again? A pure rule, and the journal's count of the tries.

Dagster never runs a used run key again, not even after a failure, so the key must hold the attempt; and an outage must not
become a storm of runs, so each failed attempt waits longer than the one before. Knows no Dagster.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from security.journal import Conflict, Draft, Journal

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
    tries = [entry for entry in journal.read(f"attempt/{task}") if entry.body["window"] == window]
    return Attempts(len(tries), tries[-1].at) if tries else Attempts()


def begin(journal: Journal, task: str, window: str, attempt: int, *, at: datetime, actor: str) -> bool:
    """Journal the attempt; False when another driver began one in the same moment."""
    stream = f"attempt/{task}"
    draft = Draft(stream, "attempt.begun", {"window": window, "attempt": attempt}, expected=journal.length(stream))
    try:
        journal.append(draft, actor=actor, at=at)
    except Conflict:
        return False
    return True
