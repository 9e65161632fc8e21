"""The verdict at the top of the page: one word, why, and who serves what.

The word is the worst thing that is true: ROLLING BACK, then ALARM (a critical alarm is open, or an entry cannot be
read), then HOLD (somebody may have to act before a version goes on, or windows stopped coming), then OK. It knows
neither evidence nor thresholds: holds come from the releases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from models.rollout_state import Rollout, State
from models.split import Routing
from monitoring.alarms import ordered
from monitoring.dashboard.facts import Facts
from monitoring.dashboard.releases import Release
from security.journal import unstamp
from security.replicas import Replica

Word = Literal["ROLLING BACK", "ALARM", "HOLD", "OK", "NO DATA"]


@dataclass(frozen=True, slots=True)
class Strip:
    """`reasons` are (kind, sentence), worst first. `since`: when the routing was set, `phase_since`: when the phase of
    the release began; both on the task's clock."""

    word: Word
    reasons: tuple[tuple[str, str], ...]
    routing: Routing | None
    since: datetime | None
    phase: str
    phase_since: datetime | None
    head: str | None
    warnings: int
    replicas: tuple[Replica, ...]
    behind: int


def strip(facts: Facts, releases: Sequence[Release], replicas: Sequence[Replica], late: str | None) -> Strip:
    """The strip as of these facts. `late` says in words that windows stopped coming, None when they did not."""
    board = facts.board
    found: list[tuple[Word, str]] = [
        ("ROLLING BACK", f"{r.version} goes back to {r.outcome.value}, weight 0: {r.reason}")
        for r in board.in_states(State.ROLLING_BACK)
    ]
    found += [("ALARM", text) for text in facts.faults.values()]
    waiting = ordered(facts.alarms)
    found += [("ALARM", f"{a.kind}: {a.message}") for a in waiting if a.severity == "critical"]
    found += [("ALARM", f"{r.rollout.version} is to be stopped and is not yet: {r.due}") for r in releases if r.due]
    found += [("HOLD", f"{r.rollout.version}: {hold.text}") for r in releases for hold in r.holds]
    if late:
        found.append(("HOLD", late))
    nothing: Word = "OK" if board.routing else "NO DATA"
    if not board.routing:
        found.append(("NO DATA", f"no routing was ever set for {facts.task}: register a base, then run a window"))
    elif not found:
        found.append(("OK", f"{board.stable} serves; nothing is held and no critical alarm is open"))
    phase, since = _phase(board.canary, releases)
    return Strip(
        found[0][0] if found[0][0] != "NO DATA" else nothing,
        tuple(dict.fromkeys(found)),
        board.routing,
        _since(facts),
        phase,
        since,
        board.head,
        sum(a.severity != "critical" for a in waiting),
        tuple(replicas),
        sum(replica.epoch < board.epoch for replica in replicas),
    )


def _since(facts: Facts) -> datetime | None:
    clock = facts.routings[-1].get("clock") if facts.routings else None
    return unstamp(clock) if clock else None


def _phase(canary: Rollout | None, releases: Sequence[Release]) -> tuple[str, datetime | None]:
    if canary is not None:
        return canary.state.value, canary.state_since
    shadows = [r.rollout for r in releases if r.rollout.state is State.SHADOW]
    if shadows:
        return f"{len(shadows)} in shadow", min(r.state_since for r in shadows)
    waiting = [r.rollout for r in releases if r.rollout.live]
    return (f"{len(waiting)} waiting", min(r.state_since for r in waiting)) if waiting else ("no release", None)
