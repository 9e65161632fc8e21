"""Whether a release policy can decide at all: what it can reach by `max_age`, and what past windows say against it.

Each check gives one finding. FAIL: under this policy no version is ever promoted, or its evidence means nothing. WARN: it
may be meant so, but somebody should know. UNSEEN: there is no history to look at. It promises no day of decision; that is
what a rehearsal on the history is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from math import ceil

from models.duration import spell
from models.release_policy import RolloutPolicy
from monitoring import verdict
from monitoring.block_history import BlockHistory
from monitoring.sequential import bet, largest_e

YEAR = timedelta(days=365)
LARGEST_CLIP = 0.5  # margin x cap / variance; a cap five times too wide took 2,335 samples for 600
LARGEST_EFFECT = 1.5  # a design effect up to this is taken for independence
FEW_REQUESTS = 3.0  # expected canary requests below which a step may well see none


class Level(StrEnum):
    OK = "ok"
    WARN = "WARN"
    FAIL = "FAIL"
    UNSEEN = "UNSEEN"


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    check: str
    text: str


@dataclass(frozen=True)
class Circumstances:
    """What a policy has to work in. `attempts`: tests begun a year, and where that figure is from. `golden`: (enough,
    protected, sentence) of each golden set."""

    every: timedelta  # windows, and so looks
    attempts: float
    attempts_from: str
    history: BlockHistory | None = None
    golden: Sequence[tuple[bool, bool, str]] = ()

    @property
    def seen(self) -> BlockHistory | None:
        return self.history if self.history and self.history.blocks else None


def check(policy: RolloutPolicy, around: Circumstances) -> list[Finding]:
    """All findings, in the order a person would ask."""
    return [
        *_reach(policy, around),
        *_traffic(policy, around),
        *_noise(policy, around),
        *_dependence(policy, around),
        _attempts(policy, around),
        *_golden(around),
    ]


def hold_of(policy: RolloutPolicy, every: timedelta) -> timedelta:
    """How long one canary step lasts at least: `min_hold`, to the next look."""
    return max(1, ceil(policy.min_hold / every)) * every


def _ladder(policy: RolloutPolicy, every: timedelta) -> timedelta:
    """All canary steps below 100 %; the one at 100 % is outside `max_age`."""
    return max(0, len(policy.weights) - 1) * hold_of(policy, every)


def first_pass(policy: RolloutPolicy) -> int | None:
    """Blocks of the best possible outcome until the evidence suffices; None when `max_age` ends before."""
    for n in range(policy.min_blocks, policy.max_age // policy.block + 1):
        if largest_e(n) >= policy.promote_threshold:
            return n
    return None


def least_gain(policy: RolloutPolicy, blocks: int) -> float | None:
    """The smallest steady gain a block, without any noise, that reaches the limit in so many; None: not even the cap."""
    low, high = 0.0, 1.0
    if blocks < 1 or largest_e(blocks) < policy.promote_threshold:
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2.0
        enough = bet([middle] * blocks).e_value >= policy.promote_threshold
        low, high = (low, middle) if enough else (middle, high)
    return high * policy.cap - policy.margin


def _reach(policy: RolloutPolicy, around: Circumstances) -> Iterator[Finding]:
    blocks, limit = policy.max_age // policy.block, policy.promote_threshold
    refused = verdict.lint(policy)
    for text in refused:
        yield Finding(Level.FAIL, "reach", text)
    if not refused:
        text = f"{blocks} blocks of {spell(policy.block)} reach evidence {largest_e(blocks):.3g} at best, limit {limit:g}"
        yield Finding(Level.OK, "reach", text)
    if not policy.weights:
        yield Finding(Level.WARN, "steps", "the policy has no canary step: it reports, and promotes nothing")
    passed, ladder = first_pass(policy), _ladder(policy, around.every)
    if passed is None:
        return
    least = passed * policy.block + ladder
    text = f"{passed} blocks and {spell(ladder)} of canary steps take {spell(least)} at best, max_age {spell(policy.max_age)}"
    if least > policy.max_age:
        yield Finding(Level.FAIL, "steps", f"{text}: lower min_hold, take fewer steps or raise max_age")
        return
    yield Finding(Level.OK, "steps", text)
    spare = (policy.max_age - ladder) // policy.block
    gain = least_gain(policy, spare)
    text = f"a steady gain of {gain:+.4f} a block is the least that passes in the {spare} blocks the steps leave"
    best = max(around.seen.means) if around.seen else None
    if best is None or gain is None or best >= gain:
        yield Finding(Level.OK, "power", text)
    else:
        yield Finding(Level.WARN, "power", f"{text}; the best pair so far gained {best:+.4f}: none would have passed")


def _traffic(policy: RolloutPolicy, around: Circumstances) -> Iterator[Finding]:
    seen, passed, ladder = around.seen, first_pass(policy), _ladder(policy, around.every)
    if seen is None or passed is None:
        yield Finding(Level.UNSEEN, "traffic", "no scored blocks yet: examples and requests a window are unknown")
        return
    need = ceil(policy.min_samples / seen.examples)
    text = f"{seen.examples:.0f} examples a block: min_samples {policy.min_samples} takes {need} blocks"
    late = need * policy.block + ladder > policy.max_age
    yield Finding(Level.FAIL if late else Level.OK, "samples", f"{text} of {policy.max_age // policy.block}")
    if not policy.min_requests or not policy.weights:
        return
    spare = policy.max_age - passed * policy.block - ladder + hold_of(policy, around.every)
    requests = seen.requests * (spare / around.every)
    weight = policy.weights[0]
    text = (
        f"{seen.requests:.0f} requests a window: at most {requests:.0f} in the first step, {requests * weight:.1f} of them "
        f"to the canary; needs {policy.min_requests}, at least 1 to the canary"
    )
    level = Level.OK if requests * weight >= FEW_REQUESTS else Level.WARN
    yield Finding(Level.FAIL if 0.0 < requests < policy.min_requests else level, "requests", text)


def _noise(policy: RolloutPolicy, around: Circumstances) -> Iterator[Finding]:
    sd = around.seen.sd if around.seen else None
    if not sd:
        yield Finding(Level.UNSEEN, "clip", "no spread of block means is known: margin x cap / variance was not looked at")
        return
    figure = policy.margin * policy.cap / sd**2
    text = f"cap {policy.cap:g} = {policy.cap / sd:.1f} sd of a block mean ({sd:.4f}); margin x cap / variance {figure:.2f}"
    if figure > LARGEST_CLIP:
        yield Finding(Level.FAIL, "clip", f"{text} > {LARGEST_CLIP}: lower the cap, or the margin")
    else:
        yield Finding(Level.OK, "clip", text)


def _dependence(policy: RolloutPolicy, around: Circumstances) -> Iterator[Finding]:
    seen = around.seen
    if seen is None or seen.lag_correlation is None:
        yield Finding(Level.UNSEEN, "dependence", "no scored blocks yet: how they hang together was not looked at")
        return
    if seen.design_effect is not None:
        wide = seen.design_effect > LARGEST_EFFECT
        means = "examples hang together, a test on records would be too sure" if wide else "examples are nearly independent"
        text = f"design effect {seen.design_effect:.1f} by block of {spell(policy.block)}: {means}"
        yield Finding(Level.OK, "design_effect", text)
    effect = 1.0 + 2.0 * max(0.0, seen.lag_correlation)
    text = f"correlation of a block with the one before {seen.lag_correlation:+.2f}, design effect of blocks {effect:.2f}"
    if effect > LARGEST_EFFECT:
        yield Finding(Level.WARN, "dependence", f"{text} > {LARGEST_EFFECT}: {spell(policy.block)} blocks hang "
                      "together: try longer ones")
    else:
        yield Finding(Level.OK, "dependence", text)


def _attempts(policy: RolloutPolicy, around: Circumstances) -> Finding:
    spent = around.attempts / policy.promote_threshold
    text = (
        f"{around.attempts:.0f} tests a year ({around.attempts_from}) x alpha {policy.alpha:g} / {policy.shadow_slots} slots: "
        f"at most {spent:.2f} false promotions a year if no version were better"
    )
    return Finding(Level.WARN if spent > 1.0 else Level.OK, "attempts", text)


def _golden(around: Circumstances) -> Iterator[Finding]:
    if not around.golden:
        yield Finding(Level.UNSEEN, "golden", "no golden set was given: retention is not measured")
    for enough, protected, text in around.golden:
        level = Level.OK if enough else Level.FAIL if protected else Level.WARN
        yield Finding(level, "golden", text if enough or not protected else f"{text}; every version would be refused")
