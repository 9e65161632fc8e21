"""A small task with a trained base, and what an update of it needs: a reservation, a window, an attached module."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import nn

from models import base, compute
from models.adapters import lora
from models.config import AdapterConfig, TrainingConfig, UpdateConfig
from security.privacy import Reservation
from tests.tasks import TwoBlobs, columns

W = "2013-03-04T08:00Z"
TASK = TwoBlobs()
ADAPTER = AdapterConfig(r=4, lora_alpha=8)
PLAIN = UpdateConfig(ADAPTER, TrainingConfig(max_epochs=2, batch_size=32, learning_rate=1e-2))
PRIVATE = UpdateConfig(ADAPTER, TrainingConfig(learning_rate=0.3))
WINDOW = columns(800, seed=5, drift=0.8)


@cache
def trained_base() -> bytes:
    return base.train_base(TASK, columns(2_000, seed=1), epochs=4, batch_size=64, learning_rate=1e-2)


def law(rows: int, **changes) -> Reservation:
    made = Reservation("u1", (W,), noise_multiplier=2.0, sampling_rate=0.125, steps=8, max_grad_norm=3.0, epsilon=0.5,
                       delta=1e-5, expected_batch=0.125 * rows)
    return replace(made, **changes)


def attached(trained: bytes) -> nn.Module:
    """A module whose adapter is no longer at its start, so that every matrix has a gradient."""
    module = base.build(TASK, trained)
    lora.attach(module, ADAPTER, lora.first_draw(trained))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in lora.trainable(module).values():
            value += 0.2 * torch.randn(value.shape, generator=draw)
    return module


def batch(rows: int, seed: int = 5) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    some = columns(rows, seed=seed, drift=0.8)
    return compute.inputs(TASK, some), compute.targets(TASK, some)
