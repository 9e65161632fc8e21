"""`headgate controller`: the release controller as a process, with MLflow's aliases carried behind it.

It turns settings into a `Controller` and an `Outbox` and waits for a signal; it knows no rule of a release.
"""

from __future__ import annotations

import json
import signal
import threading
from typing import TYPE_CHECKING

import click

from pipelines.cli import settings_from

if TYPE_CHECKING:
    from models.rollout import Decision
    from pipelines.effects import Outbox
    from pipelines.settings import Settings
    from security.journal import Journal

AWAY_SECONDS = 5.0


@click.command()
@click.option("--once", is_flag=True, help="One look, and MLflow brought up to date, then end.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a decision.")
@click.pass_context
def controller(ctx: click.Context, once: bool, as_json: bool) -> None:
    """Look at live requests and releases every second, stop and step them, until Ctrl-C or SIGTERM.

    Any number may run: of two that decide at once one is written. Without the journal it waits and goes on.
    """
    import logging

    from models.task import load_task
    from pipelines.controller import Controller, control
    from pipelines.effects import deliver

    settings = settings_from(ctx)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    task = load_task(settings.task).name
    journal = _journal(settings, stop, patient=not once)
    if journal is None:
        return
    desk, outbox = Controller(journal, task, settings.rollout, settings.window), _outbox(settings, journal, task)
    if once:
        _tell(desk.look(), as_json)
        if outbox is not None:
            outbox.apply()
        return
    if outbox is not None:  # a thread of its own: decisions wait for nobody
        threading.Thread(target=deliver, args=(outbox, stop), name="effects", daemon=True).start()
    click.echo(f"watching the releases of {task}", err=True)
    control(desk, stop, lambda decisions: _tell(decisions, as_json))


def _journal(settings: Settings, stop: threading.Event, *, patient: bool) -> Journal | None:
    """The journal, waited for when its database does not answer; None when told to stop meanwhile."""
    from pipelines.journals import existing_journal
    from security.journal import JournalUnreachable

    while True:
        try:
            return existing_journal(settings)
        except JournalUnreachable as error:
            if not patient:
                raise
            click.echo(f"waiting for the journal: {error}", err=True)
        if stop.wait(AWAY_SECONDS):
            return None


def _outbox(settings: Settings, journal: Journal, task: str) -> Outbox | None:
    if not settings.tracking.mlflow_url:
        return None
    from monitoring.tracking import Tracker
    from pipelines.effects import Outbox

    return Outbox(journal, task, Tracker(settings.tracking.mlflow_url).show_releases)


def _tell(decisions: list[Decision], as_json: bool) -> None:
    from assets.steps.rollout import sentence

    for decision in decisions:
        click.echo(json.dumps({"kind": decision.kind, "body": decision.body}) if as_json else sentence(decision))
