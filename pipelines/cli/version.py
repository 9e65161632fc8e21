"""`headgate version list|show`: what has been learnt, from which windows, and where it stands."""

from __future__ import annotations

import json

import click

from pipelines.cli import settings_from


@click.group()
def version() -> None:
    """List and show versions."""


@version.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """One line a version: parent, windows, state of its release; what it keeps of each regime."""
    from models.retention import by_regime, retention_told
    from pipelines.journals import journal_and_task
    from pipelines.reading import read_board, read_lineage

    journal, task = journal_and_task(settings_from(ctx))
    lineage, board = read_lineage(journal, task), read_board(journal, task)
    for name, body in lineage.versions.items():
        rollout = board.rollouts.get(name)
        state = rollout.state.value if rollout else f"blocked: {body['blocked']}"
        state += " (stable)" if board.stable == name else ""
        kept = by_regime(body.get("retention"))
        row = {
            "version": name, "parent": body["parent"], "windows": len(body["windows"]), "state": state,
            "retention": {regime: {key: figures.get(key) for key in ("value", "bound")} for regime, figures in kept.items()},
        }  # fmt: skip
        if as_json:
            click.echo(json.dumps(row))
        else:
            click.echo(f"{name}  from {row['parent']}  {row['windows']} windows up to {body['window']}  {state}")
            for regime, figures in kept.items():
                click.echo(f"                  keeps of {retention_told(regime, figures)}")


@version.command()
@click.argument("name")
@click.pass_context
def show(ctx: click.Context, name: str) -> None:
    """The signed manifest of version NAME, after every check that loading makes, as JSON."""
    from pathlib import Path

    from models.task import load_task
    from models.version import open_version
    from pipelines.journals import journal_and_task
    from pipelines.reading import read_lineage
    from security.keys import public_key

    settings = settings_from(ctx)
    journal, task = journal_and_task(settings)
    lineage = read_lineage(journal, task)
    if name not in lineage.versions:
        raise click.ClickException(f"the journal knows no version {name}; `headgate version list` names those it knows")
    from datetime import UTC, datetime

    found = open_version(
        Path(settings.store.url) / lineage.versions[name]["path"],
        trusted={"trainer": public_key(Path(settings.keys.directory), "trainer")},
        base_digest=lineage.registered_base()["digest"],
        task=load_task(settings.task).name,
        now=datetime.now(UTC),
    )
    click.echo(json.dumps(found.manifest, indent=2))
