"""Step `adapter`: is an update due, and if so train it: reserve privacy, read the examples, train, keep it in the vault.

The reservation is in the journal before training reads a record, and a crash never gives it back: the next process goes on
where the first one stopped, or the learning of those windows is lost, and that is said. What is trained is released by the
next step, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from assets import training_lease
from assets.lineage import Lineage, entry_told
from assets.running_update import begun, forget, taken_up
from assets.screening import admitted, held_back, ranges, screen
from assets.update_due import Due, Pending, update_due
from assets.windows.clock import NotDue, next_window, window_bounds, windows_between
from assets.windows.columns import columns_of, concatenated
from assets.windows.cut import find_cut
from assets.windows.golden import learnable, learnable_count
from assets.windows.history import CUT
from assets.workspace import Workspace
from models.config import UpdateConfig
from models.poisoning import null_records
from models.progress import Progress, ProgressLost
from models.vault import write_vault
from monitoring.alarms import raise_alarm
from security.journal import Conflict, Draft, stamp, unstamp
from security.keys import secret
from security.privacy import BudgetExhausted, Charge, Ledger, Reservation
from security.subjects import Accounts
from security.subjects import admitted as within_account

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
    screened = screen(window, workspace)
    ledger = ledger_of(workspace, window)
    due = update_due(_pending(window, workspace, lineage, ledger), workspace.policies.update)
    if not due.windows:
        return _skip(window, workspace, due.reason + ("; the window is held back" if screened["held_back"] else ""))
    return _update(Job(workspace, ledger, lineage, length, window, due))


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

    @property
    def config(self) -> UpdateConfig:
        """How it is trained."""
        policies, number = self.workspace.policies, self.lineage.next_number() - 1
        return UpdateConfig(policies.adapter, policies.training, policies.guard, update_number=number)

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
    ledger = _ledger(workspace, window)
    if ledger is None:
        raise LookupError(f"window {window} is not cut: run the step `window` first")
    return ledger


def _ledger_about(workspace: Workspace, window: str, update: str) -> Ledger | None:
    """The ledger, also where privacy was turned off after it had charged this update: its number and its windows are spent."""
    if workspace.policies.privacy.enabled:
        return ledger_of(workspace, window)
    ledger = _ledger(workspace, window)
    return ledger if ledger is not None and any(charge.update == update for charge in ledger.charges()) else None


def _ledger(workspace: Workspace, window: str) -> Ledger | None:
    """The same whether privacy is on or off; None before the window is cut."""
    decided = find_cut(workspace.history.refresh(), window)
    if decided is None:
        return None
    policy, topic = replace(workspace.policies.privacy, enabled=True), decided.topics[workspace.topics.labels]
    return Ledger(workspace.journal, decided.cluster_id, topic.topic_id, policy)


def _pending(window: str, workspace: Workspace, lineage: Lineage, ledger: Ledger | None) -> list[Pending]:
    """Windows up to this one that no update has settled, nobody has retired and nothing holds back, oldest first.

    One that updates have passed by, and somebody let in since, waits from now on: its age must not make a small update due.
    """
    grid, history = workspace.policies.window, workspace.history.refresh()
    retired = ledger.retired(workspace.task.name) if ledger is not None else frozenset()
    last = max(lineage.settled, default=None)
    ahead = windows_between(grid, next_window(grid, last), window)
    passed = [name for name in admitted(history) if last and ahead and name <= last and name not in lineage.settled]
    waiting = []
    for name in (*passed, *ahead):
        if name in retired or held_back(history, name):
            continue
        joined = workspace.body("examples.joined", name)
        bounds = window_bounds(grid, max(name, ahead[0]))
        waiting.append(Pending(name, *bounds, examples=learnable_count(joined) if joined else 0))
    return waiting


def _skip(window: str, workspace: Workspace, reason: str) -> Mapping[str, Any]:
    body = {"window": window, "reason": reason}
    return workspace.history.once(SKIPPED, body, actor=workspace.actor, at=workspace.now()).body


def _update(job: Job) -> Mapping[str, Any]:
    from models.training import check

    workspace = job.workspace
    charge = replace(job, ledger=job.ledger or _ledger_about(workspace, job.window, job.name)).charge()
    if charge is not None:
        return _go_on(job, job.ledger, charge) if job.ledger else _lost(job, charge, "privacy was turned off since")
    _check_tested(workspace, job.due.windows)
    base, parent = workspace.base, workspace.parent(job.lineage.head)  # what can be refused is refused before it costs
    check(workspace.task, base, job.config, private=job.ledger is not None)
    with training_lease.hold(workspace, job.name, locked=job.ledger is not None):
        try:
            reservation, keep = _reserve(job)
        except BudgetExhausted as error:
            if job.charge() is not None:
                reason = f"update {job.name} was reserved by another process in this moment: leave it to that one"
                raise Conflict(reason) from error
            _alarm(workspace, "budget", job.window, str(error))
            return _skip(job.window, workspace, str(error))
        if keep is not None and not any(keep):
            reason = f"no example is left for update {job.name}: the accounts of all its subjects are full"
            _alarm(workspace, "budget", job.window, reason)
            return _skip(job.window, workspace, reason)
        if reservation is None:
            return _train(job, base, parent, None, None)
        return _train(job, base, parent, reservation, begun(workspace, job.lineage, reservation, job.config, keep))


def _go_on(job: Job, ledger: Ledger, charge: Charge) -> Mapping[str, Any]:
    """A reservation without a result: where nobody is training it any more, its process died and this one takes its place."""
    workspace = job.workspace
    training_lease.refuse_held(workspace, job.name)
    with training_lease.hold(workspace, job.name, locked=True) as name:
        training_lease.refuse_held(workspace, job.name, but=name)
        base = workspace.base  # first: where the store is away this raises, and no update is lost
        try:
            reservation, progress = taken_up(workspace, job.lineage, ledger, job.name, job.config)
            parent = workspace.parent(job.lineage.head)
            progress.again()
            # the windows that were reserved: the settings may have changed since, and with them what is due
            reserved = Due(charge.windows, f"reserved at {stamp(charge.at)}, attempt {progress.attempts}")
            return _train(replace(job, due=reserved), base, parent, reservation, progress)
        except ProgressLost as error:
            return _lost(job, charge, str(error))


def _train(
    job: Job, base: bytes, parent: dict[str, Any] | None, reservation: Reservation | None, progress: Progress | None
) -> Mapping[str, Any]:
    from models.guard import UpdateInterrupted
    from models.training import train

    workspace, due = job.workspace, job.due
    columns = concatenated([columns_of(learnable(workspace.examples(covered))) for covered in due.windows])
    if progress is not None and progress.kept is not None:
        columns = {name: column[progress.kept] for name, column in columns.items()}
    earlier = [told["report"] for told in job.lineage.updates.values() if told["kind"] == "update.trained"]
    try:
        update = train(
            workspace.task, base, parent, columns, reservation, job.config, job.window, earlier=earlier, progress=progress,
            null=null_records(columns, ranges(workspace)),
        )
    except UpdateInterrupted as error:
        if progress is not None:
            progress.end()  # killed before the entry, it is lost: the guard's end is not tried again
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


def _reserve(job: Job) -> tuple[Reservation | None, list[bool] | None]:
    """The reservation, and which examples it is for; None for all of them."""
    if job.ledger is None:
        return None, None
    joined = {covered: job.workspace.body("examples.joined", covered) or {} for covered in job.due.windows}
    if job.workspace.task.subject is None:
        return _charge(job, job.ledger, joined, sum(map(learnable_count, joined.values())), None), None
    return _charge_subjects(job, job.ledger, joined, job.workspace.task.subject)


def _charge_subjects(
    job: Job, ledger: Ledger, joined: Mapping[str, Mapping[str, Any]], subject: str
) -> tuple[Reservation | None, list[bool]]:
    """Charge the accounts first, then the windows. Reads no column but the subject, in the order of arrival."""
    workspace, privacy = job.workspace, job.workspace.policies.privacy
    path = workspace.store / "accounts" / f"{ledger.stream.replace('/', '-')}.bin"
    accounts = Accounts(path, secret(workspace.keys, "vault"))
    found = [value for window in joined for value in learnable(workspace.examples(window)).column(subject).to_pylist()]
    with accounts.locked():
        table = accounts.load(ledger.accounts(), {charge.update for charge in ledger.charges()})
        keep, table = within_account(
            table, job.name, [accounts.name(value) for value in found], privacy.law(),
            most=privacy.max_per_subject, epsilon=privacy.subject_epsilon, delta=privacy.target_delta,
        )  # fmt: skip
        if not any(keep):
            return None, keep
        return _charge(job, ledger, joined, sum(keep), accounts.save(table)), keep


def _charge(
    job: Job, ledger: Ledger, joined: Mapping[str, Mapping[str, Any]], count: int, accounts: str | None
) -> Reservation:
    workspace, clip = job.workspace, job.workspace.policies.privacy.max_grad_norm
    return ledger.reserve(
        task=workspace.task.name,
        update=job.name,
        windows=job.due.windows,
        arrived=_arrival(list(joined.values())),
        count=count,
        max_grad_norm=job.lineage.registered_base()["max_grad_norm"] if clip == "auto" else clip,
        actor=workspace.actor,
        at=workspace.now(),
        facts={covered: _facts(workspace, covered, body) for covered, body in joined.items()},
        accounts=accounts,
    )


def _facts(workspace: Workspace, window: str, joined: Mapping[str, Any]) -> dict[str, Any]:
    """What anybody may know of a window: how many examples, when their events arrived, and which cut it comes from."""
    cut = workspace.history.refresh().find(CUT, window)
    return {"count": learnable_count(joined), "arrived": joined["arrived"], "cut": cut.hash if cut is not None else None}


def _arrival(bodies: Sequence[Mapping[str, Any]]) -> tuple[datetime, datetime]:
    """When the events arrived whose labels mature in these windows: bounds from the envelope, not from content."""
    return min(unstamp(body["arrived"][0]) for body in bodies), max(unstamp(body["arrived"][1]) for body in bodies)


def _lost(job: Job, charge: Charge, why: str) -> Mapping[str, Any]:
    """A reservation without a result that nobody can go on with. Nothing is trained twice on the same records."""
    message = (
        f"update {job.name} was reserved and never finished, and cannot be gone on with: {why}. Its {len(charge.windows)} "
        "windows stay charged and are not trained on; the next update goes on from the lineage head. See docs/alarms.md#budget"
    )
    return job.append("update.interrupted", charge.windows, kind=CRASH, figure=None, limit=None, message=message)


def _conclude(workspace: Workspace, told: Mapping[str, Any]) -> None:
    """What follows from an update's entry, and can be repeated: its charge is closed, its alarm raised.

    The entry comes first. It is compared with the lineage, so of two processes one decides what became of the update.
    """
    ledger = _ledger_about(workspace, told["window"], told["update"])
    reservation = ledger.open_reservation(told["update"]) if ledger is not None else None
    trained, actor, now = told["kind"] == "update.trained", workspace.actor, workspace.now()
    if ledger is not None and reservation is not None and trained and told["report"]["epsilon"] is not None:
        steps = told["report"]["steps"] + told["report"].get("lost_steps", 0)  # those in flight when a process died are spent
        ledger.settle(reservation, steps=steps, artefact=told["vault_sha256"], actor=actor, at=now)
    elif ledger is not None and reservation is not None:
        # the ledger is for outsiders: the kind of end, and not the message, which has figures of private records
        ledger.crashed(told["update"], reason=str(told["cause"] or "trained without privacy"), actor=actor, at=now)
    if ledger is not None:
        forget(workspace, told["update"])
    if not trained:
        kind = "budget" if told["cause"] == CRASH else told["cause"]
        _alarm(workspace, kind, told["window"], told["message"], told["figure"], told["limit"])
    for found in told["report"].get("findings", ()) if trained else ():
        _alarm(workspace, found["kind"], told["window"], found["message"], found["figure"], found["limit"])


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
