"""Where in a module an adapter may sit: layers found by name suffix, and the places where it would be ignored or would leak.

Decides before anything is changed. It does not know what an adapter computes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from models.adapters.part import AdapterRefused, Part
from models.config import AdapterConfig

# their forward reads the weights of what is inside, or the attributes of their layers
FUSED = (
    nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.TransformerEncoder,
    nn.TransformerDecoder, nn.Transformer,
)  # fmt: skip
SETTINGS = ("target_modules", "modules_to_save", "bottleneck_modules", "prompt_modules")


def find_places(module: nn.Module, config: AdapterConfig) -> dict[str, str]:
    """{name of a place: the setting that named it}, in the order of the settings and of the module.

    Raises AdapterRefused: a suffix that matches nothing, a place named twice or inside another one, a layer inside a
    fused block, weights that another place shares.
    """
    found: dict[str, str] = {}
    for setting in SETTINGS:
        for name in _matches(module, getattr(config, setting), setting):
            if name in found:
                raise AdapterRefused(f"{name!r} is in {found[name]} and in {setting}; name it in one of them")
            found[name] = setting
    for name, setting in found.items():
        refuse_nested(name, setting, found)
        _refuse_fused(module, name)
        _refuse_shared(module, name)
    return found


def refuse_nested(name: str, what: str, taken: dict[str, str]) -> None:
    """Refuse a place inside one that is taken: what is inside a place is no longer reached, or is copied."""
    for other, by in taken.items():
        if name.startswith(other + "."):
            raise AdapterRefused(f"{name!r} is in {what} and inside {other!r} of {by}; name it in one of them")


def put(module: nn.Module, name: str, part: nn.Module) -> None:
    """Put `part` in the place `name` of the module."""
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, part)


def _matches(module: nn.Module, suffixes: Sequence[str], setting: str) -> list[str]:
    """Layers with weights of their own; for modules_to_save any module."""
    whole = setting == "modules_to_save"
    names = [
        name for name, part in module.named_modules()
        if name and (whole or next(part.parameters(recurse=False), None) is not None)
    ]  # fmt: skip
    found: list[str] = []
    for suffix in suffixes:
        hits = [name for name in names if name == suffix or name.endswith("." + suffix)]
        if not hits:
            there = sorted({name.rpartition(".")[2] for name in names})
            raise AdapterRefused(f"{setting} {suffix!r} matches no {'module' if whole else 'layer'} of this base; available "
                                 f"suffixes: {', '.join(there) or 'none'}")
        found += [name for name in hits if name not in found]
    return found


def _refuse_fused(module: nn.Module, name: str) -> None:
    """Fused layers read the base weight itself: an adapter in them is silently ignored in eval mode."""
    steps = name.split(".")
    for depth in range(len(steps)):
        parent = module.get_submodule(".".join(steps[:depth]))
        if isinstance(parent, FUSED):
            raise AdapterRefused(f"{name!r} is inside {type(parent).__name__}, which bypasses adapters; write the "
                                 "block with separate nn.Linear layers, or name the whole block in modules_to_save")


def _refuse_shared(module: nn.Module, name: str) -> None:
    """An adapter of a tied weight would act in one of its two places only, and merging it would change the other."""
    mine: dict[int, str] = {}
    for key, value in module.get_submodule(name).named_parameters(remove_duplicate=False):
        if id(value) in mine:
            raise AdapterRefused(f"{name}.{key} and {name}.{mine[id(value)]} are one parameter; untie them in build()")
        mine[id(value)] = key
    for key, value in module.named_parameters(remove_duplicate=False):
        if id(value) in mine and not key.startswith(name + "."):
            raise AdapterRefused(f"{name}.{mine[id(value)]} and {key} are one parameter: an adapter would act in one of the "
                                 "two places only; untie them in build(), or take the layer out of [adapter]")


def adapted(module: nn.Module) -> bool:
    """Whether the module carries an adapter already."""
    return any(isinstance(part, Part) for part in module.modules())
