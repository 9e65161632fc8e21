"""`headgate run-window W`, `worker`, `window list|show|verify|admit|accept-gap`: run windows and look at sealed ones."""

from __future__ import annotations

import getpass
import json
import logging
import signal
import threading

import click

from pipelines.cli import settings_from
from pipelines.cli.gap import accept_gap


@click.command("run-window")
@click.argument("window")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def run_window(ctx: click.Context, window: str, as_json: bool) -> None:
    """Run every step of WINDOW (its UTC start, e.g. 2026-01-01T08:00Z). What has been done is not done again."""
    from assets.windows.clock import window_bounds
    from pipelines.opening import opened
    from pipelines.run_window import run_window as run

    settings = settings_from(ctx)
    try:
        window_bounds(settings.window, window)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    with opened(settings, actor="command line") as workspace:
        result = run(window, workspace, on_step=lambda name: click.echo(f"{window}  {name}", err=True))
    if as_json:
        click.echo(json.dumps({"window": window, "steps": dict(result.steps), "seconds": dict(result.seconds)}, default=str))
    else:
        click.echo(f"{window}  done in {sum(result.seconds.values()):.1f} CPU s")


@click.command()
@click.option("--once", is_flag=True, help="Stop when no window is due. Exit code 1 when one is that cannot be run now.")
@click.option("--servers", default=None, help="Event log instead of [stream] bootstrap_servers.")
@click.pass_context
def worker(ctx: click.Context, once: bool, servers: str | None) -> None:
    """Run due windows as they come, in this process, until it is told to stop."""
    from pipelines.opening import opened
    from pipelines.worker import work

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    settings = settings_from(ctx, **({"stream": {"bootstrap_servers": servers}} if servers else {}))
    with opened(settings, actor="worker") as workspace:
        shift = work(workspace, stop, until_idle=once, on_window=lambda r: click.echo(f"{r.window} done", err=True))
    click.echo(f"{shift.done} windows")
    if shift.waits:
        raise click.ClickException(shift.waits)


@click.group()
def window() -> None:
    """List, show and verify sealed windows; let in one that was held back; go on without lost records."""


@window.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """One line a sealed window: rows by topic, rejects, examples, label coverage."""
    from pipelines.journals import journal_and_task

    journal, task = journal_and_task(settings_from(ctx))
    bodies = [entry for entry in journal.read(f"window/{task}") if entry.kind in ("window.sealed", "examples.joined")]
    joined = {entry.body["window"]: entry.body for entry in bodies if entry.kind == "examples.joined"}
    for entry in bodies:
        if entry.kind != "window.sealed":
            continue
        sealed, examples = entry.body, joined.get(entry.body["window"], {})
        row = {
            "window": sealed["window"], "rows": sealed["rows"], "rejects": sealed["rejects"],
            "examples": examples.get("examples"), "coverage": examples.get("coverage"),
        }  # fmt: skip
        if as_json:
            click.echo(json.dumps(row))
        else:
            rows = "  ".join(f"{topic} {count}" for topic, count in sealed["rows"].items())
            coverage = "-" if row["coverage"] is None else f"{row['coverage']:.1%}"
            click.echo(f"{row['window']}  {rows}  rejects {row['rejects']}  examples {row['examples']}  coverage {coverage}")


@window.command()
@click.argument("window_name", metavar="WINDOW")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def show(ctx: click.Context, window_name: str, as_json: bool) -> None:
    """Everything the journal says of WINDOW: offset ranges, files with hashes, rejects, examples, evidence, drift."""
    from pipelines.journals import journal_and_task

    journal, task = journal_and_task(settings_from(ctx))
    found = {
        entry.kind: entry.body
        for room in ("cut", "window")
        for entry in journal.read(f"{room}/{task}")
        if entry.body.get("window") == window_name
    }
    if not found:
        raise click.ClickException(f"the journal knows no window {window_name}; `headgate window list` names those it knows")
    if as_json:
        click.echo(json.dumps(found))
        return
    from pipelines.cli.window_text import lines

    for line in lines(found):
        click.echo(line)


@window.command()
@click.argument("window_name", metavar="WINDOW")
@click.option("--deep", is_flag=True, help="Decode every record again, and compare it with the row in the file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def verify(ctx: click.Context, window_name: str, deep: bool, as_json: bool) -> None:
    """Compare WINDOW's files with the journal, and the journal with Kafka as it is now. Exit code 1 when they differ."""
    from dataclasses import asdict

    from assets.windows.verify import verify as compare
    from pipelines.opening import opened

    with opened(settings_from(ctx), actor="command line") as workspace:
        found = compare(
            workspace.history, workspace.log, workspace.store, window_name, workspace.formats(), deep=deep
        )
    for each in found:
        click.echo(json.dumps(asdict(each)) if as_json else f"{each.state:<8} {each.place}: {each.detail}")
    states = {each.state for each in found}
    if "differs" in states:
        raise click.ClickException(f"window {window_name} is not what was sealed; see docs/window.md#what-voids-it")
    if "unreachable" in states:
        raise click.ClickException(f"window {window_name}: the files are as sealed, the log did not answer")
    if not as_json:
        rest = "what is left of the log is as sealed, and the files" if "gone" in states else "as sealed"
        click.echo(f"window {window_name}: {rest}")


@window.command()
@click.argument("window_name", metavar="WINDOW")
@click.option("--reason", required=True, help="Goes into the journal.")
@click.option("--actor", default=None, help="Who. [default: the system's user]")
@click.pass_context
def admit(ctx: click.Context, window_name: str, reason: str, actor: str | None) -> None:
    """Let updates learn from WINDOW, which was held back because it looks planted. From it on, it is what is usual.

    It cannot be taken back; `headgate privacy retire` still keeps updates from it. Acknowledges its alarm.
    """
    from assets.screening import NotHeldBack
    from assets.screening import admit as let_in
    from pipelines.opening import opened

    who = actor or getpass.getuser()
    with opened(settings_from(ctx), actor=who) as workspace:
        try:
            let_in(workspace, window_name, reason=reason, actor=who)
        except (NotHeldBack, ValueError) as error:
            raise click.ClickException(str(error)) from error
    click.echo(f"window {window_name} is admitted: the next update that is due learns from it")


window.add_command(accept_gap)
