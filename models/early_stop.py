"""Stop when examples that are held out are answered no better: the weights of the best epoch, and when patience ends.

It needs examples that training does not see, so it is for updates without privacy: under it the step at which training stops
would tell of private records (`models/compat.py`). It knows neither optimiser nor report.
"""

from __future__ import annotations

import torch
from torch import nn

from models import compute
from models.adapters import lora
from models.task import Task

HELD_OUT = 10  # one example of so many


class EarlyStop:
    """`rows`: of the window, what is left to learn from. With `patience` 0 that is all of it, and nothing ever stops."""

    def __init__(
        self, task: Task, module: nn.Module, parts: tuple[torch.Tensor, ...], truth: torch.Tensor, patience: int,
        order: torch.Generator,
    ) -> None:  # fmt: skip
        self._task, self._module, self.patience = task, module, patience
        self._weights = list(lora.trainable(module).values())
        self._best, self._least, self._waited = list[torch.Tensor](), float("inf"), 0
        held = len(truth) // HELD_OUT if patience else 0
        drawn = torch.randperm(len(truth), generator=order) if held else torch.arange(len(truth))
        self.rows, out = drawn[held:], drawn[:held]
        self._parts, self._truth = compute.take(parts, out), truth[out]

    def epoch_ended(self) -> bool:
        """Whether to stop now. A loss that is not finite is no better."""
        if not len(self._truth):
            return False
        with torch.inference_mode():
            device = self._weights[0].device
            parts = tuple(part.to(device) for part in self._parts)
            losses = self._task.loss(compute.outputs(self._module, parts), self._truth.to(device))
        loss = float(losses.mean())
        if loss < self._least:
            self._least, self._waited = loss, 0
            self._best = [weight.detach().clone() for weight in self._weights]
        else:
            self._waited += 1
        return self._waited >= self.patience

    @torch.no_grad()
    def restore(self) -> None:
        """The weights of the best epoch; the last ones where nothing was held out."""
        if self._best:
            for weight, best in zip(self._weights, self._best, strict=True):
                weight.copy_(best)
