"""Several named adapters on one base, and in one forward pass another one for each row.

`rows` says which row asks for which adapter, for the calling thread only: a switch that all threads share answers with
the wrong adapter as soon as two of them serve. Numbers count the adapters in the order they were attached. It does not
know how a regime is told from another, nor what an adapter computes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from models.adapters.part import AdapterRefused, OnBase, Part
from models.adapters.places import put, refuse_nested

BASE = -1  # the number of a row that the base alone answers
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(eq=False, slots=True)
class Roster:
    """The adapters of one module by number, and the one that is trained and answers outside `rows`."""

    names: tuple[str, ...]
    current: str


@dataclass(frozen=True, slots=True)
class Choice:
    """Rows by adapter name (None: the base alone), and the order that puts their answers back."""

    names: tuple[str, ...]
    groups: tuple[tuple[str | None, torch.Tensor], ...]
    order: torch.Tensor


CHOICES: ContextVar[Mapping[int, Choice]] = ContextVar("CHOICES", default={})  # noqa: B039 - never written to


class Bank(nn.Module):
    """One place of the module and the parts that its adapters have there; an adapter without one leaves the layer as it is.
    """

    def __init__(self, base: nn.Module, roster: Roster) -> None:
        super().__init__()
        self.base, self.roster = base, roster
        self.parts = nn.ModuleDict()

    def part(self, name: str | None) -> Part | None:
        """What the adapter has in this place."""
        key = f"of_{name}"  # a ModuleDict refuses names of its own methods
        found = self.parts[key] if name is not None and key in self.parts else None
        assert found is None or isinstance(found, Part)  # noqa: S101 - `add` puts nothing else here
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        choice = CHOICES.get().get(id(self.roster))
        if choice is None:
            return self._one(self.roster.current, args, kwargs)
        if choice.names is not self.roster.names:
            raise AdapterRefused(f"adapters were {', '.join(choice.names)} when rows() began and are now "
                                 f"{', '.join(self.roster.names)}; attach and detach outside rows()")
        if len(choice.groups) == 1:
            return self._one(choice.groups[0][0], args, kwargs)
        if len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
            pieces = self._by_rows(choice, args[0])
        else:  # which of several arguments belong to rows is not known, so each adapter sees all of them
            pieces = [self._one(name, args, kwargs)[of] for name, of in choice.groups]
        return self._joined(choice, pieces)

    def _one(self, name: str | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        part = self.part(name)
        return self.base(*args, **kwargs) if part is None else part(*args, **kwargs)

    def _by_rows(self, choice: Choice, x: torch.Tensor) -> list[torch.Tensor]:
        """The layer itself computes once for all rows; only what an adapter adds is computed group by group."""
        if len(x) != len(choice.order):
            raise AdapterRefused(f"a layer sees {len(x)} rows, rows() was given {len(choice.order)} numbers; give one for each "
                                 "row, and keep rows first in every adapted layer")
        parts = [(self.part(name), of) for name, of in choice.groups]
        out = self.base(x) if any(part is None or isinstance(part, OnBase) for part, _ in parts) else x
        return [out[of] if part is None else part.onto(out[of], x[of]) for part, of in parts]

    def _joined(self, choice: Choice, pieces: list[torch.Tensor]) -> torch.Tensor:
        for piece, (name, of) in zip(pieces, choice.groups, strict=True):
            if piece.shape[1:] != pieces[0].shape[1:] or len(piece) != len(of):
                raise AdapterRefused(f"adapter {name!r} answers {tuple(piece.shape)} for {len(of)} rows, another one "
                                     f"{tuple(pieces[0].shape)}; prompts of one base must have one length")
        return torch.cat(pieces)[choice.order]


@contextmanager
def rows(module: nn.Module, numbers: torch.Tensor) -> Iterator[None]:
    """Forward passes of this module, in this thread, give row i the adapter numbers[i]; -1 is the base alone.

    numbers: whole (n,), n the rows of every forward pass inside. Backward passes belong inside too. Raises AdapterRefused.
    """
    roster = roster_of(module)
    if roster is None:
        raise AdapterRefused("rows() was asked of a module without named adapters; attach each under a name")
    token = CHOICES.set({**CHOICES.get(), id(roster): _choice(roster.names, numbers)})
    try:
        yield
    finally:
        CHOICES.reset(token)


def _choice(names: tuple[str, ...], numbers: torch.Tensor) -> Choice:
    if numbers.dim() != 1 or numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise AdapterRefused(f"adapter numbers of type {numbers.dtype} and shape {tuple(numbers.shape)}; whole (n,) wanted")
    order = torch.argsort(numbers, stable=True)
    found, counts = torch.unique_consecutive(numbers[order], return_counts=True)
    if len(found) and not BASE <= int(found[0]) <= int(found[-1]) < len(names):
        raise AdapterRefused(f"adapter numbers from {int(found[0])} to {int(found[-1])}; there are {BASE} (base) to "
                             f"{len(names) - 1}: {', '.join(names)}")
    chosen = [None if number == BASE else names[number] for number in found.tolist()]
    groups = tuple(zip(chosen, torch.split(order, counts.tolist()), strict=True))
    return Choice(names, groups or ((None, order),), torch.argsort(order))


def roster_of(module: nn.Module) -> Roster | None:
    """The named adapters of this module, None when there are none."""
    found = {id(bank.roster): bank.roster for _, bank in banks(module)}
    if len(found) > 1:
        raise AdapterRefused(f"{len(found)} sets of named adapters were attached to parts of this module; attach to the whole")
    return next(iter(found.values()), None)


def banks(module: nn.Module) -> list[tuple[str, Bank]]:
    """Places and their banks."""
    return [(place, part) for place, part in module.named_modules() if isinstance(part, Bank)]


@contextmanager
def bare(module: nn.Module) -> Iterator[None]:
    """The module as it was before its named adapters, for as long as one looks for places."""
    there = banks(module)
    for place, bank in there:
        put(module, place, bank.base)
    try:
        yield
    finally:
        for place, bank in there:
            put(module, place, bank)


def check_name(module: nn.Module, name: str) -> None:
    """Refuse a name that is taken, or that could not be part of a file's name."""
    roster = roster_of(module)
    if not NAME.fullmatch(name):
        raise AdapterRefused(f"{name!r} is no adapter name: letters, digits, - and _ only, at most 64; write v1_2 for v1.2")
    if roster is not None and name in roster.names:
        raise AdapterRefused(f"adapter {name!r} is attached already; detach it first, or take another name")


