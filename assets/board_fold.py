"""The board of a task as the journal has it, and what an append of its decisions compares with.

One fold over three streams, in the journal's order. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from models import release_board
from models.release_board import Board
from models.rollout import Decision, Stream
from security.journal import Draft, Journal


@dataclass
class BoardFold:
    """Rollouts, routing and lineage head; what was read before is not read again."""

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

    def drafts(self, decisions: Iterable[Decision]) -> list[Draft]:
        """The decisions as entries that are only appended while no stream they are written to has moved since `refresh`."""
        named = ((f"{one.room}/{self.task}", one) for one in decisions)
        return [Draft(stream, one.kind, one.body, self.lengths.get(stream, 0)) for stream, one in named]
