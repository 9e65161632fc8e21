"""The controlled release of one frozen version: its states, and `advance`, which takes it one step further or not.

    QUEUED -> PREPARING -> SHADOW -> CANARY(step) -> PROMOTING -> BAKING -> PROMOTED
    REJECTED (never took traffic)   ROLLING_BACK -> ROLLED_BACK   EXPIRED   SUPERSEDED   WITHDRAWN

`paused` and `holds` are orthogonal to the state: neither stops a guardrail, a proven harm or an abort. From CANARY to
the end of BAKING the version is the canary, in PROMOTING and BAKING with all of the traffic; it becomes stable with
PROMOTED. A raise of the weight needs the evidence at that moment, and waits until every live replica has the routing
before it; setting the weight to 0 waits for nothing. During BAKING only harm, guardrails and holds count: the
promotion was decided.

It knows one rollout. It does not know the other versions, who routes, or where figures come from; `now` is passed in.

Journal entries of `rollout/<task>` (each body holds `version`, `clock` and, under `after`, the whole rollout after
it):

| kind | further body |
|---|---|
| rollout.queued | number, parent |
| policy.set | policy, digest (no `version`): the task's policy from here on, which versions keep that start under it |
| rollout.advanced | from, to, step, weight, reason, figures, actor |
| rollout.held | holds, reasons (empty: released) |
| rollout.paused, rollout.resumed, rollout.approved | reason, actor |
| rollout.withdrawn | as rollout.advanced: an ancestor was harmful |
| rollout.started, rollout.retried, rollout.superseded, rollout.restarted, rollout.watch_ended | reason |
| rollout.stepped | window (no `after`): the window's step was taken, whatever it decided |

A decision that touches routing or lineage comes with a `routing.set` {epoch, stable, canary, weight, salt, rollout,
clock, reason} or a `head.moved` {head, reason, clock} in the same list, to be appended in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from models.duration import spell
from models.release_policy import NO_EVIDENCE, RolloutPolicy, Verdict, Verdicts, told
from models.rollout_conditions import Condition, conditions, gates, stop_reason
from models.rollout_state import TRAFFIC, Rollout, State, Taken
from security.journal import stamp

__all__ = [
    "NO_EVIDENCE", "Condition", "Decision", "Rollout", "RolloutPolicy", "State", "Taken", "Verdict", "Verdicts",
    "advance", "conditions", "enter_step", "explain", "finish", "moved", "stop", "write",
]


class Stream(StrEnum):
    ROLLOUT = "rollout"
    ROUTING = "routing"
    LINEAGE = "lineage"


@dataclass(frozen=True, slots=True)
class Decision:
    """One entry to append: `room` is the stream's first word, the task its second."""

    room: str
    kind: str
    body: Mapping[str, Any]


def write(kind: str, rollout: Rollout, now: datetime, **more: Any) -> Decision:
    """The entry that replaces what is known of `rollout`."""
    body = {"version": rollout.version, "clock": stamp(now), **more, "after": rollout.to_body()}
    return Decision(Stream.ROLLOUT, kind, body)


def advance(
    rollout: Rollout,
    verdicts: Verdicts,
    policy: RolloutPolicy,
    now: datetime,
    *,
    canary_free: bool = True,
    epoch: int = 0,
) -> tuple[Rollout, tuple[Decision, ...]]:
    """The rollout after this moment and what to journal: nothing, a change of its holds, or one move.

    `epoch` is the current routing epoch: a move that changes the weight belongs to `epoch + 1`. QUEUED waits for a
    slot, which its board gives."""
    if not rollout.live and not rollout.watched:
        return rollout, ()
    reason = stop_reason(rollout, verdicts, policy)
    leaving = rollout.state is State.ROLLING_BACK and rollout.outcome is not State.EXPIRED
    if reason is not None and not leaving:  # a version on its way out for harm is not convicted again at each look
        return stop(rollout, now, reason, verdicts=verdicts, epoch=epoch)
    if rollout.watched:
        return _end_watch(rollout, policy, now)
    if rollout.state is State.ROLLING_BACK:
        return _settle_rollback(rollout, verdicts, policy, now)
    if rollout.state is State.QUEUED:
        return rollout, ()
    if rollout.state is State.PREPARING:
        return _prepare(rollout, verdicts, policy, now)
    return _go_on(rollout, verdicts, policy, now, canary_free, epoch)


def stop(
    rollout: Rollout,
    now: datetime,
    reason: str,
    *,
    outcome: State = State.ROLLED_BACK,
    verdicts: Verdicts = NO_EVIDENCE,
    epoch: int = 0,
    actor: str = "gate",
) -> tuple[Rollout, tuple[Decision, ...]]:
    """Ends the rollout now, from any state: weight 0 in this very decision, whatever replicas have acknowledged."""
    if rollout.state is State.ROLLING_BACK:  # the weight is 0 already; a proven harm outranks an expiry
        changed = replace(rollout, outcome=outcome, reason=reason) if rollout.outcome is State.EXPIRED else rollout
    elif rollout.state in TRAFFIC:
        changed = replace(
            rollout, state=State.ROLLING_BACK, outcome=outcome, weight=0.0, epoch=epoch + 1, state_since=now, holds=(),
            paused=False, reason=reason,
        )
    else:
        final = State.REJECTED if outcome is State.ROLLED_BACK else outcome
        changed = replace(rollout, state=final, state_since=now, watched=False, holds=(), paused=False, reason=reason)
    if changed == rollout:
        return rollout, ()
    return changed, (moved(rollout, changed, now, reason, verdicts, actor),)


