"""Is a window fit to be learnt from? Looked at once, before any update covers it, and journalled with its figures.

A window that looks planted is held back as a whole, whatever it is worth: nothing is reserved or charged for it. A person
who has looked lets it in (`headgate window admit`), and what is usual is told from that window on. What looks planted is
decided in `models/poisoning.py`; it knows neither ledger nor lineage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from assets.windows.columns import columns_of
from assets.windows.golden import learnable
from assets.windows.history import History
from assets.workspace import Workspace
from models import poisoning
from models.poisoning import Figures, Range
from models.task import Columns
from monitoring.alarms import acknowledge, open_alarms, raise_alarm
from security.journal import Conflict, Entry

SCREENED, ADMITTED = "window.screened", "window.admitted"


class NotHeldBack(Exception):
    """There is nothing to admit; the message says what is known of the window."""


def screen(window: str, workspace: Workspace) -> Mapping[str, Any]:
    """The body of `window.screened`: the figures, what was found, and whether the window waits for a person."""
    known = workspace.body(SCREENED, window)
    if known is None:
        limits = workspace.policies.poisoning
        now, earlier = _figures(window, workspace), _earlier(workspace.history, window)
        found = poisoning.judge(now, earlier, limits, window)
        body = {"window": window, **asdict(now), "findings": [asdict(one) for one in found],
                "held_back": bool(found) and limits.quarantine}
        known = workspace.history.once(SCREENED, body, actor=workspace.actor, at=workspace.now()).body
    if known["findings"] and not workspace.finished(window):  # the process may have died between the entry and its alarm
        _alarm(workspace, known)
    return known


def held_back(history: History, window: str) -> bool:
    """Whether the window waits for a person, as of the history's last refresh."""
    entry = history.find(SCREENED, window)
    return entry is not None and entry.body["held_back"] and history.find(ADMITTED, window) is None


def admitted(history: History) -> list[str]:
    """Windows that somebody let in, oldest first, as of the history's last refresh."""
    return history.windows(ADMITTED)


def admit(workspace: Workspace, window: str, *, reason: str, actor: str) -> Entry:
    """Let a window in that was held back, and acknowledge its alarm. Raises NotHeldBack, ValueError without a reason."""
    if not reason.strip():
        raise ValueError("reason '': say why the window is admitted, it stays in the journal")
    while True:
        if not held_back(workspace.history.refresh(), window):
            known = workspace.history.find(ADMITTED, window)
            why = f"{known.actor} admitted it: {known.body['reason']}" if known else "no update was kept from it"
            raise NotHeldBack(f"window {window} is not held back, {why}; `headgate alarm list` names those that are")
        at = workspace.now()
        try:
            entry = workspace.history.extend(ADMITTED, {"window": window, "reason": reason}, actor=actor, at=at)
        except Conflict:
            continue
        if any((one.kind, one.window) == ("poisoning", window) for one in open_alarms(workspace.journal, workspace.task.name)):
            acknowledge(workspace.journal, workspace.task.name, kind="poisoning", window=window, reason=f"admitted: {reason}",
                        at=at, actor=actor)
        return entry


def ranges(workspace: Workspace) -> dict[str, Range]:
    """By column, what a record may say and count: what the task declares in `ranges`, else that of its public history, widened
    where it is no class.

    {} for a base that was registered without.
    """
    base = workspace.lineage().registered_base()
    taken, classes = base.get("ranges", {}), base.get("classes", ())
    declared: Mapping[str, Range] = getattr(workspace.task, "ranges", {})
    return {**poisoning.widened(taken, workspace.policies.poisoning.range_margin, classes), **declared}


def _figures(window: str, workspace: Workspace) -> Figures:
    columns = columns_of(learnable(workspace.examples(window)))
    null, worst = _null(columns, ranges(workspace))
    kept = {name: column[~null] for name, column in columns.items()}
    records = len(null)
    if records == int(null.sum()):
        return Figures(records, records, worst, None, None, {}, {}, None)
    from models.label_fit import label_fit

    task = workspace.task
    loss, fit = label_fit(workspace.predictor(workspace.lineage().registered_base()["version"]), kept)
    return Figures(
        records, int(null.sum()), worst, loss, fit, poisoning.class_shares(np.asarray(task.target(kept))),
        poisoning.value_shares(kept, task.event.names),
        None if task.subject is None else poisoning.largest_share(kept[task.subject]),
    )  # fmt: skip


def _null(columns: Columns, allowed: Mapping[str, Range]) -> tuple[np.ndarray, str | None]:
    """Which records count as null, and the column that most of them are null by."""
    beyond = poisoning.outside(columns, allowed)
    counts = {name: int(one.sum()) for name, one in beyond.items()}
    worst = max(counts, key=counts.__getitem__, default=None)
    null = poisoning.any_of(beyond, len(next(iter(columns.values()))))
    return null, worst if worst is not None and counts[worst] else None


def _earlier(history: History, window: str) -> list[Figures]:
    """Figures of the windows before this one that were not held back, from the newest admitted one on."""
    newest = max((one for one in admitted(history.refresh()) if one < window), default="")
    names = [one for one in history.windows(SCREENED) if newest <= one < window and not held_back(history, one)]
    entries = [history.find(SCREENED, one) for one in names[-poisoning.RECENT :]]
    return [Figures.of(entry.body) for entry in entries if entry is not None]


def _alarm(workspace: Workspace, body: Mapping[str, Any]) -> None:
    """One alarm for all that was found; figure and limit are those of the first."""
    first = body["findings"][0]
    raise_alarm(
        workspace.journal, workspace.task.name, kind="poisoning", window=body["window"],
        message=" Also: ".join(one["message"] for one in body["findings"]), figure=first["figure"], limit=first["limit"],
        at=workspace.now(), actor=workspace.actor,
    )  # fmt: skip
