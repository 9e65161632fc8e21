"""The journal that the settings name, for whoever only looks: opened, never made.

It knows no model, no store and no evidence, so that a look at the ledger loads none of them.
"""

from __future__ import annotations

from pathlib import Path

from models.task import load_task
from pipelines.settings import Settings
from security.journal import Journal


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
