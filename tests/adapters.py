"""A small module with every layer that an adapter can take, and a setting for each kind of adapter."""

from __future__ import annotations

import torch
from torch import nn

from models.adapters import lora
from models.config import AdapterConfig

WORDS, WIDTH, LENGTH = 11, 6, 5
EMPTY = {"r": 2, "lora_alpha": 3, "target_modules": (), "modules_to_save": ()}
KINDS = {
    "linear": AdapterConfig(**EMPTY | {"target_modules": ("fc",)}),
    "embedding": AdapterConfig(**EMPTY | {"target_modules": ("words",)}),
    "convolution": AdapterConfig(**EMPTY | {"target_modules": ("conv",)}),
    "copy": AdapterConfig(**EMPTY | {"modules_to_save": ("head",)}),
    "bottleneck": AdapterConfig(**EMPTY, bottleneck_modules=("norm", "fc"), bottleneck_size=3),
    "prompt": AdapterConfig(**EMPTY, prompt_modules=("words",), prompt_length=3),
    "all": AdapterConfig(
        2, 3, ("conv", "fc"), ("head",), bottleneck_modules=("norm",), bottleneck_size=3, prompt_modules=("words",),
        prompt_length=3,
    ),
}  # fmt: skip


class Net(nn.Module):
    """Word numbers (n, T) to (n, 1), T any length."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(WORDS, WIDTH), nn.LayerNorm(WIDTH)
        self.conv, self.fc = nn.Conv2d(WIDTH, 7, 1, stride=(2, 1), padding=(1, 0)), nn.Linear(7, 4)
        self.head = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        vectors = torch.tanh(self.norm(self.words(ids))).mT[..., None]
        return self.head(torch.tanh(self.fc(torch.tanh(self.conv(vectors)).mean(dim=(2, 3)))))


def net() -> nn.Module:
    """Always the same one, frozen, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        module = Net().eval().requires_grad_(False)
        module.head[0].running_mean.normal_()
    return module


def ids(rows: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, WORDS, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def stirred(module: nn.Module, seed: int = 2) -> nn.Module:
    """The current adapter says something."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in lora.trainable(module).values():
            value += 0.3 * torch.randn(value.shape, generator=draw)
    return module


def adapted(kind: str, seed: int = 2) -> nn.Module:
    module = net()
    lora.attach(module, KINDS[kind], torch.Generator().manual_seed(seed))
    return stirred(module, seed)
