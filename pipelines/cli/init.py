"""`headgate init`: a commented settings file and the keys, so that the next command can run. Overwrites nothing."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import click

from pipelines.cli import settings_from


@click.command()
@click.pass_context
def init(ctx: click.Context) -> None:
    """Write a commented headgate.toml and make the keys (mode 0400). What exists is left as it is."""
    from security.keys import make_keys

    file = Path(ctx.find_root().obj or "headgate.toml")
    if file.exists():
        click.echo(f"{file} exists: left as it is")
    else:
        file.write_text(resources.files("pipelines").joinpath("headgate.toml").read_text())
        click.echo(f"wrote {file}")
    folder = Path(settings_from(ctx).keys.directory)
    if folder.exists() and any(folder.iterdir()):
        click.echo(f"{folder} holds keys: left as they are")
        return
    for path in make_keys(folder):
        click.echo(f"made {path}")
