"""Per-example gradients of adapters and linear heads from one forward and one backward pass.

While it is open, the adapter's layers answer by functions of autograd that do what they did, and in the backward pass keep
what a weight's gradient is made of (pieces.py). From that come each example's norm and the clipped sum, without a second pass
("book-keeping": Bu et al. 2023, "Differentially Private Optimization on Large Foundation Model"; the adapter's low rank makes
it cheap). The forward pass may be in bfloat16, and blocks may be computed twice instead of kept; norms and sums are in float32
either way. It does not know clipping, noise or budgets, nor the layers that Opacus' hooks are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from models import compat, compute, precision
from models.adapters import lora
from models.checkpointing import blocks, checkpointed
from models.config import TrainingConfig
from models.memory import Rung
from models.private.clipping import Clipping, PerExampleGradients, without_gradient
from models.private.pieces import Picked, Piece, added, outer
from models.task import Task

CPU = torch.device("cpu")
Note = Callable[[torch.Tensor, Piece], None]


class OneBackward(Clipping):
    """The layers of `known` modules."""

    rung = Rung(4096)  # of each example the activations are held, as in plain training
    blocks: tuple[str, ...] = ()  # that are checkpointed, as the settings name them

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
        twice = checkpointed(self.module, self.blocks) if self.rung.checkpointed else nullcontext()
        with torch.enable_grad(), twice:
            with precision.autocast(self.precision, CPU)():
                output = self.module(*parts)
            losses = compute.per_example(self.task.loss(precision.float32(output), truth), len(truth), "loss")
            if losses.requires_grad:
                torch.autograd.backward(losses, torch.ones_like(losses))
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


def gradients(task: Task, module: nn.Module, setting: TrainingConfig | None = None, batch: int = 1) -> Clipping:
    """One backward pass where it can be, else Opacus' hooks: for training and audit alike.

    `setting` says how the passes are computed, for batches of about so many examples. Raises GradientsRefused, and
    TrainingRefused for what the hooks cannot do.
    """
    made: Clipping
    if known(module):
        made = OneBackward(task, module)
        if setting is not None:
            made.blocks = setting.checkpoint_modules
            blocks(module, made.blocks)  # a wrong name is told now, and not when memory runs out
            made.rung = Rung(made.rung.micro, setting.gradient_checkpointing)
            made.precision = precision.chosen(setting.precision, module, CPU, batch)
    else:
        made = PerExampleGradients(task, module)
        if setting is not None:
            compat.refuse(setting, True, precision_by_hooks=setting.precision,
                          checkpointing_by_hooks=setting.gradient_checkpointing)
    if setting is not None and setting.sort_by_length:
        made.sorted_by_length, made.rung = True, replace(made.rung, micro=setting.batch_size)
    return made


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
        return _add_product(F.linear(x, weight, bias), h, b.T, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,), (x, h, weight), a, b, scale = grads, ctx.saved_tensors, ctx.a, ctx.b, ctx.scale
        gh = (g @ b.to(g.dtype)).mul_(scale)
        ctx.note(a, outer(gh, x))
        ctx.note(b, outer(g, h * scale))
        gx = _add_product(g @ weight.to(g.dtype), gh, a, 1.0) if ctx.needs_input_grad[0] else None
        return gx, None, None, None, None, None, None


def _add_product(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    """out + scale left right, in place and in the format of out (n, ..., q): left (n, ..., p), right (p, q)."""
    out.flatten(0, -2).addmm_(left.flatten(0, -2).to(out.dtype), right.to(out.dtype), alpha=scale)
    return out


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
        return (g @ weight.to(g.dtype) if ctx.needs_input_grad[0] else None), None, None, None, None


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
        return g @ ctx.weight.to(g.dtype), None, None


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
