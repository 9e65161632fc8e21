"""Training without privacy: AdamW with warm-up, cosine and accumulation; every bit follows from (seed, data).

It knows neither parent nor report. Dropout and BatchNorm stay in eval mode, as everywhere in an update.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from models import compute, guard, lora
from models.config import TrainingConfig, UpdateConfig
from models.report import Run
from models.task import Task


def run(
    task: Task,
    module: nn.Module,
    parts: tuple[torch.Tensor, ...],
    truth: torch.Tensor,
    config: UpdateConfig,
    window: str,
    seed: int,
) -> Run:
    """Train the attached adapter in place. Raises guard.UpdateInterrupted on a norm beyond its limit or not finite."""
    gathered, setting = Run(), config.training
    parameters = list(lora.trainable(module).values())
    group = setting.batch_size * setting.gradient_accumulation_steps
    per_epoch = math.ceil(len(truth) / group)
    optimizer = torch.optim.AdamW(parameters, setting.rate(config.update_number))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_cosine(step, setting.warmup_steps, per_epoch * setting.max_epochs))
    order = torch.Generator().manual_seed(seed)
    for _ in range(setting.max_epochs):
        total, largest = 0.0, 0.0
        for rows in torch.split(torch.randperm(len(truth), generator=order), group):
            optimizer.zero_grad()
            total += _accumulate(task, module, parts, truth, rows, setting)
            norm = float(torch.linalg.vector_norm(torch.cat([_gradient(p).flatten() for p in parameters])))
            guard.interrupt(guard.check_finite(int(not math.isfinite(norm)), "the gradient norm", window))
            guard.interrupt(guard.check_gradient_norm(norm, config.guard.max_gradient_norm, window))
            optimizer.step()
            schedule.step()
            largest, gathered.steps = max(largest, norm), gathered.steps + 1
        gathered.losses.append(total / len(truth))
        gathered.norms.append(largest)
    gathered.seen = setting.max_epochs * len(truth)
    return gathered


def _accumulate(
    task: Task,
    module: nn.Module,
    parts: tuple[torch.Tensor, ...],
    truth: torch.Tensor,
    rows: torch.Tensor,
    setting: TrainingConfig,
) -> float:
    """Backward of the mean loss over `rows`, `batch_size` of them at a time; the sum of the losses."""
    total = 0.0
    for some in torch.split(rows, setting.batch_size):
        losses = task.loss(module(*compute.take(parts, some)), truth[some])
        loss = compute.per_example(losses, len(some), "loss").sum()
        torch.autograd.backward(loss / len(rows))
        total += float(loss.detach())
    return total


def warm_cosine(step: int, warm: int, steps: int) -> float:
    """Factor on the learning rate at `step` (from 0): linear over `warm` steps, then half a cosine to 0 at `steps`."""
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
