"""What the read-only commands fold from the journal, without a broker, a model or a store."""

from __future__ import annotations

from assets.lineage import Lineage, fold_lineage
from models import release_board
from models.release_board import Board
from monitoring import evidence
from monitoring.evidence import Evidence
from security.journal import Journal, Projection


def read_board(journal: Journal, task: str) -> Board:
    """Rollouts, routing and lineage head, folded afresh."""
    board = Board()
    for entry in journal.tail(streams=[f"{room}/{task}" for room in ("rollout", "routing", "lineage")]):
        board = release_board.fold(board, entry.kind, entry.body)
    return board


def read_evidence(journal: Journal, task: str) -> Evidence:
    """All evidence, folded afresh."""
    found = Evidence()
    for entry in journal.read(f"window/{task}"):
        if entry.kind == "evidence.scored":
            found = evidence.fold(found, entry.body)
    return found


def read_lineage(journal: Journal, task: str) -> Lineage:
    """Base, updates and versions, folded afresh."""
    return Projection(journal, f"lineage/{task}", Lineage(), fold_lineage).refresh()
