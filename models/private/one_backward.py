"""Per-example gradients of adapters and linear heads from one forward and one backward pass.

While it is open, the adapter's layers answer by functions of autograd that do what they did, and in the backward pass keep
what a weight's gradient is made of (pieces.py). From that come each example's norm and the clipped sum, without a second pass
("book-keeping": Bu et al. 2023, "Differentially Private Optimization on Large Foundation Model"; the adapter's low rank makes
it cheap). It does not know clipping, noise or budgets, nor the layers that Opacus' hooks are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from models import compute
from models.adapters import lora
from models.private.clipping import Clipping, PerExampleGradients, without_gradient
from models.private.pieces import Picked, Piece, added, outer
from models.task import Task

Note = Callable[[torch.Tensor, Piece], None]


class OneBackward(Clipping):
    """The layers of `known` modules."""

    rows = 4096  # of each the activations are held, as in plain training

    def __init__(self, task: Task, module: nn.Module) -> None:
        super().__init__(task, module)
        self._noted: dict[int, Piece] = {}

    def __enter__(self) -> Self:
        self.module.eval()
        for part in _parts(self.module):
            part.forward = _recorded(part, self._note)  # an attribute of the object, found before the method of its class
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for part in _parts(self.module):
            del part.forward
        self._noted.clear()

    def pieces(self, parts: tuple[torch.Tensor, ...], truth: torch.Tensor) -> tuple[torch.Tensor, list[Piece]]:
        self._noted.clear()
        with torch.enable_grad():
            losses = compute.per_example(self.task.loss(self.module(*parts), truth), len(truth), "loss")
            if losses.requires_grad:
                torch.autograd.backward(losses.sum())
        found = []
        for name, parameter in self.parameters.items():
            piece = self._noted.pop(id(parameter), None)
            if piece is None or len(piece) != len(truth):
                raise without_gradient(name, len(truth))
            found.append(piece)
        return losses.detach(), found

    def _note(self, parameter: torch.Tensor, piece: Piece) -> None:
        known = self._noted.get(id(parameter))
        self._noted[id(parameter)] = piece if known is None else known.plus(piece)


def gradients(task: Task, module: nn.Module) -> Clipping:
    """One backward pass where it can be, else Opacus' hooks: for training and audit alike. Raises GradientsRefused."""
    return OneBackward(task, module) if known(module) else PerExampleGradients(task, module)


