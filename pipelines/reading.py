"""What the read-only commands fold from the journal, without a broker, a model or a store."""

from __future__ import annotations

from dataclasses import dataclass, field

from assets.lineage import Lineage, fold_lineage
from models import release_board
from models.release_board import Board
from models.rollout import Stream
from monitoring import evidence
from monitoring.evidence import Evidence
from security.journal import Journal, Projection


@dataclass
class BoardFold:
    """Rollouts, routing and lineage head, one fold over three streams; what was read before is not read again."""

    journal: Journal
    task: str
    board: Board = field(default_factory=Board)
    lengths: dict[str, int] = field(default_factory=dict)  # of the three streams in the fold: what an append compares with
    seq: int = 0
    without: tuple[str, ...] = ()  # kinds that are not read

    def refresh(self) -> Board:
        """The board as of now."""
        streams = [f"{room}/{self.task}" for room in Stream]
        for entry in self.journal.tail(self.seq, streams=streams, without=self.without):
            self.board = release_board.fold(self.board, entry.kind, entry.body)
            self.seq, self.lengths[entry.stream] = entry.seq, entry.stream_seq
        return self.board


def read_board(journal: Journal, task: str) -> Board:
    """Rollouts, routing and lineage head, folded afresh."""
    return BoardFold(journal, task).refresh()


def read_evidence(journal: Journal, task: str) -> Evidence:
    """All evidence, folded afresh."""
    found = Evidence()
    for entry in journal.read(f"window/{task}", kinds=(evidence.SCORED, evidence.COUNTED)):
        found = evidence.fold_entry(found, entry.kind, entry.body)
    return found


def read_lineage(journal: Journal, task: str) -> Lineage:
    """Base, updates and versions, folded afresh."""
    return Projection(journal, f"lineage/{task}", Lineage(), fold_lineage).refresh()
