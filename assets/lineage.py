"""The lineage of one task: its base, its updates and versions, and the head the next update starts from.

A fold of `lineage/<task>`. It knows which version came from which windows and parent. It does not know who takes traffic:
that is the rollout's line, and it moves the head back here only by a `head.moved` entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from security.journal import Entry


class NoBase(Exception):
    """Nothing can be trained or served before a base is registered."""


@dataclass(frozen=True)
class Lineage:
    """`versions` and `updates` by their id, in order of registration; bodies as in the journal, and in those of updates
    `kind` is the kind of the entry, `cause` what interrupted it."""

    base: Mapping[str, Any] | None = None
    versions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    updates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settled: frozenset[str] = frozenset()  # windows whose examples an update has covered, used or lost
    head: str = ""

    def registered_base(self) -> Mapping[str, Any]:
        """The body of `base.registered`. Raises NoBase."""
        if self.base is None:
            raise NoBase("no base is registered: run `headgate base train` on history that is declared public")
        return self.base

    def next_number(self) -> int:
        """The number of the next update and of the version made of it, from 1."""
        return len(self.updates) + 1

    def of_window(self, window: str, bodies: str = "updates") -> Mapping[str, Any] | None:
        """The update (or version) that was made when `window` was processed, None when there is none."""
        found: Mapping[str, Mapping[str, Any]] = getattr(self, bodies)
        return next((body for body in found.values() if body["window"] == window), None)


def entry_told(entry: Entry) -> dict[str, Any]:
    """An update's entry as the lineage keeps it."""
    return {**entry.body, "kind": entry.kind, "cause": entry.body.get("kind")}


def fold_lineage(lineage: Lineage, entry: Entry) -> Lineage:
    """The lineage after one entry of `lineage/<task>`."""
    body = entry.body
    match entry.kind:
        case "base.registered":
            return replace(lineage, base=body, head=body["version"])
        case "update.trained" | "update.interrupted":
            updates = {**lineage.updates, body["update"]: entry_told(entry)}
            return replace(lineage, updates=updates, settled=lineage.settled | set(body["windows"]))
        case "version.registered":
            return replace(lineage, versions={**lineage.versions, body["version"]: body})
        case "head.moved":
            return replace(lineage, head=body["head"])
    return lineage
