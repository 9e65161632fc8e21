"""Per-example gradients of one parameter, as a backward pass leaves them: factors, and matrices only where they are smaller.

The gradient of a linear weight is, for each example, a sum over its T positions of outer products left_t right_t'. With one
position its norm is |left| |right|, and nothing is formed; with many the matrix is formed where it is smaller than its factors
(low rank), else the norm comes from two T x T products (Li et al. 2021, "Large Language Models Can Be Strong Differentially
Private Learners", section 4). Knows neither layers nor clipping.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

# Where the gradients of positions cancel, their sum in float32 is as large as the rounding of its parts, and would pass the
# clip under a norm that is believed to be smaller. Ordinary gradients are far above this share.
KEPT = 1 / 64


class Piece(Protocol):
    """Gradients of n examples for one parameter."""

    def __len__(self) -> int:
        """n."""

    def norms(self) -> torch.Tensor:
        """The norm of each example's gradient, (n,)."""

    def weighted(self, factors: torch.Tensor, out: torch.Tensor) -> None:
        """Write the sum of the gradients, each times its factor (n,), to `out` (d,)."""

    def without(self, absent: torch.Tensor) -> Piece:
        """The same with gradients of zero for the examples that are marked, bool (n,): 0 times NaN would be NaN."""

    def plus(self, other: Piece) -> Piece:
        """The gradients of a layer that was used twice in one pass."""


@dataclass(slots=True)
class Whole:
    """Gradients as they are: values (n, d)."""

    values: torch.Tensor

    def __len__(self) -> int:
        return len(self.values)

    def norms(self) -> torch.Tensor:
        return torch.linalg.vector_norm(self.values, dim=1)

    def weighted(self, factors: torch.Tensor, out: torch.Tensor) -> None:
        torch.mv(self.values.mT, factors, out=out)

    def without(self, absent: torch.Tensor) -> Piece:
        return Whole(self.values.masked_fill(absent[:, None], 0.0))

    def plus(self, other: Piece) -> Piece:
        assert isinstance(other, Whole)  # noqa: S101 - one parameter has pieces of one kind
        return Whole(self.values + other.values)


@dataclass(slots=True)
class Single:
    """left right' of one position: left (n, p), right (n, q); the parameter is (p, q)."""

    left: torch.Tensor
    right: torch.Tensor

    def __len__(self) -> int:
        return len(self.left)

    def norms(self) -> torch.Tensor:
        return torch.linalg.vector_norm(self.left, dim=1).mul_(torch.linalg.vector_norm(self.right, dim=1))

    def weighted(self, factors: torch.Tensor, out: torch.Tensor) -> None:
        left, right = self.left, self.right
        if left.shape[1] < right.shape[1]:
            left = left * factors[:, None]
        else:
            right = right * factors[:, None]
        torch.mm(left.T, right, out=out.view(left.shape[1], right.shape[1]))

    def without(self, absent: torch.Tensor) -> Piece:
        each = absent[:, None]
        return Single(self.left.masked_fill(each, 0.0), self.right.masked_fill(each, 0.0))

    def plus(self, other: Piece) -> Piece:
        return Outer(self.left[:, None], self.right[:, None]).plus(other)


@dataclass(slots=True)
class Outer:
    """sum over t of left_t right_t': left (n, T, p), right (n, T, q); the parameter is (p, q)."""

    left: torch.Tensor
    right: torch.Tensor

    def __len__(self) -> int:
        return len(self.left)

    def norms(self) -> torch.Tensor:
        left, right = self.left.double(), self.right.double()
        squares = (left @ left.mT).mul_(right @ right.mT).sum(dim=(1, 2))
        lengths = torch.linalg.vector_norm(left, dim=2).mul_(torch.linalg.vector_norm(right, dim=2))
        return _at_least_kept(squares, lengths)

    def weighted(self, factors: torch.Tensor, out: torch.Tensor) -> None:
        each = factors.repeat_interleave(self.left.shape[1])
        Single(self.left.flatten(0, 1), self.right.flatten(0, 1)).weighted(each, out)

    def without(self, absent: torch.Tensor) -> Piece:
        each = absent[:, None, None]
        return Outer(self.left.masked_fill(each, 0.0), self.right.masked_fill(each, 0.0))

    def plus(self, other: Piece) -> Piece:
        more = Outer(other.left[:, None], other.right[:, None]) if isinstance(other, Single) else other
        assert isinstance(more, Outer)  # noqa: S101 - one parameter has outer products in every pass, or in none
        return Outer(torch.cat((self.left, more.left), dim=1), torch.cat((self.right, more.right), dim=1))


@dataclass(slots=True)
class Picked:
    """Vectors (n, T, d) that are added to the rows `places` (n, T) of a table (m, d), or (d, m) when `turned`."""

    places: torch.Tensor
    vectors: torch.Tensor
    turned: bool

    def __len__(self) -> int:
        return len(self.vectors)

    def norms(self) -> torch.Tensor:
        same, vectors = self.places[:, :, None] == self.places[:, None, :], self.vectors.double()
        squares = (vectors @ vectors.mT).mul_(same).sum(dim=(1, 2))
        return _at_least_kept(squares, torch.linalg.vector_norm(vectors, dim=2))

    def weighted(self, factors: torch.Tensor, out: torch.Tensor) -> None:
        vectors, width = (self.vectors * factors[:, None, None]).flatten(0, 1), self.vectors.shape[2]
        table = out.zero_().view(width, -1).T if self.turned else out.zero_().view(-1, width)
        table.index_add_(0, self.places.flatten(), vectors)

    def without(self, absent: torch.Tensor) -> Piece:
        return Picked(self.places, self.vectors.masked_fill(absent[:, None, None], 0.0), self.turned)

    def plus(self, other: Piece) -> Piece:
        assert isinstance(other, Picked)  # noqa: S101 - one parameter has pieces of one kind
        places, vectors = (self.places, other.places), (self.vectors, other.vectors)
        return Picked(torch.cat(places, dim=1), torch.cat(vectors, dim=1), self.turned)


def _at_least_kept(squares: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Norms (n,) from their squares, taken for no shorter than KEPT of what the positions' own `lengths` (n, T) add up to."""
    return torch.maximum(squares.clamp_(min=0.0).sqrt_(), KEPT * lengths.sum(dim=1)).float()


def outer(left: torch.Tensor, right: torch.Tensor) -> Piece:
    """left (n, ..., p), right (n, ..., q), in float32 from here on: what is bounded is what is summed."""
    left, right = left.float(), right.float()
    if left.dim() == 2:
        return Single(left, right)
    n, p, q = len(left), left.shape[-1], right.shape[-1]
    positions = math.prod(left.shape[1:-1])
    left, right = left.reshape(n, positions, p), right.reshape(n, positions, q)
    if p * q <= positions * (p + q):
        return Whole((left.mT @ right).reshape(n, -1))
    return Outer(left, right)


def added(values: torch.Tensor) -> Whole:
    """Of a bias: values (n, ..., d), summed over the positions."""
    values = values.float()
    return Whole(values if values.dim() == 2 else values.flatten(1, -2).sum(dim=1))
