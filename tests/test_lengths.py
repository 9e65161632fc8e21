"""Micro-batches of like length: the same gradient with less padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models import base, lengths
from models.config import AdapterConfig, TrainingConfig, UpdateConfig
from models.training import train
from tests.encoders import LONGEST, Counting, sentences
from tests.tasks import TwoBlobs, columns

W = "2013-03-04T08:00Z"
SETTING = TrainingConfig(max_epochs=1, batch_size=16, gradient_accumulation_steps=8, learning_rate=1e-2)
PLAIN = UpdateConfig(AdapterConfig(r=4, target_modules=("up", "down")), SETTING)
SORTED = replace(PLAIN, training=replace(SETTING, sort_by_length=True))
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)


class Padded(Counting):
    """Counts the positions that are computed while training."""

    def __init__(self) -> None:
        self.positions = 0

    def build(self):
        module = super().build()
        inner = module.forward

        def forward(tokens, mask):
            if torch.is_grad_enabled() and tokens.shape[0] <= 16:
                self.positions += tokens.numel()
            return inner(tokens, mask)

        module.forward = forward
        return module


def test_an_update_learns_the_same_with_less_padding():
    task, window = Padded(), sentences(256, seed=5)
    state = base.train_base(Counting(), sentences(200, seed=1), epochs=1)
    found = []
    for config in (PLAIN, SORTED):
        task.positions = 0
        found.append((train(task, state, None, window, None, config, W, seed=1), task.positions))
    (plain, all_positions), (ordered, positions) = found
    assert all(np.allclose(plain.tensors[key], ordered.tensors[key], atol=1e-5) for key in plain.tensors)
    real = int((window["tokens"] > 0).sum())
    assert all_positions == 256 * LONGEST and 1 - real / positions < 0.25 < 0.7 < 1 - real / all_positions


def test_sorting_stays_within_a_logical_batch_and_is_stable():
    rows = torch.tensor([0, 1, 2, 3, 4])
    assert lengths.by_length(MASK, rows).tolist() == [3, 1, 4, 0, 2]
    assert lengths.by_length(MASK, torch.tensor([2, 0])).tolist() == [2, 0]


def test_padding_is_cut_from_every_part_that_has_the_positions():
    parts = (torch.arange(20).reshape(5, 4), torch.zeros(5, 4, 2), torch.zeros(5, 3), torch.zeros(5), MASK)
    assert [tuple(part.shape) for part in lengths.cut(parts)] == [(5, 3), (5, 3, 2), (5, 3), (5,), (5, 3)]
    empty = (torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.bool))
    assert lengths.cut(empty)[0].shape == (2, 1)


def test_without_a_mask_the_setting_is_refused():
    config = replace(SORTED, adapter=AdapterConfig(r=4))
    with pytest.raises(ValueError, match=r"sort_by_length = true and encode gave 0 boolean arrays .* != 1: return the mask"):
        train(TwoBlobs(), base.train_base(TwoBlobs(), columns(50), epochs=1), None, columns(50), None, config, W)
