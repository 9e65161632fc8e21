"""A rehearsal of the release gate on the user's own noise: how often and how soon it would promote, roll back or give up.

Blocks are drawn from the history in runs of consecutive blocks (moving block bootstrap, Kuensch 1989), so that what hangs
together stays together, and are shifted to one true gain. Each rehearsed rollout is then taken through the product's own
`judge` and `advance`, look by look. Replicas always acknowledge, approvals come at once, no request fails, and one version
is alone: what is left is the evidence and the clock.

It knows one rollout at a time: no board, no slots but their share of alpha, no journal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil

import numpy as np

from models.release_policy import RolloutPolicy
from models.rollout import Rollout, State, advance
from monitoring.block_history import BlockHistory, Series
from monitoring.evidence import BlockSum, Evidence, Exposed, Served, milliseconds
from monitoring.outcome import bets
from monitoring.sample_ratio import SampleRatio
from monitoring.verdict import judge

START = datetime(2000, 1, 1, tzinfo=UTC)
PAIR = ("candidate", "stable")
ASSUMED_SD = 0.3  # of a block mean, in units of the cap, where no history tells: .03 nats under .1, as flights have
ASSUMED_COST = 0.2  # mean outcome of a unit, where no history tells
ENDS = ("promoted", "rolled back", "expired", "undecided")


@dataclass(frozen=True)
class Rehearsal:
    """What became of `runs` rollouts of a version with this true gain a block: days to each end, one a rollout."""

    gain: float
    runs: int
    days: dict[str, Series]

    def share(self, end: str) -> float:
        return len(self.days[end]) / self.runs

    def quantile(self, end: str, q: float) -> float | None:
        """Days by which a share q of the rollouts that ended so had done so; None where none did."""
        days = self.days[end]
        return float(np.quantile(days, q, method="inverted_cdf")) if len(days) else None


def rehearse(
    policy: RolloutPolicy, every: timedelta, history: BlockHistory | None, gain: float, *, runs: int, seed: int
) -> Rehearsal:
    """`runs` rollouts of a version whose block means are `gain` plus noise of the history. `every`: between two looks.

    Where outcomes decide, blocks are noise alone and `gain` is what a unit of the canary costs less than one of stable."""
    rng = np.random.default_rng(seed)
    blocks = ceil(2 * (policy.max_age + policy.bake + len(policy.weights) * every) / policy.block)
    ends: dict[str, list[float]] = {end: [] for end in ENDS}
    for _ in range(runs):
        means, asked = noise(rng, history, policy, blocks), None
        if policy.evidence == "outcome":
            asked = users(rng, history, policy, gain)
        else:
            means = gain + means
        end, days = play(policy, every, means, history, asked)
        ends[end].append(days)
    return Rehearsal(gain, runs, {end: np.array(days) for end, days in ends.items()})


def users(
    rng: np.random.Generator, history: BlockHistory | None, policy: RolloutPolicy, gain: float
) -> Callable[[Rollout], Exposed]:
    """Draws the units of one window and their costs, 0 or 1 each: no outcome in [0, 1] with this mean spreads wider."""
    count, cost = units_of(history, policy), cost_of(history)

    def window(rollout: Rollout) -> Exposed:
        canary = rng.random(count) < rollout.weight
        costs = rng.random(count) < np.clip(cost - gain * canary, 0.0, 1.0)
        drawn = int(canary.sum())
        return Exposed(
            PAIR[0], rollout.epoch, bets(canary, rollout.weight, costs, cost, policy.margin),
            SampleRatio(rollout.weight, drawn, count - drawn),
        )  # fmt: skip

    return window


def units_of(history: BlockHistory | None, policy: RolloutPolicy) -> int:
    """Units a window whose outcome becomes known."""
    told = history.outcomes or history.requests if history else 0.0
    return max(1, round(told)) if told else max(1, policy.min_samples)


def cost_of(history: BlockHistory | None) -> float:
    """Mean cost of a unit that stable answers."""
    return ASSUMED_COST if history is None or history.cost is None else history.cost


def noise(rng: np.random.Generator, history: BlockHistory | None, policy: RolloutPolicy, blocks: int) -> Series:
    """Block means around 0, shape (blocks,): pieces of the history, or independent normal ones where there is none."""
    series = history.residuals if history else ()
    if not series:
        normal: Series = ASSUMED_SD * policy.cap * rng.standard_normal(blocks)
        return normal
    starts, length = _starts(series)
    chosen = rng.integers(len(starts), size=ceil(blocks / length))
    pieces = [series[starts[k][0]][starts[k][1] : starts[k][1] + length] for k in chosen]
    return np.concatenate(pieces)[:blocks]


def _starts(series: Sequence[Series]) -> tuple[list[tuple[int, int]], int]:
    """Where a piece may begin, (series, block), and its length: the cube root of a series, the usual rate."""
    longest = max(len(one) for one in series)
    length = min(max(2, round(longest ** (1.0 / 3.0))), min(len(one) for one in series))
    return [(k, start) for k, one in enumerate(series) for start in range(len(one) - length + 1)], length


def play(
    policy: RolloutPolicy,
    every: timedelta,
    means: Series,
    history: BlockHistory | None,
    asked: Callable[[Rollout], Exposed] | None = None,
) -> tuple[str, float]:
    """One rollout to its end: (one of ENDS, days since its evidence began). Undecided: held when the blocks ran out.
    `asked`: the units of a window, where outcomes decide."""
    examples = max(1, round(history.examples)) if history and history.blocks else max(1, policy.min_samples)
    requests = round(history.requests) if history and history.requests else policy.min_requests + ceil(1.0 / _least(policy))
    rollout = Rollout(PAIR[0], 1, None, PAIR[1], State.PREPARING, START, START, approvers=("another person",))
    rollout = _step(rollout, Evidence(), policy, START)
    sums: dict[int, BlockSum] = {}
    served: dict[tuple[int, str], Served] = {}
    exposed: dict[tuple[str, int], Exposed] = {}
    now, closed = START, 0
    while _end(rollout) is None and closed < len(means):
        now += every
        while (closed + 1) * policy.block <= now - START and closed < len(means):
            block, mean = milliseconds(START + closed * policy.block), float(means[closed])
            sums[block] = BlockSum(block, examples, examples * mean, examples * mean**2)
            closed += 1
        _serve(served, rollout, requests)
        if asked is not None and rollout.state is State.CANARY:
            key, seen = (PAIR[0], rollout.epoch), asked(rollout)
            exposed[key] = exposed[key] + seen if key in exposed else seen
        new = now - START - closed * policy.block < every
        if not new and now < min(START + policy.max_age, rollout.state_since + _wait(rollout, policy)):
            continue  # nothing it waits for has changed
        evidence = Evidence(processed=now, pairs={PAIR: sums}, served=served, exposed=exposed)
        rollout = _step(rollout, evidence, policy, now)
    return _end(rollout) or "undecided", (now - START) / timedelta(days=1)


def _end(rollout: Rollout) -> str | None:
    state = rollout.outcome if rollout.state is State.ROLLING_BACK else rollout.state
    if state in (State.ROLLED_BACK, State.REJECTED):
        return "rolled back"
    return state.value.lower() if state in (State.PROMOTED, State.EXPIRED) else None


def _wait(rollout: Rollout, policy: RolloutPolicy) -> timedelta:
    """The time that has to pass in this state whatever the evidence is; a shadow waits for nothing but blocks."""
    return {State.SHADOW: policy.max_age, State.CANARY: policy.min_hold, State.BAKING: policy.bake}.get(
        rollout.state, timedelta(0)
    )


def _least(policy: RolloutPolicy) -> float:
    return min(policy.weights, default=1.0)


def _serve(served: dict[tuple[int, str], Served], rollout: Rollout, requests: int) -> None:
    """The requests of one window, none of which fails; the canary gets its weight of them."""
    canary = round(requests * rollout.weight)
    for arm, count in (("canary", canary), ("stable", requests - canary)):
        key = (rollout.epoch, arm)
        served[key] = served.get(key, Served(*key)) + Served(*key, count)


def _step(rollout: Rollout, evidence: Evidence, policy: RolloutPolicy, now: datetime) -> Rollout:
    verdicts = judge(rollout, evidence, policy, now, acknowledged=True, prepared=True)
    return advance(rollout, verdicts, policy, now, epoch=rollout.epoch)[0]
