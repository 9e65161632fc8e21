"""`headgate broker start|stop`: a local Apache Kafka that stays up between commands."""

from __future__ import annotations

from pathlib import Path

import click

FOLDER = Path("var/broker")


@click.group()
def broker() -> None:
    """Start or stop the local Apache Kafka."""


@broker.command()
@click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True, help="Data and log files.")
@click.option("--port", type=int, default=None, help="Port on 127.0.0.1. [default: a free one]")
def start(folder: Path, port: int | None) -> None:
    """Start it and print its address; it runs until `headgate broker stop`."""
    from pipelines.broker import start_detached

    click.echo(start_detached(folder, port))


@broker.command()
@click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True, help="Data and log files.")
@click.pass_context
def stop(ctx: click.Context, folder: Path) -> None:
    """Stop the one that was started on this folder; its data stay."""
    from pipelines.broker import stop_detached

    stopped = stop_detached(folder)
    click.echo(f"stopped {stopped}" if stopped else f"no broker runs on {folder}")
