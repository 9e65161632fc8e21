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
from models.gradient_flow import NoisedFlow
from models.memory import Ladder, Rung
from models.private import clipping, noise, one_backward
from models.progress import Progress
from models.report import Run
from models.task import Task
from security.randomness import KeyStream

if TYPE_CHECKING:
    from security.privacy import Reservation

Parts = tuple[torch.Tensor, ...]


class Gradients(Protocol):
    """Clipped sums of the gradients of one module with `size` trainable weights (`models/private/clipping.py`)."""

    rung: Rung  # how much of a batch is computed at once

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
        self.deviation = law.deviation
        self.ladder = Ladder(gradients.rung)

    def __call__(self, parts: Parts, truth: torch.Tensor) -> Noised:
        """Divides by the expected batch of the public count, never by the realised one; an empty batch is noised too."""
        law = self.law
        batch = torch.from_numpy(noise.poisson_sample(self.stream, len(truth), law.sampling_rate))
        some, wanted = compute.take(parts, batch), truth[batch]
        found = self.ladder.attempt(lambda rung: self._sum(some, wanted, rung))
        noised = torch.from_numpy(noise.gaussian(self.stream, self.gradients.size, self.deviation))
        noised.add_(torch.from_numpy(found.total), alpha=1 / law.expected_batch)
        return Noised(noised.numpy(), found)

    def _sum(self, parts: Parts, truth: torch.Tensor, rung: Rung) -> clipping.ClippedSum:
        self.gradients.rung = rung
        return self.gradients.clipped_sum(parts, truth, self.law.max_grad_norm)


def run(
    task: Task,
    module: nn.Module,
    parts: Parts,
    truth: torch.Tensor,
    law: Reservation,
    config: UpdateConfig,
    window: str,
    progress: Progress | None = None,
) -> Run:
    """The steps of the reservation as plain SGD, each looked at by the guard before it is taken.

    Goes on from `progress`, and says in it that a step begins before its batch is drawn. Raises ProgressLost.
    """
    progress = progress or Progress()
    gathered, rate = progress.run, rate_of(config, law)
    with one_backward.gradients(task, module, config.training, int(law.expected_batch)) as source:
        step, size = PrivateStep(source, law), source.size
        layout = {name: value.numel() for name, value in source.parameters.items()}
        used = flattened(source.parameters)
        weights = progress.attach(layout, used.double().numpy())
        used.copy_(torch.from_numpy(weights))
        flow = NoisedFlow(source.parameters, step.deviation)
        while progress.begin(law):
            noised = step(parts, truth)
            norm = float(np.linalg.norm(noised.gradient))
            broken = int((~np.isfinite(noised.gradient)).sum())
            guard.interrupt(guard.check_finite(broken, "the noised gradient", window))
            layers = flow.norms(noised.gradient)
            guard.interrupt(guard.check_gradient_norm(
                norm, config.guard.max_gradient_norm, window, dimensions=size, deviation=step.deviation, layers=layers))
            weights -= rate * noised.gradient
            used.copy_(torch.from_numpy(weights))
            _note(gathered, noised.found, guard.denoised_norm(norm, size, step.deviation), layers)
            progress.finish(weights)
        gathered.rung, gathered.rungs_down = str(step.ladder.rung), step.ladder.steps
        gathered.precision = source.precision
    gathered.attempts, gathered.lost = progress.attempts, progress.begun - gathered.steps
    return gathered


def rate_of(config: UpdateConfig, law: Reservation) -> float:
    """The learning rate of this update; from public figures alone."""
    return config.training.rate(config.update_number, law.noise_in_weights(law.steps))


def _note(run: Run, found: clipping.ClippedSum, norm: float, layers: Mapping[str, float]) -> None:
    finite = found.losses[np.isfinite(found.losses)]
    run.losses.append(float(finite.mean()) if finite.size else None)
    run.norms.append(norm)
    for layer, one in layers.items():
        run.layer_norms.setdefault(layer, []).append(one)
    run.steps += 1
    run.seen += len(found.losses)
    run.clipped += found.clipped
    run.not_finite += found.not_finite


def flattened(parameters: Mapping[str, nn.Parameter]) -> torch.Tensor:
    """The weights in one tensor (d,), of which the parameters are views from now on: a step writes them all at once."""
    flat = torch.cat([value.detach().flatten() for value in parameters.values()])
    pieces = torch.split(flat, [value.numel() for value in parameters.values()])
    for value, piece in zip(parameters.values(), pieces, strict=True):
        value.data = piece.view_as(value)
    return flat
