"""`headgate demo`: the whole loop on a summer of flights, from an empty folder to a promoted and a refused version."""

from __future__ import annotations

import json
import logging
import signal
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import click

STORY_FAILED = 2


@click.command()
@click.option("--fast", is_flag=True, help="Fewer requests, no reports, no MLflow; the same days and rows.")
@click.option("--keep", is_flag=True, help="Leave broker, gateway and dashboard up until Ctrl-C.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("var/demo"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print summary.json instead of the totals.")
@click.pass_context
def demo(ctx: click.Context, fast: bool, keep: bool, folder: Path, as_json: bool) -> None:
    """Run it. Exit code 0: nothing lost or doubled and the story happened; 2: the output says what did not."""
    from pipelines.demo.run import Demo, clean
    from pipelines.demo.screen import Screen
    from pipelines.settings import silence_telemetry

    silence_telemetry()
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # what matters of it comes as errors of our own
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a plain kill leaves nothing running either
    clean(folder)
    screen = Screen()
    with ExitStack() as parts:
        run = Demo(folder, fast, screen)
        found = run.play(parts)
        totals(found, as_json)
        if keep:
            screen.say(f"dashboard: {run.dashboard(parts)}\neverything stays up until Ctrl-C")
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
    ctx.exit(STORY_FAILED if found["faults"] else 0)


def totals(found: dict[str, Any], as_json: bool) -> None:
    """The summary, as JSON or as lines."""
    if as_json:
        click.echo(json.dumps(found))
        return
    for key, value in found.items():
        click.echo(f"{key:<18} {json.dumps(value) if isinstance(value, list | dict) else value}")
