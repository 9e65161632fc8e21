"""The frozen base: repeatable, exact to rebuild, and the clip that is measured on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from models import base, compute
from models.adapters import lora
from models.config import AdapterConfig
from models.private import clipping
from tests.tasks import TwoBlobs, columns

TASK, HISTORY, CONFIG = TwoBlobs(), columns(1_000, seed=1), AdapterConfig(r=4, lora_alpha=8)


@pytest.fixture(scope="module")
def trained() -> bytes:
    return base.train_base(TASK, HISTORY, epochs=4, batch_size=64, learning_rate=1e-2)


def test_equal_seeds_and_history_give_equal_bytes_whatever_was_drawn_before(trained):
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    again = base.train_base(TASK, HISTORY, epochs=4, batch_size=64, learning_rate=1e-2)
    assert again == trained and torch.equal(torch.random.get_rng_state(), state)
    assert base.train_base(TASK, HISTORY, epochs=4, batch_size=64, learning_rate=1e-2, seed=1) != trained


def test_a_trained_base_tells_the_blobs_apart(trained):
    fresh = columns(2_000, seed=2)
    output = compute.outputs(base.build(TASK, trained), compute.inputs(TASK, fresh)).numpy()
    assert TASK.score(output, TASK.target(fresh))["accuracy"] > 0.9


def test_a_rebuilt_base_is_in_eval_mode_with_nothing_trainable(trained):
    module = base.build(TASK, trained)
    assert not any(part.training for part in module.modules())
    assert not any(p.requires_grad for p in module.parameters())
    assert base.module_digest(module) == base.module_digest(base.build(TASK, trained))


def test_bytes_of_another_base_are_refused():
    other = nn.Linear(4, 2)
    import safetensors.torch

    with pytest.raises(base.BaseRefused, match="does not fit task 'blobs'"):
        base.build(TASK, safetensors.torch.save(other.state_dict()))
    with pytest.raises(base.BaseRefused, match="headgate base train"):
        base.build(TASK, b"not a base")


@pytest.mark.parametrize("touch", ["parameter", "buffer", "scalar buffer"])
def test_the_digest_sees_every_parameter_and_buffer(touch):
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = base.module_digest(module)
    with torch.no_grad():
        {"parameter": module[0].bias, "buffer": module[1].running_var, "scalar buffer": module[1].num_batches_tracked}[
            touch].add_(1)
    assert base.module_digest(module) != before


def test_a_history_that_cannot_be_learnt_from_is_refused():
    with pytest.raises(ValueError, match="0 rows of history"):
        base.train_base(TASK, columns(0), epochs=1)
    broken = columns(50)
    broken["x1"][17] = np.nan
    with pytest.raises(ValueError, match="loss of row 17 is nan in epoch 0"):
        base.train_base(TASK, broken, epochs=1)


def test_the_automatic_clip_is_the_99th_percentile_of_gradient_norms(trained):
    module = base.build(TASK, trained)
    lora.attach(module, CONFIG, lora.first_draw(trained))
    norms = []
    for row in range(1_000):
        one = {name: column[row : row + 1] for name, column in HISTORY.items()}
        module.zero_grad()
        TASK.loss(module(*compute.inputs(TASK, one)), compute.targets(TASK, one)).sum().backward()
        norms.append(torch.cat([p.grad.flatten() for p in lora.trainable(module).values()]).norm().item())
    assert base.auto_clip(TASK, trained, HISTORY, CONFIG) == pytest.approx(np.percentile(norms, 99), rel=1e-4)


def test_the_automatic_clip_looks_at_a_sample_and_past_broken_rows(trained):
    some = base.auto_clip(TASK, trained, HISTORY, CONFIG, sample=400)
    assert some == pytest.approx(base.auto_clip(TASK, trained, HISTORY, CONFIG), rel=0.3)
    broken = {name: column.copy() for name, column in HISTORY.items()}
    broken["x0"][::3] = np.inf
    assert np.isfinite(base.auto_clip(TASK, trained, broken, CONFIG))
    broken["x0"][:] = np.nan
    with pytest.raises(ValueError, match="none of 1000 history rows"):
        base.auto_clip(TASK, trained, broken, CONFIG)


def test_the_hooks_are_gone_afterwards(trained):
    module = base.build(TASK, trained)
    lora.attach(module, CONFIG)
    with clipping.PerExampleGradients(TASK, module) as gradients:
        gradients.norms(compute.inputs(TASK, HISTORY), compute.targets(TASK, HISTORY))
    assert not any(part._forward_hooks or part._backward_hooks for part in module.modules())
    assert not any(hasattr(p, "grad_sample") for p in module.parameters())
