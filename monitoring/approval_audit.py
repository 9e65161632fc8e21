"""Whether each approval that two persons had to make was paid with a token: for `headgate rollout verify`.

The rules cannot tell a name that was typed from one that was proven; the journal can: the entry behind `rollout.approved`,
of the same transaction, spends the approver's token. It knows no token: whose key signed it was checked when it was spent.
"""

from __future__ import annotations

from models import release_board
from models.release_board import Board
from models.release_policy import RolloutPolicy
from monitoring.rollout_audit import Audit
from security.journal import Entry, Journal


def blame_unproven(found: Audit, journal: Journal, task: str, policy: RolloutPolicy) -> None:
    """Adds to `found` a fault for each approval without a token under `approval = "two-person"`; `policy`: where the journal
    has none yet."""
    board = Board()
    for entry in journal.tail(streams=[f"rollout/{task}", f"routing/{task}"]):
        if entry.kind == "rollout.approved":
            version = entry.body["version"]
            judged_by = board.policy_of(board.rollouts[version], board.policy or policy)
            if judged_by.approval == "two-person" and not _paid(entry, *journal.tail(entry.seq, limit=1)):
                found.blame(entry.seq, version, f"rollout.approved: no token of {entry.body['actor']} was spent for it")
        board = release_board.fold(board, entry.kind, entry.body)


def _paid(approved: Entry, behind: Entry | None = None) -> bool:
    if behind is None or (behind.kind, behind.at, behind.actor) != ("token.spent", approved.at, approved.actor):
        return False
    return (behind.body["subject"], behind.body["rollout"]) == (approved.body["actor"], approved.body["version"])
