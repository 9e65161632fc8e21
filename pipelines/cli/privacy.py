"""`headgate privacy ...`: what was promised and what was spent, from the ledger's entries; windows are retired here."""

from __future__ import annotations

import getpass
import json
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli import settings_from
from pipelines.cli.audit import audit

if TYPE_CHECKING:
    from assets.lineage import Lineage
    from pipelines.settings import Settings
    from security.journal import Journal
    from security.privacy import Ledger

NEWEST = 20  # windows, releases and refusals that the text shows; --json has all


@click.group()
def privacy() -> None:
    """Show what was spent of the privacy budget."""


@privacy.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each labels topic.")
@click.pass_context
def show(ctx: click.Context, as_json: bool) -> None:
    """Budget, epsilon for each labelled event, windows, releases, open reservations and refusals."""
    from pipelines.journals import existing_journal

    settings = settings_from(ctx)
    books = ledgers(existing_journal(settings), settings)
    if not books:
        click.echo("nothing was ever charged: no update has been trained under privacy", err=True)
    for ledger in books:
        summary = ledger.summary()
        click.echo(json.dumps(summary) if as_json else "\n".join(_lines(summary)))


@privacy.command()
@click.pass_context
def export(ctx: click.Context) -> None:
    """Every entry of the ledger with its hash, one JSON object a line: epsilon can be computed from them alone."""
    from pipelines.journals import existing_journal

    settings = settings_from(ctx)
    for ledger in ledgers(existing_journal(settings), settings):
        for row in ledger.export():
            click.echo(json.dumps(row, ensure_ascii=False))


@privacy.command()
@click.argument("window")
@click.option("--reason", required=True, help="Goes into the ledger.")
@click.option("--actor", default=None, help="Who is asking. [default: the system's user]")
@click.pass_context
def retire(ctx: click.Context, window: str, reason: str, actor: str | None) -> None:
    """Learn nothing (more) from WINDOW. What was charged stays charged, and it cannot be taken back."""
    from datetime import UTC, datetime

    from assets.windows.clock import parse_window
    from pipelines.journals import journal_and_task

    settings = settings_from(ctx)
    try:
        parse_window(window)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    journal, task = journal_and_task(settings)
    books = ledgers(journal, settings)
    if not books:
        raise click.ClickException("no ledger yet: it begins with the first update under privacy")
    at = journal.now(datetime.now(UTC))
    who = actor or getpass.getuser()
    done = [ledger.retire(task=task, window=window, reason=reason, actor=who, at=at) for ledger in books]
    click.echo(f"window {window} of {task} is retired" if any(done) else f"window {window} of {task} was retired before")


def ledgers(journal: Journal, settings: Settings) -> list[Ledger]:
    """Every ledger the journal holds; they stay readable when privacy has been switched off since."""
    from dataclasses import replace

    from security.privacy import Ledger

    policy = replace(settings.privacy, enabled=True)
    streams = [name.split("/") for name in journal.streams() if name.startswith("privacy/")]
    return [Ledger(journal, cluster, topic, policy) for _, cluster, topic in streams]


def spent(journal: Journal, settings: Settings, lineage: Lineage) -> float | None:
    """The most any labelled event has spent; None when nothing was ever charged.

    What releases and versions say of their law is believed here. The accountant (1.4 CPU s to load) is asked only for
    charges that none of them tells of, as a crashed first update.
    """
    records = [body["privacy"] for body in lineage.versions.values() if body["privacy"]]
    told = [
        {"delta": r["delta"], "spent": [{"laws": [[r["sampling_rate"], r["noise_multiplier"], r["steps"], 1]],
                                         "metered": False, "epsilon": r["epsilon"]}]}
        for r in records
    ]
    return max((ledger.shown_epsilon(told) for ledger in ledgers(journal, settings) if ledger.charges()), default=None)


def _lines(summary: dict[str, Any]) -> list[str]:
    """The ledger as text: what matters first, then the newest windows, releases and refusals."""
    budget, allowed = summary["budget"], summary["units_allowed"]
    lines = [
        f"{summary['stream']}",
        f"  budget            epsilon {budget['epsilon']:g} at delta {budget['delta']:g}, for {summary['unit']}",
        f"  epsilon_per_event {summary['epsilon_per_event']}, by {summary['accountant']}, adjacency {summary['adjacency']}",
        f"  events            {summary['units']} of the {allowed} that delta {budget['delta']:g} is small enough for",
        f"  updates           {len(summary['updates'])}, open: {', '.join(summary['open']) or 'none'}",
        f"  ledger            {summary['entries']} entries, chain {summary['chain'][:16]}...",
    ]
    for row in _newest(lines, "windows", summary["windows"]):
        state = f"{row['kind']}{', retired' if row['retired'] else ''}"
        lines.append(f"    {row['task']} {row['window']}  epsilon {row['spent']:.4f}  {state}  {', '.join(row['updates'])}")
    for row in _newest(lines, "releases", summary["releases"]):
        free = f"  NOT CHARGED: {', '.join(row['not_charged'])}" if row["not_charged"] else ""
        lines.append(f"    {row['version']}  epsilon {row['epsilon']:.4f}  manifest {row['artefact'][:16]}...{free}")
    for row in _newest(lines, "retired", summary["retired"]):
        lines.append(f"    {row['task']} {row['window']}  {row['reason']}")
    for row in _newest(lines, "refusals", summary["refusals"]):
        figures = f"spent {row['spent']:.4f}, asked {row['asked']:.4f}"
        lines.append(f"    {row['update']}, window {row['window']}: {figures}; {row['reason']}")
    return [*lines, "  not covered:", *(f"    {sentence}" for sentence in summary["not_covered"])]


def _newest(lines: list[str], name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last rows, with a heading that says how many there are."""
    lines.append(f"  {name:<17} {len(rows)}" + (f", the newest {NEWEST}:" if len(rows) > NEWEST else ""))
    return rows[-NEWEST:]


privacy.add_command(audit)
