"""`headgate base train`: the frozen base, from the task's declared-public history."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from pipelines.cli import settings_from

WEAK = 0.05  # of the loss of shuffled labels


@click.group()
def base() -> None:
    """Train and register the frozen base."""


@base.command()
@click.option("--epochs", default=2, show_default=True, help="Passes over the history.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def train(ctx: click.Context, epochs: int, as_json: bool) -> None:
    """Train on the task's public history, register the base and make it the stable version. Done once."""
    from assets.base import train_and_register
    from pipelines.opening import create_topics, opened

    settings = settings_from(ctx)
    with opened(settings, actor="command line") as workspace:
        create_topics(settings, workspace.log)
        body = train_and_register(workspace, epochs=epochs)
    if as_json:
        click.echo(json.dumps(body))
    else:
        click.echo(f"{body['version']}  {body['rows']} rows  clip {body['max_grad_norm']:.2f}  {body['path']}")
        if weak := weakness(body):
            click.echo(weak, err=True)


def weakness(body: Mapping[str, Any]) -> str | None:
    """What to know of a base that hardly does better than answers dealt out at random; None for one that does."""
    fit = body.get("fit")
    if fit is None or fit >= WEAK:
        return None
    return (f"this base knows little: its loss on history, {body['loss']:.4g}, is {fit:.1%} under that of shuffled labels "
            f"(< {WEAK:.0%}), so that turned labels will not be noticed. Train longer (--epochs), or look at encode and build")
