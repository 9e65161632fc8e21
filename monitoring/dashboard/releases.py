"""Rollouts as the page shows them: how far, how strong the evidence, what the next step waits for.

Figures come from `monitoring.verdict.judge` and conditions from `models.rollout`, the same calls that decide, so the
page cannot tell another story than the gate. It does not know what other rollouts did; the timeline does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from math import log, log10

from models.release_board import Board
from models.release_policy import RolloutPolicy, Verdict, Verdicts
from models.rollout import Condition, conditions
from models.rollout_conditions import stop_reason
from models.rollout_state import TRAFFIC, Rollout, State
from monitoring.dashboard.chart import Chart, line_chart
from monitoring.evidence import Evidence
from monitoring.verdict import judge

MOST_POINTS = 40  # of a chart; each is one look of the gate at the evidence as it stood then


@dataclass(frozen=True, slots=True)
class Step:
    """One rung of the ladder; `mark` is done, now, stopped or ahead."""

    name: str
    mark: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure against its limit. `share` of the bar is on the log scale, 0 at a figure of 1 and 1 at the limit."""

    name: str
    figure: float
    limit: float
    share: float
    kind: str
    verdict: str


@dataclass(frozen=True, slots=True)
class Release:
    """One rollout that is live, or watched. `waits` has what the next step needs; `holds` what somebody may have to
    act on; `due` why one with users is to be stopped at the next look, None where it is not."""

    rollout: Rollout
    verdicts: Verdicts
    ladder: tuple[Step, ...]
    bars: tuple[Bar, ...]
    waits: tuple[Condition, ...]
    holds: tuple[Condition, ...]
    expires: datetime | None
    chart: Chart | None
    due: str | None


def releases(
    board: Board, evidence: Evidence, policy: RolloutPolicy, clock: datetime, *, acknowledged: bool
) -> list[Release]:
    """Every live or watched rollout: those with traffic first, then the newest."""
    active = [r for r in board.rollouts.values() if r.live or r.watched]
    active.sort(key=lambda r: (r.state not in TRAFFIC and r.state is not State.ROLLING_BACK, not r.live, -r.number))
    return [_release(r, board, evidence, policy, clock, acknowledged) for r in active]


def _release(
    rollout: Rollout, board: Board, evidence: Evidence, policy: RolloutPolicy, clock: datetime, acknowledged: bool
) -> Release:
    policy = board.policy_of(rollout, policy)
    verdicts = judge(rollout, evidence, policy, clock, acknowledged=acknowledged, prepared=None)
    unmet = [c for c in conditions(rollout, verdicts, policy, clock, board.free_for(rollout)) if not c.met]
    expires = rollout.ages_from + policy.max_age
    return Release(
        rollout,
        verdicts,
        _ladder(rollout, policy),
        _bars(rollout, verdicts, policy),
        tuple(c for c in unmet if not c.hold and c.name != "paused"),
        tuple(c for c in unmet if c.hold or c.name == "paused"),
        expires if rollout.watched or rollout.state in (State.SHADOW, State.CANARY) else None,
        _chart(rollout, evidence, policy, acknowledged),
        stop_reason(rollout, verdicts, policy) if rollout.state in TRAFFIC else None,
    )


def _ladder(rollout: Rollout, policy: RolloutPolicy) -> tuple[Step, ...]:
    names = ["shadow", *(f"{float(step):g} %" for step in policy.steps[1:])]
    if policy.weights:
        names += ["bake", "stable"]
    last_weight = len(policy.weights)
    places = {
        State.SHADOW: 0,
        State.CANARY: rollout.step + 1,
        State.PROMOTING: last_weight,
        State.BAKING: last_weight + 1,
        State.ROLLING_BACK: rollout.step + 1,
    }
    now = places.get(rollout.state, 0 if rollout.watched else -1)
    mark = "stopped" if rollout.state is State.ROLLING_BACK or rollout.watched else "now"
    return tuple(Step(name, "done" if k < now else mark if k == now else "ahead") for k, name in enumerate(names))


def _bars(rollout: Rollout, verdicts: Verdicts, policy: RolloutPolicy) -> tuple[Bar, ...]:
    rows: list[tuple[str, float, float, str, Verdict]] = [
        ("evidence", verdicts.promote_e, policy.promote_limit(rollout.test), "good", verdicts.promote),
        ("harm", verdicts.harm_e, policy.harm_threshold, "bad", verdicts.harm),
    ]
    if policy.evidence == "outcome" and verdicts.units:
        rows += [
            ("outcome", verdicts.outcome_e, policy.promote_limit(rollout.test), "good", verdicts.outcome),
            ("outcome harm", verdicts.outcome_harm_e, policy.harm_threshold, "bad", verdicts.outcome),
        ]
    if rollout.state in TRAFFIC or rollout.state is State.ROLLING_BACK:
        rows += [
            ("errors", verdicts.errors_e, policy.guard_threshold, "bad", verdicts.errors),
            ("slow", verdicts.slow_e, policy.guard_threshold, "bad", verdicts.slow),
        ]
    return tuple(Bar(n, figure, limit, _share(figure, limit), kind, v.value) for n, figure, limit, kind, v in rows)


def _share(figure: float, limit: float) -> float:
    """0 for a figure of 1 or less and for NaN."""
    return min(1.0, log(figure) / log(limit)) if figure > 1.0 and limit > 1.0 else 0.0


def _chart(rollout: Rollout, evidence: Evidence, policy: RolloutPolicy, acknowledged: bool) -> Chart | None:
    """Both figures after each closed block, by asking the gate with the evidence cut off at that moment."""
    blocks = evidence.closed((rollout.version, rollout.against), rollout.evidence_since, policy.block)
    if len(blocks) < 2:
        return None
    ends = _thinned([datetime.fromtimestamp(b.block / 1000, UTC) + policy.block for b in blocks])
    looks = [_look(rollout, evidence, policy, end, acknowledged) for end in ends]
    threshold, harm = policy.promote_limit(rollout.test), policy.harm_threshold
    return line_chart(
        [
            ("evidence", "good", [0.0, *(_log10(v.promote_e) for v in looks)]),
            ("harm", "bad", [0.0, *(_log10(v.harm_e) for v in looks)]),
        ],
        first=f"{rollout.evidence_since:%d %b}",
        last=f"{ends[-1]:%d %b}",
        about=f"evidence and harm of {rollout.version} by block, log scale; limits {threshold:g} and {harm:g}",
        limits=[("good", log10(threshold)), ("bad", log10(harm))],
        powers=True,
    )


def _look(
    rollout: Rollout, evidence: Evidence, policy: RolloutPolicy, end: datetime, acknowledged: bool
) -> Verdicts:
    then = replace(evidence, processed=end)
    return judge(rollout, then, policy, end, acknowledged=acknowledged, prepared=None)


def _thinned(ends: Sequence[datetime]) -> list[datetime]:
    """At most about MOST_POINTS moments, the newest always among them."""
    every = -(-len(ends) // MOST_POINTS)
    return [end for k, end in enumerate(ends) if (len(ends) - 1 - k) % every == 0]


def _log10(figure: float) -> float | None:
    """None for 0 and NaN: a gap in the line."""
    return log10(figure) if figure > 0.0 else None


def in_step(rollout: Rollout, clock: datetime) -> timedelta:
    """How long the rollout has been in its state, by the task's clock."""
    return max(clock - rollout.state_since, timedelta(0))