def enter_step(
    rollout: Rollout,
    step: int,
    policy: RolloutPolicy,
    now: datetime,
    reason: str,
    verdicts: Verdicts,
    epoch: int,
    actor: str = "gate",
) -> tuple[Rollout, tuple[Decision, ...]]:
    """Raises the weight to canary step `step`; at the last one (100 %) the rollout is PROMOTING."""
    weight = policy.weights[step]
    state = State.PROMOTING if step == len(policy.weights) - 1 else State.CANARY
    changed = replace(
        rollout, state=state, step=step, weight=weight, epoch=epoch + 1, state_since=now, holds=(), reason=reason,
        taken=(*rollout.taken, Taken(step, weight, epoch + 1, now)),
        forecast=rollout.forecast if rollout.taken else verdicts.forecast,
        proven=_proven(rollout, verdicts, policy),
    )
    return changed, (moved(rollout, changed, now, reason, verdicts, actor),)


def _proven(rollout: Rollout, verdicts: Verdicts, policy: RolloutPolicy) -> bool:
    """Better, not merely within the margin: that may promote a version, and makes no anchor of it."""
    if policy.margin > 0.0:
        return verdicts.promote is Verdict.BETTER and verdicts.better_e >= policy.promote_limit(rollout.test)
    return Verdict.BETTER in (verdicts.promote, verdicts.outcome)


def finish(
    rollout: Rollout, now: datetime, reason: str, verdicts: Verdicts, epoch: int, actor: str = "gate"
) -> tuple[Rollout, tuple[Decision, ...]]:
    """From BAKING: the version is PROMOTED, no longer canary but stable."""
    changed = replace(
        rollout, state=State.PROMOTED, state_since=now, holds=(), weight=0.0, epoch=epoch + 1, reason=reason
    )
    return changed, (moved(rollout, changed, now, reason, verdicts, actor),)


def _go_on(
    rollout: Rollout, verdicts: Verdicts, policy: RolloutPolicy, now: datetime, canary_free: bool, epoch: int
) -> tuple[Rollout, tuple[Decision, ...]]:
    unmet = [c for c in conditions(rollout, verdicts, policy, now, canary_free) if not c.met]
    if not unmet:
        reason = _evidence(rollout, verdicts, policy)
        if rollout.state in (State.SHADOW, State.CANARY):
            return enter_step(rollout, rollout.step + 1, policy, now, reason, verdicts, epoch)
        if rollout.state is State.PROMOTING:
            changed = replace(
                rollout, state=State.BAKING, state_since=now, holds=(), reason="every live replica acknowledged"
            )
        else:
            baked = replace(rollout, proven=rollout.proven or _proven(rollout, verdicts, policy))
            return finish(baked, now, f"baked for {spell(now - rollout.state_since)}; {reason}", verdicts, epoch)
        return changed, (moved(rollout, changed, now, changed.reason, verdicts, "gate"),)
    age = now - rollout.ages_from
    if rollout.state in (State.SHADOW, State.CANARY) and age >= policy.max_age:
        reason = f"undecided after {spell(age)} >= max_age {spell(policy.max_age)}: {unmet[0].text}"
        return stop(rollout, now, reason, outcome=State.EXPIRED, verdicts=verdicts, epoch=epoch)
    return _hold(rollout, unmet, now)


def _hold(rollout: Rollout, unmet: list[Condition], now: datetime) -> tuple[Rollout, tuple[Decision, ...]]:
    """Journals the hold reasons when their set changes, not at every look."""
    held = [c for c in unmet if c.hold]
    names = tuple(sorted({c.name for c in held}))
    if names == rollout.holds:
        return rollout, ()
    changed = replace(rollout, holds=names)
    return changed, (write("rollout.held", changed, now, holds=list(names), reasons=[c.text for c in held]),)


def _prepare(
    rollout: Rollout, verdicts: Verdicts, policy: RolloutPolicy, now: datetime
) -> tuple[Rollout, tuple[Decision, ...]]:
    if verdicts.prepared is False:
        return stop(rollout, now, "a replica refused to load the version: see its alarm", verdicts=verdicts)
    if verdicts.prepared:
        goes_on = rollout.expires_from is not None
        changed = replace(
            rollout,
            state=State.SHADOW,
            state_since=now,
            evidence_since=rollout.evidence_since if goes_on else now,
            expires_from=now if goes_on else None,
            reason="loaded and verified: " + ("its evidence goes on" if goes_on else "evidence starts here"),
        )
        return changed, (moved(rollout, changed, now, changed.reason, verdicts, "gate"),)
    if now - rollout.state_since >= policy.max_age:
        return stop(
            rollout, now, f"not prepared within max_age {spell(policy.max_age)}", outcome=State.EXPIRED, verdicts=verdicts
        )
    return rollout, ()