def known(module: nn.Module) -> bool:
    """Whether every trainable parameter is in a layer this file knows."""
    held = {id(p) for part in _parts(module) for p in part.parameters() if p.requires_grad}
    return all(id(p) in held for p in module.parameters() if p.requires_grad)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The layers that have trainable parameters, of the kinds that are known; a subclass may compute something else."""
    inside: set[int] = set()
    for part in module.modules():
        if type(part) is lora.LoRALinear and type(part.base) is nn.Linear:
            inside |= {id(part.lora_A), id(part.lora_B), id(part.base)}
            yield part
        elif type(part) is lora.LoRAEmbedding or (
            id(part) not in inside
            and any(p.requires_grad for p in part.parameters(recurse=False))
            and (type(part) is nn.Linear or _is_pointwise(part) or _is_table(part))
        ):
            yield part


def _is_pointwise(part: nn.Module) -> bool:
    if type(part) is not nn.Conv2d or isinstance(part.padding, str):
        return False
    return part.kernel_size == (1, 1) and part.groups == 1 and part.padding_mode == "zeros"


def _is_table(part: nn.Module) -> bool:
    if type(part) is not nn.Embedding or part.padding_idx is not None:
        return False
    return not part.scale_grad_by_freq and not part.sparse and part.max_norm is None


def _recorded(part: Any, note: Note) -> Callable[[torch.Tensor], torch.Tensor]:
    if isinstance(part, lora.LoRALinear):
        return partial(_low_rank, part, note)
    if isinstance(part, lora.LoRAEmbedding):
        return partial(_low_rank_table, part, note)
    if isinstance(part, nn.Embedding):
        return partial(_table, part.weight, note)
    return partial(_pointwise if isinstance(part, nn.Conv2d) else _linear, part, note)


def _low_rank(part: lora.LoRALinear, note: Note, x: torch.Tensor) -> Any:
    base, a, b = part.base, part.lora_A.weight, part.lora_B.weight
    return _LowRank.apply(x, a, b, base.weight, base.bias, part.scale, note)  # type: ignore[no-untyped-call]


def _linear(part: nn.Linear, note: Note, x: torch.Tensor) -> Any:
    return _Linear.apply(x, part.weight, part.bias, part, note)  # type: ignore[no-untyped-call]


def _pointwise(part: nn.Conv2d, note: Note, x: torch.Tensor) -> torch.Tensor:
    """A linear layer at every position: x (n, channels, height, width)."""
    down, right = part.stride
    assert not isinstance(part.padding, str)  # noqa: S101 - _is_pointwise
    top, left = part.padding
    seen = F.pad(x, (left, left, top, top))[:, :, ::down, ::right].movedim(1, -1)
    out: torch.Tensor = _Linear.apply(seen, part.weight.flatten(1), part.bias, part, note)  # type: ignore[no-untyped-call]
    return out.movedim(-1, 1)


def _low_rank_table(part: lora.LoRAEmbedding, note: Note, places: torch.Tensor) -> torch.Tensor:
    columns = _Table.apply(places, part.lora_A.T, part.lora_A, True, note)  # type: ignore[no-untyped-call]
    made: torch.Tensor = _Product.apply(columns, part.lora_B, note)  # type: ignore[no-untyped-call]
    out: torch.Tensor = part.base(places)
    return out + part.scale * made


def _table(weight: torch.Tensor, note: Note, places: torch.Tensor) -> Any:
    return _Table.apply(places, weight, weight, False, note)  # type: ignore[no-untyped-call]


class _LowRank(torch.autograd.Function):
    """y = x W' + bias + scale (x A') B', W frozen."""

    @staticmethod
    def forward(ctx: Any, x: Any, a: Any, b: Any, weight: Any, bias: Any, scale: float, note: Note) -> Any:
        h = F.linear(x, a)
        ctx.save_for_backward(x, h, weight)
        ctx.a, ctx.b, ctx.scale, ctx.note = a, b, scale, note  # the parameters themselves: by them the pieces are known
        return F.linear(x, weight, bias).add_(F.linear(h, b), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,), (x, h, weight), a, b = grads, ctx.saved_tensors, ctx.a, ctx.b
        gh = (g @ b).mul_(ctx.scale)
        ctx.note(a, outer(gh, x))
        ctx.note(b, outer(g, h * ctx.scale))
        gx = (g @ weight).add_(gh @ a) if ctx.needs_input_grad[0] else None
        return gx, None, None, None, None, None, None


class _Linear(torch.autograd.Function):
    """y = x W' + bias, both trainable, or one of them; W may be a view of the parameter."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, part: Any, note: Note) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.part, ctx.note = part, note
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,), (x, weight) = grads, ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            ctx.note(ctx.part.weight, outer(g, x))
        if ctx.needs_input_grad[2]:
            ctx.note(ctx.part.bias, added(g))
        return (g @ weight if ctx.needs_input_grad[0] else None), None, None, None, None


class _Product(torch.autograd.Function):
    """y = x W'."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, note: Note) -> Any:
        ctx.save_for_backward(x)
        ctx.weight, ctx.note = weight, note
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,), (x,) = grads, ctx.saved_tensors
        ctx.note(ctx.weight, outer(g, x))
        return g @ ctx.weight, None, None


class _Table(torch.autograd.Function):
    """y = rows of a table (m, d) at places (n, ...); `turned` when the parameter is (d, m)."""

    @staticmethod
    def forward(ctx: Any, places: Any, table: Any, parameter: Any, turned: bool, note: Note) -> Any:
        ctx.save_for_backward(places)
        ctx.parameter, ctx.turned, ctx.note = parameter, turned, note
        return F.embedding(places, table)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,), (places,) = grads, ctx.saved_tensors
        ctx.note(ctx.parameter, Picked(places.flatten(1), g.reshape(len(g), -1, g.shape[-1]), ctx.turned))
        return None, None, None, None, None
