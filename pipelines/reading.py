"""What the read-only commands fold from the journal, without a broker, a model or a store."""

from __future__ import annotations

from assets.board_fold import BoardFold
from assets.lineage import Lineage, fold_lineage
from models.release_board import Board
from monitoring import evidence
from monitoring.evidence import Evidence
from security.journal import Journal, Projection


def read_board(journal: Journal, task: str) -> Board:
    """Rollouts, routing and lineage head, folded afresh."""
    return BoardFold(journal, task).refresh()


def read_evidence(journal: Journal, task: str) -> Evidence:
    """All evidence, folded afresh."""
    return evidence.projection(journal, task).refresh()


def read_lineage(journal: Journal, task: str) -> Lineage:
    """Base, updates and versions, folded afresh."""
    return Projection(journal, f"lineage/{task}", Lineage(), fold_lineage).refresh()
