"""`headgate window accept-gap W`: let the chain of windows go on without records that the log has lost."""

from __future__ import annotations

import getpass
import json

import click

from pipelines.cli import settings_from


@click.command("accept-gap")
@click.argument("window_name", metavar="WINDOW")
@click.option("--topic", required=True, help="The topic that lacks records.")
@click.option("--partition", required=True, type=int, help="Its partition.")
@click.option("--reason", required=True, help="Goes into the journal.")
@click.option("--actor", default=None, help="Who. [default: the system's user]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def accept_gap(
    ctx: click.Context, window_name: str, topic: str, partition: int, reason: str, actor: str | None, as_json: bool
) -> None:
    """Accept that WINDOW is sealed without records that the log has lost (retention, deletion, truncation).

    Only what is really gone is accepted. It cannot be taken back: bring the records back first, if there is a copy.
    """
    from assets.windows.acceptance import accept_gap as accept
    from pipelines.opening import opened

    who = actor or getpass.getuser()
    with opened(settings_from(ctx), actor=who) as workspace:
        gaps = accept(
            workspace.history, workspace.log, workspace.store, window_name, topic, partition, reason=reason,
            now=workspace.now(), actor=who,
        )  # fmt: skip
    for gap in gaps:
        if as_json:
            shown = ("window", "topic", "partition", "start", "end", "resume_at", "reason", "actor")
            click.echo(json.dumps({name: getattr(gap, name) for name in shown}))
            continue
        lost = f"[{gap.start}, {gap.end}) accepted as lost, {gap.end - gap.start} offsets"
        then = "" if gap.resume_at is None else f"; the next cut begins at {gap.resume_at}"
        click.echo(f"window {gap.window}  {gap.topic} partition {gap.partition}: {lost}{then}")
