"""Step `adapter`: is an update due, and if so train it: reserve privacy, read the examples, train, keep it in the vault.

The reservation is in the journal before any record is read, and a crash never gives it back: the charge stays, the
learning of those windows is lost, and both are said. What is trained is released by the next step, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from assets import training_lease
from assets.lineage import Lineage, entry_told
from assets.update_due import Due, Pending, update_due
from assets.windows.clock import NotDue, next_window, window_bounds, windows_between
from assets.windows.columns import columns_of, concatenated
from assets.windows.cut import find_cut
from assets.workspace import Workspace
from models.config import UpdateConfig
from models.vault import write_vault
from monitoring.alarms import raise_alarm
from security.journal import Conflict, Draft, unstamp
from security.privacy import BudgetExhausted, Charge, Ledger, Reservation

SKIPPED = "update.skipped"
CRASH = "crash"


def adapter(window: str, workspace: Workspace) -> Mapping[str, Any]:
    """The body of `update.trained`, `update.interrupted` or `update.skipped` for this window.

    Raises NotDue before every covered window is evidence, Conflict when another process makes the same update.
    """
    lineage, length = workspace.lineage(), workspace.lineage_length()
    known = lineage.of_window(window)
    if known is not None:
        if not workspace.finished(window):  # the process may have died right after this entry
            _conclude(workspace, known)
        return _as_journalled(known)
    skipped = workspace.body(SKIPPED, window)
    if skipped is not None:
        return skipped
    due = update_due(_pending(window, workspace, lineage), workspace.policies.update)
    if not due.windows:
        return _skip(window, workspace, due.reason)
    return _update(Job(workspace, ledger_of(workspace, window), lineage, length, window, due))


@dataclass(frozen=True)
class Job:
    """One update to make: `lineage` as it was read once, and its `length`, with which every entry of it is compared."""

    workspace: Workspace
    ledger: Ledger | None
    lineage: Lineage
    length: int
    window: str
    due: Due

    @property
    def name(self) -> str:
        """The id of the update."""
        return f"{self.workspace.task.name}/{self.lineage.next_number():06d}"

    def charge(self) -> Charge | None:
        """What the ledger has on this update already, whatever became of it."""
        charges = self.ledger.charges() if self.ledger is not None else []
        return next((charge for charge in charges if charge.update == self.name), None)

    def append(self, kind: str, windows: Sequence[str], /, **more: Any) -> Mapping[str, Any]:
        """Journal what became of the update. Raises Conflict when the lineage has moved since it was read."""
        about = {"update": self.name, "number": self.lineage.next_number(), "window": self.window}
        body = {**about, "windows": list(windows), "parent": self.lineage.head, **more}
        draft = Draft(f"lineage/{self.workspace.task.name}", kind, body, expected=self.length)
        entry = self.workspace.journal.append(draft, actor=self.workspace.actor, at=self.workspace.now())
        _conclude(self.workspace, entry_told(entry))
        return entry.body


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


def _update(job: Job) -> Mapping[str, Any]:
    workspace = job.workspace
    if (charge := job.charge()) is not None:
        if training_lease.held(workspace, job.name):
            raise NotDue(f"update {job.name} is being trained by another process: its result, or its end, is awaited")
        return _lost(job, charge)
    _check_tested(workspace, job.due.windows)
    base, parent = workspace.base, workspace.parent(job.lineage.head)  # what can be refused is refused before it costs
    with training_lease.hold(workspace, job.name):
        try:
            reservation = _reserve(job)
        except BudgetExhausted as error:
            if job.charge() is not None:
                reason = f"update {job.name} was reserved by another process in this moment: leave it to that one"
                raise Conflict(reason) from error
            _alarm(workspace, "budget", job.window, str(error))
            return _skip(job.window, workspace, str(error))
        return _train(job, base, parent, reservation)


def _train(
    job: Job, base: bytes, parent: dict[str, Any] | None, reservation: Reservation | None
) -> Mapping[str, Any]:
    from models.guard import UpdateInterrupted
    from models.training import train

    workspace, due = job.workspace, job.due
    parts = [columns_of(workspace.examples(covered)) for covered in due.windows]
    policies = workspace.policies
    rates = job.lineage.next_number() - 1
    config = UpdateConfig(policies.adapter, policies.training, policies.guard, update_number=rates)
    try:
        update = train(workspace.task, base, parent, concatenated(parts), reservation, config, job.window)
    except UpdateInterrupted as error:
        figures = {"kind": error.kind, "figure": error.figure, "limit": error.limit, "message": str(error)}
        return job.append("update.interrupted", due.windows, **figures)
    report = update.report.as_dict()
    # The content is in the name: a second process that trains the same update must not write over this one's file.
    path = f"{workspace.task.name}/vault/update-{job.name[-6:]}-{update.report.adapter_digest[:8]}.safetensors"
    sha256 = write_vault(workspace.store / path, update.tensors)
    return job.append(
        "update.trained", due.windows, reason=due.reason, vault=path, vault_sha256=sha256, report=report
    )


def _check_tested(workspace: Workspace, windows: Sequence[str]) -> None:
    """Test, then train: a window that judged no version yet trains none."""
    for window in windows:
        if workspace.body("evidence.scored", window) is None:
            raise NotDue(f"the update waits for the evidence of window {window}: run its step `evidence` first")


def _reserve(job: Job) -> Reservation | None:
    if job.ledger is None:
        return None
    workspace = job.workspace
    joined = [workspace.body("examples.joined", covered) or {} for covered in job.due.windows]
    clip = workspace.policies.privacy.max_grad_norm
    return job.ledger.reserve(
        task=workspace.task.name,
        update=job.name,
        windows=job.due.windows,
        arrived=_arrival(joined),
        count=sum(body["examples"] for body in joined),
        max_grad_norm=job.lineage.registered_base()["max_grad_norm"] if clip == "auto" else clip,
        actor=workspace.actor,
        at=workspace.now(),
    )


def _arrival(bodies: Sequence[Mapping[str, Any]]) -> tuple[datetime, datetime]:
    """When the events arrived whose labels mature in these windows: bounds from the envelope, not from content."""
    return min(unstamp(body["arrived"][0]) for body in bodies), max(unstamp(body["arrived"][1]) for body in bodies)


def _lost(job: Job, charge: Charge) -> Mapping[str, Any]:
    """A reservation without a result: the process died while training. Nothing is trained twice on the same records."""
    message = (
        f"update {job.name} was reserved and never finished: its {len(charge.windows)} windows stay charged "
        "and are not trained on; the next update goes on from the lineage head. See docs/alarms.md#budget"
    )
    # the windows that were reserved: the settings may have changed since, and with them what is due
    return job.append("update.interrupted", charge.windows, kind=CRASH, figure=None, limit=None, message=message)


def _conclude(workspace: Workspace, told: Mapping[str, Any]) -> None:
    """What follows from an update's entry, and can be repeated: its charge is closed, its alarm raised.

    The entry comes first. It is compared with the lineage, so of two processes one decides what became of the update.
    """
    ledger = ledger_of(workspace, told["window"])
    reservation = ledger.open_reservation(told["update"]) if ledger is not None else None
    trained, actor, now = told["kind"] == "update.trained", workspace.actor, workspace.now()
    if ledger is not None and reservation is not None and trained:
        ledger.settle(
            reservation, steps=told["report"]["steps"], artefact=told["vault_sha256"], actor=actor, at=now
        )
    elif ledger is not None and reservation is not None:
        ledger.crashed(told["update"], reason=told["message"], actor=actor, at=now)
    if not trained:
        kind = "budget" if told["cause"] == CRASH else told["cause"]
        _alarm(workspace, kind, told["window"], told["message"], told["figure"], told["limit"])
    elif told["report"]["blocked"]:
        report, limit = told["report"], workspace.policies.guard.max_loss_change
        _alarm(workspace, "loss_change", told["window"], report["finding"] or "", report["loss_change"], limit)


def _as_journalled(told: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body of the entry: a repeated step answers as the first one did."""
    body = {key: value for key, value in told.items() if key not in ("kind", "cause")}
    return body if told["cause"] is None else body | {"kind": told["cause"]}


def _alarm(
    workspace: Workspace, kind: str, window: str, message: str, figure: float | None = None, limit: float | None = None
) -> None:
    raise_alarm(
        workspace.journal, workspace.task.name, kind=kind, window=window, message=message, figure=figure, limit=limit,
        at=workspace.now(), actor=workspace.actor,
    )  # fmt: skip
