"""Tier 2 of the audit: one whole private update, against an attacker who sees the adapter before and after.

Canaries are in or out by a fair coin each, all in one job (Steinke, Nasr & Jagielski 2023). The attacker knows all
examples, and solves for who was in. It cannot certify epsilon 0.5 with a few hundred canaries; it finds gross errors of the
wiring from reservation to weights, which the audit of a single step does not see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch

from models import base, compute, training
from models.adapters import lora
from models.audit.bound import epsilon_lower_bound
from models.audit.subject import SmallTask
from models.config import AdapterConfig, GuardConfig, TrainingConfig, UpdateConfig
from models.private import one_backward
from models.task import Columns, Task
from security.privacy import PrivacyPolicy, Reservation

CANARIES, OTHERS, GUESSES = 400, 100, 200  # guesses are made on the canaries the attacker is surest of
FALSE_ALARM = 1e-3  # of the bound, whatever the mechanism
POLICY = PrivacyPolicy()
# The rate is small: then the gradients at the start are those of the whole job, and the change is their sum.
CONFIG = UpdateConfig(
    AdapterConfig(r=8, lora_alpha=8, target_modules=("fc1",)), TrainingConfig(learning_rate=1e-2), GuardConfig(1e9)
)
Law = Callable[[Reservation], Reservation]


@dataclass(frozen=True, slots=True)
class Job:
    """What one job gave away: epsilon is at least `lower_bound`, except with probability FALSE_ALARM."""

    claim: float
    lower_bound: float
    right: int
    guesses: int


# Law of the reservation -> law that a broken job would carry out.
MUTANTS: Mapping[str, Law] = {
    "a job without noise": lambda law: replace(law, noise_multiplier=1e-9),
    "a job with its noise divided by the batch": lambda law: replace(
        law, noise_multiplier=law.noise_multiplier / law.expected_batch
    ),
}


def attack(executed: Law = lambda law: law) -> Job:
    """One update by `training.train` under the default policy, where `executed` says what is done with its law."""
    draw, rows = np.random.default_rng(), CANARIES + OTHERS
    task = SmallTask(width=96, hidden=64)
    columns = {"x": 3.0 * draw.normal(size=(rows, task.width)), "y": draw.integers(0, 2, rows).astype(float)}
    state = base.train_base(cast(Task, task), columns, epochs=1)
    parent, shares, clip = _shares(cast(Task, task), state, columns)
    present = np.concatenate((draw.random(CANARIES) < 0.5, np.ones(OTHERS, bool)))
    law = _reserved(clip, rows)
    some = {name: column[present] for name, column in columns.items()}
    update = training.train(cast(Task, task), state, parent, some, executed(law), CONFIG, "audit")
    moved = np.concatenate([(parent[key].astype(float) - update.tensors[key]).ravel() for key in parent])
    score = _taken(shares, moved * law.expected_batch / CONFIG.training.rate(0), law.steps * law.sampling_rate)[:CANARIES]
    order, half = np.argsort(score), GUESSES // 2
    right = int(present[order[-half:]].sum() + (~present[order[:half]]).sum())
    bound = epsilon_lower_bound(right, GUESSES, CANARIES, law.delta, FALSE_ALARM)
    return Job(law.epsilon, bound, right, GUESSES)


def _reserved(clip: float, rows: int) -> Reservation:
    law = POLICY.law()
    return Reservation(
        update="audit", windows=("audit",), noise_multiplier=law.noise_multiplier, sampling_rate=law.sampling_rate,
        steps=POLICY.steps, max_grad_norm=clip, epsilon=POLICY.target_epsilon, delta=POLICY.target_delta,
        expected_batch=rows * law.sampling_rate,
    )  # fmt: skip


def _shares(task: Task, state: bytes, columns: Columns) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """A parent to start from, every example's clipped gradient there (n, d), and the clip, which most of them exceed."""
    module = base.build(task, state)
    lora.attach(module, CONFIG.adapter, lora.first_draw(state))
    with torch.no_grad():
        for value in lora.trainable(module).values():
            value.add_(torch.randn(value.shape), alpha=0.1)
    parent = lora.extract(module)
    parts, truth = compute.inputs(task, columns), compute.targets(task, columns)
    with one_backward.gradients(task, module) as source:
        clip = float(np.quantile(source.norms(parts, truth), 0.1))
        alone = [slice(row, row + 1) for row in range(len(truth))]
        shares = [source.clipped_sum(compute.take(parts, row), truth[row], clip).total for row in alone]
    return parent, np.array(shares), clip


def _taken(shares: np.ndarray, moved: np.ndarray, often: float) -> np.ndarray:
    """How often each example seems to have been taken, (n,): ridge regression of the change on the shares.

    What no mixture of shares explains is noise, and tells the attacker how much of it there is everywhere.
    """
    rows, size = shares.shape
    unexplained = moved - shares.T @ np.linalg.lstsq(shares.T, moved, rcond=1e-6)[0]
    noise = float(unexplained @ unexplained) / (size - rows)
    inner = shares @ shares.T
    guess = np.full(rows, often / 2)
    return np.asarray(guess + np.linalg.solve(inner + (noise / (often / 2) ** 2 + 1e-9) * np.eye(rows),
                                              shares @ (moved - shares.T @ guess)))
