"""Clipped sums of per-example gradients: the part of private training where one record's influence is bounded.

Per-example gradients come from Opacus' grad-sample hooks, behind one method (`PerExampleGradients.__call__`), so that
a faster source can take its place. Adds no noise, draws nothing and knows no budget; clipping is flat, over all
trainable parameters at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models import compute, lora
from models.task import Task

ROWS = 1024  # examples whose gradients are held at once
SLACK = 1e-5  # clip at C (1 - 1e-5): float32 rounding of a gradient must not push its share of the sum beyond C


class GradientsRefused(Exception):
    """Per-example gradients would be wrong or missing for this module; the message names the part and the cure."""


@dataclass(frozen=True, slots=True)
class ClippedSum:
    """`total` (d,) float64, with |one example's share| <= clip; the counts are over the examples of this call."""

    total: np.ndarray
    losses: np.ndarray
    clipped: int
    not_finite: int


class PerExampleGradients:
    """Gradients of one attached module, as a context: the hooks are gone when it ends."""

    def __init__(self, task: Task, module: nn.Module) -> None:
        self.task, self.module = task, module
        self.parameters = lora.trainable(module)
        self.size = sum(parameter.numel() for parameter in self.parameters.values())
        self._hooks: Any = None
        _refuse(module, self.parameters)

    def __enter__(self) -> PerExampleGradients:
        from opacus.grad_sample import GradSampleHooks

        for part in self.module.modules():
            # the hooks record only in training mode; everything that holds no trainable parameter itself stays in eval
            part.training = any(p.requires_grad for p in part.parameters(recurse=False))
        self._hooks = GradSampleHooks(self.module, batch_first=True, loss_reduction="sum", strict=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hooks.cleanup()
        self.module.eval()
        for parameter in self.parameters.values():
            parameter.grad = None

    def __call__(self, parts: tuple[torch.Tensor, ...], truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (n,) and gradients (n, d) of n > 0 examples, d in the order of `lora.trainable`.

        Raises GradientsRefused when a trainable parameter got no gradient in this very pass: it would go without
        noise, or keep a stale norm.
        """
        rows = len(truth)
        for parameter in self.parameters.values():
            parameter.grad, parameter.grad_sample = None, None  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            losses = compute.per_example(self.task.loss(self.module(*parts), truth), rows, "loss")
            torch.autograd.backward(losses.sum())
        pieces = []
        for name, parameter in self.parameters.items():
            piece = parameter.grad_sample  # type: ignore[attr-defined]
            if not isinstance(piece, torch.Tensor) or len(piece) != rows:
                raise GradientsRefused(f"{name} got no gradient for each of {rows} examples: it is unused in forward, "
                                       "or its layer's first dimension is not the example; take it out of the adapter")
            pieces.append(piece.reshape(rows, -1))
        return losses.detach(), torch.cat(pieces, dim=1)

    def norms(self, parts: tuple[torch.Tensor, ...], truth: torch.Tensor) -> np.ndarray:
        """Gradient norm of each example, float64 (n,)."""
        found = [_norms(gradients).numpy() for _, gradients in self._chunks(parts, truth)]
        return np.concatenate(found) if found else np.empty(0)

    def clipped_sum(self, parts: tuple[torch.Tensor, ...], truth: torch.Tensor, clip: float) -> ClippedSum:
        """Sum of gradients, each scaled to norm <= `clip`; an example whose gradient is not finite counts as zero.

        Leaving such a row in would turn every weight into NaN: a denial of service, and a leak of the fact that it is
        there.
        """
        total, losses = torch.zeros(self.size, dtype=torch.float64), [np.empty(0, np.float32)]
        clipped = not_finite = 0
        for some_losses, gradients in self._chunks(parts, truth):
            norms = _norms(gradients)
            finite = torch.isfinite(norms)
            if not bool(finite.all()):
                gradients, norms = gradients[finite], norms[finite]
            factor = (clip * (1 - SLACK) / norms).clamp(max=1.0)
            total += factor @ gradients.double()
            losses.append(some_losses.numpy())
            clipped += int((norms > clip).sum())
            not_finite += int((~finite).sum())
        return ClippedSum(total.numpy(), np.concatenate(losses), clipped, not_finite)

    def _chunks(
        self, parts: tuple[torch.Tensor, ...], truth: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for at in range(0, len(truth), ROWS):
            yield self(compute.take(parts, slice(at, at + ROWS)), truth[at : at + ROWS])


def _norms(gradients: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(gradients, dim=1, dtype=torch.float64)


def _refuse(module: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and any(p.requires_grad for p in part.parameters(recurse=False)):
            raise GradientsRefused(f"{name} is a {type(part).__name__} that would be trained: it mixes the records of "
                                   "a batch, so no per-example bound holds; use LayerNorm, or leave it in the base")
    if len({id(parameter) for parameter in parameters.values()}) < len(parameters):
        raise GradientsRefused("two trainable parameters share memory: one record would count twice; untie them")
    listed = {id(parameter) for parameter in parameters.values()}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and id(parameter) not in listed:
            raise GradientsRefused(f"{name} is trainable but not part of the adapter: it would be trained without "
                                   "noise; set requires_grad to False")
