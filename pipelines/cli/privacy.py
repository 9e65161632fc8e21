"""`headgate privacy show`: what was promised and what was spent, from the ledger's entries."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from pipelines.cli import settings_from

if TYPE_CHECKING:
    from assets.lineage import Lineage
    from pipelines.settings import Settings
    from security.journal import Journal
    from security.privacy import Ledger


@click.group()
def privacy() -> None:
    """Show what was spent of the privacy budget."""


@privacy.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each labels topic.")
@click.pass_context
def show(ctx: click.Context, as_json: bool) -> None:
    """Budget, epsilon for each labelled event, updates, open reservations and refusals."""
    from pipelines.reading import existing_journal

    settings = settings_from(ctx)
    books = ledgers(existing_journal(settings), settings)
    if not books:
        click.echo("nothing was ever charged: no update has been trained under privacy", err=True)
    for ledger in books:
        summary = ledger.summary()
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


def ledgers(journal: Journal, settings: Settings) -> list[Ledger]:
    """Every ledger the journal holds; they stay readable when privacy has been switched off since."""
    from dataclasses import replace

    from security.privacy import Ledger

    policy = replace(settings.privacy, enabled=True)
    streams = [name.split("/") for name in journal.streams() if name.startswith("privacy/")]
    return [Ledger(journal, cluster, topic, policy) for _, cluster, topic in streams]


def spent(journal: Journal, settings: Settings, lineage: Lineage) -> float | None:
    """The most any labelled event has spent; None when nothing was ever charged.

    A version's entry holds what the ledger said of its law. The accountant (1.4 CPU s to load) is asked only when a
    charge has another law than every version, as a crashed first update has.
    """
    from security.accounting import Law

    books = ledgers(journal, settings)
    laws = {(charge.law, settings.privacy.target_delta) for ledger in books for charge in ledger.charges()}
    records = [body["privacy"] for body in lineage.versions.values() if body["privacy"]]
    known = {
        (Law(r["sampling_rate"], r["noise_multiplier"], r["steps"]), r["delta"]): float(r["epsilon"]) for r in records
    }
    if laws <= known.keys():
        return max(known.values(), default=None)
    return max(ledger.epsilon_per_event() for ledger in books)
