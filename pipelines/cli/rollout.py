"""`headgate rollout ...`: watch and steer a release, with the verbs of Argo Rollouts."""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

import click

from pipelines.cli import rollout_checks, settings_from
from pipelines.verbs import VERBS

if TYPE_CHECKING:
    from models.rollout import Decision
    from pipelines.release_desk import ReleaseDesk
    from security.tokens import Claims


@click.group()
def rollout() -> None:
    """Watch and steer the release of a version."""


def _desk(ctx: click.Context) -> ReleaseDesk:
    from pipelines.journals import journal_and_task
    from pipelines.release_desk import ReleaseDesk

    settings = settings_from(ctx)
    journal, task = journal_and_task(settings)
    return ReleaseDesk(journal, task, settings.rollout, settings.window)


@rollout.command()
@click.argument("version", required=False)
@click.option("--watch", is_flag=True, help="Look again every second until it has ended; drawn in place on a terminal.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; with --watch one whenever something changed.")
@click.pass_context
def status(ctx: click.Context, version: str | None, watch: bool, as_json: bool) -> None:
    """State, step and figures; --watch until it has ended or is on its way back.

    Exit code: 0 promoted, 2 rolled back, rejected or withdrawn, 3 expired or superseded, 4 still running, 1 an error.
    """
    from pipelines.cli.rollout_watch import show
    from pipelines.journals import journal_and_task
    from pipelines.rollout_view import View

    settings = settings_from(ctx)
    journal, task = journal_and_task(settings)
    ctx.exit(show(View(journal, task, settings.rollout, settings.window), version, watch=watch, as_json=as_json))


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
    if version:
        desk.board().named(version)
    for entry in desk.history(version):
        body = entry.body
        about = body.get("version") or body.get("rollout")
        if as_json:
            click.echo(json.dumps({"seq": entry.seq, "kind": entry.kind, "actor": entry.actor, "body": body}))
            continue
        move = f"{body['from']} -> {body['to']}" if entry.kind == "rollout.advanced" else entry.kind
        if entry.kind == "routing.set":
            move = f"routing epoch {body['epoch']}: stable {body['stable']}, canary {body['weight']:.0%}"
        why = body.get("reason") or "; ".join(body.get("reasons", ())) or body.get("digest", "")
        clock = (body.get("clock") or "")[:16]
        click.echo(f"{clock}  {about or '-'}  {move}  {why}  ({entry.actor})")


@rollout.command()
@click.argument("version", required=False)
@click.pass_context
def explain(ctx: click.Context, version: str | None) -> None:
    """Why it is where it is, and what the next step waits for."""
    desk = _desk(ctx)
    board = desk.board()
    click.echo(desk.explain(board.named(version), board))


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


def _tell(decisions: list[Decision], version: str, as_json: bool) -> None:
    """The entries a verb made, in words or as JSON."""
    from assets.steps.rollout import sentence

    if as_json:
        click.echo(json.dumps([{"kind": decision.kind, "body": decision.body} for decision in decisions]))
    for decision in () if as_json else decisions:
        click.echo(sentence(decision))
    if not decisions:
        click.echo(f"{version}: nothing to change, nothing was written", err=True)


def _verb(name: str, text: str, *more_options: Callable[..., Any], named: bool = True) -> None:
    """A command for one verb; all take a version, a reason and who is asking."""

    def run(ctx: click.Context, version: str | None, reason: str, actor: str | None, as_json: bool, **more: Any) -> None:
        _tell(_desk(ctx).act(name, version, actor=actor or getpass.getuser(), reason=reason, **more), version or "it", as_json)

    command: Callable[..., Any] = click.pass_context(run)
    options = [
        click.argument("version", required=named),
        click.option("--reason", required=True, help="Goes into the journal."),
        click.option("--actor", default=None, help="Who is asking. [default: the system's user]"),
        click.option("--json", "as_json", is_flag=True, help="The entries as JSON."),
        *more_options,
    ]
    for option in reversed(options):
        command = option(command)
    rollout.command(name, help=text)(command)


OPTIONS = {
    "full": click.option("--full", is_flag=True, help="Straight to 100 %."),
    "to_version": click.option("--to-version", default=None, help="An earlier stable version. [default: the one before]"),
}
for _name, _said in VERBS.items():
    if _name != "approve":  # which may take a token
        _verb(_name, _said.text, *(OPTIONS[option] for option in _said.options), named=_name != "undo")


@rollout.command()
@click.argument("version")
@click.option("--reason", required=True, help="Goes into the journal.")
@click.option("--actor", default=None, help="Who consents, where no proof is wanted. [default: the system's user]")
@click.option("--token-file", type=click.File(), help='The approver\'s one-time token, "-" = standard input; it says who.')
@click.option("--json", "as_json", is_flag=True, help="The entries as JSON.")
@click.pass_context
def approve(
    ctx: click.Context, version: str, reason: str, actor: str | None, token_file: TextIO | None, as_json: bool
) -> None:
    """Consent as a second person. With approval = "two-person" only a token of `headgate token issue` counts."""
    desk, token = _desk(ctx), None
    if token_file is not None:
        if actor is not None:
            raise click.UsageError("--actor and --token-file: leave --actor out, the token says who approves")
        token = _approver(ctx, token_file.read(16384).strip())
        actor = token.subject
    _tell(desk.act("approve", version, actor=actor or getpass.getuser(), reason=reason, token=token), version, as_json)


def _approver(ctx: click.Context, text: str) -> Claims:
    """Who holds this token, if it may approve. Raises TokenRefused."""
    from pathlib import Path

    from security.keys import key_id, public_key
    from security.tokens import APPROVE, Verifier

    settings = settings_from(ctx)
    key = public_key(Path(settings.keys.directory), "token")
    verifier = Verifier({key_id(key): key}, settings.gateway.issuer, settings.gateway.audience)
    return verifier.verify(f"Bearer {text}", APPROVE, time.time())



@rollout.command()
@click.option("--errors", type=float, default=0.5, show_default=True, help="Share of the canary's answers that fail.")
@click.option("--rate", type=click.FloatRange(1.0), default=100.0, show_default=True, help="Requests a second.")
@click.option("--seconds", type=click.FloatRange(1.0), default=60.0, show_default=True, help="Give up after so long.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def drill(ctx: click.Context, errors: float, rate: float, seconds: float, yes: bool, as_json: bool) -> None:
    """A fire drill: make the canary fail on a replica of its own, and time the rollback. It is rolled back for real.

    Exit code 0 when its traffic was gone in time, 1 when nobody stopped it.
    """
    from models.task import load_task
    from pipelines.drill import drill
    from pipelines.journals import journal_and_task

    if not yes:
        click.confirm("The canary will be rolled back, and versions trained from it withdrawn. Go on?", abort=True, err=True)
    settings = settings_from(ctx)
    journal, _ = journal_and_task(settings)
    click.echo("starting a replica that fails on purpose ...", err=True)
    found = drill(
        settings, load_task(settings.task), journal, share=errors, rate=rate, limit=seconds,
        tell=lambda text: click.echo(text, err=as_json),
    )
    if as_json:
        click.echo(json.dumps(asdict(found)))
    if found.silent is None:
        waits = "`headgate controller` stops a canary between windows: does it run?"
        text = f"{found.version} still has its traffic after {seconds:g} s and {found.failed} failed answers"
        click.echo(f"{text}. {waits}", err=True)
    ctx.exit(0 if found.silent is not None else 1)


for _check in (rollout_checks.lint, rollout_checks.simulate, rollout_checks.verify):
    rollout.add_command(_check)
