"""Clipped sums of gradients by Opacus' hooks, and the private step around them when memory runs out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from models import base
from models.adapters import lora
from models.config import AdapterConfig, GuardConfig
from models.memory import Rung
from models.private import clipping, noise, one_backward, private_sgd
from models.training import TrainingRefused, train
from tests.tasks import TwoBlobs
from tests.updates import PLAIN, PRIVATE, TASK, WINDOW, W, attached, batch, law, trained_base


@pytest.fixture(scope="module")
def trained() -> bytes:
    return trained_base()


def reference(module: nn.Module, parts: tuple[torch.Tensor, ...], truth: torch.Tensor) -> torch.Tensor:
    """Per-example gradients by vmap(grad), independent of hooks."""
    everything = {name: p.detach() for name, p in module.named_parameters()}
    free = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}

    def loss(weights, x, y):
        return TASK.loss(functional_call(module, {**everything, **weights}, (x[None],)), y[None])[0]

    grads = vmap(grad(loss), (None, 0, 0))(free, parts[0], truth)
    by_id = {id(p): grads[name] for name, p in module.named_parameters() if p.requires_grad}
    return torch.cat([by_id[id(p)].flatten(1) for p in lora.trainable(module).values()], dim=1)


def test_per_example_gradients_equal_those_of_vmap(trained):
    module, (parts, truth) = attached(trained), batch(64)
    wanted = reference(module, parts, truth)
    with clipping.PerExampleGradients(TASK, module) as gradients:
        found = [gradients.clipped_sum((parts[0][i : i + 1],), truth[i : i + 1], 1e9) for i in range(64)]
    assert np.allclose([one.total for one in found], wanted, rtol=3e-5, atol=1e-6)
    assert np.allclose([one.losses[0] for one in found], TASK.loss(module(*parts), truth).detach())


def test_a_clipped_sum_is_the_sum_of_clipped_gradients_also_over_chunks(trained, monkeypatch):
    monkeypatch.setattr(clipping.PerExampleGradients, "rung", Rung(50, can_checkpoint=False))
    module, (parts, truth) = attached(trained), batch(120)
    wanted = reference(module, parts, truth).double()
    norms = wanted.norm(dim=1)
    clip = float(norms.quantile(0.503))
    total = (wanted * (clip / norms).clamp(max=1.0)[:, None]).sum(dim=0).numpy()
    with clipping.PerExampleGradients(TASK, module) as gradients:
        found = gradients.clipped_sum(parts, truth, clip)
    assert np.linalg.norm(found.total - total) < 3e-5 * np.linalg.norm(total)
    assert found.clipped == int((norms > clip).sum()) and found.not_finite == 0 and len(found.losses) == 120


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e18])
def test_no_single_example_contributes_more_than_the_clip(trained, scale):
    module, (parts, truth) = attached(trained), batch(40)
    with clipping.PerExampleGradients(TASK, module) as gradients:
        for row in range(40):
            one = gradients.clipped_sum((parts[0][row : row + 1] * scale,), truth[row : row + 1], 0.01)
            assert np.linalg.norm(one.total) <= 0.01


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 3e38])
def test_a_row_that_is_not_finite_counts_as_absent(trained, poison):
    module, (parts, truth) = attached(trained), batch(30)
    keep = torch.arange(30) != 7
    broken = parts[0].clone()
    broken[7] = poison
    with clipping.PerExampleGradients(TASK, module) as gradients:
        found = gradients.clipped_sum((broken,), truth, 1.0)
        without = gradients.clipped_sum((parts[0][keep],), truth[keep], 1.0)
    assert np.allclose(found.total, without.total, rtol=1e-6, atol=1e-7) and found.not_finite == 1


def test_a_trainable_parameter_without_gradient_is_refused(trained):
    class Idle(TwoBlobs):
        def build(self):
            module = super().build()
            module.head = nn.ModuleDict({"used": module.head, "idle": nn.Linear(8, 1)})
            module.forward = lambda x: module.head["used"](
                torch.relu(module.fc2(torch.relu(module.fc1(x))))).squeeze(-1)
            return module

    task = Idle()
    module = task.build().requires_grad_(False)
    for part in module.head.values():
        part.requires_grad_(True)
    lora.attach(module, AdapterConfig(r=2, modules_to_save=("used", "idle")))
    with clipping.PerExampleGradients(task, module) as gradients, pytest.raises(
            clipping.GradientsRefused, match=r"head\.idle\.weight got no gradient"):
        gradients.clipped_sum(*batch(5), 1.0)


class Headed(TwoBlobs):
    """The same net with something more in its head."""

    def __init__(self, *extra: nn.Module) -> None:
        self.extra = extra

    def build(self):
        module = super().build()
        module.head = nn.Sequential(*self.extra, module.head)
        return module


def test_batch_norm_that_would_be_trained_is_refused_and_layer_norm_is_not():
    task = Headed(nn.BatchNorm1d(8))
    state = base.train_base(task, WINDOW, epochs=1)
    with pytest.raises(clipping.GradientsRefused, match=r"head\.copy\.0 is a BatchNorm1d .* mixes the records"):
        train(task, state, None, WINDOW, law(800), PRIVATE, W)
    task = Headed(nn.LayerNorm(8))
    assert train(task, base.train_base(task, WINDOW, epochs=1), None, WINDOW, law(800), PRIVATE, W).report.steps == 8


def test_a_loss_that_is_a_mean_is_refused(trained):
    class Mean(TwoBlobs):
        def loss(self, output, target):
            return super().loss(output, target).mean()

    with pytest.raises(ValueError, match=r"loss gave shape \(\) for 800 examples"):
        train(Mean(), trained, None, WINDOW, law(800), PRIVATE, W)


@pytest.mark.parametrize("rows", [1, 800])
def test_a_loss_with_negatives_from_the_batch_is_refused_although_it_has_one_value_for_each_example(trained, rows):
    class InBatch(TwoBlobs):
        def loss(self, output, target):
            return -torch.log_softmax(output, dim=0)

    some = {name: column[:rows] for name, column in WINDOW.items()}
    loose = replace(PLAIN, guard=GuardConfig(max_gradient_norm=1e9))
    with pytest.raises(TrainingRefused, match=r"loss 'coupled' given with privacy on: one record would change the gradients"):
        train(InBatch(), trained, None, some, law(rows), PRIVATE, W)
    if rows > 1:
        assert train(InBatch(), trained, None, some, None, loose, W, seed=1).report.steps > 0


@pytest.mark.parametrize("enough", [1, 7, 100])
def test_a_private_step_that_runs_out_of_memory_is_the_same_step_in_smaller_passes(trained, enough, monkeypatch):
    """The batch is drawn once before, the noise once after: trying again must not draw anew."""
    drawn = []

    class Tight(TwoBlobs):
        def loss(self, output, target):
            if len(target) > enough:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes")
            return super().loss(output, target)

    def counted(name, real):
        return lambda *given: (drawn.append(name), real(*given))[1]

    for name in ("poisson_sample", "gaussian"):
        monkeypatch.setattr(noise, name, counted(name, getattr(noise, name)))
    module, (parts, truth) = attached(trained), batch(100)
    everybody = law(100, sampling_rate=1.0, expected_batch=100.0)
    with one_backward.gradients(TASK, module) as source:
        wanted = private_sgd.PrivateStep(source, everybody)(parts, truth).found
    drawn.clear()
    with one_backward.gradients(Tight(), module) as source:
        step = private_sgd.PrivateStep(source, everybody)
        found = step(parts, truth).found
    assert drawn == ["poisson_sample", "gaussian"] and (step.ladder.steps == 0) == (enough == 100)
    assert np.allclose(found.total, wanted.total, rtol=1e-4, atol=1e-5) and found.clipped == wanted.clipped
    assert np.allclose(found.losses, wanted.losses, atol=1e-5)
