"""The number format of a forward pass: float32, or autocast to bfloat16 or float16; trainable parameters stay float32.

It knows the processor and the sizes of layers. It knows no batch content: "auto" is the same for equal hardware and module, so
that equal (seed, data) keep giving equal bits. Nothing here was run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

WIDE = 256  # inputs and outputs of a layer below which casting costs more than the product saves
BATCH = 32  # examples, likewise
LEAST_SCALE = 1.0  # a float16 gradient that overflows at this scale is too large, not badly scaled


def accelerator() -> torch.device:
    """The GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def chosen(asked: str, module: nn.Module, device: torch.device, batch: int) -> str:
    """`asked`, or for "auto" what pays: "bf16" where the hardware multiplies it and layers are wide, "fp16" on older GPUs.

    A CPU never gets "fp16" by itself: it is 17 times slower there than "fp32". Nor does AVX512-BF16 alone give it "bf16": on
    a Xeon with it and without AMX, steps took 1.5 to 3.4 times the CPU time of float32 at every width from 64 to 1024.
    """
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if _has_amx() and batch >= BATCH and _mostly_wide(module) else "fp32"


def autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """Makes the context of one forward pass."""
    if precision == "fp32":
        return nullcontext
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return lambda: torch.autocast(device.type, dtype=kind)


def float32(output: torch.Tensor) -> torch.Tensor:
    """The loss is never taken in half precision."""
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output


def scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Dynamic loss scaling for "fp16" (Micikevicius et al. 2018, §3.2); for the others it lets everything through."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def _has_amx() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


def _mostly_wide(module: nn.Module) -> bool:
    """Whether most weights are in wide linear layers."""
    sizes = [(part.weight.numel(), min(part.weight.shape)) for part in module.modules() if isinstance(part, nn.Linear)]
    return 2 * sum(count for count, least in sizes if least >= WIDE) > sum(p.numel() for p in module.parameters())
