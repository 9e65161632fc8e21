"""What a rollout's next step waits for, each as one sentence with figure and limit, and what stops it at once.

`advance` and `explain` read the same list, so the explanation cannot differ from the decision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from models.duration import spell
from models.freeze import frozen
from models.release_policy import RolloutPolicy, Verdict, Verdicts, told
from models.rollout_state import TRAFFIC, Rollout, State


@dataclass(frozen=True, slots=True)
class Condition:
    """`hold`: something outside the evidence is missing and somebody may have to act; otherwise time and data will
    tell."""

    name: str
    met: bool
    text: str
    hold: bool = False


def gates(rollout: Rollout, verdicts: Verdicts, policy: RolloutPolicy) -> Iterator[tuple[str, str]]:
    """(gate, sentence) of each gate that speaks against the version now."""
    limit = policy.harm_threshold
    if verdicts.harm is Verdict.WORSE:
        yield "harm", f"harm {told(verdicts.harm_e)} >= {told(limit)} after {verdicts.blocks} blocks"
    for name, _, harm_e, _ in verdicts.slices:
        if harm_e >= limit:
            yield "slices", f"harm {told(harm_e)} >= {told(limit)} for the protected slice {name!r}"
    if verdicts.outcome is Verdict.WORSE:
        text = f"harm {told(verdicts.outcome_harm_e)} >= {told(limit)} on the outcome of {verdicts.units} units"
        yield "outcome", text
    if rollout.state not in TRAFFIC:
        return
    for name, verdict, figure in (
        ("errors", verdicts.errors, verdicts.errors_e),
        ("slow", verdicts.slow, verdicts.slow_e),
    ):
        if verdict is Verdict.WORSE:
            yield name, (
                f"{name}: evidence {told(figure)} >= {told(policy.guard_threshold)} for a relative risk above "
                f"{policy.guard_risk} after {verdicts.canary_requests} canary requests in this step"
            )


def stop_reason(rollout: Rollout, verdicts: Verdicts, policy: RolloutPolicy) -> str | None:
    """Why the version must go at once, or None. Asked first, in every state, paused or held."""
    found = gates(rollout, verdicts, policy)
    return next((text for gate, text in found if gate not in (*policy.pause_on, *policy.dry_run)), None)


def conditions(
    rollout: Rollout, verdicts: Verdicts, policy: RolloutPolicy, now: datetime, canary_free: bool = True
) -> list[Condition]:
    """All conditions of the next step, met or not; empty where no step follows or the board decides it."""
    if rollout.state not in TRAFFIC and rollout.state is not State.SHADOW:
        return []
    found = [Condition("paused", not rollout.paused, "a person paused it: resume it to let it go on")]
    if rollout.state in (State.SHADOW, State.CANARY):
        found += _seen(verdicts, policy)
        if needs_proof(rollout, policy):
            found += _proof(rollout, verdicts, policy)
        if len(policy.weights) <= rollout.step + 1:
            found.append(Condition("steps", False, "the policy has no canary step: shadow only reports"))
    if rollout.state is State.SHADOW:
        found.append(Condition("canary_free", canary_free, "another version is the canary, and there is one at a time"))
    if rollout.state in (State.CANARY, State.BAKING):
        found += _traffic(rollout, verdicts, policy, now)
    found += _holds(rollout, verdicts, policy, now)
    if rollout.state is not State.BAKING and all(c.met for c in found):  # asked last: only a raise waits for replicas
        text = (
            f"not every live replica has acknowledged routing epoch {rollout.epoch}"
            if rollout.epoch
            else "replicas lag"
        )
        found.append(Condition("not_acknowledged", verdicts.acknowledged, text, hold=True))
    return found


def needs_proof(rollout: Rollout, policy: RolloutPolicy) -> bool:
    """Whether the next raise needs the evidence at that moment. Outcomes exist only on the canary: there its small steps
    need the guardrails alone, and the last one the proof."""
    return policy.evidence == "paired" or rollout.step + 1 == len(policy.weights) - 1


def _seen(verdicts: Verdicts, policy: RolloutPolicy) -> Iterator[Condition]:
    if policy.evidence == "paired":
        yield Condition(
            "blocks", verdicts.blocks >= policy.min_blocks, f"{verdicts.blocks} blocks, needs {policy.min_blocks}"
        )
    yield Condition(
        "samples", verdicts.samples >= policy.min_samples, f"{verdicts.samples} examples, needs {policy.min_samples}"
    )


def _proof(rollout: Rollout, verdicts: Verdicts, policy: RolloutPolicy) -> Iterator[Condition]:
    """Written so that a NaN fails: no comparison with NaN is true."""
    limit = policy.promote_limit(rollout.test)
    if policy.evidence == "outcome":
        enough = verdicts.outcome is Verdict.BETTER and verdicts.outcome_e >= limit
        yield Condition("outcome", enough, f"evidence on outcomes {told(verdicts.outcome_e)}, needs {told(limit)}")
        effect = verdicts.effect
        text = f"effect on the outcome {'unknown' if effect is None else f'{effect:+.4f}'}, needs < {policy.margin:g}"
        yield Condition("effect", effect is not None and effect < policy.margin, text)
    else:
        mean = verdicts.mean
        enough = verdicts.promote is Verdict.BETTER and verdicts.promote_e >= limit
        yield Condition("evidence", enough, f"evidence {told(verdicts.promote_e)}, needs {told(limit)}")
        text = f"unclipped mean gain {'unknown' if mean is None else f'{mean:+.4f}'}, needs > {0.0 - policy.margin:g}"
        yield Condition("mean", mean is not None and mean + policy.margin > 0.0, text)
    for name, promote_e, _, gain in verdicts.slices:
        kept = promote_e >= policy.harm_threshold and gain is not None and gain + policy.slice_margin > 0.0
        gained = "unknown" if gain is None else f"{gain:+.4f}"
        text = (
            f"slice {name!r}: evidence {told(promote_e)} that it loses less than {policy.slice_margin:g}, needs "
            f"{told(policy.harm_threshold)}; mean gain {gained}"
        )
        yield Condition("slices", kept, text)


def _traffic(rollout: Rollout, verdicts: Verdicts, policy: RolloutPolicy, now: datetime) -> Iterator[Condition]:
    least = policy.bake if rollout.state is State.BAKING else policy.min_hold
    spent = now - rollout.state_since
    yield Condition("time", spent >= least, f"{spell(spent)} in this step, needs {spell(least)}")
    last = rollout.state is State.CANARY and rollout.step + 1 == len(policy.weights) - 1
    if last and policy.min_test and rollout.taken:
        tested = now - rollout.taken[0].since
        text = f"{spell(tested)} since the first users, needs {spell(policy.min_test)}"
        yield Condition("min_test", tested >= policy.min_test, text)
    failed, asked = verdicts.canary_failed, verdicts.canary_requests  # beside a stable arm of 1 % the gate `errors` is slow
    yield Condition("failing", not 2 * failed > asked, f"{failed} of {asked} canary requests in this step failed", hold=True)
    if policy.min_requests and spent >= least:
        enough = verdicts.requests >= policy.min_requests and verdicts.canary_requests >= 1
        text = f"{verdicts.requests} requests in this step, {verdicts.canary_requests} of them to the canary"
        yield Condition(
            "no_traffic", enough, f"{text}: needs {policy.min_requests}, at least 1 to the canary", hold=True
        )


def _holds(rollout: Rollout, verdicts: Verdicts, policy: RolloutPolicy, now: datetime) -> Iterator[Condition]:
    broken = Verdict.ERROR in (verdicts.promote, verdicts.harm, verdicts.errors, verdicts.slow, verdicts.outcome)
    yield Condition(
        "evidence_error", not broken, "; ".join(verdicts.reasons) or "the evidence cannot be computed", hold=True
    )
    yield Condition(
        "stale_data", verdicts.fresh, f"the newest scored window is older than {spell(policy.stale_after)}", hold=True
    )
    yield Condition("label_coverage", verdicts.covered, f"label coverage is below {policy.min_coverage:.0%}", hold=True)
    worst = "unknown" if verdicts.worst_block is None else f"{verdicts.worst_block:+.3f}"
    yield Condition("tail_loss", not verdicts.tail, f"worst recent block mean {worst} < -{policy.cap:g}", hold=True)
    planned = not verdicts.assigned_e >= policy.srm_threshold
    text = f"evidence {verdicts.assigned_e:.0f} >= {policy.srm_threshold:.0f} that the arms are not split as planned"
    yield Condition("srm", planned, f"{text}: find out who routes around the gateway", hold=True)
    spoken = [text for gate, text in gates(rollout, verdicts, policy) if gate in policy.pause_on]
    yield Condition("signal", not spoken, "; ".join(spoken) or "no gate speaks against it", hold=True)
    freeze = frozen(policy.freeze, now)
    yield Condition("freeze", freeze is None, f"no version gets more traffic within {freeze}", hold=True)
    # asked when the evidence is there: nobody is called for a version that has proven nothing
    proven = Verdict.BETTER in (verdicts.promote, verdicts.outcome) or policy.evidence == "outcome"
    if policy.approval == "two-person" and rollout.state is not State.BAKING and proven:
        named = bool(set(rollout.approvers) - {rollout.proposer})
        yield Condition("human", named, f"needs an approver other than {rollout.proposer}", hold=True)
