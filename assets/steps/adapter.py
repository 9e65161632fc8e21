"""Step `adapter`: is an update due, and if so train it: reserve privacy, read the examples, train, keep it in the vault.

The reservation is in the journal before any record is read, and a crash never gives it back: the charge stays, the
learning of those windows is lost, and both are said. What is trained is released by the next step, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from assets.lineage import Lineage
from assets.stream.clock import next_window, window_bounds, windows_between
from assets.stream.columns import columns_of, concatenated
from assets.stream.cut import find_cut
from assets.update_due import Due, Pending, update_due
from assets.workspace import Workspace
from models.config import UpdateConfig
from models.vault import write_vault
from monitoring.alarms import raise_alarm
from security.journal import Draft, unstamp
from security.privacy import BudgetExhausted, Ledger, Reservation

if TYPE_CHECKING:
    from models.training import Update

SKIPPED = "update.skipped"


def adapter(window: str, workspace: Workspace) -> Mapping[str, Any]:
    """The body of `update.trained`, `update.interrupted` or `update.skipped` for this window."""
    lineage = workspace.lineage()
    known = lineage.of_window(window) or workspace.body(SKIPPED, window)
    if known is not None:
        return known
    due = update_due(_pending(window, workspace, lineage), workspace.policies.update)
    if not due.windows:
        return _skip(window, workspace, due.reason)
    return _update(window, workspace, lineage, due)


def ledger_of(workspace: Workspace, window: str) -> Ledger | None:
    """The privacy ledger of the labels topic as the window's cut identifies it; None when privacy is off."""
    if not workspace.policies.privacy.enabled:
        return None
    decided = find_cut(workspace.history.refresh(), window)
    if decided is None:
        raise LookupError(f"window {window} is not cut: run the step `window` first")
    topic_id = decided.topics[workspace.topics.labels].topic_id
    return Ledger(workspace.journal, decided.cluster_id, topic_id, workspace.policies.privacy)


def _pending(window: str, workspace: Workspace, lineage: Lineage) -> list[Pending]:
    """Windows up to this one that no update has settled, oldest first."""
    grid = workspace.policies.window
    last = max(lineage.settled, default=None)
    waiting = []
    for name in windows_between(grid, next_window(grid, last), window):
        joined = workspace.body("examples.joined", name)
        waiting.append(Pending(name, *window_bounds(grid, name), examples=joined["examples"] if joined else 0))
    return waiting


def _skip(window: str, workspace: Workspace, reason: str) -> Mapping[str, Any]:
    body = {"window": window, "reason": reason}
    return workspace.history.once(SKIPPED, body, actor=workspace.actor, at=workspace.now()).body


def _update(window: str, workspace: Workspace, lineage: Lineage, due: Due) -> Mapping[str, Any]:
    from models.guard import UpdateInterrupted
    from models.training import train

    number = lineage.next_number()
    name = f"{workspace.task.name}/{number:06d}"
    about = {"update": name, "number": number, "window": window, "windows": list(due.windows), "parent": lineage.head}
    ledger = ledger_of(workspace, window)
    if ledger is not None and ledger.open_reservation(name) is not None:
        return _lost(workspace, ledger, about)
    try:
        reservation = _reserve(workspace, ledger, name, due, lineage)
    except BudgetExhausted as error:
        _alarm(workspace, "budget", window, str(error))
        return _skip(window, workspace, str(error))
    parts = [columns_of(workspace.examples(covered)) for covered in due.windows]
    policies = workspace.policies
    config = UpdateConfig(policies.adapter, policies.training, policies.guard, update_number=number - 1)
    try:
        update = train(
            workspace.task, workspace.base, workspace.vault(lineage.head), concatenated(parts), reservation, config, window
        )
    except UpdateInterrupted as error:
        _alarm(workspace, error.kind, window, str(error), error.figure, error.limit)
        figures = {"kind": error.kind, "figure": error.figure, "limit": error.limit, "message": str(error)}
        _close(workspace, ledger, name, str(error))
        return _append(workspace, "update.interrupted", about | figures)
    return _keep(workspace, ledger, reservation, update, about | {"reason": due.reason})


def _reserve(
    workspace: Workspace, ledger: Ledger | None, name: str, due: Due, lineage: Lineage
) -> Reservation | None:
    if ledger is None:
        return None
    joined = [workspace.body("examples.joined", covered) or {} for covered in due.windows]
    clip = workspace.policies.privacy.max_grad_norm
    return ledger.reserve(
        task=workspace.task.name,
        update=name,
        windows=due.windows,
        arrived=_arrival(joined),
        count=sum(body["examples"] for body in joined),
        max_grad_norm=lineage.registered_base()["max_grad_norm"] if clip == "auto" else clip,
        actor=workspace.actor,
        at=workspace.now(),
    )


def _arrival(bodies: Sequence[Mapping[str, Any]]) -> tuple[datetime, datetime]:
    """When the events arrived whose labels mature in these windows: bounds from the envelope, not from content."""
    return min(unstamp(body["arrived"][0]) for body in bodies), max(unstamp(body["arrived"][1]) for body in bodies)


def _keep(
    workspace: Workspace, ledger: Ledger | None, reservation: Reservation | None, update: Update, about: dict[str, Any]
) -> Mapping[str, Any]:
    path = f"{workspace.task.name}/vault/update-{about['number']:06d}.safetensors"
    sha256 = write_vault(workspace.store / path, update.tensors)
    report = update.report.as_dict()
    body = _append(workspace, "update.trained", about | {"vault": path, "vault_sha256": sha256, "report": report})
    if ledger is not None and reservation is not None:
        ledger.settle(
            reservation, steps=update.report.steps, artefact=sha256, actor=workspace.actor, at=workspace.now()
        )
    if update.report.blocked:
        change, limit = update.report.loss_change, workspace.policies.guard.max_loss_change
        _alarm(workspace, "loss_change", about["window"], update.report.finding or "", change, limit)
    return body


def _lost(workspace: Workspace, ledger: Ledger, about: dict[str, Any]) -> Mapping[str, Any]:
    """A reservation without a result: the process died while training. Nothing is trained twice on the same records."""
    message = (
        f"update {about['update']} was reserved and never finished: its {len(about['windows'])} windows stay charged "
        "and are not trained on; the next update goes on from the lineage head. See docs/alarms.md#budget"
    )
    ledger.crashed(about["update"], reason=message, actor=workspace.actor, at=workspace.now())
    _alarm(workspace, "budget", about["window"], message)
    figures = {"kind": "crash", "figure": None, "limit": None, "message": message}
    return _append(workspace, "update.interrupted", about | figures)


def _close(workspace: Workspace, ledger: Ledger | None, name: str, reason: str) -> None:
    if ledger is not None:
        ledger.crashed(name, reason=reason, actor=workspace.actor, at=workspace.now())


def _append(workspace: Workspace, kind: str, body: dict[str, Any]) -> Mapping[str, Any]:
    draft = Draft(f"lineage/{workspace.task.name}", kind, body, expected=workspace.lineage_length())
    return workspace.journal.append(draft, actor=workspace.actor, at=workspace.now()).body


def _alarm(
    workspace: Workspace, kind: str, window: str, message: str, figure: float | None = None, limit: float | None = None
) -> None:
    raise_alarm(
        workspace.journal, workspace.task.name, kind=kind, window=window, message=message, figure=figure, limit=limit,
        at=workspace.now(), actor=workspace.actor,
    )  # fmt: skip
