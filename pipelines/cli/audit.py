"""`headgate privacy audit`: attack the private step as it trains, and planted defects that must not go unnoticed."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from pipelines.cli import settings_from

if TYPE_CHECKING:
    from models.audit.subject import Subject
    from models.audit.tiers import Audit


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def audit(ctx: click.Context, as_json: bool) -> None:
    """Attack the private training step. Exit code 1 when the claim does not hold or a planted defect is missed.

    Audits the configured task's network and adapter on its public history; without settings, a small task of the house.
    """
    from models.audit.tiers import audit as run

    found = run(_subject(ctx), said=lambda words: click.echo(words, err=True))
    if as_json:
        click.echo(json.dumps(found.as_dict()))
    else:
        for line in _lines(found):
            click.echo(line)
    sys.exit(1 if found.faults else 0)


def _subject(ctx: click.Context) -> Subject:
    from models.audit import subject as audit_subject
    from models.task import load_task
    from pipelines.settings import settings_file

    if ctx.find_root().obj is None and not settings_file().exists():
        click.echo("no settings file: a small task of the house is audited", err=True)
        return audit_subject.small_subject()
    settings = settings_from(ctx)
    task = load_task(settings.task)
    history = getattr(task, "history", None)
    if history is None:
        click.echo(f"task {task.name} has no public history(): a small task of the house is audited instead", err=True)
        return audit_subject.small_subject()
    return audit_subject.subject_of(task, settings.adapter, history())


def _lines(found: Audit) -> list[str]:
    def verdict(good: bool, bad: str) -> str:
        return "ok" if good else bad

    wrong = [f"FAULT  {fault}" for fault in found.faults]
    return [
        f"audited       the private step on task {found.subject!r}",
        f"claim         mu = {found.claim:.3f}  (one step, noise multiplier 0.5, worst neighbours)",
        f"lower bound   mu > {found.lower_bound:.3f}  (wrong with probability 1e-6)",
        f"whole update  epsilon {found.job.claim} claimed, > {found.job.lower_bound:.2f} proved by {found.job.right} of "
        f"{found.job.guesses} right guesses",
        *(f"  {verdict(check.passed, 'BROKEN'):<7}{check.name}" for check in found.checks),
        f"planted defects caught: {sum(m.caught for m in found.mutants)} of {len(found.mutants)}",
        *(f"  {verdict(m.caught, 'MISSED'):<7}{m.name}  (tier {m.tier}: {m.figure:.3g})" for m in found.mutants),
        *(wrong or ["passed"]),
    ]
