"""One update: an adapter trained on one window's examples, privately under a reservation, or plainly without one.

It checks that the frozen base comes out as it went in and that the weights moved, and writes the report. It knows
no window file, journal or ledger, releases nothing, and leaves the two ways of learning to `private_sgd` and
`plain_adamw`.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from models import base as bases
from models import compute, guard, lora, plain_adamw, private_sgd
from models.config import UpdateConfig
from models.report import Run, UpdateReport
from models.task import Columns, Task

if TYPE_CHECKING:
    from security.privacy import Reservation


class TrainingRefused(ValueError):
    """The update cannot be run as asked; nothing was learnt. The message names the setting to change."""


@dataclass(frozen=True, slots=True)
class Update:
    """The new adapter, unstamped, under PEFT keys, and how it came about."""

    tensors: dict[str, np.ndarray]
    report: UpdateReport


def train(
    task: Task,
    base: bytes,
    parent: Mapping[str, np.ndarray] | None,
    columns: Columns,
    reservation: Reservation | None,
    config: UpdateConfig,
    window: str,
    seed: int | None = None,
) -> Update:
    """Train `parent` (None: a fresh adapter) on `columns`: privately under a reservation, else plainly under `seed`.

    Raises TrainingRefused for settings that cannot hold, guard.UpdateInterrupted when the guard stops it, BaseChanged
    when the base is not what it was.
    """
    started = time.process_time()
    rows = compute.row_count(columns)
    _refuse(reservation, rows, seed)
    with compute.one_thread(), torch.random.fork_rng(devices=[]):
        module = bases.build(task, base)
        frozen = bases.module_digest(module)
        lora.attach(module, config.adapter, lora.first_draw(base))
        if parent is not None:
            lora.load(module, parent)
        old = lora.extract(module)
        parts = compute.inputs(task, columns) if rows else ()
        truth = compute.targets(task, columns) if rows else torch.empty(0)
        before = _losses(task, module, parts, truth)
        if reservation is not None:
            run = private_sgd.run(task, module, parts, truth, reservation, config, window)
        else:
            seed = secrets.randbits(63) if seed is None else seed
            run = plain_adamw.run(task, module, parts, truth, config, window, seed)
        new = lora.extract(module)
        noised = lora.trainable(module) if reservation is not None else ()
        delta = _check_change(old, new, noised, window)
        after = _losses(task, module, parts, truth)
        lora.detach(module)
        if bases.module_digest(module) != frozen:
            raise bases.BaseChanged(f"base {bases.digest(base)[:8]} changed during the update of window {window}: "
                                    "nothing released; does forward() write to a buffer of the module?")
    report = _report(base, new, rows, run, before, after, delta, reservation, config, window, started)
    return Update(new, report)


def _refuse(reservation: Reservation | None, rows: int, seed: int | None) -> None:
    if reservation is None:
        if not rows:
            raise TrainingRefused("0 examples < 1 in an update without privacy: nothing to learn from; skip it")
        return
    if seed is not None:
        raise TrainingRefused(f"seed {seed} given with privacy on: repeatable noise protects nobody; remove it")
    for name in ("noise_multiplier", "max_grad_norm", "expected_batch", "steps"):
        value = getattr(reservation, name)
        if not value > 0 or not math.isfinite(value):
            raise TrainingRefused(f"reservation {reservation.update!r}: {name} = {value} is not > 0: no privacy would "
                                  "hold; correct [privacy] and reserve again")


def _losses(task: Task, module: nn.Module, parts: tuple[torch.Tensor, ...], truth: torch.Tensor) -> np.ndarray:
    """Training loss of each example, float64 (n,)."""
    if not len(truth):
        return np.empty(0)
    with torch.inference_mode():
        losses: torch.Tensor = task.loss(compute.outputs(module, parts), truth)
    return compute.per_example(losses, len(truth), "loss").double().numpy()


def _check_change(
    old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray], noised: Iterable[str], window: str
) -> float:
    """Norm of the change over all tensors; interrupts when it is 0, there or in one that got noise, or not finite."""
    not_finite = sum(int((~np.isfinite(value)).sum()) for value in new.values())
    guard.interrupt(guard.check_finite(not_finite, "the adapter", window))
    deltas = {key: float(np.linalg.norm(value.astype(np.float64) - old[key])) for key, value in new.items()}
    for key in noised:
        guard.interrupt(guard.check_weight_change(deltas[key], key, window))
    total = math.sqrt(sum(value**2 for value in deltas.values()))
    guard.interrupt(guard.check_weight_change(total, "the adapter", window))
    return total


def tensors_digest(tensors: Mapping[str, np.ndarray]) -> str:
    """sha256 over the tensors in order of name (name, dtype, shape, bytes), hex: the name of an adapter's content."""
    total = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key]
        total.update(f"{len(key)}:{key}:{value.dtype}:{value.shape}:{value.nbytes}:".encode())
        total.update(value.tobytes())
    return total.hexdigest()


def _report(
    base: bytes,
    new: Mapping[str, np.ndarray],
    rows: int,
    run: Run,
    before: np.ndarray,
    after: np.ndarray,
    delta: float,
    reservation: Reservation | None,
    config: UpdateConfig,
    window: str,
    started: float,
) -> UpdateReport:
    both = np.isfinite(before) & np.isfinite(after)
    old = float(before[both].mean()) if both.any() else None
    now = float(after[both].mean()) if both.any() else None
    change, finding = None, None
    if old is not None and now is not None:
        change = guard.loss_change(old, now)
        finding = guard.check_loss_change(old, now, config.guard.max_loss_change, window)
    return UpdateReport(
        window=window,
        base_digest=bases.digest(base),
        adapter_digest=tensors_digest(new),
        rows=rows,
        steps=run.steps,
        losses=tuple(run.losses),
        loss_before=old,
        loss_after=now,
        loss_change=change,
        blocked=finding.kind if finding else None,
        finding=finding.message if finding else None,
        gradient_norms=tuple(run.norms),
        weight_delta=delta,
        clipped_share=run.clipped / run.seen if run.seen else 0.0,
        not_finite=run.not_finite,
        epsilon=reservation.epsilon if reservation else None,
        max_grad_norm=reservation.max_grad_norm if reservation else None,
        learning_rate=config.training.rate(config.update_number),
        seconds=time.process_time() - started,
    )
