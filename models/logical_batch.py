"""One logical batch without privacy: the mean loss over its rows, differentiated in micro-batches that fit into memory.

Number format, micro-batch size, order inside the batch and checkpointing are chosen here and change the gradient by rounding
only. It knows neither optimiser nor schedule, and no guard.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn

from models import compute, lengths, precision
from models.checkpointing import blocks, checkpointed
from models.config import TrainingConfig
from models.memory import Ladder, Rung
from models.task import Task


class LogicalBatch:
    """`format`: the number format in use; `scaler` must see the optimiser's steps; `ladder` has the rung."""

    def __init__(
        self, task: Task, module: nn.Module, parts: tuple[torch.Tensor, ...], truth: torch.Tensor, setting: TrainingConfig
    ) -> None:
        self.device = precision.accelerator()
        self.format = precision.chosen(setting.precision, module, self.device, setting.batch_size)
        self.scaler = precision.scaler(self.format, self.device)
        self.ladder = Ladder(Rung(setting.batch_size, setting.gradient_checkpointing))
        self._autocast = precision.autocast(self.format, self.device)
        self._task, self._module, self._parts, self._truth = task, module.to(self.device), parts, truth
        self._trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._blocks = setting.checkpoint_modules
        blocks(module, self._blocks)  # a wrong name is told now, and not when memory runs out
        self._mask = lengths.mask_of(parts) if setting.sort_by_length else None

    def backward(self, rows: torch.Tensor) -> float:
        """Leave the gradient of the mean loss over `rows` in the parameters; the sum of the losses.

        Raises memory.OutOfMemory when no rung is low enough.
        """
        if self._mask is not None:
            rows = lengths.by_length(self._mask, rows)
        return self.ladder.attempt(lambda rung: self._accumulate(rows, rung))

    def _accumulate(self, rows: torch.Tensor, rung: Rung) -> float:
        for parameter in self._trainable:
            parameter.grad = None
        total = 0.0
        with checkpointed(self._module, self._blocks) if rung.checkpointed else nullcontext():
            for some in torch.split(rows, rung.micro):
                total += self._micro(some, len(rows))
        return total

    def _micro(self, some: torch.Tensor, rows: int) -> float:
        parts = compute.take(self._parts, some)
        if self._mask is not None:
            parts = lengths.cut(parts)
        parts = tuple(part.to(self.device) for part in parts)
        with self._autocast():
            output = self._module(*parts)
        losses = self._task.loss(precision.float32(output), self._truth[some].to(self.device))
        loss = compute.per_example(losses, len(some), "loss").sum()
        torch.autograd.backward(self.scaler.scale(loss / rows))
        return float(loss.detach())
