"""`headgate up`: all parts on this machine, broker included, each a process of its own, ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from pipelines.cli import settings_from

GRACE_SECONDS = 20.0  # the gateway drains its recorder when it is told to stop


@click.command()
@click.pass_context
def up(ctx: click.Context) -> None:
    """Start everything this installation needs, and stop it with Ctrl-C. Exit code 1 when a part ends by itself."""
    from monitoring.verdict import lint
    from pipelines.journals import journal_and_task
    from pipelines.opening import create_topics, open_stream
    from pipelines.reading import read_lineage

    settings = settings_from(ctx)
    journal, task = journal_and_task(settings)
    read_lineage(journal, task).registered_base()  # without one every window would fail
    journal.close()
    for warning in lint(settings.rollout):
        click.echo(f"the release policy: {warning}", err=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with ExitStack() as parts:
        log, broker, servers = open_stream(settings)
        if broker is not None:
            parts.callback(broker.stop)
        create_topics(settings, log)
        log.close()
        # All parts are told the same log: one that looked for itself could start a second broker when this one is gone.
        told = ["--servers", servers]
        commands: dict[str, list[str]] = {"worker": told, "gateway": told, "controller": [], "dashboard": []}
        running: dict[str, subprocess.Popen[bytes]] = {}
        parts.callback(_end, running)
        for name, words in commands.items():
            running[name] = _start([name, *words], ctx.find_root().obj)
        click.echo(f"event log: {servers}", err=True)
        click.echo(f"gateway:   http://{settings.gateway.host}:{settings.gateway.port}", err=True)
        click.echo(f"dashboard: http://{settings.dashboard.host}:{settings.dashboard.port}", err=True)
        while not stop.wait(0.5):
            ended = [name for name, process in running.items() if process.poll() is not None]
            if ended:
                click.echo(f"{', '.join(ended)} ended by itself: stopping the rest", err=True)
                break
    ctx.exit(0 if stop.is_set() else 1)


def _start(words: Sequence[str], config: Path | None) -> subprocess.Popen[bytes]:
    """One part, behind the watcher that ends it when we are gone, kill -9 included."""
    from pipelines import broker_watch

    watcher = [sys.executable, "-I", "-S", broker_watch.__file__, str(os.getpid())]
    chosen = ["--config", str(config)] if config else []
    # A session of its own: Ctrl-C in the terminal reaches only us, and we end the parts in order.
    return subprocess.Popen([*watcher, sys.executable, "-m", "pipelines.cli", *chosen, *words], start_new_session=True)


def _end(running: dict[str, subprocess.Popen[bytes]]) -> None:
    for process in running.values():
        if process.poll() is None:
            process.terminate()
    for process in running.values():
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
