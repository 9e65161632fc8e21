"""Low-rank adapters on a frozen base, and whole copies of small modules, addressed by name suffix.

Speaks PEFT's file format (key names, `adapter_config.json`) without importing PEFT: its verified traps (adapters
silently ignored inside fused encoder layers, a global `set_adapter`, merging in place) would each need a guard. Knows
nothing of training or privacy; `detach` gives back the very base that `attach` was given.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from models.config import AdapterConfig

if TYPE_CHECKING:
    from security.watermark import Layer

PREFIX = "base_model.model."
LORA_B = ".lora_B.weight"


class AdapterRefused(Exception):
    """The adapter cannot be attached to this module, or these tensors are not its adapter; the message names the cure.
    """


class LoRALinear(nn.Module):
    """y = base(x) + scale * B(A(x)) for any leading dimensions (Hu et al. 2021); B = 0 at birth, so y = base(x)
    exactly.

    A ~ N(0, 1/in): then |Ax| is about |x| sqrt(r/in), whatever the width, and a learning rate carries over between
    layers.
    """

    def __init__(self, base: nn.Linear, r: int, scale: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.lora_A = nn.Linear(base.in_features, r, bias=False)
        self.lora_B = nn.Linear(r, base.out_features, bias=False)
        nn.init.normal_(self.lora_A.weight, std=1 / math.sqrt(base.in_features), generator=generator)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base(x) + self.scale * self.lora_B(self.lora_A(x))
        return out


class TrainableCopy(nn.Module):
    """A module of `modules_to_save`: its copy answers and is trained, the original stays untouched beside it."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original
        self.copy = copy.deepcopy(original).requires_grad_(True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.copy(*args, **kwargs)


def first_draw(base: bytes) -> torch.Generator:
    """Generator of the first adapter on a base, seeded by the base's bytes: public, equal in every process.

    The start of an adapter protects nobody; the clip "auto" is measured at this very start.
    """
    seed = int.from_bytes(hashlib.sha256(b"adapter" + hashlib.sha256(base).digest()).digest()[:7], "big")
    return torch.Generator().manual_seed(seed)


def attach(module: nn.Module, config: AdapterConfig, generator: torch.Generator | None = None) -> None:
    """Put adapters and trainable copies into `module`, in place; everything else stops being trainable.

    Raises AdapterRefused: a suffix that matches nothing, a layer that is no nn.Linear or sits in a fused layer,
    overlaps.
    """
    saved = _matches(module, config.modules_to_save, "modules_to_save", nn.Module)
    targets = _matches(module, config.target_modules, "target_modules", nn.Linear)
    for name in targets:
        _refuse_fused(module, name)
        if any(name == other or name.startswith(other + ".") for other in saved):
            raise AdapterRefused(f"{name!r} is in target_modules and inside modules_to_save; name it in one of them")
    module.requires_grad_(False)
    for name in targets:
        _put(module, name, LoRALinear(_linear(module, name), config.r, config.scale, generator))
    for name in saved:
        _put(module, name, TrainableCopy(module.get_submodule(name)))


def detach(module: nn.Module) -> None:
    """Undo `attach`: the original layers return to their places, the adapter is gone."""
    for name, part in list(_parts(module)):
        _put(module, name, part.base if isinstance(part, LoRALinear) else part.original)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Every trainable parameter under its PEFT key, in a fixed order."""
    return {key: value for key, value in _tensors(module) if isinstance(value, nn.Parameter)}


def extract(module: nn.Module) -> dict[str, np.ndarray]:
    """The adapter as {PEFT key: array}, copied; `load` into a fresh attachment gives the same bits."""
    return {key: value.detach().cpu().numpy().copy() for key, value in _tensors(module)}


def load(module: nn.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Write `tensors` into the attached adapter. Raises AdapterRefused unless names, shapes and types are exactly its
    own.
    """
    mine = dict(_tensors(module))
    missing, extra = sorted(set(mine) - set(tensors)), sorted(set(tensors) - set(mine))
    if missing or extra:
        raise AdapterRefused(f"adapter tensors differ: missing {missing or 'none'}, unknown {extra or 'none'}; "
                             "was it trained with other target_modules or modules_to_save?")
    for key, value in mine.items():
        given = torch.from_numpy(np.array(tensors[key], order="C"))
        if given.shape != value.shape or given.dtype != value.dtype:
            raise AdapterRefused(f"{key}: {given.dtype} {tuple(given.shape)}, wanted {value.dtype} "
                                 f"{tuple(value.shape)}; was it trained with another r or base?")
        with torch.no_grad():
            value.copy_(given)


def layers(module: nn.Module) -> dict[str, Layer]:
    """Low-rank layers by module name, as float64, for the watermark (which must not know torch)."""
    from security.watermark import Layer

    def numbers(value: torch.Tensor) -> np.ndarray:
        return value.detach().cpu().double().numpy()

    return {
        name: Layer(numbers(part.base.weight), numbers(part.lora_A.weight), numbers(part.lora_B.weight), part.scale)
        for name, part in _parts(module)
        if isinstance(part, LoRALinear)
    }


def with_b(tensors: Mapping[str, np.ndarray], stamped: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`tensors` with the B matrix of each module in `stamped` replaced (cast to the tensor's own type).

    Raises AdapterRefused for a module without adapter, or another shape.
    """
    out = dict(tensors)
    for name, value in stamped.items():
        key = f"{PREFIX}{name}{LORA_B}"
        if key not in tensors or tensors[key].shape != value.shape:
            raise AdapterRefused(f"stamped matrix for {name!r}, shape {value.shape}: the adapter has no such B matrix")
        out[key] = value.astype(tensors[key].dtype)
    return out


def merged(module: nn.Module) -> nn.Module:
    """A copy without adapter layers that answers alike to rounding (about 1e-6); the attached module stays as it is."""
    flat = copy.deepcopy(module)
    for name, part in list(_parts(flat)):
        if isinstance(part, LoRALinear):
            with torch.no_grad():
                part.base.weight += part.scale * part.lora_B.weight @ part.lora_A.weight
            _put(flat, name, part.base)
        else:
            _put(flat, name, part.copy)
    return flat.requires_grad_(False)


def _parts(module: nn.Module) -> Iterator[tuple[str, LoRALinear | TrainableCopy]]:
    for name, part in module.named_modules():
        if isinstance(part, LoRALinear | TrainableCopy):
            yield name, part


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and kept buffers of the adapter under their PEFT keys."""
    for name, part in _parts(module):
        if isinstance(part, LoRALinear):
            yield f"{PREFIX}{name}.lora_A.weight", part.lora_A.weight
            yield f"{PREFIX}{name}{LORA_B}", part.lora_B.weight
        else:
            for key, value in part.copy.state_dict(keep_vars=True).items():
                yield f"{PREFIX}{name}.{key}", value


def _matches(module: nn.Module, suffixes: Sequence[str], setting: str, kind: type[nn.Module]) -> list[str]:
    names = [name for name, part in module.named_modules() if name and isinstance(part, kind)]
    found: list[str] = []
    for suffix in suffixes:
        hits = [name for name in names if name == suffix or name.endswith("." + suffix)]
        if not hits:
            there = sorted({name.rpartition(".")[2] for name in names})
            raise AdapterRefused(f"{setting} {suffix!r} matches no {kind.__name__} of this base; available suffixes: "
                                 f"{', '.join(there) or 'none'}")
        found += [name for name in hits if name not in found]
    return found


def _refuse_fused(module: nn.Module, name: str) -> None:
    """Fused layers read the base weight itself: an adapter in them is silently ignored in eval mode."""
    steps = name.split(".")
    for depth in range(len(steps)):
        parent = module.get_submodule(".".join(steps[:depth]))
        if isinstance(parent, nn.MultiheadAttention | nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            raise AdapterRefused(f"{name!r} is inside {type(parent).__name__}, which bypasses adapters; write the "
                                 "block with separate nn.Linear layers, or name it in modules_to_save")


def _linear(module: nn.Module, name: str) -> nn.Linear:
    part = module.get_submodule(name)
    assert isinstance(part, nn.Linear)  # noqa: S101 - _matches asked for this kind
    return part


def _put(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, part)
