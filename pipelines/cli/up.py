"""`headgate up`: broker, worker, gateway and dashboard on this machine, each a process of its own, ended together."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from pipelines.cli import settings_from

PROCESSES = ("worker", "gateway", "dashboard")
GRACE_SECONDS = 20.0  # the gateway drains its recorder when it is told to stop


@click.command()
@click.pass_context
def up(ctx: click.Context) -> None:
    """Start everything this installation needs, and stop it with Ctrl-C. Exit code 1 when a part ends by itself."""
    from pipelines.broker import open_log
    from pipelines.opening import create_topics

    settings = settings_from(ctx)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with ExitStack() as parts:
        log, broker, servers = open_log(settings.stream.bootstrap_servers, Path("var/broker"))
        if broker is not None:
            parts.callback(broker.stop)
        create_topics(settings, log)
        log.close()
        click.echo(f"event log: {servers}", err=True)
        running = [_start(name, ctx) for name in PROCESSES]
        parts.callback(_end, running)
        click.echo(f"dashboard: http://{settings.dashboard.host}:{settings.dashboard.port}", err=True)
        click.echo(f"gateway:   http://{settings.gateway.host}:{settings.gateway.port}", err=True)
        while not stop.wait(0.5):
            ended = [name for name, process in zip(PROCESSES, running, strict=True) if process.poll() is not None]
            if ended:
                click.echo(f"{', '.join(ended)} ended by itself: stopping the rest", err=True)
                break
    ctx.exit(0 if stop.is_set() else 1)


def _start(name: str, ctx: click.Context) -> subprocess.Popen[bytes]:
    config = ctx.find_root().obj
    chosen = ["--config", str(config)] if config else []
    # A session of its own: Ctrl-C in the terminal reaches only us, and we end the parts in order.
    return subprocess.Popen([sys.executable, "-m", "pipelines.cli", *chosen, name], start_new_session=True)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
