"""`headgate config show`: the effective settings, as the file, the environment and the defaults make them."""

from __future__ import annotations

import json

import click

from pipelines.cli import settings_from


@click.group()
def config() -> None:
    """Show the effective settings."""


@config.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def show(ctx: click.Context, as_json: bool) -> None:
    """Print every setting with its effective value; secrets as stars."""
    settings = settings_from(ctx)
    if as_json:
        click.echo(json.dumps({**settings.shown(), "digest": settings.digest()}, indent=2))
        return
    click.echo(settings.as_toml(), nl=False)
