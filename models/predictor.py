"""One model version, ready to answer: the frozen base with one adapter, or none.

Knows how columns become outputs, losses and answers. Does not know which version should answer (`models/split.py`),
and trusts the tensors it is given: `models/version.py` has checked them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from models import base as bases
from models import compute
from models.adapters import lora
from models.config import AdapterConfig
from models.task import Columns, Task


class Predictor:
    """Answers of one version; the same columns always give the same bits in one process. `version` names it in
    records.
    """

    def __init__(
        self,
        task: Task,
        base: bytes,
        tensors: Mapping[str, np.ndarray] | None,
        config: AdapterConfig,
        version: str | None = None,
    ) -> None:
        """`tensors` None: the frozen base itself, named `base-<8 hex>`. Raises AdapterRefused or BaseRefused on a
        misfit.
        """
        self.task = task
        self.module = bases.build(task, base)
        if tensors is not None:
            lora.attach(self.module, config, lora.first_draw(base))
            lora.load(self.module, tensors)
            self.module.eval().requires_grad_(False)
        self.version = version or (f"base-{bases.digest(base)[:8]}" if tensors is None else "unreleased")

    def outputs(self, columns: Columns) -> torch.Tensor:
        """What the module gives, first dimension = row."""
        return compute.outputs(self.module, compute.inputs(self.task, columns))

    def answers(self, columns: Columns) -> np.ndarray:
        """What a client receives, (n,). Raises ValueError when the task gives another shape."""
        answers = np.asarray(self.task.answer(self.outputs(columns).numpy()))
        rows = compute.row_count(columns)
        if answers.shape != (rows,):
            raise ValueError(f"task {self.task.name!r}: answer gave shape {answers.shape} for {rows} rows; one each")
        return answers

    def losses(self, columns: Columns) -> np.ndarray:
        """The bounded loss the release gate compares, float64 (n,); `columns` carry the label."""
        return self._per_example(columns, gate=True)

    def train_losses(self, columns: Columns) -> np.ndarray:
        """The training loss, float64 (n,)."""
        return self._per_example(columns, gate=False)

    def scores(self, columns: Columns) -> dict[str, float]:
        """The task's own figures, for display."""
        output, truth = self.outputs(columns).numpy(), self.task.target(columns)
        return {name: float(value) for name, value in self.task.score(output, truth).items()}

    def _per_example(self, columns: Columns, *, gate: bool) -> np.ndarray:
        name = "gate_loss" if gate else "loss"
        return compute.losses(self.task, self.outputs(columns), compute.targets(self.task, columns), name)
