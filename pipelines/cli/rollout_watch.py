"""How `headgate rollout status` shows a rollout: a line, a page of the terminal that is drawn over itself, or JSON.

It only draws: what is shown comes from `pipelines.rollout_view`.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from models.duration import spell
from models.rollout_state import TRAFFIC, State

if TYPE_CHECKING:
    from pipelines.rollout_view import Picture, View
    from security.journal import Entry

WATCH_SECONDS = 1.0
BAR = 24
HOME, CLEAR_LINE, CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # a screen of its own without a cursor, and back


def show(view: View, version: str | None, *, watch: bool, as_json: bool) -> int:
    """Print the rollout, with `watch` until it has ended; the exit code of its state."""
    from pipelines.release_desk import EXIT_CODES, STILL_RUNNING
    from pipelines.rollout_view import as_json as told

    drawn = watch and not as_json and sys.stdout.isatty()
    said = ""
    try:
        if drawn:
            click.echo(ENTER, nl=False)
        while True:
            found = view.picture(view.board().named(version))
            version = found.rollout.version  # the one that was watched first, whatever comes after it
            text = json.dumps(told(found)) if as_json else line(found)
            if drawn:
                width = shutil.get_terminal_size().columns
                page = "".join(f"{row[:width]}{CLEAR_LINE}\n" for row in lines(found))
                click.echo(f"{HOME}{page}{CLEAR_BELOW}", nl=False)
            elif text != said:
                click.echo(text)
            said, code = text, EXIT_CODES.get(found.rollout.state, STILL_RUNNING)
            if not watch or code != STILL_RUNNING:
                break
            time.sleep(WATCH_SECONDS)
    finally:
        if drawn:
            click.echo(LEAVE, nl=False)
    if drawn or not (as_json or watch):
        for row in lines(found)[0 if drawn else 1 :]:
            click.echo(row)
    return code


def line(found: Picture) -> str:
    """The rollout in one line."""
    one, figures, policy = found.rollout, found.verdicts, found.policy
    return (
        f"{one.version}  {one.state.value}{', PAUSED' if one.paused else ''}  weight {one.weight:.0%}  evidence "
        f"{figures.promote_e:.1f} of {policy.promote_limit(one.test):.0f}  harm {figures.harm_e:.1f} of "
        f"{policy.harm_threshold:.0f}  blocks {figures.blocks}  {one.reason}"
    )


def lines(found: Picture) -> list[str]:
    """The rollout as a page, from its line to the last decisions."""
    one, figures, policy = found.rollout, found.verdicts, found.policy
    spent = timedelta(seconds=max(0, round((found.now - one.state_since).total_seconds())))
    page = [line(found), "", f"  {ladder(found)}   for {spell(spent)}, against {one.against}", ""]
    page += [bar("evidence", figures.promote_e, policy.promote_limit(one.test))]
    if policy.evidence == "outcome":
        page += [bar("outcome", figures.outcome_e, policy.promote_limit(one.test))]
        page += [bar("its harm", figures.outcome_harm_e, policy.harm_threshold)]
    page += [bar("harm", figures.harm_e, policy.harm_threshold)]
    page += [bar(f"slice {name}", harm, policy.harm_threshold) for name, _, harm, _ in figures.slices]
    if one.state in TRAFFIC:
        page += [bar("errors", figures.errors_e, policy.guard_threshold), bar("slow", figures.slow_e, policy.guard_threshold)]
        page += [f"  {'requests':<10} {figures.requests:,} in this step, {figures.canary_requests:,} to the canary"]
    page += ["", *_served(found)]
    page += [f"  {'HELD' if each.hold else 'waits'} ({each.name}): {each.text}" for each in found.unmet]
    page += ["", *(f"  {_told(entry)}" for entry in found.recent)]
    return page


def ladder(found: Picture) -> str:
    """The steps with the one it is at in brackets; those before are behind it."""
    one, policy = found.rollout, found.policy
    names = ["shadow", *(f"{step:g} %" for step in policy.steps[1:] if not isinstance(step, str)), "baked"]
    places = {State.SHADOW: 0, State.BAKING: len(names) - 1, State.PROMOTED: len(names)}
    if one.state in (State.CANARY, State.PROMOTING):
        places[one.state] = one.step + 1
    at = places.get(one.state)
    if at is None:
        return f"[{one.state.value}]  " + " - ".join(names)
    shown = [f"{name} ok" if k < at else f"[{name}]" if k == at else name for k, name in enumerate(names)]
    return " - ".join(shown)


def bar(name: str, figure: float, limit: float) -> str:
    """Evidence on its own scale, the logarithm: full at the limit, empty at 1 or below."""
    share = 0.0 if not figure > 1.0 else min(1.0, math.log(figure) / math.log(limit)) if math.isfinite(figure) else 1.0
    full = int(share * BAR)
    return f"  {name:<10} [{'#' * full}{'.' * (BAR - full)}] {figure:.2f} of {limit:.0f}"


def _served(found: Picture) -> list[str]:
    """Who serves which routing epoch."""
    epochs: dict[int, list[str]] = {}
    for replica in found.replicas:
        epochs.setdefault(replica.epoch, []).append(replica.replica)
    if not epochs:
        return [f"  epoch {found.epoch}: no replica is alive, nobody serves it"]
    rows = []
    for epoch, names in sorted(epochs.items(), reverse=True):
        late = "" if epoch >= found.epoch else f"   LAGS behind epoch {found.epoch}"
        weight = f", {found.rollout.weight:.0%} to the canary" if epoch == found.epoch == found.rollout.epoch else ""
        count = f"{len(names)} replica{'' if len(names) == 1 else 's'}"
        rows.append(f"  epoch {epoch}: {count}{weight}{late}: {', '.join(names)}")
    return rows


def _told(entry: Entry) -> str:
    body, what = entry.body, entry.kind.removeprefix("rollout.")
    if "from" in body:
        share = f" at {body['weight']:.0%}" if body["to"] == State.CANARY else ""
        what = f"{body['from']} -> {body['to']}{share}"
    elif entry.kind == "rollout.held" and not body["holds"]:
        what = "released"
    why = "; ".join(body.get("reasons", ())) or body.get("reason", "")
    return f"{body['clock'][:16].replace('T', ' ')}  {what}{': ' if why else ''}{why} ({entry.actor})"
