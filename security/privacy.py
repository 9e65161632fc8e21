"""The privacy ledger: who may train on which labelled events, written down before any of them is read.

One journal stream for each labels topic, whatever the task. `reserve` and `meter` are one compare-and-set append each;
a window is sealed or metered by its first reservation. Epsilon is derived from the entries, never stored. A charge is
never given back: neither after a crash nor for steps that were not taken (stopping early on private data is a choice
that the accounting of fewer steps does not cover).

It knows nothing of tensors and samplers; the caller draws what the Reservation says. What may be entered is decided in
`budget.py`, what the entries hold is in `ledger_entries.py`, what they mean in `charges.py`. With privacy off no ledger
exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from security import budget
from security.accounting import Law, noise_multiplier
from security.charges import Books, Charge, LedgerError, Refusal, apply_checked
from security.journal import Conflict, Draft, Journal, Projection
from security.ledger_entries import policy_body, release_body, reserve_body
from security.reservation import SPARE_STEPS, PrivacyPolicy, Reservation, check_mechanism, check_request
from security.statement import NOT_COVERED, UNIT, Figures, exported, largest, statement

__all__ = [
    "NOT_COVERED",
    "SPARE_STEPS",
    "UNIT",
    "BudgetExhausted",
    "Charge",
    "Ledger",
    "LedgerError",
    "PrivacyPolicy",
    "Refusal",
    "Reservation",
    "noise_multiplier",
]

ATTEMPTS = 50


class BudgetExhausted(Exception):
    """A reservation was refused; the refusal is in the journal and no record was read."""

    def __init__(self, message: str, refusal: Refusal) -> None:
        super().__init__(message)
        self.refusal = refusal


class Ledger:
    """The ledger of one labels topic, as every task and every process sees it."""

    def __init__(self, journal: Journal, cluster_id: str, labels_topic_id: str, policy: PrivacyPolicy) -> None:
        if not policy.enabled:
            raise ValueError("privacy is off: an update without privacy has no ledger; see [privacy] enabled")
        self.stream = f"privacy/{cluster_id}/{labels_topic_id}"
        self.policy = policy
        self._journal = journal
        self._books = Projection(journal, self.stream, Books(), apply_checked)

    def reserve(
        self,
        *,
        task: str,
        update: str,
        windows: Sequence[str],
        arrived: tuple[datetime, datetime],
        count: int,
        max_grad_norm: float,
        actor: str,
        at: datetime,
        facts: Mapping[str, Mapping[str, Any]] | None = None,
        accounts: str | None = None,
    ) -> Reservation:
        """Seal the windows: charge them for one update, planned by the policy, before any of their records is read.

        `arrived` is the interval [start, end) in which the windows' events arrived, `count` the public number of
        examples, `facts` what a WINDOW entry shall say of each window (public figures only), `accounts` the digest of the
        subject accounts, written already (`subjects.py`). Raises BudgetExhausted (and
        journals REFUSE) when a window is retired or charged, an overlapping arrival of another task is charged, or delta
        > 1 / events over the ledger's life; ValueError for arguments without sense.
        """
        check_request(windows, arrived, count, max_grad_norm)
        law = self.policy.law()
        charge = Charge(
            task, update, tuple(windows), arrived, count, law, max_grad_norm, at, spare=SPARE_STEPS, accounts=accounts
        )
        return self._enter(charge, facts or {}, actor)

    def meter(
        self,
        *,
        task: str,
        update: str,
        windows: Sequence[str],
        arrived: tuple[datetime, datetime],
        count: int,
        max_grad_norm: float,
        noise_multiplier: float,
        actor: str,
        at: datetime,
        steps: int = 1,
        m_max: int = 1,
        facts: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Reservation:
        """Charge the windows for `steps` full-batch Gaussian steps, in which one event has at most `m_max` records.

        As often as the Gaussian filter has room: noise and steps may depend on every result so far. Raises as `reserve`.
        """
        check_request(windows, arrived, count, max_grad_norm)
        check_mechanism(noise_multiplier, steps, m_max)
        law = Law(1.0, noise_multiplier, steps, m_max)
        charge = Charge(task, update, tuple(windows), arrived, count, law, max_grad_norm, at, metered=True)
        return self._enter(charge, facts or {}, actor)

    def settle(self, reservation: Reservation, *, steps: int, artefact: str, actor: str, at: datetime) -> None:
        """COMMIT: `steps` noisy steps were taken and gave `artefact`. The charge stays that of the reservation.

        Settling the same outcome twice changes nothing. Raises LedgerError for a reservation that is not open, and,
        after writing the entry, for more steps than reserved: the overrun is charged and nothing may be released.
        """
        body = {"update": reservation.update, "steps": steps, "artefact": artefact}
        charge = self._close("COMMIT", body, actor, at)
        if charge.overrun or steps > charge.law.steps:
            raise LedgerError(
                f"update {reservation.update} took {steps} noisy steps, reserved {reservation.reserved}: the overrun is "
                f"charged, artefact {artefact} exceeds the promise and must not be released"
            )

    def crashed(self, update: str, *, reason: str, actor: str, at: datetime) -> None:
        """CRASH: the update will not be finished; its full charge stays and it is no longer open.

        `reason` leaves the house with the ledger: say what kind of end it was, and no figure of a private record.
        """
        self._close("CRASH", {"update": update, "reason": reason}, actor, at)

    def release(
        self, *, version: str, artefact: str, updates: Sequence[str], parent: str | None, actor: str, at: datetime
    ) -> Mapping[str, Any]:
        """RELEASE: the version with the manifest digest `artefact` is about to be published; the entry's body.

        updates: every update it descends from, its own last; `parent`: the version it was trained from. The entry says
        what an event of any of them has spent, and which of them nobody charged. Raises LedgerError for one that is not
        committed, or took more steps than reserved. The same version again writes nothing.
        """
        for _ in range(ATTEMPTS):
            books = self._books.refresh()
            body = release_body(books, self.policy, version, artefact, updates, parent)
            if (known := books.releases.get(version)) is not None and known["artefact"] == artefact:
                return known
            try:
                self._journal.append(Draft(self.stream, "RELEASE", body, self._books.length), actor=actor, at=at)
            except Conflict:
                continue
            return body
        raise self._crowded(f"{version} was released")

    def retire(self, *, task: str, window: str, reason: str, actor: str, at: datetime) -> bool:
        """RETIRE: no reservation of `task` touches the window any more; False when it was retired before.

        What was charged stays charged. It cannot be taken back.
        """
        if not reason.strip():
            raise ValueError("reason '': say why the window is retired, it stays in the ledger")
        for _ in range(ATTEMPTS):
            if (task, window) in self._books.refresh().retired:
                return False
            body = {"task": task, "window": window, "reason": reason}
            try:
                self._journal.append(Draft(self.stream, "RETIRE", body, self._books.length), actor=actor, at=at)
            except Conflict:
                continue
            return True
        raise self._crowded(f"{window} was retired")

    def retired(self, task: str) -> frozenset[str]:
        """The task's windows that nothing may be learnt from any more."""
        return frozenset(window for owner, window in self._books.refresh().retired if owner == task)

    def open_reservation(self, update: str) -> Reservation | None:
        """The reservation of an update without COMMIT or CRASH, None otherwise.

        After a restart it says that the windows are spent. Go on only from a record of how many steps were begun, and begin
        no more than `reserved` over all attempts; without one call `crashed`.
        """
        charge = self._books.refresh().charges.get(update)
        return self._reservation(charge) if charge is not None and charge.state == "open" else None

    def charges(self) -> list[Charge]:
        """Every charge in the order of the journal."""
        return list(self._books.refresh().charges.values())

    def refusals(self) -> list[Refusal]:
        """Every refusal in the order of the journal."""
        return list(self._books.refresh().refusals)

    def accounts(self) -> str | None:
        """The digest of the subject accounts in the newest reservation that has one."""
        return next((charge.accounts for charge in reversed(self.charges()) if charge.accounts is not None), None)

    def epsilon_per_event(self) -> float:
        """The most that any labelled event has spent at the policy's delta; 0.0 before the first charge."""
        return largest(self._books.refresh(), Figures(self.policy.target_delta))

    def shown_epsilon(self, told: Iterable[Mapping[str, Any]] = ()) -> float:
        """The same to look at: what releases (and `told`, bodies like theirs) have recorded is not computed again."""
        books = self._books.refresh()
        return largest(books, Figures(self.policy.target_delta, [*told, *books.releases.values()]))

    def summary(self) -> dict[str, Any]:
        """Everything `headgate privacy show` prints, ready for JSON."""
        return statement(self._books.refresh(), self.stream, self.policy.target_epsilon, self.policy.target_delta)

    def export(self) -> list[dict[str, Any]]:
        """Every entry with its hash, for an outsider who wants to compute epsilon himself. Raises LedgerError."""
        self._books.refresh()  # checks what it reads
        return list(exported(self._journal.read(self.stream)))

    def position(self) -> dict[str, Any]:
        """Where the ledger stands: `entries` so far and `chain` over their hashes, for a signed manifest to hold on to."""
        books = self._books.refresh()
        return {"entries": books.entries, "chain": books.chain}

    def _enter(self, charge: Charge, facts: Mapping[str, Mapping[str, Any]], actor: str) -> Reservation:
        for _ in range(ATTEMPTS):
            books = self._books.refresh()
            self._refuse(books, charge, actor)
            if charge.update in books.charges:
                raise LedgerError(
                    f"update {charge.update} is already reserved by task {books.charges[charge.update].task} for other "
                    "windows or another mechanism: give every update of a labels topic its own id"
                )
            try:
                self._journal.append_all(self._drafts(books, charge, facts), actor=actor, at=charge.at)
            except Conflict:
                continue  # somebody else wrote first: perhaps for the same window, so look again
            return self._reservation(charge)
        raise self._crowded(f"{charge.update} was reserved")

    def _drafts(self, books: Books, charge: Charge, facts: Mapping[str, Mapping[str, Any]]) -> list[Draft]:
        """One transaction: a changed policy, what is new about the windows, the charge, and windows it leaves empty."""
        bodies: list[tuple[str, dict[str, Any]]] = []
        if books.policy != policy_body(self.policy):
            bodies.append(("POLICY", policy_body(self.policy)))
        for window in charge.windows:
            fact = {"task": charge.task, "window": window, **facts.get(window, {})}
            if window in facts and books.facts.get((charge.task, window)) != fact:
                bodies.append(("WINDOW", fact))
        bodies.append(("RESERVE", reserve_body(charge, self.policy)))
        for window in budget.exhausted(books, charge, self.policy.target_epsilon, self.policy.target_delta):
            bodies.append(("RETIRE", {"task": charge.task, "window": window, "reason": "no budget left"}))
        return [Draft(self.stream, kind, body, self._books.length) for kind, body in bodies]

    def _refuse(self, books: Books, charge: Charge, actor: str) -> None:
        epsilon, delta = self.policy.target_epsilon, self.policy.target_delta
        reason = budget.refused(books, charge, epsilon, delta)
        if reason is None:
            return
        asked = budget.spent([charge], delta)
        refusal = Refusal(charge.task, charge.update, reason.window, reason.spent, asked, epsilon, delta, reason.text)
        self._journal.append(Draft(self.stream, "REFUSE", refusal._asdict()), actor=actor, at=charge.at)
        raise BudgetExhausted(
            f"privacy budget: update {charge.update} refused for window {reason.window}: spent epsilon {reason.spent:.4f}, "
            f"asked {asked:.4f}, budget {epsilon:g} at delta {delta:g}; {reason.text}; nothing was read, "
            "see docs/privacy.md#budget",
            refusal,
        )

    def _close(self, kind: str, body: dict[str, Any], actor: str, at: datetime) -> Charge:
        """Write COMMIT or CRASH unless it is there already; the charge as it was before."""
        update, steps = body["update"], body.get("steps", 0)
        for _ in range(ATTEMPTS):
            charge = self._books.refresh().charges.get(update)
            if charge is None:
                raise LedgerError(f"update {update} has no reservation in {self.stream}: reserve before training")
            if charge.state != "open" and steps <= charge.law.steps:  # more are charged whatever was said before
                if (charge.overrun and kind == "COMMIT") or _said(charge) == (kind, body.get("steps"), body.get("artefact")):
                    return charge
                raise LedgerError(
                    f"update {update} is already {charge.state} (artefact {charge.artefact}, steps {charge.taken}): it cannot "
                    f"be closed by {kind} {body}; nothing was written"
                )
            try:
                self._journal.append(Draft(self.stream, kind, body, self._books.length), actor=actor, at=at)
            except Conflict:
                continue
            return charge
        raise self._crowded(f"{update} was closed")

    def _crowded(self, what: str) -> Conflict:
        return Conflict(f"{self.stream} was extended by others {ATTEMPTS} times while {what}: try again")

    def _reservation(self, charge: Charge) -> Reservation:
        law = charge.law
        return Reservation(
            update=charge.update,
            windows=charge.windows,
            noise_multiplier=law.noise_multiplier,
            sampling_rate=law.sampling_rate,
            steps=law.steps - charge.spare,
            max_grad_norm=charge.max_grad_norm,
            epsilon=budget.spent([charge], self.policy.target_delta),
            delta=self.policy.target_delta,
            expected_batch=law.sampling_rate * charge.count,
            spare=charge.spare,
        )


def _said(charge: Charge) -> tuple[str, int | None, str | None]:
    """How a closed charge was closed."""
    return ("COMMIT", charge.taken, charge.artefact) if charge.state == "committed" else ("CRASH", None, None)
