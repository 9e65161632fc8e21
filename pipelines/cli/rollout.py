"""`headgate rollout ...`: watch and steer a release, with the verbs of Argo Rollouts."""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli import rollout_checks, settings_from

if TYPE_CHECKING:
    from models.rollout import Rollout
    from pipelines.release_desk import ReleaseDesk

WATCH_SECONDS = 2.0


@click.group()
def rollout() -> None:
    """Watch and steer the release of a version."""


def _desk(ctx: click.Context) -> ReleaseDesk:
    from pipelines.journals import journal_and_task
    from pipelines.release_desk import ReleaseDesk

    settings = settings_from(ctx)
    journal, task = journal_and_task(settings)
    return ReleaseDesk(journal, task, settings.rollout, settings.window)


def _named(desk: ReleaseDesk, version: str | None) -> Rollout:
    board = desk.board()
    found = board.rollouts.get(version) if version else desk.newest(board)
    if found is None:
        known = ", ".join(sorted(board.rollouts)) or "none yet"
        raise click.ClickException(f"no rollout of {version or 'any version'}; known: {known}")
    return found


@rollout.command()
@click.argument("version", required=False)
@click.option("--watch", is_flag=True, help="Look again every 2 s until it has ended.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def status(ctx: click.Context, version: str | None, watch: bool, as_json: bool) -> None:
    """State, step and figures. Exit code: 0 promoted, 2 rolled back or rejected, 3 expired, 4 still running."""
    from pipelines.release_desk import EXIT_CODES, STILL_RUNNING

    desk = _desk(ctx)
    while True:
        board, one = desk.board(), _named(desk, version)
        figures = desk.verdicts(one, board).figures()
        if as_json:
            click.echo(json.dumps({"rollout": one.to_body(), "figures": figures, "stable": board.stable}))
        else:
            click.echo(
                f"{one.version}  {one.state.value}  weight {one.weight:.0%}  evidence {figures['promote_e']:.1f} of "
                f"{desk.policy.promote_threshold:.0f}  harm {figures['harm_e']:.1f} of {desk.policy.harm_threshold:.0f}  "
                f"blocks {figures['blocks']}  {one.reason}"
            )
        code = EXIT_CODES.get(one.state, STILL_RUNNING)
        if not watch or code != STILL_RUNNING:
            ctx.exit(code)
        time.sleep(WATCH_SECONDS)


@rollout.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """All rollouts, oldest first."""
    board = _desk(ctx).board()
    for one in sorted(board.rollouts.values(), key=lambda r: r.number):
        state = f"{one.state.value}{', PAUSED' if one.paused else ''}"
        line = f"{one.version}  {state:<12}  since {one.state_since:%Y-%m-%d %H:%M}  {one.reason}"
        click.echo(json.dumps(one.to_body()) if as_json else line)


@rollout.command()
@click.argument("version", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def history(ctx: click.Context, version: str | None, as_json: bool) -> None:
    """Every decision, with who, why and the figures."""
    desk = _desk(ctx)
    for entry in desk.journal.tail(streams=[f"rollout/{desk.task}", f"routing/{desk.task}"]):
        body = entry.body
        about = body.get("version") or body.get("rollout")
        if entry.kind == "rollout.stepped" or (version and about != version):
            continue
        if as_json:
            click.echo(json.dumps({"seq": entry.seq, "kind": entry.kind, "actor": entry.actor, "body": body}))
            continue
        move = f"{body['from']} -> {body['to']}" if entry.kind == "rollout.advanced" else entry.kind
        if entry.kind == "routing.set":
            move = f"routing epoch {body['epoch']}: stable {body['stable']}, canary {body['weight']:.0%}"
        clock = (body.get("clock") or "")[:16]
        click.echo(f"{clock}  {about or '-'}  {move}  {body.get('reason', '')}  ({entry.actor})")


@rollout.command()
@click.argument("version", required=False)
@click.pass_context
def explain(ctx: click.Context, version: str | None) -> None:
    """Why it is where it is, and what the next step waits for."""
    desk = _desk(ctx)
    click.echo(desk.explain(_named(desk, version), desk.board()))


@rollout.command()
@click.argument("log", type=click.Path(exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def rank(ctx: click.Context, log: str, as_json: bool) -> None:
    """Order versions without traffic by LOG, a Parquet file of decisions drawn with known probability. Writes nothing."""
    import pyarrow.parquet as pq

    desk = _desk(ctx)
    try:
        table = pq.read_table(log)
        found = desk.rank({name: table.column(name).to_numpy() for name in table.column_names})
    except ValueError as error:  # what is wrong with the file, by Arrow's word or by ours
        raise click.ClickException(f"{log}: {error}") from error
    stable = desk.board().stable
    for one in found:
        if as_json:
            click.echo(json.dumps(asdict(one)))
            continue
        figures = [f"{text} {e.value:.4g} ({e.low:.4g}, {e.high:.4g})" for text, e in
                   (("clipped SNIPS", one.snips), ("doubly robust", one.robust)) if e]  # fmt: skip
        figures.append(f"effective sample {one.effective:.0f}" if figures else f"no figure: {one.refusal}")
        click.echo(f"{one.name}{' (stable)' if one.name == stable else ''}  {'  '.join(figures)}")
    click.echo("an order to try them in, which is no evidence: nothing was written", err=True)


def _verb(name: str, text: str, *, full: bool = False) -> None:
    """A command for one verb; all take a version, a reason and who is asking."""

    def run(ctx: click.Context, version: str, reason: str, actor: str | None, as_json: bool, **more: Any) -> None:
        from assets.steps.rollout import sentence

        decisions = _desk(ctx).act(name, version, actor=actor or getpass.getuser(), reason=reason, **more)  # type: ignore[arg-type]
        if as_json:
            click.echo(json.dumps([{"kind": decision.kind, "body": decision.body} for decision in decisions]))
        for decision in () if as_json else decisions:
            click.echo(sentence(decision))
        if not decisions:
            click.echo(f"{version} is so already: nothing was written", err=True)

    command: Callable[..., Any] = click.pass_context(run)
    options = [
        click.argument("version"),
        click.option("--reason", required=True, help="Goes into the journal."),
        click.option("--actor", default=None, help="Who is asking. [default: the system's user]"),
        click.option("--json", "as_json", is_flag=True, help="The entries as JSON."),
    ]
    if full:
        options.append(click.option("--full", is_flag=True, help="Straight to 100 %."))
    for option in reversed(options):
        command = option(command)
    rollout.command(name, help=text)(command)


_verb("promote", "Skip what is left of the current step (never a proven harm).", full=True)
_verb("abort", "Weight 0 at once; descendants are withdrawn.")
_verb("pause", "Go no further until resumed; guardrails and the harm test work on.")
_verb("resume", "Take back a pause.")
_verb("approve", "Consent as a second person.")

for _check in (rollout_checks.lint, rollout_checks.simulate, rollout_checks.verify):
    rollout.add_command(_check)
