"""Memory runs out at every point an update can be at: it goes on with less, and learns the same."""

from __future__ import annotations

import subprocess
import sys
import weakref
from functools import partial

import numpy as np
import pytest
import torch

from models import base, compute, memory
from models.config import AdapterConfig, TrainingConfig, UpdateConfig
from models.memory import Ladder, OutOfMemory, Rung
from models.training import train
from tests.encoders import Counting, sentences

W = "2013-03-04T08:00Z"
SETTING = TrainingConfig(max_epochs=2, batch_size=8, gradient_accumulation_steps=2, learning_rate=1e-2)
CONFIG = UpdateConfig(AdapterConfig(r=4, target_modules=("up", "down")), SETTING)
WINDOW = sentences(40, seed=5)
SAID = "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


@pytest.fixture(scope="module")
def trained() -> bytes:
    return base.train_base(Counting(), sentences(200, seed=1), epochs=1)


class Scarce(Counting):
    """The task, but `full(self, module, rows)` says where in training memory runs out; `calls` counts the micro-batches."""

    def __init__(self, full=lambda task, module, rows: False, at="forward"):
        self.full, self.at, self.calls, self.updating = full, at, 0, False

    def build(self):
        module = super().build()
        inner = module.forward

        def forward(tokens, mask):
            self.updating = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
            self.calls += self.updating
            runs_out = self.updating and self.full(self, module, len(tokens))
            if runs_out and self.at == "forward":
                raise RuntimeError(SAID)
            output = inner(tokens, mask)
            if runs_out and self.at == "backward":
                output.register_hook(self._raise)
            self.runs_out = runs_out and self.at == "loss"
            return output

        module.forward = forward
        return module

    def loss(self, output, target):
        if self.updating and self.runs_out:
            raise RuntimeError(SAID)
        return super().loss(output, target)

    @staticmethod
    def _raise(gradient):
        raise RuntimeError(SAID)


def update(task, trained, config=CONFIG):
    return train(task, trained, None, WINDOW, None, config, W, seed=1)


def same(one, other) -> bool:
    return all(np.allclose(one.tensors[key], other.tensors[key], atol=1e-5) for key in one.tensors)


@pytest.mark.parametrize("at", ["forward", "loss", "backward"])
@pytest.mark.parametrize("call", range(1, 11))
def test_an_update_that_runs_out_once_anywhere_learns_the_same(trained, at, call):
    """Two epochs of three logical batches in five micro-batches: every one of the ten fails once, before or after others."""
    task = Scarce(lambda task, module, rows: task.calls == call, at)
    plain, found = update(Counting(), trained), update(task, trained)
    assert same(plain, found)
    assert (found.report.rung, found.report.rungs_down, found.report.steps) == ("micro-batch 4", 1, plain.report.steps)
    assert found.report.losses == pytest.approx(plain.report.losses, abs=1e-5)
    assert (plain.report.rung, plain.report.rungs_down) == ("micro-batch 8", 0)


def test_memory_for_two_examples_makes_micro_batches_of_two(trained):
    found = update(Scarce(lambda task, module, rows: rows > 2), trained)
    assert same(update(Counting(), trained), found) and (found.report.rung, found.report.rungs_down) == ("micro-batch 2", 2)


def test_below_one_example_blocks_are_checkpointed(trained):
    found = update(Scarce(lambda task, module, rows: not isinstance(module.blocks[0].forward, partial)), trained)
    assert same(update(Counting(), trained), found)
    assert (found.report.rung, found.report.rungs_down) == ("micro-batch 1, checkpointed", 4)


def test_without_memory_for_anything_the_end_says_what_was_tried_and_what_helps(trained):
    sentence = (r"out of memory on the last rung \(micro-batch 1, checkpointed\): .*can't allocate.* Give the process more "
                r"memory, lower \[adapter\] r, or name smaller blocks in \[training\] checkpoint_modules")
    with pytest.raises(OutOfMemory, match=sentence):
        update(Scarce(lambda task, module, rows: True), trained)


def test_another_error_is_not_taken_for_a_lack_of_memory(trained):
    def wrong(task, module, rows):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        update(Scarce(wrong), trained)


def test_in_the_optimisers_step_nothing_is_tried_again(trained, monkeypatch):
    """A step that ended half way cannot be taken anew: weights and moments would move twice."""
    def step(self, closure=None):
        raise RuntimeError(SAID)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(OutOfMemory, match=r"optimiser's step.*optimizer = \"adamw8bit\""):
        update(Counting(), trained)


def test_answers_and_losses_are_computed_in_smaller_chunks_too(monkeypatch):
    class Small(torch.nn.Module):
        def forward(self, x):
            if len(x) > 30:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return 2 * x

    x = torch.arange(100.0)
    assert torch.equal(compute.outputs(Small(), (x,)), 2 * x)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(SAID), MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("could not create a primitive"), RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)  # fmt: skip
def test_each_way_of_saying_it_is_understood(error):
    assert memory.ran_out(error)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError("out of memory"), OutOfMemory("out of memory")])
def test_what_is_no_lack_of_memory_is_not_taken_for_it(error):
    assert not memory.ran_out(error)


def test_rungs_halve_then_checkpoint_then_end():
    rungs = [Rung(13)]
    while (below := rungs[-1].below()) is not None:
        rungs.append(below)
    assert rungs == [Rung(13), Rung(6), Rung(3), Rung(1), Rung(1, True)]


def test_what_the_failed_try_held_is_free_before_the_next():
    held = []

    def work(rung):
        if held:
            return held[0]()
        activations = torch.zeros(1000)
        held.append(weakref.ref(activations))
        circle = [activations]  # as autograd's functions refer to each other
        circle.append(circle)
        raise RuntimeError(SAID)

    assert Ladder(Rung(2)).attempt(work) is None


SHORTAGE = """
import resource, sys
from pathlib import Path
import torch
from torch import nn
from models.adapters import lora
from models.config import AdapterConfig, TrainingConfig
from models.logical_batch import LogicalBatch
from tests.tasks import TwoBlobs

torch.set_num_threads(1)
module = nn.Sequential(*[nn.Sequential(nn.Linear(512, 512), nn.Tanh()) for _ in range(12)], nn.Linear(512, 1), nn.Flatten(0))
lora.attach(module, AdapterConfig(r=4, target_modules=("0",), modules_to_save=("12",)), torch.Generator().manual_seed(1))
parts, truth, rows = (torch.randn(4096, 512),), torch.ones(4096), torch.arange(4096)

def gradient(micro):
    batch = LogicalBatch(TwoBlobs(), module, parts, truth, TrainingConfig(batch_size=micro))
    batch.backward(rows)
    return torch.cat([p.grad.flatten() for p in lora.trainable(module).values()]), batch.ladder

wanted, _ = gradient(64)
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 60 * 2**20,) * 2)
found, ladder = gradient(4096)
print(ladder.steps, ladder.rung.micro, float((found - wanted).norm() / wanted.norm()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's memory is Linux's")
def test_a_real_shortage_ends_on_a_lower_rung_with_the_same_gradient():
    """12 layers of 4,096 x 512 keep some 200 MB for the backward pass; 60 MB are allowed."""
    done = subprocess.run([sys.executable, "-c", SHORTAGE], capture_output=True, text=True, check=True)
    steps, micro, error = done.stdout.split()
    assert int(steps) > 0 and int(micro) < 4096 and float(error) < 1e-4
