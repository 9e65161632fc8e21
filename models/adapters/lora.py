"""Adapters on a frozen base: attached by name suffix, trained, taken out, loaded, merged into a copy, taken away again.

Speaks PEFT's key names without importing PEFT: its verified traps (adapters silently ignored inside fused encoder layers,
a global `set_adapter`, merging in place) would each need a guard. What each kind computes is in files of its own, and so
are several adapters on one base. Knows nothing of training or privacy; `detach` gives back the very base that `attach` was
given.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from models.adapters import bank as adapter_bank
from models.adapters.bank import Bank, rows, use
from models.adapters.bottleneck import Bottleneck
from models.adapters.low_rank import LoRAConv, LoRAEmbedding, LoRALinear, LowRank, low_rank
from models.adapters.part import AdapterRefused, Part, TrainableCopy
from models.adapters.places import adapted, find_places, put
from models.adapters.prompt import Prompt
from models.config import AdapterConfig

if TYPE_CHECKING:
    from security.watermark import Layer

__all__ = [
    "AdapterRefused", "Bottleneck", "LoRAConv", "LoRAEmbedding", "LoRALinear", "Prompt", "TrainableCopy", "attach",
    "check_used", "detach", "extract", "first_draw", "layers", "load", "merged", "names", "rows", "trainable", "use", "with_b",
]  # fmt: skip

PREFIX = "base_model.model."
LORA_B = (".lora_B.weight", ".lora_embedding_B")


def first_draw(base: bytes) -> torch.Generator:
    """Generator of the first adapter on a base, seeded by the base's bytes: public, equal in every process.

    The start of an adapter protects nobody; the clip "auto" is measured at this very start.
    """
    seed = int.from_bytes(hashlib.sha256(b"adapter" + hashlib.sha256(base).digest()).digest()[:7], "big")
    return torch.Generator().manual_seed(seed)


def attach(
    module: nn.Module, config: AdapterConfig, generator: torch.Generator | None = None, name: str | None = None
) -> None:
    """Put adapters and trainable copies into `module`, in place; everything else stops being trainable.

    With a `name` there may be more than one on the base; the last one attached is trained, and answers outside `rows`.
    Raises AdapterRefused, and changes nothing then: a suffix that matches nothing, a layer that cannot carry this kind,
    sits in a fused block or shares its weights, overlaps, a name that is taken.
    """
    if name is not None:
        adapter_bank.check_name(module, name)
    crowded = name is None and bool(names(module))
    with adapter_bank.bare(module):
        if crowded or adapted(module):
            raise AdapterRefused("the module carries an adapter already; detach it first, or attach each under a name")
        places = find_places(module, config)
        parts = {place: _part(module, place, setting, config, generator) for place, setting in places.items()}
    module.requires_grad_(False)
    if name is not None:
        adapter_bank.add(module, name, parts)
        return
    for place, part in parts.items():
        put(module, place, part)


def _part(
    module: nn.Module, place: str, setting: str, config: AdapterConfig, generator: torch.Generator | None
) -> Part:
    make: dict[str, Callable[[nn.Module], Part]] = {
        "target_modules": lambda layer: low_rank(layer, config.r, config.scale, generator),
        "modules_to_save": TrainableCopy,
        "bottleneck_modules": lambda layer: Bottleneck(layer, config.bottleneck_size, generator),
        "prompt_modules": lambda layer: Prompt(layer, config.prompt_length, generator),
    }
    try:
        return make[setting](module.get_submodule(place))
    except AdapterRefused as error:
        raise AdapterRefused(f"{place!r} in {setting}: {error}") from error


def detach(module: nn.Module, name: str | None = None) -> None:
    """Undo `attach`, of one named adapter or of all: the original layers return to their places."""
    if name is not None:
        adapter_bank.remove(module, name)
        return
    for place, bank in adapter_bank.banks(module):
        put(module, place, bank.base)
    for place, part in list(_parts(module)):
        put(module, place, part.layer)


def names(module: nn.Module) -> tuple[str, ...]:
    """Named adapters by their number in `rows`."""
    roster = adapter_bank.roster_of(module)
    return roster.names if roster is not None else ()


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Every trainable parameter under its PEFT key, in a fixed order; of several adapters the current one's."""
    return {key: value for key, value in _tensors(module) if isinstance(value, nn.Parameter)}


