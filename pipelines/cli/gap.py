"""`headgate window accept-gap W`: let the chain of windows go on without records that the log has lost."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from pipelines.cli import settings_from

if TYPE_CHECKING:
    from assets.windows.gap import Gap
    from assets.workspace import Workspace


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
        left = _settle(workspace, gaps, reason, who)
    for gap in gaps:
        if as_json:
            shown = ("window", "topic", "partition", "start", "end", "resume_at", "reason", "actor")
            click.echo(json.dumps({name: getattr(gap, name) for name in shown}))
            continue
        lost = f"[{gap.start}, {gap.end}) accepted as lost, {gap.end - gap.start} offsets"
        then = "" if gap.resume_at is None else f"; the next cut begins at {gap.resume_at}"
        click.echo(f"window {gap.window}  {gap.topic} partition {gap.partition}: {lost}{then}")
    for lack in left:
        click.echo(f"the alarm stream_gap stays open: {lack}", err=True)


def _settle(workspace: Workspace, gaps: list[Gap], reason: str, actor: str) -> list[str]:
    """Acknowledge the alarms of windows that lack only what is accepted now; what the others still lack."""
    from monitoring.alarms import acknowledge, open_alarms

    journal, task, left = workspace.journal, workspace.task.name, []
    alarmed = {alarm.window for alarm in open_alarms(journal, task) if alarm.kind == "stream_gap"}
    for window in sorted(alarmed & {gap.window for gap in gaps}):
        if lacks := list(_lacks(workspace, window)):
            left += lacks
            continue
        why = f"gap accepted: {reason}"
        acknowledge(journal, task, kind="stream_gap", window=window, reason=why, at=workspace.now(), actor=actor)
    return left


def _lacks(workspace: Workspace, window: str) -> Iterator[str]:
    """What a window that is cut has lost and nobody accepted, a sentence for each place."""
    from assets.stream.log import gone
    from assets.windows.cut import find_cut
    from assets.windows.gap import accepted_gaps
    from assets.windows.proof import pieces

    if (decided := find_cut(workspace.history.refresh(), window)) is None:
        return
    accepted = accepted_gaps(workspace.history, window)
    for topic, ranges in decided.topics.items():
        bounds = workspace.log.bounds(topic, decided.end).partitions
        for part, span in ranges.partitions.items():
            here = (bounds[part].earliest, bounds[part].latest)
            for start, end, there in pieces(*span, tuple(accepted.get((topic, part), ()))):
                if there and (error := gone(topic, part, start, end, here)):
                    yield str(error)
