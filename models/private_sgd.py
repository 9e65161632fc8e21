"""Private training under one reservation: Poisson batch, clipped sum, noise, plain step.

Sampler, clip, noise and step are one function, so that the accounted law is the executed law: rate, noise, steps and
clip are read from the reservation and nowhere else. It knows neither ledger nor parent, and cannot be seeded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from models import clipping, compute, guard, noise
from models.config import UpdateConfig
from models.report import Run
from models.task import Task
from security.randomness import KeyStream

if TYPE_CHECKING:
    from security.privacy import Reservation


def run(
    task: Task,
    module: nn.Module,
    parts: tuple[torch.Tensor, ...],
    truth: torch.Tensor,
    law: Reservation,
    config: UpdateConfig,
    window: str,
) -> Run:
    """DP-SGD (Abadi et al. 2016): Poisson batch, flat clip, Gaussian noise on every parameter, plain SGD.

    Divides by the expected batch of the public count, never by the realised one; an empty batch still takes its step.
    """
    gathered, stream, rate = Run(), KeyStream(), config.training.rate(config.update_number)
    deviation = law.noise_multiplier * law.max_grad_norm / law.expected_batch
    with clipping.PerExampleGradients(task, module) as gradients:
        weights = _flat(gradients.parameters)
        for _ in range(law.steps):
            batch = torch.from_numpy(noise.poisson_sample(stream, len(truth), law.sampling_rate))
            found = gradients.clipped_sum(compute.take(parts, batch), truth[batch], law.max_grad_norm)
            noisy = found.total / law.expected_batch + deviation * noise.gaussian(stream, gradients.size)
            norm = float(np.linalg.norm(noisy))
            guard.interrupt(guard.check_finite(int((~np.isfinite(noisy)).sum()), "the noised gradient", window))
            guard.interrupt(guard.check_gradient_norm(
                norm, config.guard.max_gradient_norm, window, dimensions=gradients.size, deviation=deviation))
            weights -= rate * noisy
            _write(gradients.parameters, weights)
            _note(gathered, found, guard.denoised_norm(norm, gradients.size, deviation))
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
