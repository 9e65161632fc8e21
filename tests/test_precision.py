"""Number formats: what "auto" takes, and that no format touches the trained weights or hides an error."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models import base, precision
from models.adapters import lora
from models.config import AdapterConfig, TrainingConfig, UpdateConfig
from models.guard import UpdateInterrupted
from models.logical_batch import LogicalBatch
from models.training import train
from tests.encoders import Counting, Net, sentences
from tests.tasks import TwoBlobs

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
W = "2013-03-04T08:00Z"
ADAPTER = AdapterConfig(r=4, target_modules=("up", "down"))
WINDOW = sentences(96, seed=5)


@pytest.fixture(scope="module")
def trained() -> bytes:
    return base.train_base(Counting(), sentences(400, seed=1), epochs=2)


def config(kind: str) -> UpdateConfig:
    return UpdateConfig(ADAPTER, TrainingConfig(max_epochs=2, batch_size=32, learning_rate=3e-3, precision=kind))


@pytest.mark.parametrize("hardware", [True, False])
def test_auto_leaves_small_layers_and_small_batches_in_float32(monkeypatch, hardware):
    monkeypatch.setattr(precision, "_has_amx", lambda: hardware)
    assert precision.chosen("auto", TwoBlobs().build(), CPU, 512) == precision.chosen("auto", Net(), CPU, 512) == "fp32"
    assert precision.chosen("auto", Net(512), CPU, 8) == "fp32"
    assert precision.chosen("auto", Net(512), CPU, 64) == ("bf16" if hardware else "fp32")


@pytest.mark.parametrize(("new", "found"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_a_gpu_is_bfloat16_where_it_can_and_float16_elsewhere(monkeypatch, new, found):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: new)
    assert precision.chosen("auto", Net(), CUDA, 8) == found


@pytest.mark.parametrize("asked", ["fp32", "bf16", "fp16"])
def test_what_is_asked_for_is_used_and_reported_and_weights_stay_float32(trained, asked):
    update = train(Counting(), trained, None, WINDOW, None, config(asked), W, seed=1)
    assert update.report.precision == asked and {value.dtype for value in update.tensors.values()} == {np.dtype("float32")}
    exact = train(Counting(), trained, None, WINDOW, None, config("fp32"), W, seed=1)
    assert update.report.loss_after == pytest.approx(exact.report.loss_after, rel=0.02)
    assert update.report.loss_after < update.report.loss_before and update.report.skipped_steps == 0


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_half_precision_gradients_point_where_the_exact_ones_do_and_are_not_the_same(trained, kind):
    found = []
    for used in ("fp32", kind):
        module = base.build(Counting(), trained)
        lora.attach(module, ADAPTER, lora.first_draw(trained))
        tokens = torch.from_numpy(WINDOW["tokens"])
        batch = LogicalBatch(Counting(), module, (tokens, tokens > 0), torch.from_numpy(WINDOW["y"]), config(used).training)
        batch.backward(torch.arange(96))
        scale = batch.scaler.get_scale()
        gradient = torch.cat([p.grad.flatten() for p in lora.trainable(module).values() if p.grad is not None])
        found.append(gradient.double() / scale)
    exact, half = found
    assert torch.cosine_similarity(exact, half, dim=0) > 0.999 and not torch.equal(exact, half)
    assert float(half.norm() / exact.norm()) == pytest.approx(1.0, abs=0.02)


class Steep(Counting):
    """A loss so large that its float16 gradient overflows at the first scales."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def loss(self, output, target):
        return self.factor * super().loss(output, target)


def test_a_step_beyond_float16_is_left_out_and_the_scale_falls_until_it_fits(trained):
    start = config("fp16")
    wide = replace(start, guard=replace(start.guard, max_gradient_norm=1e9), training=replace(start.training, max_epochs=5))
    report = train(Steep(3e3), trained, None, WINDOW, None, wide, W, seed=1).report
    assert report.skipped_steps > 0 and report.steps > 0 and report.steps + report.skipped_steps == 15
    assert math.isfinite(report.loss_after)


def test_a_loss_that_is_no_number_interrupts_at_once_also_with_a_scale(trained):
    with pytest.raises(UpdateInterrupted, match="non-finite"):
        train(Steep(math.nan), trained, None, WINDOW, None, config("fp16"), W, seed=1)


def test_a_gradient_too_large_at_any_scale_interrupts(trained):
    long = replace(config("fp16"), training=replace(config("fp16").training, max_epochs=10))
    with pytest.raises(UpdateInterrupted, match="non-finite"):
        train(Steep(1e12), trained, None, WINDOW, None, long, W, seed=1)
