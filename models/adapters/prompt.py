"""Prompt layer: trainable vectors put before the sequence that a layer answers with (Lester et al. 2021).

What follows the layer must take sequences of any length, and sees `length` more positions. It knows no tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from models.adapters.bottleneck import answer_width
from models.adapters.part import AdapterRefused, OnBase


class Prompt(OnBase):
    """(n, T, d) from the layer becomes (n, length + T, d); the first `length` positions are the prompt, for every row.

    The only kind that changes answers at birth. Its vectors start at length about 1. Like a bottleneck it stays in an
    exported module. Raises AdapterRefused when the layer answers with anything but (n, T, d).
    """

    def __init__(self, base: nn.Module, length: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        width, like = answer_width(base), next(base.parameters(), torch.empty(0))
        self.base = base
        # a table and not a bare parameter: per-example gradients of tables are known to every engine
        self.vectors = nn.Embedding(length, width, device=like.device, dtype=like.dtype)
        nn.init.normal_(self.vectors.weight, std=1 / math.sqrt(width), generator=generator)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "prompt.weight", self.vectors.weight

    def onto(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if out.dim() != 3:
            raise AdapterRefused(f"a prompt goes before sequences (n, T, d), the layer answered {tuple(out.shape)}; name the "
                                 "embedding of the sequence in prompt_modules")
        places = torch.arange(self.vectors.num_embeddings, device=out.device).expand(len(out), -1)
        return torch.cat([self.vectors(places), out], dim=1)

    def folded(self) -> nn.Module:
        return self
