"""Gradient checkpointing (Chen et al. 2016): blocks keep their inputs only, and are computed again in the backward pass.

It knows modules and names. Never reentrant: with a frozen base that loses a tenth of the gradient without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed(module: nn.Module, suffixes: Sequence[str] = ()) -> Iterator[None]:
    """Checkpoint the blocks of `module` that `blocks` finds, until the context ends."""
    found = [(part, part.__dict__.get("forward"), part.forward) for part in blocks(module, suffixes)]
    for part, _, forward in found:
        part.forward = partial(checkpoint, forward, use_reentrant=False)
    try:
        yield
    finally:
        for part, before, _ in found:
            part.__dict__.pop("forward", None)
            if before is not None:
                part.forward = before


def blocks(module: nn.Module, suffixes: Sequence[str] = ()) -> list[nn.Module]:
    """The modules named by `suffixes`, a list of blocks by its members; without names the members of the outermost lists.

    A module without lists gives its children. Raises ValueError for a suffix that matches nothing, naming what is there.
    """
    named = dict(module.named_modules())
    if not suffixes:
        return _outermost(module) or list(module.children())
    found: list[nn.Module] = []
    for suffix in suffixes:
        hits = [part for name, part in named.items() if name == suffix or name.endswith("." + suffix)]
        if not hits:
            there = ", ".join(sorted({name.rpartition(".")[2] for name in named if name}))
            raise ValueError(f"[training] checkpoint_modules {suffix!r} matches no module of this base; available: {there}")
        for part in hits:
            found += _members(part) if _listed(part) else [part]
    return list(dict.fromkeys(found))


def _listed(part: nn.Module) -> bool:
    return isinstance(part, nn.ModuleList | nn.Sequential)


def _members(part: nn.Module) -> list[nn.Module]:
    return [member for child in part.children() for member in (_members(child) if _listed(child) else [child])]


def _outermost(module: nn.Module) -> list[nn.Module]:
    """Members of the lists that are in no other list."""
    if _listed(module):
        return _members(module)
    return [member for child in module.children() for member in _outermost(child)]
