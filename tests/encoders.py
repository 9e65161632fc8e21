"""A small Task on sequences: does the word 1 come more often than the word 2? Tokens (n, 24) with a mask of the real ones.

`sentences` makes labelled rows of it, most of them short. The classes are integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

WORDS, LONGEST, WIDTH = 8, 24, 16


class Block(nn.Module):
    """A residual layer over each position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.down(torch.tanh(self.up(x)))
        return out


class Net(nn.Module):
    """Embedding, blocks, mean over the real positions, two logits."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.head = nn.Linear(width, 2)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens)
        for block in self.blocks:
            x = block(x)
        mean = (x * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        out: torch.Tensor = self.head(mean)
        return out


class Counting:
    """Answers with the probability that 1 comes more often."""

    name = "counting"
    subject = None
    event = pa.schema([("event_id", pa.string()), ("tokens", pa.list_(pa.int64()))])
    label = pa.schema([("event_id", pa.string()), ("y", pa.int64())])
    label_horizon = timedelta(hours=1)

    def build(self) -> Any:
        return Net()

    def encode(self, columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        return columns["tokens"], columns["tokens"] > 0

    def target(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        return columns["y"]

    def loss(self, output: Any, target: Any) -> Any:
        return nn.functional.cross_entropy(output, target, reduction="none")

    def gate_loss(self, output: Any, target: Any) -> Any:
        return self.loss(output, target).clamp(max=3.0)

    def answer(self, output: np.ndarray) -> np.ndarray:
        return np.asarray(1 / (1 + np.exp(output[:, 0] - output[:, 1])))

    def score(self, output: np.ndarray, target: np.ndarray) -> dict[str, float]:
        return {"accuracy": float((output.argmax(axis=1) == target).mean())}


def sentences(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """`rows` labelled examples; 0 is padding, behind the words. Equal for equal arguments."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(1, WORDS, (rows, LONGEST))
    lengths = np.clip(draw.lognormal(1.6, 0.6, rows).astype(int), 1, LONGEST)
    tokens[np.arange(LONGEST) >= lengths[:, None]] = 0
    return {"tokens": tokens, "y": ((tokens == 1).sum(axis=1) > (tokens == 2).sum(axis=1)).astype(np.int64)}
