"""One rollout as a person looks at it: state, figures, who serves which epoch, what the next step waits for, what was decided.

Of the windows it reads only those since the version was queued, which are all that its figures are made of: a look costs the
same on an old journal as on a young one. It decides nothing and prints nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from assets.board_fold import BoardFold
from assets.windows.clock import WindowPolicy
from models.release_board import Board
from models.release_policy import RolloutPolicy, Verdicts
from models.rollout import Condition, Rollout, conditions
from monitoring import evidence
from monitoring.evidence import SCORED, Evidence
from monitoring.live_counts import news, with_news
from monitoring.verdict import judge
from security.journal import Entry, Journal, Projection
from security.replicas import Replica, Replicas
from security.served import LiveCounts

RECENT = 6
TOLD = (
    "rollout.queued", "rollout.started", "rollout.advanced", "rollout.held", "rollout.paused", "rollout.resumed",
    "rollout.approved", "rollout.withdrawn", "rollout.retried", "rollout.superseded", "rollout.restarted",
    "rollout.watch_ended",
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """All of it at one moment, `now` on the task's clock."""

    rollout: Rollout
    policy: RolloutPolicy
    verdicts: Verdicts
    now: datetime
    stable: str | None
    epoch: int
    unmet: Sequence[Condition]
    replicas: Sequence[Replica]
    recent: Sequence[Entry]


class View:
    """Pictures of one task's rollouts; what was read before is not read again."""

    def __init__(self, journal: Journal, task: str, policy: RolloutPolicy, window: WindowPolicy) -> None:
        self._journal, self._task, self._policy, self._window = journal, task, policy, window
        self._board = BoardFold(journal, task, without=("rollout.stepped",))
        self._replicas, self._live = Replicas(journal.engine), LiveCounts(journal.engine)
        self._evidence: dict[str, Projection[Evidence]] = {}
        self._told = Projection[list[Entry]](journal, f"rollout/{task}", [], lambda known, one: [*known, one], kinds=TOLD)

    def board(self) -> Board:
        """Rollouts, routing and head as of now."""
        return self._board.refresh()

    def picture(self, one: Rollout) -> Picture:
        """The picture of a rollout of `board()`."""
        board, wall = self._board.board, datetime.now(UTC)
        told = [entry for entry in self._told.refresh() if entry.body.get("version") == one.version]
        known = self._since(one, told).refresh()
        now = (known.processed or self._window.start) if self._window.clock == "stream" else wall
        known = with_news(known, news(self._live, self._task, board, known))
        replicas = self._replicas.live(self._task, wall, self._policy.lease)
        policy = board.policy_of(one, board.policy or self._policy)
        acknowledged = all(replica.epoch >= board.epoch for replica in replicas)
        verdicts = judge(one, known, policy, now, acknowledged=acknowledged, prepared=None)
        verdicts = replace(verdicts, forecast=one.forecast)  # of all windows before, which were not read
        unmet = [each for each in conditions(one, verdicts, policy, now, board.free_for(one)) if not each.met]
        return Picture(one, policy, verdicts, now, board.stable, board.epoch, unmet, replicas, told[-RECENT:])

    def _since(self, one: Rollout, told: Sequence[Entry]) -> Projection[Evidence]:
        """No window before the version was queued knows of it; the newest of them still says how far the stream was read."""
        if one.version not in self._evidence:
            first = self._journal.place(f"window/{self._task}", (SCORED,), before=told[0].seq) if told else 0
            self._evidence[one.version] = evidence.projection(self._journal, self._task, max(0, first - 1))
        return self._evidence[one.version]


def as_json(found: Picture) -> dict[str, Any]:
    """The picture as a JSON object."""
    return {
        "rollout": found.rollout.to_body(), "figures": found.verdicts.figures(), "stable": found.stable, "epoch": found.epoch,
        "unmet": [{"name": each.name, "text": each.text, "hold": each.hold} for each in found.unmet],
        "replicas": {replica.replica: replica.epoch for replica in found.replicas},
    }
