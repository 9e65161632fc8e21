"""`headgate journal verify|tail`: is the journal whole, and what does it say."""

from __future__ import annotations

import json

import click

from pipelines.cli import settings_from


@click.group()
def journal() -> None:
    """Verify and read the journal."""


@journal.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def verify(ctx: click.Context, as_json: bool) -> None:
    """Walk the hash chain. Exit code 1 when an entry is missing, changed or out of order."""
    from pipelines.journals import existing_journal

    found = existing_journal(settings_from(ctx)).verify()
    if as_json:
        click.echo(json.dumps({"entries": found.entries, "head": found.head, "faults": list(found.faults)}))
    else:
        for fault in found.faults:
            click.echo(fault)
        click.echo(f"{found.entries} entries, head {found.head[:16]}, {len(found.faults)} faults")
    ctx.exit(1 if found.faults else 0)


@journal.command()
@click.option("-n", "count", default=20, show_default=True, help="How many entries.")
@click.option("--stream", default=None, help="Only this stream, e.g. rollout/flights.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def tail(ctx: click.Context, count: int, stream: str | None, as_json: bool) -> None:
    """Print the newest entries."""
    from pipelines.journals import existing_journal
    from security.journal import canonical, stamp

    opened = existing_journal(settings_from(ctx))
    entries = opened.read(stream) if stream else opened.tail(after=max(0, opened.head() - count))
    for entry in entries[-count:]:
        if as_json:
            row = {"seq": entry.seq, "stream": entry.stream, "kind": entry.kind, "body": entry.body}
            click.echo(json.dumps({**row, "actor": entry.actor, "at": stamp(entry.at), "hash": entry.hash}))
        else:
            text = canonical(entry.body)
            click.echo(f"{entry.seq:>6}  {stamp(entry.at)[:19]}  {entry.stream}  {entry.kind}  {text[:160]}")
