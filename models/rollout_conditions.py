"""What a rollout's next step waits for, each as one sentence with figure and limit, and what stops it at once.

`advance` and `explain` read the same list, so the explanation cannot differ from the decision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from models.duration import spell
from models.release_policy import RolloutPolicy, Verdict, Verdicts
from models.rollout_state import TRAFFIC, Rollout, State


@dataclass(frozen=True, slots=True)
class Condition:
    """`hold`: something outside the evidence is missing and somebody may have to act; otherwise time and data will
    tell."""

    name: str
    met: bool
    text: str
    hold: bool = False


def stop_reason(rollout: Rollout, verdicts: Verdicts, policy: RolloutPolicy) -> str | None:
    """Why the version must go at once, or None. Asked first, in every state, paused or held."""
    if verdicts.harm is Verdict.WORSE:
        return f"harm {verdicts.harm_e:.1f} >= {policy.harm_threshold:.1f} after {verdicts.blocks} blocks"
    if rollout.state not in TRAFFIC:
        return None
    for name, verdict, figure in (
        ("errors", verdicts.errors, verdicts.errors_e),
        ("slow", verdicts.slow, verdicts.slow_e),
    ):
        if verdict is Verdict.WORSE:
            return (
                f"{name}: evidence {figure:.1f} >= {policy.guard_threshold:.1f} for a relative risk above "
                f"{policy.guard_risk} after {verdicts.canary_requests} canary requests in this step"
            )
    return None


def conditions(
    rollout: Rollout, verdicts: Verdicts, policy: RolloutPolicy, now: datetime, canary_free: bool = True
) -> list[Condition]:
    """All conditions of the next step, met or not; empty where no step follows or the board decides it."""
    if rollout.state not in TRAFFIC and rollout.state is not State.SHADOW:
        return []
    found = [Condition("paused", not rollout.paused, "a person paused it: resume it to let it go on")]
    if rollout.state in (State.SHADOW, State.CANARY):
        found += _evidence(verdicts, policy)
        if len(policy.weights) <= rollout.step + 1:
            found.append(Condition("steps", False, "the policy has no canary step: shadow only reports"))
    if rollout.state is State.SHADOW:
        found.append(Condition("canary_free", canary_free, "another version is the canary, and there is one at a time"))
    if rollout.state in (State.CANARY, State.BAKING):
        found += _traffic(rollout, verdicts, policy, now)
    found += _holds(rollout, verdicts, policy)
    if rollout.state is not State.BAKING and all(c.met for c in found):  # asked last: only a raise waits for replicas
        text = (
            f"not every live replica has acknowledged routing epoch {rollout.epoch}"
            if rollout.epoch
            else "replicas lag"
        )
        found.append(Condition("not_acknowledged", verdicts.acknowledged, text, hold=True))
    return found


def _evidence(verdicts: Verdicts, policy: RolloutPolicy) -> Iterator[Condition]:
    threshold, mean = policy.promote_threshold, verdicts.mean
    yield Condition(
        "blocks", verdicts.blocks >= policy.min_blocks, f"{verdicts.blocks} blocks, needs {policy.min_blocks}"
    )
    yield Condition(
        "samples", verdicts.samples >= policy.min_samples, f"{verdicts.samples} examples, needs {policy.min_samples}"
    )
    # written so that a NaN fails: no comparison with NaN is true
    enough = verdicts.promote is Verdict.BETTER and verdicts.promote_e >= threshold
    yield Condition("evidence", enough, f"evidence {verdicts.promote_e:.1f}, needs {threshold:.1f}")
    advantage = mean is not None and mean + policy.margin > 0.0
    yield Condition(
        "mean",
        advantage,
        f"unclipped mean gain {'unknown' if mean is None else f'{mean:+.4f}'}, needs > {0.0 - policy.margin:g}",
    )


def _traffic(rollout: Rollout, verdicts: Verdicts, policy: RolloutPolicy, now: datetime) -> Iterator[Condition]:
    least = policy.bake if rollout.state is State.BAKING else policy.min_hold
    spent = now - rollout.state_since
    yield Condition("time", spent >= least, f"{spell(spent)} in this step, needs {spell(least)}")
    if policy.min_requests and spent >= least:
        asked = verdicts.requests >= policy.min_requests and verdicts.canary_requests >= 1
        text = f"{verdicts.requests} requests in this step, {verdicts.canary_requests} of them to the canary"
        yield Condition(
            "no_traffic", asked, f"{text}: needs {policy.min_requests}, at least 1 to the canary", hold=True
        )


def _holds(rollout: Rollout, verdicts: Verdicts, policy: RolloutPolicy) -> Iterator[Condition]:
    broken = Verdict.ERROR in (verdicts.promote, verdicts.harm, verdicts.errors, verdicts.slow)
    yield Condition(
        "evidence_error", not broken, "; ".join(verdicts.reasons) or "the evidence cannot be computed", hold=True
    )
    yield Condition(
        "stale_data", verdicts.fresh, f"the newest scored window is older than {policy.stale_after}", hold=True
    )
    yield Condition("label_coverage", verdicts.covered, f"label coverage is below {policy.min_coverage:.0%}", hold=True)
    worst = "unknown" if verdicts.worst_block is None else f"{verdicts.worst_block:+.3f}"
    yield Condition("tail_loss", not verdicts.tail, f"worst recent block mean {worst} < -{policy.cap:g}", hold=True)
    # asked when the evidence is there: nobody is called for a version that has proven nothing
    if policy.approval == "two-person" and rollout.state is not State.BAKING and verdicts.promote is Verdict.BETTER:
        named = bool(set(rollout.approvers) - {rollout.proposer})
        yield Condition("human", named, f"needs an approver other than {rollout.proposer}", hold=True)
