"""`headgate dashboard`: serve the operations page of the task, or write it to a file. It only turns settings into one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.cli import settings_from

if TYPE_CHECKING:
    from monitoring.dashboard.server import Subject
    from pipelines.settings import Settings


@click.command()
@click.option("--export", "target", type=click.Path(path_type=Path, dir_okay=False), default=None,
              help="Write the page to this file instead of serving it.")  # fmt: skip
@click.option("--host", default=None, help="Loopback address instead of [dashboard] host.")
@click.option("--port", type=int, default=None, help="Port instead of [dashboard] port; 0 = a free one.")
@click.option("--json", "as_json", is_flag=True, help="Print the address, or the file, as one JSON object.")
@click.pass_context
def dashboard(ctx: click.Context, target: Path | None, host: str | None, port: int | None, as_json: bool) -> None:
    """Serve the operations page on this machine until Ctrl-C or SIGTERM; it reads the journal and changes nothing."""
    from monitoring.dashboard.server import Dashboard, serve

    settings = settings_from(ctx)
    if target is not None:
        _export(settings, target)
        click.echo(json.dumps({"file": str(target)}) if as_json else str(target))
        return
    about = subject(settings)
    made = Dashboard(settings.journal.url, about, host=host or settings.dashboard.host)

    def say(url: str) -> None:
        click.echo(json.dumps({"url": url}) if as_json else f"the page of {about.task} is on {url}")

    serve(made, settings.dashboard.port if port is None else port, say)


def subject(settings: Settings) -> Subject:
    """What the page is about, from the settings. Raises TaskError."""
    from models.task import load_task
    from monitoring.dashboard.server import Subject

    window = settings.window
    return Subject(load_task(settings.task).name, settings.rollout, window.start, window.clock)


def _export(settings: Settings, target: Path) -> None:
    """Written beside the target and renamed: a page that is open in a browser is never half a page."""
    from datetime import UTC, datetime

    from monitoring.dashboard.server import export
    from security.journal import Journal

    text = export(Journal(settings.journal.url), subject(settings), datetime.now(UTC))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(text)
    partial.replace(target)
