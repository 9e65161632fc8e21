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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from models import base as bases
from models import compat, compute, guard, plain_adamw
from models.adapters import lora
from models.checkpointing import blocks
from models.class_balance import class_shares
from models.compat import TrainingRefused
from models.config import UpdateConfig
from models.private import one_backward, private_sgd
from models.progress import Progress
from models.report import Run, UpdateReport
from models.task import Columns, Task

if TYPE_CHECKING:
    from security.privacy import Reservation

HISTORY = 20  # updates with which one is compared


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
    earlier: Sequence[Mapping[str, Any]] = (),
    progress: Progress | None = None,
    null: np.ndarray | None = None,
) -> Update:
    """Train `parent` (None: a fresh adapter) on `columns`: privately under a reservation, else plainly under `seed`.

    `earlier`: the reports (`as_dict`) of the updates before, oldest first, with which size and direction are compared.
    `progress`: a private update goes on from there, and writes it down; a plain one begins anew.
    `null` (n,): examples whose gradient is zero, as is that of any that is not finite. Their slots stay: the reservation has
    count, rate and divisor, and Poisson sampling draws each of the others as it would beside them.
    Raises TrainingRefused for settings that cannot hold, guard.UpdateInterrupted when the guard stops it, BaseChanged
    when the base is not what it was, ProgressLost.
    """
    started = time.process_time()
    rows = compute.row_count(columns)
    _refuse(reservation, rows, seed, config)
    with compute.one_thread(), torch.random.fork_rng(devices=[]):
        module = bases.build(task, base)
        frozen = bases.module_digest(module)
        lora.attach(module, config.adapter, lora.first_draw(base))
        start = lora.extract(module)
        if parent is not None:
            lora.load(module, parent)
        old = lora.extract(module)
        parts, truth = _examples(task, columns, null, window, private=reservation is not None)
        before = _losses(task, module, parts, truth)
        run = _learn(task, module, parts, truth, reservation, config, window, seed, progress)
        new = lora.extract(module)
        noised = lora.trainable(module) if reservation is not None else ()
        delta = _check_change(old, new, noised, window)
        after = _losses(task, module, parts, truth)
        lora.detach(module)
        if bases.module_digest(module) != frozen:
            raise _base_changed(base, window)
    moved = delta, sum(value.size for value in new.values()), _noise(run, reservation, config)
    figures = _figures(before, after, moved, _cosine(start, old, new), earlier, config, window)
    report = UpdateReport(
        window=window,
        base_digest=bases.digest(base),
        adapter_digest=tensors_digest(new),
        rows=rows,
        null_rows=rows - len(truth),
        class_shares=class_shares(truth) if reservation is None else None,
        epsilon=reservation.epsilon if reservation else None,
        max_grad_norm=reservation.max_grad_norm if reservation else None,
        learning_rate=private_sgd.rate_of(config, reservation) if reservation else config.training.rate(config.update_number),
        seconds=time.process_time() - started,
        **_of_run(run),
        **figures,
    )
    return Update(new, report)


def _base_changed(base: bytes, window: str) -> bases.BaseChanged:
    return bases.BaseChanged(f"base {bases.digest(base)[:8]} changed during the update of window {window}: nothing released; "
                             "does forward() write to a buffer of the module?")


def check(task: Task, base: bytes, config: UpdateConfig, *, private: bool) -> None:
    """Raise what `train` would raise for these settings on this base, before anything is charged or read; a millisecond."""
    compat.refuse(config.training, private)
    with compute.one_thread(), torch.random.fork_rng(devices=[]):
        module = bases.build(task, base)
        lora.attach(module, config.adapter, lora.first_draw(base))
        if private:
            one_backward.gradients(task, module, config.training)
        else:
            blocks(module, config.training.checkpoint_modules)


def _refuse(reservation: Reservation | None, rows: int, seed: int | None, config: UpdateConfig) -> None:
    compat.refuse(config.training, reservation is not None, seed=seed)
    if reservation is None:
        if not rows:
            raise TrainingRefused("0 examples < 1 in an update without privacy: nothing to learn from; skip it")
        return
    for name in ("noise_multiplier", "max_grad_norm", "expected_batch", "steps"):
        value = getattr(reservation, name)
        if not value > 0 or not math.isfinite(value):
            raise TrainingRefused(f"reservation {reservation.update!r}: {name} = {value} is not > 0: no privacy would "
                                  "hold; correct [privacy] and reserve again")


