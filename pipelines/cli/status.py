"""`headgate status`: where everything stands, in a few lines, from the journal alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli import settings_from

if TYPE_CHECKING:
    from security.privacy import Ledger


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Stable version, canary, newest window, epsilon, open alarms."""
    found = collect(ctx)
    if as_json:
        click.echo(json.dumps(found))
        return
    for key, value in found.items():
        click.echo(f"{key.replace('_', ' '):<16} {'-' if value is None else value}")


def open_update(books: Iterable[Ledger], task: str) -> str | None:
    """The task's update that is paid for and has no result yet: it is being trained, or its process died."""
    waiting = [charge for ledger in books for charge in ledger.charges() if (charge.task, charge.state) == (task, "open")]
    if not waiting:
        return None
    newest = waiting[-1]
    return f"{newest.update}, reserved {newest.at:%Y-%m-%dT%H:%M:%S}Z: being trained, or its window's next run goes on with it"


def collect(ctx: click.Context) -> dict[str, Any]:
    """The figures of the status, by name."""
    from models.retention import newest, retention_told
    from monitoring.alarms import open_alarms
    from pipelines.attempts import newest_failure
    from pipelines.cli.privacy import ledgers, spent
    from pipelines.journals import journal_and_task
    from pipelines.reading import read_board, read_lineage

    settings = settings_from(ctx)
    journal, task = journal_and_task(settings)
    board, lineage = read_board(journal, task), read_lineage(journal, task)
    finished = journal.read(f"window/{task}", kinds=("window.finished",))
    canary = board.canary
    alarms, failure = open_alarms(journal, task), newest_failure(journal, task)
    return {
        "task": task,
        "stable": board.stable,
        "canary": f"{canary.version} at {canary.weight:.0%} ({canary.state.value})" if canary else None,
        "lineage_head": lineage.head or None,
        "versions": len(lineage.versions),
        "retention": "; ".join(retention_told(regime, figures) for regime, figures in newest(lineage.versions).items()) or None,
        "windows": len(finished),
        "newest_window": finished[-1].body["window"] if finished else None,
        "failing_window": f"{failure['window']}: {failure['error']} (tried again {failure['next'][:19]}Z)" if failure else None,
        "open_update": open_update(ledgers(journal, settings), task),
        "epsilon": spent(journal, settings, lineage),
        "open_alarms": len(alarms),
        "newest_alarm": alarms[0].message if alarms else None,
        "journal_entries": journal.head(),
    }
