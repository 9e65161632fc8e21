"""Is an update due, and which windows does it cover? A pure rule over public counts.

Knows windows and how many examples each has. Content never decides a schedule (that would have to be paid from the
privacy budget), so nothing about losses, drift or versions can be asked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from models.duration import spell


@dataclass(frozen=True, slots=True)
class UpdatePolicy:
    """At least `every` apart and `min_examples` strong; after `max_age` with what there is."""

    every: timedelta = timedelta(hours=1)
    min_examples: int = 5000
    max_age: timedelta = timedelta(days=7)

    def __post_init__(self) -> None:
        if self.every <= timedelta(0) or self.min_examples < 1:
            raise ValueError(f"update.every {spell(self.every)}, min_examples {self.min_examples}: both must be above 0")
        if self.max_age < self.every:
            found = f"update.max_age {spell(self.max_age)} < update.every {spell(self.every)}"
            raise ValueError(f"{found}: no update would ever be due in time")


@dataclass(frozen=True, slots=True)
class Pending:
    """A window whose examples no update has covered yet."""

    window: str
    start: datetime
    end: datetime
    examples: int


@dataclass(frozen=True, slots=True)
class Due:
    """`windows` to train on now, oldest first; empty when not due, and `reason` says why or why not."""

    windows: tuple[str, ...]
    reason: str


def update_due(pending: Sequence[Pending], policy: UpdatePolicy) -> Due:
    """Whether the pending windows (oldest first, the last one just processed) make an update."""
    examples = sum(window.examples for window in pending)
    if not examples:
        return Due((), "not due: no labelled example is waiting")
    age = pending[-1].end - pending[0].start
    covered = tuple(window.window for window in pending)
    if age >= policy.every and examples >= policy.min_examples:
        return Due(covered, f"due: {examples} examples >= {policy.min_examples}, {spell(age)} >= {spell(policy.every)}")
    if age >= policy.max_age:
        return Due(covered, f"due: {spell(age)} >= max_age {spell(policy.max_age)}, with {examples} examples")
    return Due((), f"not due: {examples} of {policy.min_examples} examples, {spell(age)} of {spell(policy.every)}")
