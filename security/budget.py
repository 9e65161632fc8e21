"""May this charge be entered? A pure rule over the books, and what charges on one event cost together.

A window is sealed or metered by its first reservation. A sealed one has one update, planned before it is read, under the
PLD accountant; a metered one as many full-batch Gaussian mechanisms as fit under the Gaussian filter, each chosen in the
light of all before it. It writes nothing and knows no journal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from security import accounting
from security.charges import Books, Charge
from security.journal import stamp

LEAST_LEFT = 0.01  # of a metered window's budget: less buys a mechanism whose noise is 70 x the clip, and is not worth a look


class Reason(NamedTuple):
    """Why a charge is refused: the window, epsilon spent on it so far, and one sentence with the cure."""

    window: str
    spent: float
    text: str


def spent(charges: Sequence[Charge], delta: float) -> float:
    """Epsilon at `delta` of an event that all these charges may hold: exact where all are metered, else PLD."""
    if all(charge.metered for charge in charges):
        return accounting.epsilon_of_mu_squared(accounting.mu_squared(charge.law for charge in charges), delta)
    return accounting.epsilon(tuple(sorted(charge.law for charge in charges)), delta)


def refused(books: Books, charge: Charge, epsilon: float, delta: float) -> Reason | None:
    """The first reason against the charge under a budget of (epsilon, delta) for each event, None when there is none."""
    touching = {window: [books.charges[name] for name in names] for window, names in books.touching(charge).items()}
    for window, others in touching.items():
        if (charge.task, window) in books.retired:
            return Reason(window, spent(others, delta), f"the window is retired: {books.retired[charge.task, window]}")
        if other := next((other for other in others if not (other.metered and charge.metered)), None):
            return Reason(window, spent(others, delta), _taken(charge, other, window))
        if charge.metered and others and left(others, epsilon, delta) < accounting.mu_squared([charge.law]):
            return Reason(window, spent(others, delta), _too_much(charge, others, epsilon, delta))
    if charge.metered and accounting.mu_squared([charge.law]) > accounting.mu_squared_budget(epsilon, delta):
        return Reason(charge.windows[0], 0.0, _too_much(charge, [], epsilon, delta))
    units = books.units(charge)
    if delta > 1 / units:
        return Reason(charge.windows[0], 0.0, _too_many(units, charge.count, delta))
    return None


def left(charges: Sequence[Charge], epsilon: float, delta: float) -> float:
    """mu^2 that the Gaussian filter still has for an event that all these metered charges may hold; 0 at the least."""
    return max(0.0, accounting.mu_squared_budget(epsilon, delta) - accounting.mu_squared(charge.law for charge in charges))


def exhausted(books: Books, charge: Charge, epsilon: float, delta: float) -> list[str]:
    """Windows of a metered charge that have nothing worth using left once it is entered."""
    if not charge.metered:
        return []
    least = LEAST_LEFT * accounting.mu_squared_budget(epsilon, delta)
    found = books.touching(charge)
    after = {window: [*(books.charges[name] for name in names), charge] for window, names in found.items()}
    return [window for window, charges in after.items() if left(charges, epsilon, delta) < least]


def _taken(asked: Charge, charged: Charge, window: str) -> str:
    """Why it is spent."""
    if asked.task == charged.task and charged.metered:
        return f"it is metered since update {charged.update}, and a window that was read before cannot be sealed"
    if asked.task == charged.task:
        return f"update {charged.update} ({charged.state}) already trained on it, and a window is spent once"
    start, end = (stamp(moment) for moment in charged.arrived)
    return (
        f"its events' arrival overlaps [{start}, {end}), which task {charged.task} charged on the same labels topic in "
        f"update {charged.update}; `headgate privacy retire {window}` leaves it out of later updates"
    )


def _too_much(asked: Charge, others: Sequence[Charge], epsilon: float, delta: float) -> str:
    budget, law = accounting.mu_squared_budget(epsilon, delta), asked.law
    least = law.m_max * math.sqrt(law.steps / room) if (room := left(others, epsilon, delta)) > 0 else math.inf
    return (
        f"mu^2 {accounting.mu_squared(other.law for other in others):.6f} spent + {accounting.mu_squared([law]):.6f} asked > "
        f"{budget:.6f}, the Gaussian filter's budget; a noise_multiplier of {_above(least):g} would fit"
    )


def _too_many(units: int, count: int, delta: float) -> str:
    return (
        f"delta {delta:g} > 1 / {units} events over the ledger's life ({count} of them asked for), which would allow giving "
        f"one of them away whole: set [privacy] target_delta to {_below(1 / units):g} or less, for the life you plan"
    )


def _below(value: float) -> float:
    """The largest one-digit number that is not above `value`, to put into a message."""
    unit = 10.0 ** math.floor(math.log10(value))
    return math.floor(value / unit + 1e-9) * unit


def _above(value: float) -> float:
    """`value` rounded up to a tenth, to put into a message."""
    return math.ceil(value * 10) / 10 if math.isfinite(value) else value
