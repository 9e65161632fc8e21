"""What the read-only commands need: the journal and the task's name, without a broker, a model or a store."""

from __future__ import annotations

from pathlib import Path

from assets.lineage import Lineage, fold_lineage
from models import release_board
from models.release_board import Board
from models.task import load_task
from monitoring import evidence
from monitoring.evidence import Evidence
from pipelines.settings import Settings
from security.journal import Journal, Projection


class NoJournal(Exception):
    """The settings name a journal file that is not there."""


def journal_and_task(settings: Settings) -> tuple[Journal, str]:
    """The open journal and the name its streams carry. Raises NoJournal, JournalUnreachable, TaskError."""
    return existing_journal(settings), load_task(settings.task).name


def existing_journal(settings: Settings) -> Journal:
    """The journal, which must be there: whoever only reads must not find an empty one that reading has made."""
    file = Path(settings.journal.url.removeprefix("sqlite:///"))
    if settings.journal.url.startswith("sqlite:///") and not file.exists():
        raise NoJournal(
            f"there is no journal at {file.absolute()}: relative paths count from the current folder, so run this in the "
            "installation's folder, or make the first entries with `headgate base train`"
        )
    return Journal(settings.journal.url)


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
