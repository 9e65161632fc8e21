"""Training without privacy: AdamW with warm-up, cosine and accumulation; every bit follows from (seed, data).

It knows neither parent nor report, and leaves one batch's gradient to `logical_batch`. Dropout and BatchNorm stay in eval mode,
as everywhere in an update.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from models import gradient_flow, guard, memory
from models.adapters import lora
from models.compat import TrainingRefused
from models.config import UpdateConfig
from models.early_stop import EarlyStop
from models.gradient_flow import GradientFlow
from models.logical_batch import LogicalBatch
from models.precision import LEAST_SCALE
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
    batch = LogicalBatch(task, module, parts, truth, setting)
    parameters = lora.trainable(module)
    flow = GradientFlow(parameters)
    group = setting.batch_size * setting.gradient_accumulation_steps
    order = torch.Generator().manual_seed(seed)
    stop = EarlyStop(task, module, parts, truth, setting.early_stop_patience, order)
    rows = stop.rows
    per_epoch = math.ceil(len(rows) / group)
    optimizer = adamw(setting.optimizer, parameters.values(), setting.rate(config.update_number))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_cosine(step, setting.warmup_steps, per_epoch * setting.max_epochs))
    for _ in range(setting.max_epochs):
        total, largest = 0.0, 0.0
        for some in torch.split(rows[torch.randperm(len(rows), generator=order)], group):
            loss = batch.backward(some)
            batch.scaler.unscale_(optimizer)
            norms = flow.norms()
            norm, total = gradient_flow.total(norms), total + loss
            if not (skipped := _overflowed(batch, loss, norm)):
                _check(norm, norms, config, window)
            _step(batch, optimizer)
            if skipped:
                gathered.skipped += 1
                continue
            schedule.step()
            flow.note(norms)
            largest, gathered.steps = max(largest, norm), gathered.steps + 1
        gathered.losses.append(total / len(rows))
        gathered.norms.append(largest)
        flow.end_epoch()
        if stop.epoch_ended():
            break
    stop.restore()
    module.cpu()
    gathered.seen, gathered.layer_norms = len(gathered.losses) * len(rows), flow.epochs
    gathered.precision, gathered.rung, gathered.rungs_down = batch.format, str(batch.ladder.rung), batch.ladder.steps
    return gathered


def adamw(kind: str, parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019); "adamw8bit" keeps its state in 8 bits (Dettmers et al. 2022), which needs torchao.

    Tensors under 4,096 values keep a state of 32 bits, so that a small adapter saves nothing.
    """
    if kind == "adamw":
        return torch.optim.AdamW(parameters, rate, fused=True)  # one pass over each tensor
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise TrainingRefused("[training] optimizer = \"adamw8bit\" needs the package torchao, which cannot be imported "
                              f"({error}): install headgate[low-bit], or use \"adamw\"") from error
    made: torch.optim.Optimizer = AdamW8bit(parameters, rate)
    return made


def warm_cosine(step: int, warm: int, steps: int) -> float:
    """Factor on the learning rate at `step` (from 0): linear over `warm` steps, then half a cosine to 0 at `steps`."""
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _overflowed(batch: LogicalBatch, loss: float, norm: float) -> bool:
    """Whether the loss scale was too large for float16, which the scaler mends by leaving out this step."""
    scaler = batch.scaler
    return scaler.is_enabled() and math.isfinite(loss) and not math.isfinite(norm) and scaler.get_scale() > LEAST_SCALE


def _check(norm: float, norms: Mapping[str, float], config: UpdateConfig, window: str) -> None:
    if not math.isfinite(norm):
        broken = [layer for layer, one in norms.items() if not math.isfinite(one)]
        what = f"the gradient norms of layers {', '.join(broken)}" if broken else "the gradient norm"
        guard.interrupt(guard.check_finite(max(1, len(broken)), what, window))
    guard.interrupt(guard.check_gradient_norm(norm, config.guard.max_gradient_norm, window, layers=norms))


def _step(batch: LogicalBatch, optimizer: torch.optim.Optimizer) -> None:
    try:
        batch.scaler.step(optimizer)
    except (MemoryError, RuntimeError) as error:
        if not memory.ran_out(error):
            raise
        raise memory.OutOfMemory(f"out of memory in the optimiser's step, which no smaller micro-batch helps: {error}. Lower "
                                 "[adapter] r, or use [training] optimizer = \"adamw8bit\"") from error
    batch.scaler.update()
