"""Private training under one reservation: Poisson batch, clipped sum, noise, plain step.

Sampler, clip, noise and divisor are one object, `PrivateStep`, so that the accounted law is the executed law, and so that
the audit runs the very step that training runs: rate, noise and clip are read from the reservation and nowhere else. It
knows neither ledger nor parent, and cannot be seeded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import nn

from models import compute, guard
from models.config import UpdateConfig
from models.memory import Ladder, Rung
from models.private import clipping, noise, one_backward
from models.report import Run
from models.task import Task
from security.randomness import KeyStream

if TYPE_CHECKING:
    from security.privacy import Reservation

Parts = tuple[torch.Tensor, ...]


class Gradients(Protocol):
    """Clipped sums of the gradients of one module with `size` trainable weights (`models/private/clipping.py`)."""

    rows: int  # examples of one pass; fewer need less memory

    @property
    def size(self) -> int: ...

    def clipped_sum(self, parts: Parts, truth: torch.Tensor, clip: float) -> clipping.ClippedSum: ...


@dataclass(frozen=True, slots=True)
class Noised:
    """`gradient` (d,) float64 is what a step may show; `found` is private and stays in the trust zone."""

    gradient: np.ndarray
    found: clipping.ClippedSum


class PrivateStep:
    """The gradient of one step of DP-SGD (Abadi et al. 2016): Poisson batch, flat clip, Gaussian noise on every
    parameter. Each step draws afresh; one object serves all steps of an update.

    Where memory runs out, the same batch is summed in smaller passes: it was drawn before, and the noise comes after.
    """

    def __init__(self, gradients: Gradients, law: Reservation) -> None:
        self.gradients, self.law, self.stream = gradients, law, KeyStream()
        self.deviation = law.noise_multiplier * law.max_grad_norm / law.expected_batch
        self.ladder = Ladder(Rung(gradients.rows, checkpointed=True))

    def __call__(self, parts: Parts, truth: torch.Tensor) -> Noised:
        """Divides by the expected batch of the public count, never by the realised one; an empty batch is noised too."""
        law = self.law
        batch = torch.from_numpy(noise.poisson_sample(self.stream, len(truth), law.sampling_rate))
        some, wanted = compute.take(parts, batch), truth[batch]
        found = self.ladder.attempt(lambda rung: self._sum(some, wanted, rung))
        drawn = noise.gaussian(self.stream, self.gradients.size)
        return Noised(found.total / law.expected_batch + self.deviation * drawn, found)

    def _sum(self, parts: Parts, truth: torch.Tensor, rung: Rung) -> clipping.ClippedSum:
        self.gradients.rows = rung.micro
        return self.gradients.clipped_sum(parts, truth, self.law.max_grad_norm)


def run(
    task: Task,
    module: nn.Module,
    parts: Parts,
    truth: torch.Tensor,
    law: Reservation,
    config: UpdateConfig,
    window: str,
) -> Run:
    """The steps of the reservation as plain SGD, each looked at by the guard before it is taken."""
    gathered, rate = Run(), config.training.rate(config.update_number)
    with one_backward.gradients(task, module) as source:
        step, size = PrivateStep(source, law), source.size
        weights = _flat(source.parameters)
        for _ in range(law.steps):
            noised = step(parts, truth)
            norm = float(np.linalg.norm(noised.gradient))
            broken = int((~np.isfinite(noised.gradient)).sum())
            guard.interrupt(guard.check_finite(broken, "the noised gradient", window))
            guard.interrupt(guard.check_gradient_norm(
                norm, config.guard.max_gradient_norm, window, dimensions=size, deviation=step.deviation))
            weights -= rate * noised.gradient
            _write(source.parameters, weights)
            _note(gathered, noised.found, guard.denoised_norm(norm, size, step.deviation))
        gathered.rung, gathered.rungs_down = str(step.ladder.rung), step.ladder.steps
    return gathered


def _note(run: Run, found: clipping.ClippedSum, norm: float) -> None:
    finite = found.losses[np.isfinite(found.losses)]
    run.losses.append(float(finite.mean()) if finite.size else None)
    run.norms.append(norm)
    run.steps += 1
    run.seen += len(found.losses)
    run.clipped += found.clipped
    run.not_finite += found.not_finite


def _flat(parameters: Mapping[str, nn.Parameter]) -> np.ndarray:
    return np.concatenate([value.detach().double().numpy().ravel() for value in parameters.values()])


def _write(parameters: Mapping[str, nn.Parameter], weights: np.ndarray) -> None:
    at, source = 0, torch.from_numpy(weights)
    with torch.no_grad():
        for value in parameters.values():
            value.copy_(source[at : at + value.numel()].view_as(value))
            at += value.numel()
