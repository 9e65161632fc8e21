"""The share of each class among an update's examples; only where privacy is off, for it is a query on the labels.

It knows the target as a tensor and calls nothing rare or too much.
"""

from __future__ import annotations

import torch

MOST = 100  # different values: an integer with more of them is a number, not a class


def class_shares(truth: torch.Tensor) -> dict[str, float] | None:
    """{class: share of the examples}, from the smallest class; None for a target that has no classes.

    Classes are booleans or integers, (n,) with n > 0.
    """
    if truth.ndim != 1 or not len(truth) or truth.dtype.is_floating_point or truth.dtype.is_complex:
        return None
    values, counts = torch.unique(truth, return_counts=True)
    if len(values) > MOST:
        return None
    return {str(value): count / len(truth) for value, count in zip(values.tolist(), counts.tolist(), strict=True)}
