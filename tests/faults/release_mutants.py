"""Planted faults: one way each to break an invariant of a release, and the text its discovery begins with.

Each replaces one name of the product by a version of it that is wrong in a way a developer could have written it. A run of
histories that does not find one of them has a check that cannot fail. They know the product's names and nothing of histories.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from assets import workspace
from models import release, release_verbs, rollout, rollout_conditions, split
from monitoring import evidence, verdict
from pipelines.controller import Controller
from security import journal, replicas

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    """`found`: what the discovery may begin with. `founds`: planted before the task's file is made."""

    plant: Callable[[Patch], None]
    found: tuple[str, ...]


def second_canary(patch: Patch) -> None:
    """A free canary place is taken for granted."""
    true = rollout.advance
    patch.setattr(release, "advance", lambda *args, **more: true(*args, **{**more, "canary_free": True}))


def two_transactions(patch: Patch) -> None:
    """Decisions and routing are written one after the other."""
    true = journal.Journal.append_all

    def apart(self: Any, drafts: Any, **more: Any) -> Any:
        more.pop("unmoved", None)
        return [entry for one in drafts for entry in true(self, [replace(one, expected=None)], **more)]

    patch.setattr(journal.Journal, "append_all", apart)


def no_triggers(patch: Patch) -> None:
    patch.setattr(journal, "_SQLITE_TRIGGERS", ())


def stale_write(patch: Patch) -> None:
    """Lengths are passed and not compared."""
    patch.setattr(journal, "_compare", lambda *args: None)


def blind_retry(patch: Patch) -> None:
    """A controller that lost the race writes what it had decided."""

    def append(self: Any, board: Any, decisions: Any, before: Any, scored: int) -> bool:
        drafts = [journal.Draft(f"{one.room}/{self.task}", one.kind, one.body) for one in decisions]
        self.journal.append_all([*before, *drafts], actor=self.actor, at=self._at())
        return True

    patch.setattr(Controller, "_append", append)


def weight_stays(patch: Patch) -> None:
    """A stop forgets the weight."""
    true = rollout.stop

    def stop(one: Any, *args: Any, **more: Any) -> Any:
        after, decisions = true(one, *args, **more)
        after = replace(after, weight=one.weight)
        return after, tuple(replace(d, body={**d.body, "after": after.to_body()}) for d in decisions)

    for module in (rollout, release, release_verbs):
        patch.setattr(module, "stop", stop)


def no_routing_after_stop(patch: Patch) -> None:
    patch.setattr(release_verbs, "withdraw_family", lambda *args: None)


def heirs_live_on(patch: Patch) -> None:
    """What is stopped loses its traffic, its children keep theirs."""
    patch.setattr(release, "withdraw_family", lambda draft, bad: draft.route(bad.version, bad.reason))
    patch.setattr(release_verbs, "withdraw_family", lambda draft, bad: draft.route(bad.version, bad.reason))


def alarms_later(patch: Patch) -> None:
    """The alarm of a stop is written after the stop, in a transaction of its own."""
    true = journal.Journal.append_all

    def apart(self: Any, drafts: Any, **more: Any) -> Any:
        alarms = [one for one in drafts if one.kind == "alarm.raised"]
        others = [one for one in drafts if one.kind != "alarm.raised"]
        entries = true(self, others, **more) if others else []
        return [*entries, *(true(self, alarms, actor=more["actor"], at=more["at"]) if alarms else [])]

    patch.setattr(journal.Journal, "append_all", apart)


def window_stepped_again(patch: Patch) -> None:
    """A window's step is taken each time it is asked for."""
    true = release.step_board

    def step(board: Any, *args: Any) -> Any:
        return true(replace(board, stepped=None), *args)

    patch.setattr(release, "step_board", step)


def not_a_number_is_left_out(patch: Patch) -> None:
    patch.setattr(verdict, "_broken", lambda *args: ())


