"""Micro-batches of like length: the examples of one logical batch in order of length, their padding cut off.

The sum of gradients over the logical batch stays what it was, to rounding; sorting beyond one batch would not leave it so.
It knows tensors and one boolean mask, (examples, positions), True where there is something.
"""

from __future__ import annotations

import torch


def mask_of(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The one boolean part of shape (n, positions). Raises ValueError when there is not exactly one."""
    found = [part for part in parts if part.dtype == torch.bool and part.ndim == 2]
    if len(found) != 1:
        raise ValueError(f"[training] sort_by_length = true and encode gave {len(found)} boolean arrays of shape (n, "
                         "positions) != 1: return the mask of real positions as one of the inputs, or set it to false")
    return found[0]


def by_length(mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`rows` from the shortest to the longest; equal ones in the order they came in."""
    return rows[torch.argsort(reach(mask[rows]), stable=True)]


def reach(mask: torch.Tensor) -> torch.Tensor:
    """The number of positions of each example up to its last real one, (n,); padding in front counts."""
    numbers = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask * numbers).amax(dim=1)


def cut(parts: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The same examples without the positions that all of them lack; at least one position stays.

    Every part whose second dimension is the mask's is cut with it.
    """
    mask = mask_of(parts)
    positions = max(1, int(reach(mask).max()))
    whole = mask.shape[1]
    return tuple(part[:, :positions] if part.ndim > 1 and part.shape[1] == whole else part for part in parts)
