"""The privacy ledger: who may train on which labelled events, written down before any of them is read.

One journal stream for each labels topic, whatever the task. `reserve` is one compare-and-set append; a window is sealed
by its first reservation and any second one is refused. Epsilon is derived from the entries, never stored. A charge is
never given back: neither after a crash nor for steps that were not taken (stopping early on private data is a choice
that the accounting of fewer steps does not cover).

It knows nothing of tensors and samplers; the caller draws what the Reservation says. With privacy off no ledger exists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from security import accounting
from security.accounting import Law, noise_multiplier
from security.charges import Books, Charge, LedgerError, Refusal, apply
from security.journal import Conflict, Draft, Journal, Projection, stamp

__all__ = [
    "NOT_COVERED",
    "BudgetExhausted",
    "Charge",
    "Ledger",
    "LedgerError",
    "PrivacyPolicy",
    "Refusal",
    "Reservation",
    "noise_multiplier",
]

UNIT = "one labelled event: the event record and every label that names its event_id"
NOT_COVERED = (
    "Decisions that read private data without noise: promote, reject, the choice of parent, guard, retention, regime.",
    "Prediction logs: what clients sent and what they were answered.",
    "Metrics and curves inside the trust zone: losses, evidence, drift, gradient norms.",
    "Which records could be read: one that is rejected at sealing leaves the public count and the expected batch.",
    "The frozen base: the guarantee is relative to it.",
)
ATTEMPTS = 50


class BudgetExhausted(Exception):
    """A reservation was refused; the refusal is in the journal and no record was read."""

    def __init__(self, message: str, refusal: Refusal) -> None:
        super().__init__(message)
        self.refusal = refusal


@dataclass(frozen=True)
class PrivacyPolicy:
    """`[privacy]` of the settings. Raises ValueError where a number is out of range."""

    enabled: bool = True
    target_epsilon: float = 0.5
    target_delta: float = 1e-5
    sampling_rate: float = 0.125
    steps: int = 32
    max_grad_norm: float | Literal["auto"] = "auto"
    label_derived_public: bool = False

    def __post_init__(self) -> None:
        accounting.check_range(self.target_epsilon, self.target_delta, self.sampling_rate, self.steps)
        if self.max_grad_norm != "auto":
            _check_clip(self.max_grad_norm)

    def law(self) -> Law:
        """The one law of every update under this policy; calibrates the noise at the first call."""
        noise = noise_multiplier(self.target_epsilon, self.target_delta, self.sampling_rate, self.steps)
        return Law(self.sampling_rate, noise, self.steps)


@dataclass(frozen=True)
class Reservation:
    """What a trainer may do, exactly: `steps` Poisson samples at `sampling_rate`, each example's gradient clipped at
    `max_grad_norm`, noise of deviation noise_multiplier x max_grad_norm on the sum, divided by `expected_batch`."""

    update: str
    windows: tuple[str, ...]
    noise_multiplier: float
    sampling_rate: float
    steps: int
    max_grad_norm: float
    epsilon: float
    delta: float
    expected_batch: float


class Ledger:
    """The ledger of one labels topic, as every task and every process sees it."""

    def __init__(self, journal: Journal, cluster_id: str, labels_topic_id: str, policy: PrivacyPolicy) -> None:
        if not policy.enabled:
            raise ValueError("privacy is off: an update without privacy has no ledger; see [privacy] enabled")
        self.stream = f"privacy/{cluster_id}/{labels_topic_id}"
        self.policy = policy
        self._journal = journal
        self._books = Projection(journal, self.stream, Books(), apply)

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
    ) -> Reservation:
        """Charge the windows for one update before any of their records is read.

        `arrived` is the interval [start, end) in which the windows' events arrived, `count` the public number of
        examples. Raises BudgetExhausted (and journals REFUSE) when a window of this task or an overlapping arrival of
        another is already charged, or delta > 1 / count; ValueError for arguments without sense.
        """
        _check_request(windows, arrived, count, max_grad_norm)
        charge = Charge(task, update, tuple(windows), arrived, count, self.policy.law(), max_grad_norm, at)
        for _ in range(ATTEMPTS):
            books = self._books.refresh()
            self._refuse_if_charged(books, charge, actor, at)
            if update in books.charges:
                raise LedgerError(
                    f"update {update} is already reserved by task {books.charges[update].task} for other windows: "
                    "give every update of a labels topic its own id"
                )
            drafts = [Draft(self.stream, "RESERVE", _reserve_body(charge, self.policy), self._books.length)]
            if books.policy != self._policy_body():
                drafts.insert(0, Draft(self.stream, "POLICY", self._policy_body(), self._books.length))
            try:
                self._journal.append_all(drafts, actor=actor, at=at)
            except Conflict:
                continue  # somebody else wrote first: perhaps for the same window, so look again
            return self._reservation(charge)
        raise Conflict(f"{self.stream} was extended by others {ATTEMPTS} times while {update} was reserved: try again")

    def settle(self, reservation: Reservation, *, steps: int, artefact: str, actor: str, at: datetime) -> None:
        """COMMIT: `steps` noisy steps were taken and gave `artefact`. The charge stays that of the reservation.

        Settling the same outcome twice changes nothing. Raises LedgerError for a reservation that is not open, and,
        after writing the entry, for more steps than reserved: the overrun is charged and nothing may be released.
        """
        self._close(reservation.update, "COMMIT", {"steps": steps, "artefact": artefact}, actor, at)
        if steps > reservation.steps:
            raise LedgerError(
                f"update {reservation.update} took {steps} noisy steps, reserved {reservation.steps}: the overrun is "
                f"charged, artefact {artefact} exceeds the promise and must not be released"
            )

    def crashed(self, update: str, *, reason: str, actor: str, at: datetime) -> None:
        """CRASH: the update will not be finished; its full charge stays and it is no longer open."""
        self._close(update, "CRASH", {"reason": reason}, actor, at)

    def open_reservation(self, update: str) -> Reservation | None:
        """The reservation of an update without COMMIT or CRASH, None otherwise.

        After a restart it says that the windows are spent. Training on it again would be a second release with fresh
        noise under one charge: call `crashed` unless it is certain that no noisy step was taken.
        """
        charge = self._books.refresh().charges.get(update)
        return self._reservation(charge) if charge is not None and charge.state == "open" else None

    def charges(self) -> list[Charge]:
        """Every charge in the order of the journal."""
        return list(self._books.refresh().charges.values())

    def refusals(self) -> list[Refusal]:
        """Every refusal in the order of the journal."""
        return list(self._books.refresh().refusals)

    def epsilon_per_event(self) -> float:
        """The most that any labelled event has spent at the policy's delta; 0.0 before the first charge.

        Parallel composition: charges no event shares count once, the largest; charges that touch are added up.
        """
        books = self._books.refresh()
        return max((self._spent(books.touching(charge)) for charge in books.charges.values()), default=0.0)

    def summary(self) -> dict[str, Any]:
        """Everything `headgate privacy show` prints, ready for JSON."""
        charges = self.charges()
        units = sum(charge.count for charge in charges)
        return {
            "stream": self.stream,
            "unit": UNIT,
            "adjacency": accounting.ADJACENCY,
            "accountant": accounting.ACCOUNTANT,
            "budget": {"epsilon": self.policy.target_epsilon, "delta": self.policy.target_delta},
            "epsilon_per_event": self.epsilon_per_event(),
            "units": units,
            "delta_above_one_in_units": units > 0 and self.policy.target_delta > 1 / units,
            "windows": [
                {"task": charge.task, "window": window, "update": charge.update, "spent": self._spent([charge])}
                for charge in charges
                for window in charge.windows
            ],
            "updates": [_shown(charge) for charge in charges],
            "open": [charge.update for charge in charges if charge.state == "open"],
            "refusals": [refusal._asdict() for refusal in self.refusals()],
            "not_covered": list(NOT_COVERED),
        }

    def _refuse_if_charged(self, books: Books, charge: Charge, actor: str, at: datetime) -> None:
        delta, budget = self.policy.target_delta, self.policy.target_epsilon
        touching = books.touching(charge)
        asked = self._spent([charge])
        if touching:
            window, reason = _overlap(charge, touching[0])
            spent = max(self._spent([other]) for other in touching)
        elif delta > 1 / charge.count:
            window, spent = charge.windows[0], 0.0
            reason = (
                f"delta {delta:g} > 1 / {charge.count} events, which would allow giving one of them away whole: set "
                f"[privacy] target_delta to {_below(1 / charge.count):g} or less"
            )
        else:
            return
        refusal = Refusal(charge.task, charge.update, window, spent, asked, budget, delta, reason)
        self._journal.append(Draft(self.stream, "REFUSE", refusal._asdict()), actor=actor, at=at)
        raise BudgetExhausted(
            f"privacy budget: update {charge.update} refused for window {window}: spent epsilon {spent:.4f}, asked "
            f"{asked:.4f}, budget {budget:g} at delta {delta:g}; {reason}; nothing was read, "
            "see docs/privacy.md#budget",
            refusal,
        )

    def _close(self, update: str, kind: str, outcome: dict[str, Any], actor: str, at: datetime) -> None:
        body = {"update": update, **outcome}
        for _ in range(ATTEMPTS):
            charge = self._books.refresh().charges.get(update)
            if charge is None:
                raise LedgerError(f"update {update} has no reservation in {self.stream}: reserve before training")
            if charge.state != "open":
                if (charge.state == "committed", charge.artefact) == (kind == "COMMIT", outcome.get("artefact")):
                    return
                raise LedgerError(
                    f"update {update} is already {charge.state} (artefact {charge.artefact}): it cannot be closed by "
                    f"{kind} {outcome}; nothing was written"
                )
            try:
                self._journal.append(Draft(self.stream, kind, body, self._books.length), actor=actor, at=at)
            except Conflict:
                continue
            return
        raise Conflict(f"{self.stream} was extended by others {ATTEMPTS} times while {update} was closed: try again")

    def _reservation(self, charge: Charge) -> Reservation:
        law = charge.law
        return Reservation(
            update=charge.update,
            windows=charge.windows,
            noise_multiplier=law.noise_multiplier,
            sampling_rate=law.sampling_rate,
            steps=law.steps,
            max_grad_norm=charge.max_grad_norm,
            epsilon=self._spent([charge]),
            delta=self.policy.target_delta,
            expected_batch=law.sampling_rate * charge.count,
        )

    def _spent(self, charges: Sequence[Charge]) -> float:
        return accounting.epsilon(tuple(sorted(charge.law for charge in charges)), self.policy.target_delta)

    def _policy_body(self) -> dict[str, Any]:
        return {
            "unit": UNIT,
            "adjacency": accounting.ADJACENCY,
            "accountant": accounting.ACCOUNTANT,
            "interval": accounting.INTERVAL,
            "target_epsilon": self.policy.target_epsilon,
            "target_delta": self.policy.target_delta,
            "sampling_rate": self.policy.sampling_rate,
            "steps": self.policy.steps,
            "max_grad_norm": self.policy.max_grad_norm,
            "label_derived_public": self.policy.label_derived_public,
            "not_covered": list(NOT_COVERED),
        }


def _reserve_body(charge: Charge, policy: PrivacyPolicy) -> dict[str, Any]:
    return {
        "task": charge.task,
        "update": charge.update,
        "windows": list(charge.windows),
        "arrived": [stamp(moment) for moment in charge.arrived],
        "count": charge.count,
        "noise_multiplier": charge.law.noise_multiplier,
        "sampling_rate": charge.law.sampling_rate,
        "steps": charge.law.steps,
        "max_grad_norm": charge.max_grad_norm,
        "sampling": "poisson",
        "clipping": "flat",
        "delta": policy.target_delta,
    }


def _shown(charge: Charge) -> dict[str, Any]:
    return {
        "task": charge.task,
        "update": charge.update,
        "windows": list(charge.windows),
        "count": charge.count,
        **charge.law._asdict(),
        "max_grad_norm": charge.max_grad_norm,
        "state": charge.state,
        "artefact": charge.artefact,
        "at": stamp(charge.at),
    }


def _overlap(asked: Charge, charged: Charge) -> tuple[str, str]:
    """The window to name, and why it is spent."""
    if asked.task == charged.task:
        window = next(window for window in asked.windows if window in charged.windows)
        return window, f"update {charged.update} ({charged.state}) already trained on it, and a window is spent once"
    start, end = (stamp(moment) for moment in charged.arrived)
    return asked.windows[0], (
        f"its events' arrival overlaps [{start}, {end}), which task {charged.task} charged on the same labels topic in "
        f"update {charged.update}"
    )


def _below(value: float) -> float:
    """The largest one-digit number that is not above `value`, to put into a message."""
    unit = 10.0 ** math.floor(math.log10(value))
    return math.floor(value / unit + 1e-9) * unit


def _check_request(
    windows: Sequence[str], arrived: tuple[datetime, datetime], count: int, max_grad_norm: float
) -> None:
    if not windows or len(set(windows)) != len(windows) or isinstance(windows, str):
        raise ValueError(f"windows {windows!r}: give one or more different window ids")
    if not arrived[0] < arrived[1]:
        raise ValueError(f"arrived [{stamp(arrived[0])}, {stamp(arrived[1])}): the end must come after the start")
    if count < 1:
        raise ValueError(f"count {count}: an update needs examples; a window without any is skipped, not reserved")
    _check_clip(max_grad_norm)


def _check_clip(max_grad_norm: float) -> None:
    if not (math.isfinite(max_grad_norm) and max_grad_norm > 0):
        raise ValueError(f"max_grad_norm {max_grad_norm}: give a finite number above 0")
