"""How large the gradient is in each layer: what the guard names when it stops an update, and a curve for each layer.

It knows parameters under their PEFT keys, and no limit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from models import guard
from models.adapters import lora

ADAPTER = re.compile(r"(\.lora_\w+)?(\.[^.]+)?$")  # what a key says beyond the layer: the matrix, then the parameter


def layer_of(key: str) -> str:
    """The base's layer that a PEFT key belongs to: base_model.model.fc1.lora_A.weight -> fc1."""
    name = key.removeprefix(lora.PREFIX)
    return ADAPTER.sub("", name, count=1) or name


class GradientFlow:
    """`epochs`: for each layer the largest norm of each finished epoch."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = [(layer_of(key), value) for key, value in parameters.items()]
        self._largest = {layer: 0.0 for layer, _ in self._parameters}
        self.epochs: dict[str, list[float]] = {layer: [] for layer in self._largest}

    def norms(self) -> dict[str, float]:
        """Norm of each layer's gradient now; a layer without one has 0."""
        squares = dict.fromkeys(self._largest, 0.0)
        having = [(layer, value.grad) for layer, value in self._parameters if value.grad is not None]
        if having:
            norms = torch.stack(torch._foreach_norm([gradient for _, gradient in having])).tolist()
            for (layer, _), norm in zip(having, norms, strict=True):
                squares[layer] += norm * norm
        return {layer: math.sqrt(square) for layer, square in squares.items()}

    def note(self, norms: Mapping[str, float]) -> None:
        """Remember what `norms` said of one step."""
        for layer, norm in norms.items():
            self._largest[layer] = max(self._largest[layer], norm)

    def end_epoch(self) -> None:
        """Close a point of the curves."""
        for layer, largest in self._largest.items():
            self.epochs[layer].append(largest)
        self._largest = dict.fromkeys(self._largest, 0.0)


class NoisedFlow:
    """The same of a noised gradient, which lies flat in the order of `parameters`, with `deviation` in every coordinate.

    Free to look at: what is computed from a noised gradient costs no privacy.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], deviation: float) -> None:
        self.deviation = deviation
        self._parameters = [(layer_of(key), value.numel()) for key, value in parameters.items()]
        self._sizes = dict.fromkeys((layer for layer, _ in self._parameters), 0)
        for layer, size in self._parameters:
            self._sizes[layer] += size

    def norms(self, gradient: np.ndarray) -> dict[str, float]:
        """Norm of each layer of a (d,) gradient, with the noise's share removed."""
        squares, at = dict.fromkeys(self._sizes, 0.0), 0
        for layer, size in self._parameters:
            piece = gradient[at : at + size]
            squares[layer] += float(piece @ piece)
            at += size
        return {layer: guard.denoised_norm(math.sqrt(square), self._sizes[layer], self.deviation)
                for layer, square in squares.items()}


def total(norms: Mapping[str, float]) -> float:
    """The norm over all layers."""
    return math.sqrt(sum(norm * norm for norm in norms.values()))
