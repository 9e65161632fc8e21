"""The frozen base: trained once on declared-public history, kept as bytes, rebuilt bit for bit, never changed again.

Knows how to train, name and rebuild it, and how large gradients on it are (the "auto" clip). It knows nothing of
versions, and nobody may write to what `build` returns: every update compares `module_digest` before and after.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import safetensors.torch
import torch
from torch import nn

from models import compute
from models.config import AdapterConfig
from models.task import Columns, Task

CLIP_PERCENTILE = 99.0  # a clip that cuts a third of the examples costs more than the noise; at 0-3 % it costs nothing


class BaseRefused(Exception):
    """These bytes are not a base of this task; the message says what differs."""


class BaseChanged(Exception):
    """An update wrote to the frozen base; its result must not be used."""


def train_base(
    task: Task,
    columns: Columns,
    *,
    epochs: int,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> bytes:
    """safetensors bytes of the base trained on `columns`: AdamW, cosine to zero; equal bytes for equal (seed, data).

    Raises ValueError for an empty history or a loss that is not finite.
    """
    rows = compute.row_count(columns)
    if not rows:
        raise ValueError("0 rows of history: a base needs examples with labels")
    with compute.one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = task.build()
        module.train()
        _fit(task, module, columns, epochs, batch_size, learning_rate)
    return _save(module)


def _fit(task: Task, module: nn.Module, columns: Columns, epochs: int, batch_size: int, rate: float) -> None:
    parts, truth = compute.inputs(task, columns), compute.targets(task, columns)
    rows = len(truth)
    steps = epochs * math.ceil(rows / batch_size)
    optimizer = torch.optim.AdamW(module.parameters(), rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 0.5 * (1 + math.cos(math.pi * k / steps)))
    for epoch in range(epochs):
        for batch in torch.split(torch.randperm(rows), batch_size):
            losses = task.loss(module(*compute.take(parts, batch)), truth[batch])
            loss = compute.per_example(losses, len(batch), "loss").mean()
            if not torch.isfinite(loss):
                bad = int((~torch.isfinite(losses)).nonzero()[0])
                raise ValueError(f"loss of row {int(batch[bad])} is {losses[bad].item()} in epoch {epoch}: the history "
                                 "holds a value the task cannot learn from; clean it, or handle it in encode")
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()


def _save(module: nn.Module) -> bytes:
    state = {name: value.detach().clone().contiguous() for name, value in module.state_dict().items()}
    return bytes(safetensors.torch.save(state))


def digest(state: bytes) -> str:
    """The name of a base: sha256 of its exact bytes, hex."""
    return hashlib.sha256(state).hexdigest()


def build(task: Task, state: bytes) -> nn.Module:
    """The base as a module in eval mode with nothing trainable. Raises BaseRefused when the bytes do not fit the task.
    """
    module: nn.Module = task.build()
    try:
        module.load_state_dict(safetensors.torch.load(state), strict=True)
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise BaseRefused(f"base {digest(state)[:8]} does not fit task {task.name!r}: {error}; train one with "
                          "`headgate base train`") from error
    return module.eval().requires_grad_(False)


def module_digest(module: nn.Module) -> str:
    """sha256 over every parameter and buffer (name, dtype, shape, bytes), hex; a moved BatchNorm statistic shows."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    total = hashlib.sha256()
    for name, value in sorted(named, key=lambda item: item[0]):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        total.update(f"{len(name)}:{name}:{value.dtype}:{tuple(value.shape)}:{raw.nbytes}:".encode())
        total.update(raw.tobytes())
    return total.hexdigest()


def auto_clip(
    task: Task, base: bytes, columns: Columns, adapter_config: AdapterConfig, sample: int = 4096
) -> float:
    """The clip "auto" stands for: 99th percentile of per-example gradient norms of a fresh adapter on declared
    history.

    `columns` must be public: the clip is a choice that every later noise depends on. At most `sample` evenly spaced
    rows are looked at; rows without a finite gradient are left out. Raises ValueError when none is left.
    """
    from models.adapters import lora
    from models.private import one_backward

    rows = compute.row_count(columns)
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, sample)).astype(np.int64)) if rows else np.empty(0, np.int64)
    some = {name: column[chosen] for name, column in columns.items()}
    with compute.one_thread():
        module = build(task, base)
        lora.attach(module, adapter_config, lora.first_draw(base))
        with one_backward.gradients(task, module) as gradients:
            norms = gradients.norms(compute.inputs(task, some), compute.targets(task, some))
    finite = norms[np.isfinite(norms)]
    if not finite.size:
        raise ValueError(f"none of {len(chosen)} history rows has a finite gradient: max_grad_norm = \"auto\" needs "
                         "some; clean the history or set [privacy] max_grad_norm to a number")
    return float(np.percentile(finite, CLIP_PERCENTILE))
