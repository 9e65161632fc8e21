"""What a person wants to hear of a running test: how large the effect is, with its interval, and how far it is to go.

Both are for reading. The interval is a confidence sequence, right at every look; the pace supposes that evidence goes on
growing as it has, and is no promise. It decides nothing, and knows one rollout.
"""

from __future__ import annotations

from math import ceil, log

from models.release_policy import RolloutPolicy, Verdicts
from models.rollout_state import Rollout
from monitoring.confidence import effect_interval, interval
from monitoring.evidence import Evidence
from monitoring.outcome import Outcome
from monitoring.verdict import tested


def outlook(rollout: Rollout, verdicts: Verdicts, evidence: Evidence, policy: RolloutPolicy) -> list[str]:
    """Sentences on what the version is tested for; empty where there is no evidence yet. `verdicts`: of this evidence."""
    limit = policy.promote_limit(rollout.test)
    blocks = evidence.closed((rollout.version, rollout.against), rollout.evidence_since, policy.block)
    gains = [b.mean for b in tested(blocks)]
    found = []
    if gains:
        low, high = interval(gains, policy.cap, policy.alpha)
        sure = f"{1.0 - policy.alpha:.0%}, at every look"
        text = f"Gain a block {verdicts.mean or 0.0:+.4f} ({low:+.4f}, {high:+.4f} at {sure})"
        found.append(f"{text}{_pace(len(gains), verdicts.promote_e, limit, 'blocks', policy, 'paired')}.")
    seen = evidence.exposures(rollout.version, (taken.epoch for taken in rollout.taken))
    whole = sum((one.outcome for one in seen), Outcome())
    if whole.effect is not None:
        low, high = effect_interval(whole, policy.alpha)
        text = f"Effect on the outcome {whole.effect:+.4f} ({low:+.4f}, {high:+.4f}), less is better"
        found.append(f"{text}{_pace(whole.n, verdicts.outcome_e, limit, 'units', policy, 'outcome')}.")
    return found


def _pace(n: int, e: float, limit: float, unit: str, policy: RolloutPolicy, kind: str) -> str:
    """How many observations it takes if log E goes on growing in proportion to their number."""
    if policy.evidence != kind:
        return ""
    if e >= limit:
        return f"; {n} {unit} were enough"
    if e <= 1.0:
        return f"; {n} {unit}, and the evidence does not grow"
    return f"; {n} of about {ceil(n * log(limit) / log(e))} {unit} at this pace"
