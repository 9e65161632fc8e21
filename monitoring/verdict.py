"""From evidence to the verdicts a rollout needs, and whether a policy can ever decide.

Two tests on block means X = mean(stable loss - candidate loss) / cap, clipped to [-1, 1]: *promote* (the candidate is
better, limit slots / alpha) and *harm* (it is worse, limit 1 / alpha); two guardrails on the answers of the gateway
(errors, slow ones). No evidence, a loss that is not a number, an unknown figure: never a success.

It knows one rollout's figures. What follows from them is in `models/rollout.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from math import isfinite
from typing import Any

from models.duration import spell
from models.release_policy import RolloutPolicy, Verdict, Verdicts
from models.rollout_state import TRAFFIC, Rollout, State
from monitoring.evidence import BlockSum, Evidence, milliseconds
from monitoring.outcome import Outcome
from monitoring.sample_ratio import together
from monitoring.sequential import Attribution, Betting, attribute, bet, largest_e

# The harm figure is a weighted mean of e-processes: 0.8 on the test since the start, 0.2 shared by tests that begin
# with each canary step (1 until they do). A mean of e-processes is one, so alpha is spent once; the share costs a
# version that is bad from the start at most one block (-.04 nats a day, sd .03: day 16 for 15; -.1: day 8 for 8), and
# convicts one that was good (+.04) for 28 days and then turns bad (-.1) after 13 days, where the test since the start
# alone takes 30 and, at -.04, never decides. 0.5 would save two days more and lose two at the start.
SHARE_SINCE_START = 0.8
LEAST_ROWS = 10  # of a slice in one observation: the clip of one row's difference is about its sign, not about the mean
LARGEST_COVERAGE_GAP = 0.1  # between the arms: more, and what is compared are two kinds of users


def judge(
    rollout: Rollout,
    evidence: Evidence,
    policy: RolloutPolicy,
    now: datetime,
    *,
    acknowledged: bool,
    prepared: bool | None,
) -> Verdicts:
    """The verdicts on one rollout at this moment."""
    errors, slow = _guards(rollout, evidence, policy)
    taken = rollout.taken[-1] if rollout.taken and rollout.state in TRAFFIC else None
    stable, canary = (evidence.arm(taken.epoch if taken else 0, name) for name in ("stable", "canary"))
    return Verdicts(
        **_paired(rollout, evidence, policy),
        **_outcome(rollout, evidence, policy),
        errors=_verdict((), Verdict.WORSE, errors.e_value >= policy.guard_threshold),
        errors_e=errors.e_value,
        slow=_verdict((), Verdict.WORSE, slow.e_value >= policy.guard_threshold),
        slow_e=slow.e_value,
        forecast=evidence.forecast,
        slices=tuple(_slice(rollout, evidence, policy, name) for name in policy.protected_slices),
        requests=stable.requests + canary.requests if taken else 0,
        canary_requests=canary.requests if taken else 0,
        canary_failed=canary.errors if taken else 0,
        covered=_covered(evidence, policy),
        fresh=evidence.processed is not None and now - evidence.processed <= policy.stale_after,
        prepared=prepared,
        acknowledged=acknowledged,
    )


def _paired(rollout: Rollout, evidence: Evidence, policy: RolloutPolicy) -> dict[str, Any]:
    """Promote and harm on the same closed blocks since `evidence_since`, and what the blocks are."""
    blocks = [
        b
        for b in evidence.closed((rollout.version, rollout.against), rollout.evidence_since, policy.block)
        if b.n or b.bad
    ]
    reasons = _broken(blocks, evidence)
    usable = tested(blocks)
    promote = bet([_clip((b.mean + policy.margin) / policy.cap) for b in usable])
    harm_e = _harm(rollout, usable, policy)
    mean = sum(b.mean for b in usable) / len(usable) if usable else None
    samples = sum(b.n for b in usable)
    enough = (
        len(usable) >= policy.min_blocks
        and samples >= policy.min_samples
        and mean is not None
        and mean + policy.margin > 0
    )
    recent = [b.mean for b in usable[-policy.min_blocks :]]
    return {
        "promote": _verdict(reasons, Verdict.BETTER, enough and promote.e_value >= policy.promote_limit(rollout.test)),
        "promote_e": promote.e_value,
        "better_e": bet([_clip(b.mean / policy.cap) for b in usable]).e_value if policy.margin else promote.e_value,
        "harm": _verdict(reasons, Verdict.WORSE, harm_e >= policy.harm_threshold),
        "harm_e": harm_e,
        "blocks": len(usable),
        "samples": samples,
        "mean": mean,
        "worst_block": min(recent, default=None),
        # only recent blocks hold: an older disaster is in the unclipped mean, which has to pass as well
        "tail": any(m < -policy.cap for m in recent),
        "reasons": reasons,
    }


def _covered(evidence: Evidence, policy: RolloutPolicy) -> bool:
    """Labels for enough of the examples, and for the units of both arms alike."""
    arms = evidence.arm_coverage.values()
    enough = all(share >= policy.min_coverage for share in (evidence.coverage, *arms) if share is not None)
    return enough and (len(arms) < 2 or max(arms) - min(arms) <= LARGEST_COVERAGE_GAP)


def _slice(rollout: Rollout, evidence: Evidence, policy: RolloutPolicy, name: str) -> tuple[str, float, float, float | None]:
    """A protected slice: (name, evidence that it loses less than the slice margin, evidence of harm, mean gain)."""
    blocks = evidence.closed((rollout.version, rollout.against), rollout.evidence_since, policy.block, name)
    gains = [b.mean for b in tested(blocks)]
    kept = bet([_clip((gain + policy.slice_margin) / policy.cap) for gain in gains])
    harm = bet([_clip(-gain / policy.cap) for gain in gains])
    return name, kept.e_value, harm.e_value, sum(gains) / len(gains) if gains else None


def tested(blocks: Iterable[BlockSum]) -> list[BlockSum]:
    """The observations of a test: blocks that can be computed, consecutive ones together until they have LEAST_ROWS; what is
    left waits. How many there are says nothing of who is better, so the test stays one."""
    found: list[BlockSum] = []
    parts: BlockSum | None = None
    for block in (b for b in blocks if b.n and isfinite(b.total) and isfinite(b.squares)):
        parts = replace(block, block=parts.block) + parts if parts else block
        if parts.n >= LEAST_ROWS:
            found.append(parts)
            parts = None
    return found


def _outcome(rollout: Rollout, evidence: Evidence, policy: RolloutPolicy) -> dict[str, Any]:
    """The randomised canary over all its steps: what users of each arm brought about, and whether the arms are the
    planned ones. Harm is shared over the steps as in shadow."""
    seen = evidence.exposures(rollout.version, (taken.epoch for taken in rollout.taken))
    if not seen:
        return {}
    whole = sum((one.outcome for one in seen), Outcome())
    steps = max(len(policy.weights), 1)
    parts = [one.outcome.harm.e_value for one in seen[:steps]]
    by_step = (sum(parts) + steps - len(parts)) / steps
    harm_e = SHARE_SINCE_START * whole.harm.e_value + (1.0 - SHARE_SINCE_START) * by_step
    if policy.evidence != "outcome":
        verdict = Verdict.UNDECIDED  # shown, and no part of the decision
    elif harm_e >= policy.harm_threshold:
        verdict = Verdict.WORSE
    else:
        proven = whole.n >= policy.min_samples and whole.promote.e_value >= policy.promote_limit(rollout.test)
        verdict = Verdict.BETTER if proven else Verdict.UNDECIDED
    return {
        "outcome": verdict, "outcome_e": whole.promote.e_value, "outcome_harm_e": harm_e, "effect": whole.effect,
        "units": whole.n, "assigned_e": together(one.assigned for one in seen),
    }


def _broken(blocks: list[BlockSum], evidence: Evidence) -> tuple[str, ...]:
    bad = sum(b.bad for b in blocks)
    found = [f"{bad} examples have a loss that is not a finite number: the pair is not comparable"] if bad else []
    if not all(isfinite(b.total) and isfinite(b.squares) for b in blocks):
        found.append("a block sum is not a finite number: the entry was not written by the scorer")
    if evidence.coverage is not None and not isfinite(evidence.coverage):
        found.append(f"label coverage is {evidence.coverage}: the join step failed")
    return tuple(found)


def _verdict(reasons: tuple[str, ...], name: Verdict, proven: bool) -> Verdict:
    """A broken part never helps a version: it bars the promotion, while harm proven by the rest still counts."""
    if reasons and not (proven and name is Verdict.WORSE):
        return Verdict.ERROR
    return name if proven else Verdict.UNDECIDED


def _clip(x: float) -> float:
    return max(-1.0, min(1.0, x))


def _harm(rollout: Rollout, blocks: list[BlockSum], policy: RolloutPolicy) -> float:
    """The weighted mean of the harm tests; a test whose step has not begun stands at 1. No margin: harm is harm."""

    def since(start: datetime) -> float:
        first = milliseconds(start)
        state: Betting = bet([_clip(-b.mean / policy.cap) for b in blocks if b.block >= first])
        return state.e_value

    whole = since(rollout.evidence_since)
    steps = len(policy.weights)
    if steps == 0:
        return whole
    restarted = sum(since(taken.since) for taken in rollout.taken[:steps])
    mean = (restarted + max(0, steps - len(rollout.taken))) / max(steps, 1)
    return SHARE_SINCE_START * whole + (1.0 - SHARE_SINCE_START) * mean


def _guards(rollout: Rollout, evidence: Evidence, policy: RolloutPolicy) -> tuple[Attribution, Attribution]:
    """Errors and slow answers over all canary steps; each step's events carry the weight they were drawn with."""
    errors, slow = Attribution(), Attribution()
    if rollout.state is State.SHADOW:
        return errors, slow
    for taken in rollout.taken:
        stable, canary = evidence.arm(taken.epoch, "stable"), evidence.arm(taken.epoch, "canary")
        errors = errors + attribute(canary.errors, stable.errors, taken.weight, policy.guard_risk)
        slow = slow + attribute(canary.slow, stable.slow, taken.weight, policy.guard_risk)
    return errors, slow


def lint(policy: RolloutPolicy) -> list[str]:
    """Why this policy cannot, or hardly can, ever decide; empty when it can."""
    found = []
    blocks = policy.max_age // policy.block
    best, wanted = largest_e(blocks), 10.0 * policy.promote_threshold
    if best < wanted:
        found.append(
            f"{blocks} blocks of {spell(policy.block)} within max_age {spell(policy.max_age)} reach evidence {best:.0f} "
            f"at best, below {wanted:.0f} = 10 x the limit: use shorter blocks or a longer max_age"
        )
    if policy.min_blocks > blocks:
        found.append(f"min_blocks {policy.min_blocks} > {blocks} blocks within max_age: no version can be promoted")
    return found
