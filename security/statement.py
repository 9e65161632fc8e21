"""What the ledger says to people: the promise in words, budget and spending as figures, and the entries for an outsider.

Every figure follows from the entries. Only here may a figure that a RELEASE has recorded stand for the same sum asked for
again, so that a look at the ledger does not load the accountant; what may be reserved is never decided so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from security import accounting, budget
from security.charges import Books, Charge
from security.journal import Entry, stamp

UNIT = "one labelled event: the event record and every label that names its event_id"
NOT_COVERED = (
    "Decisions that read private data without noise: promote, reject, the choice of parent, guard, quarantine, retention, "
    "regime.",
    "Prediction logs: what clients sent and what they were answered.",
    "Metrics and curves inside the trust zone: losses, evidence, drift, gradient norms.",
    "Which records could be read: one that is rejected at sealing leaves the public count and the expected batch.",
    "Whether and when a trainer died: COMMIT says how many steps were begun.",
    "The frozen base: the guarantee is relative to it.",
)

Laws = tuple[tuple[accounting.Law, ...], bool]


class Figures:
    """Epsilon of charges on one event at one delta; looked up among these releases before it is computed."""

    def __init__(self, delta: float, releases: Iterable[Mapping[str, Any]] = ()) -> None:
        self.delta = delta
        self._known = {
            _key(part["laws"], part["metered"]): float(part["epsilon"])
            for release in releases
            if release["delta"] == delta
            for part in release["spent"]
        }

    def epsilon(self, charges: Sequence[Charge]) -> float:
        """Epsilon of an event that all these charges may hold."""
        key = laws_of(charges)
        if key not in self._known:
            self._known[key] = budget.spent(charges, self.delta)
        return self._known[key]


def laws_of(charges: Sequence[Charge]) -> Laws:
    """What the cost of charges on one event depends on."""
    return tuple(sorted(charge.law for charge in charges)), all(charge.metered for charge in charges)


def _key(laws: Sequence[Sequence[float]], metered: bool) -> Laws:
    return tuple(accounting.Law(law[0], law[1], int(law[2]), int(law[3])) for law in laws), metered


def largest(books: Books, figures: Figures) -> float:
    """The most that any labelled event has spent; 0.0 before the first charge.

    Parallel composition: charges no event shares count once, the largest; charges that touch are added up.
    """
    return max((figures.epsilon(group) for name in books.charges for group in books.together(name)), default=0.0)


def statement(books: Books, stream: str, epsilon: float, delta: float) -> dict[str, Any]:
    """Everything `headgate privacy show` prints, ready for JSON; `epsilon` and `delta` are the policy's."""
    figures, units = Figures(delta, books.releases.values()), books.units()
    return {
        "stream": stream,
        "unit": UNIT,
        "adjacency": accounting.ADJACENCY,
        "accountant": accounting.ACCOUNTANT,
        "budget": {"epsilon": epsilon, "delta": delta},
        "epsilon_per_event": largest(books, figures),
        "units": units,
        "units_allowed": int((1 + 1e-9) / delta),
        "delta_above_one_in_units": units > 0 and delta > 1 / units,
        "windows": [_window(books, figures, *which) for which in books.windows()],
        "updates": [_update(charge) for charge in books.charges.values()],
        "open": [charge.update for charge in books.charges.values() if charge.state == "open"],
        "releases": [_release(body) for body in books.releases.values()],
        "retired": [{"task": task, "window": window, "reason": why} for (task, window), why in books.retired.items()],
        "refusals": [refusal._asdict() for refusal in books.refusals],
        "entries": books.entries,
        "chain": books.chain,
        "not_covered": list(NOT_COVERED),
    }


def exported(entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    """The entries whole, as the journal hashed them. There is no subject in them, and no figure of a private record."""
    for entry in entries:
        yield {
            "seq": entry.seq, "stream": entry.stream, "stream_seq": entry.stream_seq, "kind": entry.kind,
            "body": entry.body, "actor": entry.actor, "at": stamp(entry.at), "prev_hash": entry.prev_hash,
            "hash": entry.hash,
        }  # fmt: skip


def _window(books: Books, figures: Figures, task: str, window: str) -> dict[str, Any]:
    groups = list(books.of_window(task, window))
    own = [group[-1] for group in groups]
    return {
        "task": task,
        "window": window,
        "kind": "metered" if all(charge.metered for charge in own) else "sealed",
        "updates": [charge.update for charge in own],
        "spent": max(figures.epsilon(group) for group in groups),
        "retired": (task, window) in books.retired,
    }


def _update(charge: Charge) -> dict[str, Any]:
    return {
        "task": charge.task,
        "update": charge.update,
        "windows": list(charge.windows),
        "count": charge.count,
        **charge.law._asdict(),
        "spare": charge.spare,
        "taken": charge.taken,
        "max_grad_norm": charge.max_grad_norm,
        "metered": charge.metered,
        "state": "overrun" if charge.overrun else charge.state,
        "artefact": charge.artefact,
        "at": stamp(charge.at),
    }


def _release(body: dict[str, Any]) -> dict[str, Any]:
    return {key: body[key] for key in ("version", "artefact", "update", "parent", "epsilon", "delta", "not_charged")}
