"""Bottleneck adapter: a small non-linear detour behind a layer, added to what the layer answers (Houlsby et al. 2019).

It knows no module around the layer. PEFT has no such kind, so its files are ours alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from models.adapters.part import AdapterRefused, OnBase


class Bottleneck(OnBase):
    """y = h + up(relu(down(h))) with h = base(x), for any leading dimensions; up = 0 at birth, so y = h exactly.

    Non-linear in h, so it cannot be folded into the layer: an exported module keeps it. Raises AdapterRefused for a layer
    whose width is not known before it is used.
    """

    def __init__(self, base: nn.Module, size: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        width, like = answer_width(base), next(base.parameters(), torch.empty(0))
        self.base = base
        self.down = nn.Linear(width, size, device=like.device, dtype=like.dtype)
        self.up = nn.Linear(size, width, device=like.device, dtype=like.dtype)
        nn.init.normal_(self.down.weight, std=1 / math.sqrt(width), generator=generator)
        for value in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(value)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name in ("down", "up"):
            for key, value in getattr(self, name).named_parameters():
                yield f"bottleneck_{name}.{key}", value

    def onto(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = out + self.up(torch.relu(self.down(out)))
        return answer

    def folded(self) -> nn.Module:
        return self


def answer_width(layer: nn.Module) -> int:
    """Length of the vectors a layer answers with. Raises AdapterRefused for layers that do not say."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[-1]
    raise AdapterRefused(f"it is an nn.{type(layer).__name__}, which does not say how wide its answers are; name the "
                         "nn.Linear, nn.Embedding or nn.LayerNorm that ends the block")
