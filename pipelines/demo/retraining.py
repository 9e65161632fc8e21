"""What a weekly full retrain of the same network would have done: the honest comparison, without any privacy.

It reads the examples the windows hold and trains with the code that trained the base. It decides nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from assets.windows.columns import columns_of, concatenated
from assets.workspace import Workspace
from models.base import train_base
from models.predictor import Predictor
from models.task import Columns


class Encoded:
    """The task over inputs that are encoded already: a network is refitted twelve times, each row encoded once."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def encode(self, columns: Columns) -> np.ndarray:
        """The inputs as they were kept."""
        return columns["inputs"]

    def target(self, columns: Columns) -> np.ndarray:
        """The truth as it was kept."""
        return columns["truth"]


class Retraining:
    """Scores each window with the network of the last full retrain, then learns it; retrains every `every` windows."""

    def __init__(self, workspace: Workspace, every: int = 7) -> None:
        self._workspace = workspace
        self._every = every
        self._task = Encoded(workspace.task)
        self._parts = [self._kept(workspace.task.history())]  # type: ignore[attr-defined]  # the demo's task has one
        self._predictor = self._fitted(workspace.base)
        self.losses: dict[str, float] = {}

    def look(self, window: str) -> None:
        """Test on the window, then train on it with everything before when a week is full."""
        columns = self._kept(columns_of(self._workspace.examples(window)))
        if len(columns["truth"]):
            self.losses[window] = float(self._predictor.train_losses(columns).mean())
        self._parts.append(columns)
        if (len(self._parts) - 1) % self._every == 0:
            self._predictor = self._fitted(train_base(self._task, concatenated(self._parts), epochs=2))

    def _fitted(self, state: bytes) -> Predictor:
        return Predictor(self._task, state, None, self._workspace.policies.adapter)

    def _kept(self, columns: Columns) -> dict[str, np.ndarray]:
        task = self._workspace.task
        return {"inputs": np.asarray(task.encode(columns)), "truth": task.target(columns)}
