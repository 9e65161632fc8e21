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
from math import ceil, log, sqrt

from models.duration import spell
from models.release_policy import RolloutPolicy
from monitoring import verdict
from monitoring.block_history import BlockHistory
from monitoring.sequential import BETS, bet, largest_e, log_mean_exp

YEAR = timedelta(days=365)
LARGEST_CLIP = 0.5  # margin x cap / variance; a cap five times too wide took 2,335 samples for 600
LARGEST_EFFECT = 1.5  # a design effect up to this is taken for independence
UNLUCKY = 0.84  # standard deviations below the mean of which one rollout in five stays
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
    misfits: Sequence[str] = ()  # what the policy asks of the task and the task has not

    @property
    def seen(self) -> BlockHistory | None:
        return self.history if self.history and self.history.blocks else None


def check(policy: RolloutPolicy, around: Circumstances) -> list[Finding]:
    """All findings, in the order a person would ask."""
    return [
        *(Finding(Level.FAIL, "task", text) for text in around.misfits),
        *(_reach(policy, around) if policy.evidence == "paired" else _outcomes(policy, around)),
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


def least_effect(policy: RolloutPolicy, units: Sequence[tuple[float, float]], cost: float) -> float | None:
    """The smallest fall of the mean outcome that is proven in 4 of 5 rollouts; None: not even a fall to 0. `units`: (how many,
    canary weight) of each step, each unit new; `cost`: stable's mean outcome.

    A bet b on n scores of mean m and variance v gains about b n m - b^2 n v / 2; with outcomes of 0 and 1 a unit drawn with pi
    has m = pi (1 - pi) effect and v = pi (1 - pi) cost (1 - cost), and other outcomes vary less."""
    overlap = sum(count * weight * (1.0 - weight) for count, weight in units)
    spread = overlap * cost * (1.0 - cost)

    def enough(effect: float) -> bool:
        score = effect * overlap - UNLUCKY * sqrt(spread)
        return log_mean_exp(tuple(b * score - b * b * spread / 2.0 for b in BETS)) >= log(policy.promote_threshold)

    low, high = 0.0, cost
    if not enough(high):
        return None
    while high - low > 1e-5:
        middle = (low + high) / 2.0
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _outcomes(policy: RolloutPolicy, around: Circumstances) -> Iterator[Finding]:
    ladder, hold = _ladder(policy, around.every), hold_of(policy, around.every)
    least = around.every + max(ladder, policy.min_test)
    text = (
        f"a window in shadow, {spell(ladder)} of canary steps and min_test {spell(policy.min_test)} take {spell(least)} at "
        f"best, max_age {spell(policy.max_age)}"
    )
    if least > policy.max_age:
        yield Finding(Level.FAIL, "steps", f"{text}: lower min_hold or min_test, take fewer steps or raise max_age")
        return
    yield Finding(Level.OK, "steps", text)
    history = around.history
    if history is None or history.cost is None:
        yield Finding(Level.UNSEEN, "power", "no outcome of a unit that the gateway answered is known yet")
        return
    weights = policy.weights[:-1]
    last = policy.max_age - around.every - ladder + hold  # the step before the last waits for the proof
    windows = [hold / around.every] * (len(weights) - 1) + [last / around.every]
    units = [(history.outcomes * count, weight) for count, weight in zip(windows, weights, strict=True)]
    effect = least_effect(policy, units, history.cost)
    told = f"{sum(count for count, _ in units):.0f} units by max_age, mean outcome {history.cost:.4f}"
    if effect is None:
        yield Finding(Level.WARN, "power", f"{told}: not even a fall to 0 is proven; more traffic, or larger steps")
    else:
        yield Finding(Level.OK, "power", f"{told}: a fall by {effect:.4f} is proven in 4 of 5 rollouts")


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
