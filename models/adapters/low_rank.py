"""Low-rank adapters of the three layers that are one matrix: linear, embedding, 1x1 convolution (Hu et al. 2021).

The effective weight is W0 + scale * B A, W0 (out, in) frozen, A (r, in), B (out, r). One of A and B is zero at birth, so
that the layer answers exactly as before. Shapes and places of the weights are PEFT's. It knows no module around the layer.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from models.adapters.part import AdapterRefused, OnBase


class LowRank(OnBase):
    """What the three have in common."""

    scale: float

    @abstractmethod
    def matrices(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """W0 (out, in), A (r, in) and B (out, r), as views of the weights."""

    def folded(self) -> nn.Module:
        W0, A, B = self.matrices()
        with torch.no_grad():
            W0 += self.scale * B @ A
        return self.base


class LoRALinear(LowRank):
    """y = base(x) + scale * B(A(x)) for any leading dimensions; B = 0 at birth.

    A ~ N(0, 1/in): then |Ax| is about |x| sqrt(r/in), whatever the width, and a learning rate carries over between
    layers.
    """

    base: nn.Linear

    def __init__(self, base: nn.Linear, r: int, scale: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.lora_A = nn.Linear(base.in_features, r, bias=False, **like)
        self.lora_B = nn.Linear(r, base.out_features, bias=False, **like)
        nn.init.normal_(self.lora_A.weight, std=1 / math.sqrt(base.in_features), generator=generator)
        nn.init.zeros_(self.lora_B.weight)

    def onto(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = out + self.scale * self.lora_B(self.lora_A(x))
        return answer

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.base.weight, self.lora_A.weight, self.lora_B.weight

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "lora_A.weight", self.lora_A.weight
        yield "lora_B.weight", self.lora_B.weight


class LoRAEmbedding(LowRank):
    """y = base(i) + scale * B A[:, i] for indices i of any shape; A (r, num_embeddings) = 0 at birth.

    A is the zero one, not B, so that an entry no example names keeps its vector. B's columns have length about 1: a step
    on A moves a vector about as far as the same step on the vector itself would. Padding is an entry like any other.
    """

    base: nn.Embedding

    def __init__(self, base: nn.Embedding, r: int, scale: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if base.max_norm is not None:
            raise AdapterRefused(f"an nn.Embedding with max_norm = {base.max_norm} writes to the frozen base in every "
                                 "forward pass; build it without, or take it out of target_modules")
        self.base, self.scale = base, scale
        self.lora_A = nn.Parameter(base.weight.new_zeros(r, base.num_embeddings))
        self.lora_B = nn.Parameter(base.weight.new_empty(base.embedding_dim, r))
        nn.init.normal_(self.lora_B, std=1 / math.sqrt(base.embedding_dim), generator=generator)

    def onto(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return out + self.scale * (F.embedding(x, self.lora_A.T) @ self.lora_B.T)

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.base.weight.T, self.lora_A, self.lora_B

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "lora_embedding_A", self.lora_A
        yield "lora_embedding_B", self.lora_B


class LoRAConv(LowRank):
    """y = base(x) + scale * B(A(x)) at every position of (n, channels, height, width); B = 0 at birth.

    Stride and padding are A's. Raises AdapterRefused for a kernel that is not 1x1, groups, and padding that is not zeros.
    """

    base: nn.Conv2d

    def __init__(self, base: nn.Conv2d, r: int, scale: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if base.kernel_size != (1, 1) or base.groups != 1 or base.padding_mode != "zeros":
            raise AdapterRefused(f"an nn.Conv2d with kernel {base.kernel_size}, {base.groups} groups and padding "
                                 f"{base.padding_mode!r}: only kernel (1, 1), 1 group and 'zeros' take a low-rank adapter; "
                                 "name the layer in modules_to_save")
        self.base, self.scale = base, scale
        like: dict[str, Any] = {"bias": False, "device": base.weight.device, "dtype": base.weight.dtype}
        self.lora_A = nn.Conv2d(base.in_channels, r, 1, **like | {"stride": base.stride, "padding": base.padding})
        self.lora_B = nn.Conv2d(r, base.out_channels, 1, **like)
        nn.init.normal_(self.lora_A.weight, std=1 / math.sqrt(base.in_channels), generator=generator)
        nn.init.zeros_(self.lora_B.weight)

    def onto(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = out + self.scale * self.lora_B(self.lora_A(x))
        return answer

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        W0, A, B = (part.weight[:, :, 0, 0] for part in (self.base, self.lora_A, self.lora_B))
        return W0, A, B

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "lora_A.weight", self.lora_A.weight
        yield "lora_B.weight", self.lora_B.weight


KINDS: dict[type[nn.Module], type[LoRALinear | LoRAEmbedding | LoRAConv]] = {
    nn.Linear: LoRALinear, nn.Embedding: LoRAEmbedding, nn.Conv2d: LoRAConv,
}  # fmt: skip


def low_rank(layer: nn.Module, r: int, scale: float, generator: torch.Generator | None = None) -> LowRank:
    """The low-rank adapter for this kind of layer. Raises AdapterRefused when there is none."""
    made = next((made for kind, made in KINDS.items() if isinstance(layer, kind)), None)
    if made is None:
        raise AdapterRefused(f"it is an nn.{type(layer).__name__}: only nn.Linear, nn.Embedding and 1x1 nn.Conv2d take a "
                             "low-rank adapter; name it in modules_to_save")
    if "weight" not in layer._parameters:
        raise AdapterRefused("its weight is computed from others (a parametrization such as weight_norm), so the adapter could "
                             "not be merged; remove the parametrization, or name it in modules_to_save")
    return made(layer, r, scale, generator)  # type: ignore[arg-type]
