"""Quality of a binary prediction, in plain numpy: the five figures every update reports.

It does not know tasks or versions: the caller brings targets and probabilities.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

CALIBRATION_BINS = 10
SMALLEST_PROBABILITY = 1e-7  # a probability of exactly 0 or 1 would make the log loss infinite


def binary_metrics(target: ArrayLike, probability: ArrayLike) -> dict[str, float]:
    """Accuracy, F1 (cut at 0.5), AUC, log loss (nats) and expected calibration error of (n,) targets and probabilities.

    `auc` is absent when only one class is present: it is not defined there. Raises ValueError for shapes that differ,
    no rows, a target other than 0 and 1, or a probability outside [0, 1].
    """
    truth, p = _checked(target, probability)
    said = p >= 0.5
    hits = float(np.sum(said & truth))
    clipped = np.clip(p, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    figures = {
        "accuracy": float(np.mean(said == truth)),
        "f1": 2 * hits / max(float(said.sum() + truth.sum()), 1.0),
        "log_loss": float(-np.mean(np.where(truth, np.log(clipped), np.log1p(-clipped)))),
        "calibration_error": calibration_error(truth, p),
    }
    if truth.any() and not truth.all():
        figures["auc"] = _auc(truth, p)
    return figures


def calibration_error(truth: NDArray[np.bool_], probability: NDArray[np.float64]) -> float:
    """Expected calibration error over ten bins of equal width (Naeini, Cooper, Hauskrecht 2015)."""
    bins = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=truth - probability, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(probability))


def _auc(truth: NDArray[np.bool_], p: NDArray[np.float64]) -> float:
    """The Mann-Whitney form: the share of (positive, negative) pairs in the right order, ties count one half."""
    _, place, counts = np.unique(p, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positives = int(truth.sum())
    wins = ranks[truth].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * (len(truth) - positives)))


def _checked(target: ArrayLike, probability: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    truth, p = np.asarray(target), np.asarray(probability, dtype=np.float64)
    if truth.shape != p.shape or truth.ndim != 1 or len(truth) == 0:
        raise ValueError(f"targets {truth.shape} and probabilities {p.shape}: both must be (n,) with n >= 1")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError(f"targets must be 0 or 1, got {np.unique(truth)[:5].tolist()}")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"probabilities must lie in [0, 1], got {float(np.nanmin(p))} to {float(np.nanmax(p))}")
    return truth.astype(bool), p
