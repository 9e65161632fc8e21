"""`headgate privacy show`: what was promised and what was spent, from the ledger's entries."""

from __future__ import annotations

import json

import click

from pipelines.cli import settings_from


@click.group()
def privacy() -> None:
    """Show what was spent of the privacy budget."""


@privacy.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each labels topic.")
@click.pass_context
def show(ctx: click.Context, as_json: bool) -> None:
    """Budget, epsilon for each labelled event, updates, open reservations and refusals."""
    from security.journal import Journal
    from security.privacy import Ledger

    settings = settings_from(ctx)
    journal = Journal(settings.journal.url)
    streams = [name.split("/") for name in journal.streams() if name.startswith("privacy/")]
    if not streams:
        click.echo("nothing was ever charged: no update has been trained under privacy", err=True)
    for _, cluster, topic in streams:
        summary = Ledger(journal, cluster, topic, settings.privacy).summary()
        if as_json:
            click.echo(json.dumps(summary, default=str))
            continue
        for key, value in summary.items():
            if isinstance(value, list | tuple):
                click.echo(f"{key}: {len(value)}")
                for row in value:
                    click.echo(f"  {row if isinstance(row, str) else json.dumps(row, default=str)}")
            else:
                click.echo(f"{key}: {value if isinstance(value, str | int | float) else json.dumps(value, default=str)}")