def _examples(
    task: Task, columns: Columns, null: np.ndarray | None, window: str, *, private: bool
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Inputs and truth of the examples that count. Interrupts an update without privacy of which none is left."""
    rows = compute.row_count(columns)
    kept = columns if null is None else {name: column[~null] for name, column in columns.items()}
    parts: tuple[torch.Tensor, ...] = ()
    truth = torch.empty(0)
    if compute.row_count(kept):
        parts, truth = compute.inputs(task, kept), compute.targets(task, kept)
    if null is None:
        return parts, truth
    finite = torch.ones(len(truth), dtype=torch.bool)
    for part in (*parts, truth):
        finite &= part.isfinite().reshape(len(truth), -1).all(dim=1) if len(truth) else finite
    if not private and not finite.any():
        guard.interrupt(guard.Finding("poisoning", float(rows), 0.0, f"all {rows} examples count as null in window {window} "
                        "(outside the range of public history, or not finite): update interrupted, nothing released; see "
                        "docs/alarms.md#poisoning"))
    return compute.take(parts, finite), truth[finite]


def _learn(
    task: Task,
    module: nn.Module,
    parts: tuple[torch.Tensor, ...],
    truth: torch.Tensor,
    reservation: Reservation | None,
    config: UpdateConfig,
    window: str,
    seed: int | None,
    progress: Progress | None,
) -> Run:
    if reservation is None:
        seed = secrets.randbits(63) if seed is None else seed
        return plain_adamw.run(task, module, parts, truth, config, window, seed)
    coupled = len(truth) > 0 and compute.couples_records(task, module, parts, truth)
    compat.refuse(config.training, True, loss="coupled" if coupled else "single")
    return private_sgd.run(task, module, parts, truth, reservation, config, window, progress)


def _losses(task: Task, module: nn.Module, parts: tuple[torch.Tensor, ...], truth: torch.Tensor) -> np.ndarray:
    """Training loss of each example, float64 (n,)."""
    if not len(truth):
        return np.empty(0)
    return compute.losses(task, compute.outputs(module, parts), truth)


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


def _cosine(
    start: Mapping[str, np.ndarray], old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]
) -> float | None:
    """Of this update with all earlier ones together (the parent less a fresh adapter); None when there is none."""
    now = np.concatenate([(new[key].astype(np.float64) - old[key]).ravel() for key in new])
    past = np.concatenate([(old[key].astype(np.float64) - start[key]).ravel() for key in new])
    length = float(np.linalg.norm(now) * np.linalg.norm(past))
    return float(now @ past) / length if length > 0 else None


def _noise(run: Run, reservation: Reservation | None, config: UpdateConfig) -> float:
    """Standard deviation of what privacy's noise did to one weight over all steps of plain SGD."""
    if reservation is None:
        return 0.0
    return private_sgd.rate_of(config, reservation) * reservation.noise_in_weights(run.steps)


def _of_run(run: Run) -> dict[str, Any]:
    return {
        "steps": run.steps,
        "losses": tuple(run.losses),
        "gradient_norms": tuple(run.norms),
        "layer_norms": {layer: tuple(norms) for layer, norms in run.layer_norms.items()},
        "clipped_share": run.clipped / run.seen if run.seen else 0.0,
        "not_finite": run.not_finite,
        "precision": run.precision,
        "rung": run.rung,
        "rungs_down": run.rungs_down,
        "skipped_steps": run.skipped,
        "attempts": run.attempts,
        "lost_steps": run.lost,
    }


def _figures(
    before: np.ndarray,
    after: np.ndarray,
    moved: tuple[float, int, float],
    cosine: float | None,
    earlier: Sequence[Mapping[str, Any]],
    config: UpdateConfig,
    window: str,
) -> dict[str, Any]:
    """How loss and weights changed, and what of it a person must look at. `moved`: norm, weights, noise in each weight."""
    limits, both = config.guard, np.isfinite(before) & np.isfinite(after)
    delta, size, noise = moved
    old = float(before[both].mean()) if both.any() else None
    now = float(after[both].mean()) if both.any() else None
    change, blocking = None, guard.check_losses(int((np.isfinite(before) & ~np.isfinite(after)).sum()), window)
    if blocking is None and old is not None and now is not None:
        change = guard.loss_change(old, now)
        blocking = guard.check_loss_change(old, now, limits.max_loss_change, window)
    sizes, turns = ([one[key] for one in earlier[-HISTORY:] if one.get(key) is not None]
                    for key in ("weight_delta", "update_cosine"))
    noticed = (
        blocking,
        guard.check_update_norm(delta, sizes, limits.max_update_norm, window, dimensions=size, deviation=noise),
        guard.check_update_direction(cosine, turns, limits.max_update_turn, window, dimensions=size if noise else 0),
    )
    return {
        "loss_before": old,
        "loss_after": now,
        "loss_change": change,
        "blocked": blocking.kind if blocking else None,
        "finding": blocking.message if blocking else None,
        "weight_delta": delta,
        "update_cosine": cosine,
        "findings": tuple(asdict(finding) for finding in noticed if finding),
    }
