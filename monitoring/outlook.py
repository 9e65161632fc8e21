"""What a person wants to hear of a running test: how large the effect is, with its interval, and how far it is to go.

Both are for reading. The interval is a confidence sequence, right at every look; the pace supposes that evidence goes on
growing as it has, and is no promise. It decides nothing, and knows one rollout.
"""

from __future__ import annotations

from math import ceil, isfinite, log

from models.release_policy import RolloutPolicy
from models.rollout_state import Rollout
from monitoring.confidence import effect_interval, interval
from monitoring.evidence import Evidence
from monitoring.outcome import Outcome
from monitoring.sequential import bet


def outlook(rollout: Rollout, evidence: Evidence, policy: RolloutPolicy) -> list[str]:
    """Sentences on what the version is tested for; empty where there is no evidence yet."""
    limit = policy.promote_limit(rollout.test)
    blocks = evidence.closed((rollout.version, rollout.against), rollout.evidence_since, policy.block)
    gains = [b.mean for b in blocks if b.n and isfinite(b.total)]
    found = []
    if gains:
        low, high = interval(gains, policy.cap, policy.alpha)
        sure = f"{1.0 - policy.alpha:.0%}, at every look"
        text = f"Gain a block {sum(gains) / len(gains):+.4f} ({low:+.4f}, {high:+.4f} at {sure})"
        found.append(f"{text}{_pace(len(gains), _log_e(gains, policy), limit, 'blocks', policy, 'paired')}.")
    seen = evidence.exposures(rollout.version, (taken.epoch for taken in rollout.taken))
    whole = sum((one.outcome for one in seen), Outcome())
    if whole.effect is not None:
        low, high = effect_interval(whole, policy.alpha)
        text = f"Effect on the outcome {whole.effect:+.4f} ({low:+.4f}, {high:+.4f}), less is better"
        found.append(f"{text}{_pace(whole.n, whole.promote.log_e, limit, 'units', policy, 'outcome')}.")
    return found


def _log_e(gains: list[float], policy: RolloutPolicy) -> float:
    """log E of the promote test on these block means."""
    return bet([max(-1.0, min(1.0, (gain + policy.margin) / policy.cap)) for gain in gains]).log_e


def _pace(n: int, log_e: float, limit: float, unit: str, policy: RolloutPolicy, kind: str) -> str:
    """How many observations it takes if log E goes on growing in proportion to their number."""
    if policy.evidence != kind:
        return ""
    if log_e >= log(limit):
        return f"; {n} {unit} were enough"
    if log_e <= 0.0:
        return f"; {n} {unit}, and the evidence does not grow"
    return f"; {n} of about {ceil(n * log(limit) / log_e)} {unit} at this pace"
