"""What is asked of the privacy ledger and what it answers: the policy of `[privacy]`, and a reservation.

Frozen values. They know the accountant, which calibrates the noise, and no ledger, journal or trainer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from security import accounting
from security.accounting import Law, noise_multiplier
from security.journal import stamp

SPARE_STEPS = 4  # steps paid for beside those to take: each crash in the middle of one costs one, 6 % more noise for 32


@dataclass(frozen=True)
class PrivacyPolicy:
    """`[privacy]` of the settings. Raises ValueError where a number is out of range."""

    enabled: bool = True
    target_epsilon: float = 0.5
    target_delta: float = 1e-5
    sampling_rate: float = 0.125
    steps: int = 32
    max_grad_norm: float | Literal["auto"] = "auto"
    label_derived_public: bool = False
    max_per_subject: int = 1
    subject_epsilon: float = 4.0

    def __post_init__(self) -> None:
        accounting.check_range(self.target_epsilon, self.target_delta, self.sampling_rate, self.steps)
        if self.max_grad_norm != "auto":
            _check_clip(self.max_grad_norm)
        if self.max_per_subject < 1:
            raise ValueError(f"max_per_subject {self.max_per_subject}: give a whole number of at least 1")
        if not (math.isfinite(self.subject_epsilon) and self.subject_epsilon > 0):
            raise ValueError(f"subject_epsilon {self.subject_epsilon}: give a finite number above 0")

    def law(self) -> Law:
        """The one law of every update under this policy, spare steps included; calibrates the noise at the first call."""
        steps = self.steps + SPARE_STEPS
        noise = noise_multiplier(self.target_epsilon, self.target_delta, self.sampling_rate, steps)
        return Law(self.sampling_rate, noise, steps)


@dataclass(frozen=True)
class Reservation:
    """What a trainer may do, exactly: `steps` Poisson samples at `sampling_rate`, each example's gradient clipped at
    `max_grad_norm`, noise of deviation noise_multiplier x max_grad_norm on the sum, divided by `expected_batch`.

    `spare` more steps are paid for: a step that was in flight when the process died counts as taken.
    """

    update: str
    windows: tuple[str, ...]
    noise_multiplier: float
    sampling_rate: float
    steps: int
    max_grad_norm: float
    epsilon: float
    delta: float
    expected_batch: float
    spare: int = 0

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on one coordinate of a step's mean gradient."""
        return self.noise_multiplier * self.max_grad_norm / self.expected_batch

    def noise_in_weights(self, steps: int) -> float:
        """Standard deviation of what so many steps at learning rate 1 add to each weight; from public figures alone."""
        return self.deviation * math.sqrt(steps)

    @property
    def reserved(self) -> int:
        """Steps that are paid for: no more may ever be taken, over all attempts."""
        return self.steps + self.spare


def check_request(
    windows: Sequence[str], arrived: tuple[datetime, datetime], count: int, max_grad_norm: float
) -> None:
    """Raises ValueError naming the argument of a reservation that makes no sense."""
    if not windows or len(set(windows)) != len(windows) or isinstance(windows, str):
        raise ValueError(f"windows {windows!r}: give one or more different window ids")
    if not arrived[0] < arrived[1]:
        raise ValueError(f"arrived [{stamp(arrived[0])}, {stamp(arrived[1])}): the end must come after the start")
    if count < 1:
        raise ValueError(f"count {count}: an update needs examples; a window without any is skipped, not reserved")
    _check_clip(max_grad_norm)


def _check_clip(max_grad_norm: float) -> None:
    if not (math.isfinite(max_grad_norm) and max_grad_norm > 0):
        raise ValueError(f"max_grad_norm {max_grad_norm}: give a finite number above 0")


def check_mechanism(noise_multiplier: float, steps: int, m_max: int) -> None:
    """Raises ValueError naming the figure that is no Gaussian mechanism."""
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= accounting.SMALLEST_NOISE):
        raise ValueError(f"noise_multiplier {noise_multiplier}: give a finite number of at least {accounting.SMALLEST_NOISE}")
    for name, value in (("steps", steps), ("m_max", m_max)):
        if value < 1 or value != int(value):
            raise ValueError(f"{name} {value}: give a whole number of at least 1")
