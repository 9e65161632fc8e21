"""A small Task for tests: which of two Gaussian blobs a point came from, in four dimensions.

`columns` makes labelled rows of it; `drift` turns the line between the blobs by so many radians, so that a model of
the undrifted blobs decays and an adapter can learn the turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

FEATURES = ("x0", "x1", "x2", "x3")
SEPARATION = 1.5  # distance of each mean from the origin, in standard deviations: 93 % can be told apart


class TwoBlobs:
    """Answers with the probability of blob 1."""

    name = "blobs"
    subject = None
    event = pa.schema([("event_id", pa.string()), *(pa.field(name, pa.float64(), nullable=False) for name in FEATURES)])
    label = pa.schema([("event_id", pa.string()), ("y", pa.int64())])
    label_horizon = timedelta(hours=1)

    def build(self) -> Any:
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc1, self.fc2, self.head = nn.Linear(4, 16), nn.Linear(16, 8), nn.Linear(8, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                logit: torch.Tensor = self.head(torch.relu(self.fc2(torch.relu(self.fc1(x)))))
                return logit.squeeze(-1)

        return Net()

    def encode(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.column_stack([columns[name] for name in FEATURES]).astype(np.float32)

    def target(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(columns["y"], dtype=np.float32)

    def loss(self, output: Any, target: Any) -> Any:
        from torch.nn import functional as F

        return F.binary_cross_entropy_with_logits(output, target, reduction="none")

    def gate_loss(self, output: Any, target: Any) -> Any:
        probability = output.sigmoid().clamp(0.05, 0.95)
        return -(target * probability.log() + (1 - target) * (1 - probability).log())

    def answer(self, output: np.ndarray) -> np.ndarray:
        return np.asarray(1 / (1 + np.exp(-output.astype(np.float64))))

    def score(self, output: np.ndarray, target: np.ndarray) -> dict[str, float]:
        return {"accuracy": float(((output > 0) == (target > 0.5)).mean())}


def columns(rows: int, seed: int = 0, drift: float = 0.0) -> dict[str, np.ndarray]:
    """`rows` labelled examples: event_id, x0..x3, y. Equal for equal arguments."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 2, rows)
    mean = SEPARATION * np.array([np.cos(drift), np.sin(drift), 0.0, 0.0])
    x = draw.normal(size=(rows, 4)) + np.where(y == 1, 1.0, -1.0)[:, None] * mean
    events = {"event_id": np.array([f"e{seed}-{i}" for i in range(rows)])}
    return events | {name: x[:, k] for k, name in enumerate(FEATURES)} | {"y": y.astype(np.int64)}