def add(module: nn.Module, name: str, parts: Mapping[str, Part]) -> None:
    """Put the parts of one more adapter into their places; it becomes the current one. Raises AdapterRefused."""
    there = dict(banks(module))
    for place in parts:
        refuse_nested(place, f"adapter {name!r}", dict.fromkeys(there, "another adapter"))
    for place in there:
        refuse_nested(place, "another adapter", dict.fromkeys(parts, f"adapter {name!r}"))
    roster = roster_of(module) or Roster((), name)
    for place, part in parts.items():
        if place not in there:
            there[place] = Bank(part.layer, roster)
            put(module, place, there[place])
        there[place].parts[f"of_{name}"] = part
    roster.names = (*roster.names, name)
    use(module, name)


def remove(module: nn.Module, name: str) -> None:
    """Take one adapter away; the numbers of those after it go down by one. The last one leaves the bare base."""
    roster = known(module, name)
    for place, bank in banks(module):
        if bank.part(name) is not None:
            del bank.parts[f"of_{name}"]
        if not len(bank.parts):
            put(module, place, bank.base)
    roster.names = tuple(other for other in roster.names if other != name)
    if roster.current == name and roster.names:
        use(module, roster.names[-1])


def use(module: nn.Module, name: str) -> None:
    """Make this adapter the current one: trained, the others frozen, and answering outside `rows`. One thread only."""
    known(module, name).current = name
    for _, bank in banks(module):
        for key, part in bank.parts.items():
            assert isinstance(part, Part)  # noqa: S101 - `add` puts nothing else here
            for _, value in part.tensors():
                if isinstance(value, nn.Parameter):
                    value.requires_grad_(key == f"of_{name}")


def known(module: nn.Module, name: str) -> Roster:
    """The roster that has this name. Raises AdapterRefused."""
    roster = roster_of(module)
    if roster is None or name not in roster.names:
        there = ", ".join(roster.names) if roster is not None else "none"
        raise AdapterRefused(f"no adapter is named {name!r}; there are: {there}")
    return roster
