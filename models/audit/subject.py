"""What is audited: a module with its adapter, public examples, and among them the pair of neighbours that tells most.

The adapter is moved away from its start, where half of a low-rank gradient is zero and would be audited blindly. The small
task of the house is here too, for when no other is given. It knows neither tests nor defects.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from models import compute
from models.adapters import lora
from models.config import AdapterConfig
from models.private import one_backward
from models.private.clipping import ClippedSum
from models.private.private_sgd import Gradients, Parts
from models.task import Columns, Task

CANDIDATES = 128  # public examples that are looked at for the worst pair
COMPANY = 16  # examples beside the canary
FAR = 1000.0  # the canary's gradient over the clip: whatever escapes the clip then shows
NO_CLIP = 1e30


class AuditRefused(ValueError):
    """This cannot be audited as it is; the message names what is missing."""


class Source(Protocol):
    """Where clipped sums come from: a context over one attached module (`models/private/clipping.py`)."""

    def __call__(self, task: Task, module: nn.Module) -> AbstractContextManager[Gradients]: ...


@dataclass(frozen=True, slots=True)
class Subject:
    """`layers`: the place of every trainable tensor in the flat gradient. `parts`, `truth`: public examples, >= 2.
    `plain`: a copy of the module that no source of gradients touches.
    """

    task: Task
    module: nn.Module
    plain: nn.Module
    parts: Parts
    truth: torch.Tensor
    layers: dict[str, slice]
    source: Source

    @property
    def size(self) -> int:
        """Trainable weights, d."""
        return max(place.stop for place in self.layers.values())

    def last_layer(self) -> list[slice]:
        """The tensors of the layer that is nearest to the answer, as a head is."""
        owner = list(self.layers)[-1].rpartition(".")[0]
        return [place for name, place in self.layers.items() if name.rpartition(".")[0] == owner]

    def plain_gradients(self, rows: int) -> np.ndarray:
        """Gradient of each of the first `rows` examples by itself, by plain autograd: (rows, d) float64."""
        weights = list(lora.trainable(self.plain).values())
        found = []
        for row in range(min(rows, len(self.truth))):
            here = slice(row, row + 1)
            loss = self.task.loss(self.plain(*compute.take(self.parts, here)), self.truth[here]).sum()
            found.append(torch.cat([g.detach().double().ravel() for g in torch.autograd.grad(loss, weights)]).numpy())
        return np.array(found)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The same examples without the canary and with it, and a clip that all of them exceed if they can."""

    without: tuple[Parts, torch.Tensor]
    joined: tuple[Parts, torch.Tensor]
    clip: float


def subject_of(task: Task, adapter: AdapterConfig, columns: Columns, source: Source | None = None) -> Subject:
    """A fresh network of `task` with its adapter, on at most CANDIDATES evenly spaced rows of public `columns`."""
    rows = compute.row_count(columns)
    if rows < 2:
        raise AuditRefused(f"{rows} public examples < 2: the audit of task {task.name!r} compares at least two; let its "
                           "history() give more")
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, CANDIDATES)).astype(np.int64))
    some = {name: column[chosen] for name, column in columns.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module = task.build()
    draw = torch.Generator().manual_seed(1)  # where the weights are protects nobody: only the noise must not be seeded
    lora.attach(module.eval().requires_grad_(False), adapter, draw)
    layers, at = {}, 0
    with torch.no_grad():
        for name, value in lora.trainable(module).items():
            value.add_(torch.randn(value.shape, generator=draw), alpha=0.1)
            layers[name], at = slice(at, at + value.numel()), at + value.numel()
    parts, truth = compute.inputs(task, some), compute.targets(task, some)
    return Subject(task, module, copy.deepcopy(module), parts, truth, layers, source or one_backward.gradients)


def worst_neighbours(subject: Subject, gradients: Gradients) -> Neighbours:
    """The canary is the example with the largest gradient; its company is one that pulls against it, repeated: then
    whatever depends on the realised batch moves furthest.
    """
    rows = range(len(subject.truth))
    each = np.array([one_by_one(subject, gradients, row, NO_CLIP).total for row in rows])
    norms = np.linalg.norm(each, axis=1)
    norms[~np.isfinite(norms)] = 0.0
    canary = int(norms.argmax())
    if not norms[canary] > 0:
        raise AuditRefused(f"none of {len(norms)} public examples of task {subject.task.name!r} has a finite gradient: "
                           "nothing would be audited")
    clip = float(norms[canary]) / FAR
    clipped = np.nan_to_num(each) * np.minimum(1.0, clip / np.maximum(norms, 1e-300))[:, None]
    others = torch.full((COMPANY,), _opponent(clipped @ clipped[canary], norms))
    both = torch.cat((torch.tensor([canary]), others))
    pick = partial(_pick, subject)
    return Neighbours(pick(others), pick(both), clip)


def _opponent(pulls: np.ndarray, norms: np.ndarray) -> int:
    """Of those that pull hardest against the canary once all are clipped, the one that weighs least before that."""
    against = np.flatnonzero(pulls <= 0.8 * pulls.min()) if pulls.min() < 0 else np.array([pulls.argmin()])
    return int(against[norms[against].argmin()])


def one_by_one(subject: Subject, gradients: Gradients, row: int, clip: float) -> ClippedSum:
    """The clipped sum of one example alone."""
    return gradients.clipped_sum(*_pick(subject, torch.tensor([row])), clip)


def _pick(subject: Subject, rows: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    return compute.take(subject.parts, rows), subject.truth[rows]


class SmallTask:
    """A net of two layers, a few hundred weights: one step takes less than a millisecond."""

    name, subject, label_seen, negative_if_absent = "audit", None, "always", False
    event: Any = None
    label: Any = None
    label_horizon = timedelta(0)
    label_derived: tuple[str, ...] = ()

    def __init__(self, width: int = 8, hidden: int = 8) -> None:
        self.width, self.hidden = width, hidden

    def build(self) -> nn.Module:
        """One logit a row: (n, width) -> (n,)."""
        layers = OrderedDict[str, nn.Module](
            fc1=nn.Linear(self.width, self.hidden), act=nn.Tanh(), head=nn.Linear(self.hidden, 1), flat=nn.Flatten(0)
        )
        return nn.Sequential(layers)

    def encode(self, columns: Columns) -> np.ndarray:
        """`x` as it is."""
        return columns["x"].astype(np.float32)

    def target(self, columns: Columns) -> np.ndarray:
        """`y`: 0 or 1."""
        return columns["y"].astype(np.float32)

    def loss(self, output: Any, target: Any) -> Any:
        """Cross entropy of each example."""
        return cross_entropy(output, target, reduction="none")

    gate_loss = loss

    def score(self, output: np.ndarray, target: np.ndarray) -> Mapping[str, float]:
        """Nothing is shown."""
        return {}

    def answer(self, output: np.ndarray) -> np.ndarray:
        """The logit."""
        return output


SMALL_ADAPTER = AdapterConfig(r=2, lora_alpha=4, target_modules=("fc1",))


def small_columns(task: SmallTask, pairs: int, seed: int = 0) -> dict[str, np.ndarray]:
    """`pairs` inputs, each once with either truth: one of the two is confidently wrong, and pulls against the other."""
    x = 3.0 * np.random.default_rng(seed).normal(size=(pairs, task.width))
    return {"x": np.concatenate((x, x)), "y": np.repeat([0.0, 1.0], pairs)}


def small_subject(source: Source | None = None) -> Subject:
    """The small task of the house, attached."""
    task = SmallTask()
    return subject_of(cast(Task, task), SMALL_ADAPTER, small_columns(task, 32), source)
