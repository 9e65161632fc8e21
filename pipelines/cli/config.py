"""`headgate config show`: the effective settings, as the files, the environment and the defaults make them."""

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
    """Print every setting with its effective value, also of what client_properties names; secrets as stars."""
    from pipelines.connection import in_effect
    from pipelines.settings import toml_of

    settings = settings_from(ctx)
    shown = settings.shown()
    shown["stream"] |= in_effect(settings.stream)
    click.echo(json.dumps({**shown, "digest": settings.digest()}, indent=2) if as_json else toml_of(shown), nl=as_json)
