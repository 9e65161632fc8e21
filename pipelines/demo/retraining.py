"""What a weekly full retrain of the same network would have done: the honest comparison, without any privacy.

It reads the examples the windows hold and trains with the code that trained the base. It decides nothing.
"""

from __future__ import annotations

import numpy as np

from assets.stream.columns import columns_of, concatenated
from assets.workspace import Workspace
from models.base import train_base
from models.predictor import Predictor
from models.task import Columns


class Retraining:
    """Scores each window with the network of the last full retrain, then learns it; retrains every `every` windows."""

    def __init__(self, workspace: Workspace, every: int = 7) -> None:
        self._workspace = workspace
        self._every = every
        history = workspace.task.history()  # type: ignore[attr-defined]  # the demo's task has one
        self._parts = [self._needed(history)]
        self._predictor = self._fitted(workspace.base)
        self.losses: dict[str, float] = {}

    def look(self, window: str) -> None:
        """Test on the window, then train on it with everything before when a week is full."""
        columns = self._needed(columns_of(self._workspace.examples(window)))
        if len(columns["event_id"]):
            self.losses[window] = float(self._predictor.train_losses(columns).mean())
        self._parts.append(columns)
        if (len(self._parts) - 1) % self._every == 0:
            everything = concatenated(self._parts)
            self._predictor = self._fitted(train_base(self._workspace.task, everything, epochs=2))

    def _fitted(self, state: bytes) -> Predictor:
        return Predictor(self._workspace.task, state, None, self._workspace.policies.adapter)

    def _needed(self, columns: Columns) -> dict[str, np.ndarray]:
        names = {*self._workspace.task.event.names, *self._workspace.task.label.names}
        return {name: column for name, column in columns.items() if name in names}