def extract(module: nn.Module, name: str | None = None) -> dict[str, np.ndarray]:
    """The adapter as {PEFT key: array}, copied; `load` into a fresh attachment gives the same bits."""
    return {key: value.detach().cpu().numpy().copy() for key, value in _tensors(module, name)}


def load(module: nn.Module, tensors: Mapping[str, np.ndarray], name: str | None = None) -> None:
    """Write `tensors` into the attached adapter. Raises AdapterRefused unless names, shapes and types are exactly its
    own.
    """
    mine = dict(_tensors(module, name))
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


def check_used(module: nn.Module, *inputs: torch.Tensor) -> None:
    """Run one forward pass and refuse an adapter that some layer of it takes no part in: nothing would be learnt there.

    Raises AdapterRefused with the names of the layers that were not called.
    """
    idle: dict[nn.Module, str] = {part: place for place, part in _parts(module)}

    def called(part: nn.Module, _: object) -> None:
        idle.pop(part, None)

    hooks = [part.register_forward_pre_hook(called) for part in idle]
    try:
        with torch.inference_mode():
            module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if idle:
        raise AdapterRefused(f"{', '.join(idle.values())}: forward never calls these adapted layers, so their adapter would "
                             "change nothing; take them out of [adapter]")


def layers(module: nn.Module) -> dict[str, Layer]:
    """Low-rank layers by module name, as float64, for the watermark (which must not know torch)."""
    from security.watermark import Layer

    found = {}
    for place, part in _parts(module):
        if isinstance(part, LowRank):
            W0, A, B = (matrix.detach().cpu().double().numpy() for matrix in part.matrices())
            found[place] = Layer(W0, A, B, part.scale)
    return found


def with_b(tensors: Mapping[str, np.ndarray], stamped: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`tensors` with the B matrix of each module in `stamped`, (out, r), replaced (cast to the tensor's own type).

    Raises AdapterRefused for a module without adapter, or another shape.
    """
    out = dict(tensors)
    for name, value in stamped.items():
        key = next((PREFIX + name + end for end in LORA_B if PREFIX + name + end in tensors), None)
        if key is None or tensors[key].shape[:2] != value.shape:
            raise AdapterRefused(f"stamped matrix for {name!r}, shape {value.shape}: the adapter has no such B matrix")
        out[key] = value.reshape(tensors[key].shape).astype(tensors[key].dtype)
    return out


def merged(module: nn.Module, name: str | None = None) -> nn.Module:
    """A frozen copy for export that answers alike to rounding (about 1e-6), without low-rank layers or other adapters.

    Bottlenecks and prompts stay in it, as they are no change of weights. The attached module stays as it is: merging in
    place and back again would not give the base bit for bit.
    """
    flat = copy.deepcopy(module)
    parts = list(_parts(flat, name))
    for place, bank in adapter_bank.banks(flat):
        put(flat, place, bank.base)
    for place, part in parts:
        put(flat, place, part.folded())
    return flat.requires_grad_(False)


def _parts(module: nn.Module, name: str | None = None) -> Iterator[tuple[str, Part]]:
    """Places and parts of one adapter: the one named, else the current or only one. Raises AdapterRefused."""
    if name is not None:
        adapter_bank.known(module, name)
    inside = None
    for place, part in module.named_modules():
        if inside is not None and place.startswith(inside):
            continue
        if isinstance(part, Bank):
            inside = f"{place}."
            found = part.part(name or part.roster.current)
            if found is not None:
                yield place, found
        elif isinstance(part, Part):
            yield place, part


def _tensors(module: nn.Module, name: str | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and kept buffers of one adapter under their PEFT keys."""
    for place, part in _parts(module, name):
        for key, value in part.tensors():
            yield f"{PREFIX}{place}.{key}", value
