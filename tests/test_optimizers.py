"""The optimisers of training without privacy, and what is said where one is not installed."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from models.compat import TrainingRefused
from models.plain_adamw import adamw


def test_an_optimiser_that_is_not_installed_is_refused_with_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(TrainingRefused, match=r"optimizer = \"adamw8bit\" needs the package torchao.*headgate\[low-bit\]"):
        adamw("adamw8bit", [nn.Parameter(torch.zeros(3))], 1e-3)


@pytest.mark.slow
def test_eight_bits_of_state_learn_about_what_thirty_two_do_in_a_third_of_the_memory():
    """The first step compiles, which takes about 12 s."""
    pytest.importorskip("torchao.optim", reason="torchao is not installed: pip install headgate[low-bit]")
    moved = []
    for kind in ("adamw", "adamw8bit"):
        draw = torch.Generator().manual_seed(1)
        weight = nn.Parameter(torch.zeros(64, 128))
        wanted = torch.randn(64, 128, generator=draw)
        optimizer = adamw(kind, [weight], 1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 50 else 0.5)
        for _ in range(100):
            optimizer.zero_grad()
            torch.autograd.backward(((weight - wanted) ** 2).sum())
            optimizer.step()
            schedule.step()
        moved.append(weight.detach())
        if kind == "adamw8bit":
            kept = optimizer.state[weight]["exp_avg"]
            assert kept.codes.nbytes + kept.scale.nbytes < 0.3 * weight.nbytes
            assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(5e-3)
    assert torch.cosine_similarity(moved[0].flatten(), moved[1].flatten(), dim=0) > 0.999
