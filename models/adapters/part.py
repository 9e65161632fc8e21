"""A place of a module that one adapter has taken, and the plainest way to take it: a whole copy, trained.

What every kind of adapter can be asked for is written here; low_rank.py, bottleneck.py and prompt.py are the other kinds.
It does not know where in a module a part sits, nor how many adapters there are.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class AdapterRefused(Exception):
    """The adapter cannot be attached to this module, or these tensors are not its adapter; the message names the cure.
    """


class Part(nn.Module):
    """Answers in the place of `layer`, which it leaves as it is."""

    @property
    @abstractmethod
    def layer(self) -> nn.Module:
        """The very layer that was in this place."""

    @abstractmethod
    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The adapter's own tensors under the ends of their file keys, always in the same order."""

    @abstractmethod
    def onto(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The answer for inputs `x` (n, ...), to which the layer itself answers `out`."""

    @abstractmethod
    def folded(self) -> nn.Module:
        """A layer for export that answers alike; may write to the layer, so it is asked of copies only."""

    @property
    def weight(self) -> torch.Tensor:
        """Refused: code that computes with a layer's weight instead of calling the layer ignores its adapter."""
        raise AdapterRefused(f"forward reads the weight of an adapted {type(self.layer).__name__} instead of calling it, so "
                             "the adapter would be ignored; call the layer, or take it out of [adapter]")


class OnBase(Part):
    """A part that adds to what the layer, its `base`, answers."""

    base: nn.Module

    @property
    def layer(self) -> nn.Module:
        return self.base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.onto(self.base(x), x)


class TrainableCopy(Part):
    """A module of `modules_to_save`: its copy answers and is trained, the original stays untouched beside it."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original
        self.copy = copy.deepcopy(original).requires_grad_(True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.copy(*args, **kwargs)

    @property
    def layer(self) -> nn.Module:
        return self.original

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Buffers too: the statistics of a BatchNorm are part of what the copy answers."""
        yield from self.copy.state_dict(keep_vars=True).items()

    def onto(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.copy(x)
        return answer

    def folded(self) -> nn.Module:
        return self.copy
