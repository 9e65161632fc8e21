"""`headgate alarm list|acknowledge`: what waits for a person, and saying that somebody has it."""

from __future__ import annotations

import getpass
import json
from datetime import UTC, datetime

import click

from pipelines.cli import settings_from


@click.group()
def alarm() -> None:
    """List and acknowledge alarms."""


@alarm.command("list")
@click.option("--all", "everything", is_flag=True, help="Acknowledged ones as well.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def list_(ctx: click.Context, everything: bool, as_json: bool) -> None:
    """One line an alarm: severity, kind, window, what happened."""
    from monitoring.alarms import all_alarms, open_alarms
    from monitoring.alarms import as_json as plain
    from pipelines.journals import journal_and_task

    journal, task = journal_and_task(settings_from(ctx))
    for found in (all_alarms if everything else open_alarms)(journal, task):
        line = f"{found.severity:<8}  {found.kind:<14}  {found.window}  {found.message}  ({found.cure}; {found.docs})"
        click.echo(json.dumps(plain(found)) if as_json else line)


@alarm.command()
@click.argument("kind")
@click.option("--window", default=None, help="Only the alarm of this window. [default: all open ones of the kind]")
@click.option("--reason", required=True, help="Goes into the journal.")
@click.option("--actor", default=None, help="Who. [default: the system's user]")
@click.pass_context
def acknowledge(ctx: click.Context, kind: str, window: str | None, reason: str, actor: str | None) -> None:
    """Say that somebody has seen the alarms of KIND."""
    from monitoring.alarms import acknowledge as say
    from pipelines.journals import journal_and_task

    journal, task = journal_and_task(settings_from(ctx))
    who = actor or getpass.getuser()
    entries = say(journal, task, kind=kind, window=window, reason=reason, at=datetime.now(UTC), actor=who)
    click.echo(f"{len(entries)} acknowledged")