def _settle_rollback(
    rollout: Rollout, verdicts: Verdicts, policy: RolloutPolicy, now: datetime
) -> tuple[Rollout, tuple[Decision, ...]]:
    if not verdicts.acknowledged and now - rollout.state_since < policy.lease:
        return rollout, ()
    how = "every live replica acknowledged weight 0" if verdicts.acknowledged else f"lease of {spell(policy.lease)} ran out"
    changed = replace(rollout, state=rollout.outcome, state_since=now)
    return changed, (moved(rollout, changed, now, f"{how}; {rollout.reason}", verdicts, "gate"),)


def _end_watch(rollout: Rollout, policy: RolloutPolicy, now: datetime) -> tuple[Rollout, tuple[Decision, ...]]:
    age = now - rollout.ages_from
    if age < policy.max_age:
        return rollout, ()
    reason = f"no harm proven within {spell(age)} >= max_age {spell(policy.max_age)}"
    changed = replace(rollout, watched=False)
    return changed, (write("rollout.watch_ended", changed, now, reason=reason),)


def moved(before: Rollout, after: Rollout, now: datetime, reason: str, verdicts: Verdicts, actor: str) -> Decision:
    ended = after.outcome if after.state is State.ROLLING_BACK else after.state
    body = {
        "from": before.state.value, "to": after.state.value, "step": after.step, "weight": after.weight,
        "reason": reason, "figures": verdicts.figures(), "actor": actor,
    }
    return write("rollout.withdrawn" if ended is State.WITHDRAWN else "rollout.advanced", after, now, **body)


def _evidence(rollout: Rollout, verdicts: Verdicts, policy: RolloutPolicy) -> str:
    mean = "no mean" if verdicts.mean is None else f"mean gain {verdicts.mean:+.4f}"
    limit, harm = policy.promote_limit(rollout.test), policy.harm_threshold
    text = (
        f"evidence {told(verdicts.promote_e)} (limit {told(limit)}) after {verdicts.blocks} blocks, "
        f"{mean}, harm {told(verdicts.harm_e)} (limit {told(harm)})"
    )
    if policy.evidence == "paired":
        return text
    effect = "unknown" if verdicts.effect is None else f"{verdicts.effect:+.4f}"
    return (
        f"outcome of {verdicts.units} units: effect {effect}, evidence {told(verdicts.outcome_e)} (limit {told(limit)}), harm "
        f"{told(verdicts.outcome_harm_e)} (limit {told(harm)}); in shadow: {text}"
    )


def explain(
    rollout: Rollout,
    verdicts: Verdicts,
    policy: RolloutPolicy,
    now: datetime,
    canary_free: bool = True,
    outlook: Iterable[str] = (),
) -> str:
    """Where the rollout is, why, and what the next step waits for, in plain words with figures. `outlook`: sentences on
    the size of the effect, which only the floor above can work out."""
    where = f"{rollout.version} is {rollout.state.value}"
    if rollout.state in TRAFFIC:
        where += f" at {rollout.weight:.0%}"
    lines = [f"{where} since {rollout.state_since:%Y-%m-%d %H:%M} UTC: {rollout.reason}."]
    if rollout.watched:
        lines.append("It takes no traffic; it has descendants, so the harm test goes on.")
    if rollout.live or rollout.watched:
        lines.append(f"Now: {_evidence(rollout, verdicts, policy)}, {verdicts.samples} examples.")
        lines += outlook
    spoken = gates(rollout, verdicts, policy) if rollout.live or rollout.watched else ()
    for gate, text in spoken:
        if gate in policy.dry_run:
            lines.append(f"Reported only ({gate} is in dry_run): {text}.")
        elif gate not in policy.pause_on and (rollout.state in TRAFFIC or rollout.state is State.SHADOW):
            lines.append(f"Due: {text}; the next look of a controller, or else the next window, stops it.")
    if rollout.state is State.PREPARING:
        lines.append("Waits (loaded): the next window's run loads it and verifies what was signed.")
    if rollout.state is State.QUEUED:
        lines.append(f"Waits (slot): {policy.shadow_slots} versions are under test at a time, the newest first.")
    for condition in conditions(rollout, verdicts, policy, now, canary_free):
        if not condition.met:
            lines.append(f"{'Held' if condition.hold else 'Waits'} ({condition.name}): {condition.text}.")
    if rollout.state in (State.SHADOW, State.CANARY):
        lines.append(f"Undecided, it expires {rollout.ages_from + policy.max_age:%Y-%m-%d %H:%M} UTC.")
    lines.extend(f"Note: {reason}." for reason in verdicts.reasons)
    return "\n".join(lines)