def coverage_unread(patch: Patch) -> None:
    patch.setattr(verdict, "_covered", lambda *args: True)


def one_coverage(patch: Patch) -> None:
    """Label coverage is looked at for both arms together."""
    patch.setattr(verdict, "LARGEST_COVERAGE_GAP", 1.0)


def nobody_lags(patch: Patch) -> None:
    patch.setattr(replicas.Replicas, "live", lambda *args: [])


def freeze_unread(patch: Patch) -> None:
    patch.setattr(rollout_conditions, "frozen", lambda *args: None)


def figures_rounded(patch: Patch) -> None:
    """The journal keeps figures as people like to read them."""
    true = journal.canonical
    patch.setattr(journal, "canonical", lambda body: true(_rounded(body)))


def _rounded(body: Any) -> Any:
    if not isinstance(body, dict) or not body.get("figures"):
        return body
    return {**body, "figures": {**body["figures"], "promote_e": round(body["figures"]["promote_e"], 1)}}


def window_counted_twice(patch: Patch) -> None:
    true = evidence.fold
    patch.setattr(evidence, "fold", lambda known, body: true(replace(known, windows=type(known.windows)()), body))


def salt_of_the_epoch(patch: Patch) -> None:
    """Units are shuffled anew at each step."""
    true = split.arm
    patch.setattr(split, "arm", lambda routing, unit: true(replace(routing, salt=f"{routing.epoch}"), unit))


def paused_is_safe(patch: Patch) -> None:
    """Nothing speaks against a version while it is paused."""
    true = rollout_conditions.stop_reason
    for module in (rollout, release_verbs):
        patch.setattr(module, "stop_reason", lambda one, *args: None if one.paused else true(one, *args))


def promote_passes_a_pause(patch: Patch) -> None:
    true = rollout_conditions.conditions
    patch.setattr(rollout, "conditions", lambda *args: [c for c in true(*args) if c.name != "paused"])


def harm_forgotten(patch: Patch) -> None:
    """Better and worse are taken for each other."""
    true = evidence.score
    patch.setattr(evidence, "score", lambda stable, candidate, *args: true(candidate, stable, *args))


def head_stays(patch: Patch) -> None:
    """The next update starts from the weights that were just condemned."""
    patch.setattr(release.Draft, "move_head", lambda *args: None)


def worker_without_compare(patch: Patch) -> None:
    """The worker appends whatever happened since it read the board."""

    def append(self: Any, decisions: Any, *, also: Any = ()) -> None:
        drafts = [journal.Draft(f"{one.room}/{self.task.name}", one.kind, one.body) for one in decisions]
        for one in [*drafts, *also]:
            self.journal.append_all([one], actor=self.actor, at=self.now())

    patch.setattr(workspace.Workspace, "append_decisions", append)


MUTANTS: Mapping[str, Mutant] = {
    plant.__name__: Mutant(plant, tuple(found))
    for plant, *found in (
        (second_canary, "I1", "I5"),
        (two_transactions, "I2", "I5"),
        (worker_without_compare, "I2", "I5"),
        (no_triggers, "I3"),
        (stale_write, "I4", "I1", "I9", "I13", "I5"),
        (blind_retry, "I4", "I1", "I9", "I13", "I5", "I7"),
        (weight_stays, "I5"),
        (no_routing_after_stop, "I5", "I6"),
        (heirs_live_on, "I6"),
        (head_stays, "I2", "I6"),
        (alarms_later, "I2", "I7"),
        (window_stepped_again, "I4", "I7"),
        (not_a_number_is_left_out, "I8"),
        (coverage_unread, "I8"),
        (one_coverage, "I8"),
        (nobody_lags, "I8"),
        (freeze_unread, "I8"),
        (promote_passes_a_pause, "I8"),
        (harm_forgotten, "I8"),
        (figures_rounded, "I9"),
        (window_counted_twice, "I9"),
        (salt_of_the_epoch, "I10"),
        (paused_is_safe, "I12"),
    )
}
