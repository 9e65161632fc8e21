"""Clipped sums of per-example gradients: the part of private training where one record's influence is bounded.

Where the gradients come from is left to two sources: one backward pass for the layers it knows (one_backward.py), Opacus'
grad-sample hooks for the others. Adds no noise, draws nothing and knows no budget; clipping is flat, over all trainable
parameters at once.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models import compute, lengths
from models.adapters import lora
from models.memory import Rung
from models.private.pieces import Piece, Whole
from models.task import Task

ROWS = 1024  # examples whose gradients are held at once
SLACK = 1e-5  # clip at C (1 - 1e-5): float32 rounding of a gradient must not push its share of the sum beyond C


class GradientsRefused(Exception):
    """Per-example gradients would be wrong or missing for this module; the message names the part and the cure."""


@dataclass(frozen=True, slots=True)
class ClippedSum:
    """`total` (d,) float64, with |one example's share| <= clip; losses (n,) in no order; counts over the n examples."""

    total: np.ndarray
    losses: np.ndarray
    clipped: int
    not_finite: int


class Clipping(ABC):
    """Clipped sums of the gradients of one attached module, as a context: the module is what it was when it ends.

    size: d, over all trainable parameters in the order of `lora.trainable`.
    """

    rung = Rung(ROWS, can_checkpoint=False)  # how much is computed in one pass
    sorted_by_length = False
    precision = "fp32"

    def __init__(self, task: Task, module: nn.Module) -> None:
        self.task, self.module = task, module
        self.parameters = lora.trainable(module)
        sizes = [parameter.numel() for parameter in self.parameters.values()]
        self.size = sum(sizes)
        self._flat = torch.empty(self.size)  # the sum of one pass
        self._places = torch.split(self._flat, sizes)
        _refuse(module, self.parameters)

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None: ...

    @abstractmethod
    def pieces(self, parts: tuple[torch.Tensor, ...], truth: torch.Tensor) -> tuple[torch.Tensor, list[Piece]]:
        """Losses (n,) of n > 0 examples, and their gradients, which side by side are (n, d).

        Raises GradientsRefused when a trainable parameter got no gradient in this very pass: it would go without noise,
        or keep a stale norm.
        """

    @torch.no_grad()
    def norms(self, parts: tuple[torch.Tensor, ...], truth: torch.Tensor) -> np.ndarray:
        """Gradient norm of each example, float64 (n,)."""
        found = [_norms(pieces) for _, pieces in self._passes(parts, truth)]
        return np.concatenate(found) if found else np.empty(0)

    @torch.no_grad()
    def clipped_sum(self, parts: tuple[torch.Tensor, ...], truth: torch.Tensor, clip: float) -> ClippedSum:
        """Sum of gradients, each scaled to norm <= `clip`; an example whose norm is not finite counts as zero.

        Leaving such a row in would turn every weight into NaN: a denial of service, and a leak of the fact that it is
        there.
        """
        if self.sorted_by_length:
            order = lengths.by_length(lengths.mask_of(parts), torch.arange(len(truth)))
            parts, truth = compute.take(parts, order), truth[order]
        bound = clip * (1 - SLACK)
        total, losses = torch.zeros(self.size, dtype=torch.float64), [np.empty(0, np.float32)]
        clipped, not_finite = 0, 0
        for some_losses, pieces in self._passes(parts, truth):
            norms = _norms(pieces)
            if not math.isfinite(norms.sum()):
                absent = ~np.isfinite(norms)
                norms[absent], not_finite = 0.0, not_finite + int(np.count_nonzero(absent))
                pieces = [piece.without(torch.from_numpy(absent)) for piece in pieces]
            factors = torch.from_numpy((bound / np.maximum(norms, bound)).astype(np.float32))
            for piece, place in zip(pieces, self._places, strict=True):
                piece.weighted(factors, place)
            total += self._flat
            losses.append(some_losses.numpy())
            clipped += int(np.count_nonzero(norms > clip))
        return ClippedSum(total.numpy(), np.concatenate(losses), clipped, not_finite)

    def _passes(self, parts: tuple[torch.Tensor, ...], truth: torch.Tensor) -> Iterator[tuple[torch.Tensor, list[Piece]]]:
        for at in range(0, len(truth), self.rung.micro):
            here = slice(at, at + self.rung.micro)
            some = compute.take(parts, here)
            yield self.pieces(lengths.cut(some) if self.sorted_by_length else some, truth[here])


class PerExampleGradients(Clipping):
    """By Opacus' hooks, for any layer they know: a gradient of every weight is formed for each example."""

    _hooks: Any = None

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

    def pieces(self, parts: tuple[torch.Tensor, ...], truth: torch.Tensor) -> tuple[torch.Tensor, list[Piece]]:
        rows = len(truth)
        for parameter in self.parameters.values():
            parameter.grad, parameter.grad_sample = None, None  # type: ignore[attr-defined]
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            losses = compute.per_example(self.task.loss(self.module(*parts), truth), rows, "loss")
            torch.autograd.backward(losses.sum())
        found: list[Piece] = []
        for name, parameter in self.parameters.items():
            piece = parameter.grad_sample  # type: ignore[attr-defined]
            if not isinstance(piece, torch.Tensor) or len(piece) != rows:
                raise without_gradient(name, rows)
            found.append(Whole(piece.reshape(rows, -1)))
        return losses.detach(), found


def without_gradient(name: str, rows: int) -> GradientsRefused:
    """A trainable parameter that the pass did not reach."""
    return GradientsRefused(f"{name} got no gradient for each of {rows} examples: it is unused in forward, "
                            "or its layer's first dimension is not the example; take it out of the adapter")


def _norms(pieces: list[Piece]) -> np.ndarray:
    """Gradient norm of each example over all parameters, float64 (n,)."""
    of_each = torch.stack([piece.norms() for piece in pieces])
    return torch.linalg.vector_norm(of_each, dim=0, dtype=torch.float64).numpy()


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
