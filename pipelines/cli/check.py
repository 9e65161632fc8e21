"""`headgate check`: does a task keep what every step relies on? Rule by rule, before anything runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli import settings_from

if TYPE_CHECKING:
    from pipelines.settings import Settings

WIDTH = 118


@click.command()
@click.argument("task", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def check(ctx: click.Context, task: str | None, as_json: bool) -> None:
    """Try TASK ("package.module:Class"; without it the configured one) on its public rows. Exit code 1 when a rule fails.

    Needs no broker, no keys and no journal; with a journal, golden sets are judged by what the newest version has flipped.
    """
    from assets import schema_rules
    from models import adapter_rules, task_rules
    from models.conformance import Case, run
    from models.task import load_task

    settings = _settings(ctx, task)
    loaded = load_task(task or settings.task)
    columns, source = schema_rules.rows_of(loaded)
    stream = settings.stream
    case = Case(
        loaded, columns, source, settings.adapter, settings.retention, settings.privacy.enabled,
        settings.privacy.label_derived_public, _measured(settings, loaded.name),
        tuple(side for side, kind in (("event", stream.events_format), ("label", stream.labels_format)) if kind == "json"),
        rollout=settings.rollout,
    )  # fmt: skip
    found = run(case, [*task_rules.RULES, *schema_rules.RULES, *adapter_rules.RULES])
    failed = sum(outcome.state == "FAIL" for outcome in found)
    if as_json:
        rules = [{"rule": outcome.rule, "state": outcome.state, "text": outcome.text} for outcome in found]
        click.echo(json.dumps({"task": loaded.name, "rows": source, "failed": failed, "rules": rules}))
    else:
        click.echo(f"task {loaded.name}, tried on {source}")
        for outcome in found:
            begin = f"{outcome.state:<6}{outcome.rule:<26}"
            click.echo(click.wrap_text(outcome.text, WIDTH, begin, " " * len(begin)))
        click.echo(f"{failed} of {len(found)} rules fail" if failed else f"{len(found)} rules hold")
    sys.exit(1 if failed else 0)


def _settings(ctx: click.Context, task: str | None) -> Settings:
    """Those of the installation; the defaults where there is none and a task is named."""
    from pipelines.settings import make_settings, settings_file

    if task and ctx.find_root().obj is None and not settings_file().exists():
        return make_settings({"task": task})
    return settings_from(ctx)


def _measured(settings: Settings, task: str) -> Mapping[str, Mapping[str, Any]]:
    """What the newest version of the task kept of each regime; {} without a journal."""
    from models.retention import newest
    from pipelines.journals import NoJournal, existing_journal
    from pipelines.reading import read_lineage
    from security.journal import JournalUnreachable

    try:
        return newest(read_lineage(existing_journal(settings), task).versions)
    except (NoJournal, JournalUnreachable):
        return {}
