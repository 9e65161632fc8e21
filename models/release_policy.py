"""What a rollout is measured against (`RolloutPolicy`) and what the measurement said (`Verdicts`).

`Verdicts` are the whole input of a release decision besides the clock: figures with their limits, computed on the floor
above. Its defaults are those of a version nobody has looked at, and none of them lets a version go further.
It knows neither the tests behind the figures nor the states of a rollout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from math import inf, isfinite, pi
from typing import Any

from models.duration import parse_duration, spell
from models.freeze import frozen
from security.journal import canonical

STRATEGIES: Mapping[str, tuple[str | int | float, ...]] = {
    "grey": ("shadow", 1, 5, 10, 25, 50, 100),
    "ab": ("shadow", 50, 100),
    "shadow": ("shadow",),
    "blue-green": ("shadow", 100),
    "phases": ("shadow", 5, 50, 100),  # pilot, side by side, full
}
AB_MIN_TEST = timedelta(days=14)  # two whole weeks: users differ by weekday
GATES = ("outcome", "errors", "slow", "slices")  # that may hold or report instead; proven harm always stops


class Verdict(StrEnum):
    BETTER = "BETTER"
    WORSE = "WORSE"
    UNDECIDED = "UNDECIDED"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True)
class RolloutPolicy:
    """Settings of the release gate; numbers in `steps` are percents of the traffic. ValueError where they
    contradict."""

    strategy: str = "grey"
    steps: tuple[str | int | float, ...] = ()  # empty: the strategy's
    evidence: str = "paired"  # "outcome": the last step is decided on what users of each arm brought about
    alpha: float = 0.05
    alpha_per: str = "attempt"
    margin: float = 0.0
    cap: float = (
        0.1  # of a block's mean difference, in units of the gate loss; flights: .03 to .1 alike, .4 never promotes
    )
    block: timedelta = timedelta(days=1)
    min_blocks: int = 7
    min_samples: int = 200
    min_hold: timedelta = timedelta(hours=1)
    min_requests: int = 20
    max_age: timedelta = timedelta(days=28)
    shadow_slots: int = 3
    bake: timedelta = timedelta(hours=24)
    holdback: float = 0.01  # share of the units that the old stable goes on to answer while the new one bakes
    min_test: timedelta = timedelta(0)  # from the first canary step to 100 %; 0 in an A/B test: 14 days
    undo_window: timedelta = timedelta(days=7)
    freeze: tuple[str, ...] = ()
    pause_on: tuple[str, ...] = ()  # gates that hold the rollout for a person instead of rolling it back
    dry_run: tuple[str, ...] = ()  # gates that are looked at and never act
    protected_slices: tuple[str, ...] = ()
    slice_margin: float = 0.02
    approval: str = "none"
    slow_ms: float = 250.0
    guard_risk: float = 1.2  # a relative risk of errors or slow answers up to this is tolerated
    guard_alpha: float = 0.01
    srm_alpha: float = 0.001
    min_coverage: float = 0.5
    stale_after: timedelta = timedelta(days=2)
    lease: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        _known("strategy", self.strategy, tuple(STRATEGIES))
        _known("evidence", self.evidence, ("paired", "outcome"))
        _known("alpha_per", self.alpha_per, ("attempt", "year"))
        _known("approval", self.approval, ("none", "two-person"))
        self._take_presets()
        _check_steps(self.steps)
        self._check_gates()
        self._check_figures()
        for name in ("min_test", "undo_window", "bake", "min_hold"):
            if getattr(self, name) < timedelta(0):
                raise ValueError(f"rollout.{name} = {spell(getattr(self, name))} < 0s")
        for name in ("block", "max_age", "stale_after", "lease"):
            if getattr(self, name) <= timedelta(0):
                raise ValueError(f"rollout.{name} = {spell(getattr(self, name))}: a time above 0 wanted")
        for name, least in (("shadow_slots", 1), ("min_blocks", 1), ("min_samples", 0), ("min_requests", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"rollout.{name} = {getattr(self, name)} < {least}")

    def _check_gates(self) -> None:
        if self.strategy == "shadow" and self.weights:
            raise ValueError(f'rollout.strategy = "shadow" with steps {list(self.steps)}: it only reports')
        if self.evidence == "outcome" and len(self.steps) < 3:
            raise ValueError(
                f'rollout.evidence = "outcome" with steps {list(self.steps)}: what users bring about is seen on a step before '
                f"100; give at least one"
            )
        if self.evidence == "outcome" and self.margin > 0.0:
            raise ValueError(
                f"rollout.margin = {self.margin} with outcomes: users are compared with the stable of the day, not with the "
                f"anchor, and margins would add up; 0 wanted"
            )
        for name in ("pause_on", "dry_run"):
            for gate in getattr(self, name):
                _known(name, gate, GATES)
        for window in self.freeze:  # one by one: `frozen` looks no further than the first that holds
            frozen((window,), datetime(2000, 1, 1, tzinfo=UTC))
        if both := sorted(set(self.pause_on) & set(self.dry_run)):
            raise ValueError(f"rollout.pause_on and dry_run both name {both[0]!r}: a gate that only reports holds nothing")

    def _check_figures(self) -> None:
        if not 0.0 <= self.min_coverage <= 1.0:
            raise ValueError(f"rollout.min_coverage = {self.min_coverage} is outside [0, 1]: 0.5 wants labels for half")
        for name in ("alpha", "guard_alpha", "srm_alpha"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(
                    f"rollout.{name} = {getattr(self, name)} is outside (0, 1): 0.05 promotes one null in twenty"
                )
        if not self.cap > 0.0 or not 0.0 <= self.margin < self.cap:
            raise ValueError(f"rollout.margin = {self.margin}, cap = {self.cap}: cap > 0 and 0 <= margin < cap wanted")
        if not 1.0 <= self.guard_risk < inf:
            raise ValueError(f"rollout.guard_risk = {self.guard_risk} is outside [1, inf): 1.2 tolerates a fifth more errors")
        if not 0.0 <= self.holdback <= 0.5:
            raise ValueError(f"rollout.holdback = {self.holdback} is outside [0, 0.5]: 0.01 keeps one unit in a hundred")
        if len(self.weights) > 1 and not self.weights[-1] > self.weights[-2]:
            raise ValueError(
                f"rollout.holdback = {self.holdback} with steps {list(self.steps)}: the last step gives {self.weights[-1]:.2%} "
                "of the units, no more than the step before: lower either"
            )
        if not 0.0 <= self.slice_margin < self.cap:
            raise ValueError(f"rollout.slice_margin = {self.slice_margin}, cap = {self.cap}: 0 <= slice_margin < cap wanted")

    def _take_presets(self) -> None:
        """What the strategy decides where nothing else was asked for."""
        if not self.steps:
            object.__setattr__(self, "steps", STRATEGIES[self.strategy])
        if self.strategy == "ab":
            object.__setattr__(self, "evidence", "outcome")
            object.__setattr__(self, "min_test", self.min_test or AB_MIN_TEST)

    @property
    def weights(self) -> tuple[float, ...]:
        """Canary weights in (0, 1], one a step, the last one less the holdback; empty for a policy that stays in shadow."""
        found = tuple(float(step) / 100.0 for step in self.steps[1:])
        return (*found[:-1], 1.0 - self.holdback) if found else ()

    @property
    def promote_threshold(self) -> float:
        """1/alpha, times the slots: each of the versions that are in shadow at once has its share of alpha."""
        return self.shadow_slots / self.alpha

    def promote_limit(self, attempt: int) -> float:
        """The limit of the attempt with this number. Over a year, attempt k has 6 / (pi k)^2 of alpha, which sums to
        alpha however many there are; slots then share nothing."""
        if self.alpha_per == "attempt":
            return self.promote_threshold
        return (pi * attempt) ** 2 / (6.0 * self.alpha)

    @property
    def harm_threshold(self) -> float:
        """Bonferroni over the tests that may roll back at this alpha."""
        return (1.0 + (self.evidence == "outcome") + len(self.protected_slices)) / self.alpha

    @property
    def srm_threshold(self) -> float:
        return 1.0 / self.srm_alpha

    @property
    def guard_threshold(self) -> float:
        return 1.0 / self.guard_alpha

    def to_body(self) -> dict[str, Any]:
        """As it stands in the journal, durations as text."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        texts = {name: spell(value) for name, value in found.items() if isinstance(value, timedelta)}
        return found | texts | {name: list(value) for name, value in found.items() if isinstance(value, tuple)}

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> RolloutPolicy:
        """The policy again. TypeError for a key that this version of Headgate does not know."""
        default = {field.name: field.default for field in fields(cls)}
        found = dict(body)
        for name, value in body.items():
            if isinstance(default.get(name), timedelta):
                found[name] = parse_duration(value)
            elif isinstance(default.get(name), tuple):
                found[name] = tuple(value)
        return cls(**found)

    @property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of its journal form: what a rollout names its frozen policy by."""
        return sha256(canonical(self.to_body()).encode()).hexdigest()[:16]


def told(e: float) -> str:
    """A figure of evidence for a sentence: no more digits than anybody reads."""
    return f"{e:.1e}" if e >= 1e6 else f"{e:.1f}"


def _check_steps(steps: tuple[str | int | float, ...]) -> None:
    numbers = [step for step in steps[1:] if isinstance(step, int | float)]
    rising = all(a < b for a, b in zip([0, *numbers], numbers, strict=False))
    if (
        not steps
        or steps[0] != "shadow"
        or len(numbers) != len(steps) - 1
        or not rising
        or (numbers and numbers[-1] != 100)
    ):
        raise ValueError(f'rollout.steps = {list(steps)}: "shadow" first, then rising percents that end with 100')


def _known(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"rollout.{name} = {value!r} is not available: use one of {', '.join(map(repr, allowed))}")


@dataclass(frozen=True, slots=True)
class Verdicts:
    """All that is known about one version at one moment. `mean` and `worst_block` are unclipped block means (> 0:
    better)."""

    promote: Verdict = Verdict.UNDECIDED
    promote_e: float = 1.0
    better_e: float = 1.0  # the same without a margin: what it takes to be the anchor
    harm: Verdict = Verdict.UNDECIDED
    harm_e: float = 1.0
    errors: Verdict = Verdict.UNDECIDED
    errors_e: float = 1.0
    slow: Verdict = Verdict.UNDECIDED
    slow_e: float = 1.0
    outcome: Verdict = Verdict.UNDECIDED  # the randomised canary: BETTER or WORSE on what users brought about
    outcome_e: float = 1.0
    outcome_harm_e: float = 1.0
    effect: float | None = None  # of the canary on the outcome (a cost: < 0 is better), weighted by overlap
    units: int = 0  # randomised units with a mature outcome
    forecast: float | None = None  # mean outcome of stable's units so far: what a new canary is measured from
    slices: tuple[tuple[str, float, float, float | None], ...] = ()  # protected: name, evidence of no loss, harm, mean
    assigned_e: float = 1.0  # against the planned split; above its limit the arms are not what was planned
    blocks: int = 0
    samples: int = 0
    mean: float | None = None
    worst_block: float | None = None
    tail: bool = False
    requests: int = 0  # in the current step, both arms
    canary_requests: int = 0
    canary_failed: int = 0  # of them
    covered: bool = True  # false when a measured label coverage is below the limit
    fresh: bool = False
    prepared: bool | None = None  # loaded and verified by a replica: None not tried yet, False refused
    acknowledged: bool = False  # every live replica has the current routing epoch
    reasons: tuple[str, ...] = ()

    def figures(self) -> dict[str, Any]:
        """As it goes into the journal with each decision; a figure that is no number is null there."""
        body = {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in asdict(self).items()}
        body["reasons"] = list(self.reasons)
        body["slices"] = [list(one) for one in self.slices]
        return body


NO_EVIDENCE = Verdicts()
