"""How well labels go with a model's answers: its loss, beside its loss when the labels are dealt out anew.

Says nothing of what that means (`models/poisoning.py` does), and trains nothing. Works for any loss that gives one value for
each example.
"""

from __future__ import annotations

import numpy as np
import torch

from models import compute
from models.predictor import Predictor
from models.task import Columns

SHUFFLES = 8


def label_fit(predictor: Predictor, columns: Columns) -> tuple[float | None, float | None]:
    """Mean training loss, and fit = 1 - loss / loss with shuffled labels: 0 when labels have nothing to do with answers.

    Turning a share f of two classes' labels multiplies the gain over shuffled labels by 1 - 2 f, whatever their shares.
    (None, None) without examples of finite loss. Equal columns give equal figures.
    """
    output, truth = predictor.outputs(columns), compute.targets(predictor.task, columns)
    losses = compute.losses(predictor.task, output, truth)
    finite = np.isfinite(losses)
    if not finite.any():
        return None, None
    output, truth, draw = output[torch.from_numpy(finite)], truth[torch.from_numpy(finite)], np.random.default_rng(0)
    orders = (torch.from_numpy(draw.permutation(len(truth))) for _ in range(SHUFFLES))
    shuffled = float(np.mean([compute.losses(predictor.task, output, truth[order]).mean() for order in orders]))
    loss = float(losses[finite].mean())
    return loss, 1.0 - loss / shuffled if np.isfinite(shuffled) and shuffled > 0 else None
