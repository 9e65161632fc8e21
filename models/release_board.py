"""The board of a task: every rollout, who is stable, the lineage head and the routing, as a fold of the journal.

`fold(board, kind, body)` applies one entry of `rollout/<task>`, `routing/<task>` or `lineage/<task>`; entries of
other kinds change nothing. It needs no journal: pairs of kind and body do, so a backtest runs the same rules in
memory. It decides nothing: what happens next is in `models/release.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from models.release_policy import RolloutPolicy
from models.rollout import Decision
from models.rollout_state import TRAFFIC, Rollout, State
from models.split import Routing
from security.journal import unstamp


class UnknownRollout(LookupError):
    """There is no rollout of that version; the message names those there are."""


@dataclass(frozen=True)
class Board:
    """State of one task's releases. `parents` is the lineage, version -> version it was trained from."""

    rollouts: Mapping[str, Rollout] = field(default_factory=dict)
    parents: Mapping[str, str | None] = field(default_factory=dict)
    routing: Routing | None = None
    head: str | None = None
    stepped: str | None = None  # the newest window whose release step was taken
    policy: RolloutPolicy | None = None  # the task's, as last journalled; each rollout keeps the one it was started under
    policies: Mapping[str, RolloutPolicy] = field(default_factory=dict)
    anchor: str | None = None  # the last version promoted because it was proven better; the base before that
    stables: tuple[tuple[str, datetime], ...] = ()  # (version, since) of all that were stable, oldest first
    tests: Mapping[int, int] = field(default_factory=dict)  # calendar year -> tests begun in it

    @property
    def stable(self) -> str | None:
        return self.routing.stable if self.routing else None

    @property
    def epoch(self) -> int:
        return self.routing.epoch if self.routing else 0

    @property
    def canary(self) -> Rollout | None:
        """The one rollout that takes traffic or is on its way back from it."""
        return next((r for r in self.rollouts.values() if r.state in TRAFFIC or r.state is State.ROLLING_BACK), None)

    def policy_of(self, rollout: Rollout, default: RolloutPolicy) -> RolloutPolicy:
        """The policy a rollout is judged by: its own since it was started, `default` before that. A freeze is not its own: the
        task's newest holds for all, as it can only hold."""
        own = self.policies.get(rollout.policy, default)
        newest = self.policy.freeze if self.policy else own.freeze
        return own if newest == own.freeze else replace(own, freeze=newest)

    def opponent(self, version: str, policy: RolloutPolicy) -> str | None:
        """Whom a version is tested against: stable, and with a margin to lose the anchor, so that losses cannot add up. The
        anchor itself, tried again, against stable: nothing is tested against itself."""
        return self.anchor or self.stable if policy.margin > 0.0 and self.anchor != version else self.stable

    @property
    def newest(self) -> Rollout | None:
        """The rollout people mean when they name none: the canary, else the newest that is live, else the newest."""
        return self.canary or max(self.rollouts.values(), key=lambda r: (r.live, r.number), default=None)

    def named(self, version: str | None) -> Rollout:
        """The rollout of a version, without one the `newest`. Raises UnknownRollout."""
        found = self.rollouts.get(version) if version else self.newest
        if found is None:
            known = ", ".join(sorted(self.rollouts)) or "none yet"
            raise UnknownRollout(f"no rollout of {version or 'any version'}; known: {known}")
        return found

    def free_for(self, rollout: Rollout) -> bool:
        """Whether no other version is the canary."""
        return self.canary is None or self.canary.version == rollout.version

    def in_states(self, *states: State) -> list[Rollout]:
        """Rollouts in any of these states, oldest version first."""
        return sorted((r for r in self.rollouts.values() if r.state in states), key=lambda r: r.number)

    def pairs(self) -> list[tuple[str, str]]:
        """(candidate, stable) pairs each window is to be scored for: shadow slots, the canary, versions under watch."""
        return [(r.version, r.against) for r in sorted(self.rollouts.values(), key=lambda r: r.number) if r.scored]

    def descends(self, version: str | None, ancestor: str) -> bool:
        """Whether `version` is `ancestor` or was trained from it through any number of updates."""
        seen: set[str] = set()
        while version is not None and version not in seen:
            if version == ancestor:
                return True
            seen.add(version)
            version = self.parents.get(version)
        return False

    def has_descendants(self, version: str) -> bool:
        """Also true for the lineage head: the next update will be its child."""
        if self.descends(self.head, version):
            return True
        return any(other != version and self.descends(other, version) for other in self.parents)


def fold(board: Board, kind: str, body: Mapping[str, Any]) -> Board:
    """The board after one entry. ValueError for a rollout entry without the rollout after it."""
    if kind == "rollout.stepped":
        return replace(board, stepped=body["window"])
    if kind == "policy.set":
        policy = RolloutPolicy.from_body(body["policy"])
        return replace(board, policy=policy, policies={**board.policies, body["digest"]: policy})
    if kind.startswith("rollout."):
        if "after" not in body:
            raise ValueError(
                f"entry {kind} of {body.get('version')} has no `after`: written by another version of Headgate"
            )
        rollout = Rollout.from_body(body["after"])
        parents = (
            board.parents if rollout.version in board.parents else {**board.parents, rollout.version: rollout.parent}
        )
        board = replace(board, rollouts={**board.rollouts, rollout.version: rollout}, parents=parents)
        goes_on = rollout.expires_from is not None or rollout.state is State.QUEUED  # a test of before, or none yet
        if kind in ("rollout.started", "rollout.restarted") and not goes_on:
            year = unstamp(body["clock"]).year
            board = replace(board, tests={**board.tests, year: max(board.tests.get(year, 0), rollout.test)})
        # an entry from before this was written: what the gate promoted had been proven
        proven = body["after"].get("proven", body.get("actor") == "gate")
        if body.get("to") == State.PROMOTED and proven:
            board = replace(board, anchor=rollout.version)
        if body.get("from") == State.PROMOTED and board.anchor == rollout.version:
            kept = board.policies.get(rollout.policy)  # undone: the anchor it was measured from, else the stable returned to
            board = replace(board, anchor=rollout.against if kept is not None and kept.margin > 0.0 else None)
        return board
    if kind == "routing.set":
        routing = Routing(body["epoch"], body["stable"], body["canary"], body["weight"], body["salt"])
        stables = board.stables
        if not stables or stables[-1][0] != routing.stable:
            stables = (*stables, (routing.stable, unstamp(body["clock"])))
        return replace(board, routing=routing, stables=stables, anchor=board.anchor or routing.stable)
    if kind == "head.moved":
        return replace(board, head=body["head"])
    if kind in ("version.registered", "base.registered"):
        return replace(board, parents={**board.parents, body["version"]: body.get("parent")})
    return board


def fold_all(board: Board, decisions: Iterable[Decision]) -> Board:
    for decision in decisions:
        board = fold(board, decision.kind, decision.body)
    return board
