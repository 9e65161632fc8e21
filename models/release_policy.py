"""What a rollout is measured against (`RolloutPolicy`) and what the measurement said (`Verdicts`).

`Verdicts` are the whole input of a release decision besides the clock: figures with their limits, computed on the floor
above. Its defaults are those of a version nobody has looked at, and none of them lets a version go further.
It knows neither the tests behind the figures nor the states of a rollout.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import StrEnum
from math import isfinite
from typing import Any

from models.duration import spell


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
    steps: tuple[str | int | float, ...] = ("shadow", 1, 5, 10, 25, 50, 100)
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
    approval: str = "none"
    slow_ms: float = 250.0
    guard_risk: float = 1.2  # a relative risk of errors or slow answers up to this is tolerated
    guard_alpha: float = 0.01
    min_coverage: float = 0.5
    stale_after: timedelta = timedelta(days=2)
    lease: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        _check_steps(self.steps)
        _known("strategy", self.strategy, ("grey", "shadow"))
        _known("alpha_per", self.alpha_per, ("attempt",))
        _known("approval", self.approval, ("none", "two-person"))
        for name in ("alpha", "guard_alpha"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(
                    f"rollout.{name} = {getattr(self, name)} is outside (0, 1): 0.05 promotes one null in twenty"
                )
        if not self.cap > 0.0 or not 0.0 <= self.margin < self.cap:
            raise ValueError(f"rollout.margin = {self.margin}, cap = {self.cap}: cap > 0 and 0 <= margin < cap wanted")
        for name in ("block", "max_age", "stale_after", "lease"):
            if getattr(self, name) <= timedelta(0):
                raise ValueError(f"rollout.{name} = {spell(getattr(self, name))}: a time above 0 wanted")
        for name, least in (("shadow_slots", 1), ("min_blocks", 1), ("min_samples", 0), ("min_requests", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"rollout.{name} = {getattr(self, name)} < {least}")

    @property
    def weights(self) -> tuple[float, ...]:
        """Canary weights in (0, 1], one a step; empty for a policy that stays in shadow."""
        return tuple(float(step) / 100.0 for step in self.steps[1:])

    @property
    def promote_threshold(self) -> float:
        """1/alpha, times the slots: each of the versions that are in shadow at once has its share of alpha."""
        return self.shadow_slots / self.alpha

    @property
    def harm_threshold(self) -> float:
        return 1.0 / self.alpha

    @property
    def guard_threshold(self) -> float:
        return 1.0 / self.guard_alpha


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
    harm: Verdict = Verdict.UNDECIDED
    harm_e: float = 1.0
    errors: Verdict = Verdict.UNDECIDED
    errors_e: float = 1.0
    slow: Verdict = Verdict.UNDECIDED
    slow_e: float = 1.0
    blocks: int = 0
    samples: int = 0
    mean: float | None = None
    worst_block: float | None = None
    tail: bool = False
    requests: int = 0  # in the current step, both arms
    canary_requests: int = 0
    covered: bool = True  # false when a measured label coverage is below the limit
    fresh: bool = False
    prepared: bool | None = None  # loaded and verified by a replica: None not tried yet, False refused
    acknowledged: bool = False  # every live replica has the current routing epoch
    reasons: tuple[str, ...] = ()

    def figures(self) -> dict[str, Any]:
        """As it goes into the journal with each decision; a figure that is no number is null there."""
        body = {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in asdict(self).items()}
        body["reasons"] = list(self.reasons)
        return body


NO_EVIDENCE = Verdicts()
