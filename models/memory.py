"""What to do when memory runs out in an update: smaller micro-batches, then checkpointing, then a clear end.

The logical batch, its order and the rate stay, so that the update is the same to rounding on every rung. It knows errors and
rungs; what is tried again is given to it, and must begin anew when it is called a second time. The kernel's own end of a
process that is too large (exit 137) cannot be caught here.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

T = TypeVar("T")

SAYINGS = ("out of memory", "can't allocate memory", "not enough memory", "could not create a primitive", "bad_alloc",
           "alloc_failed")  # CUDA, PyTorch on Linux and Windows, oneDNN, C++, cuBLAS


class OutOfMemory(MemoryError):
    """No rung is left; the message says what was tried and what would help. Nothing was learnt."""


@dataclass(frozen=True, slots=True)
class Rung:
    """`micro` examples are computed at once; checkpointed: activations are computed twice instead of kept, where they can."""

    micro: int
    checkpointed: bool = False
    can_checkpoint: bool = True

    def below(self) -> Rung | None:
        """The next one that needs less memory."""
        if self.micro > 1:
            return replace(self, micro=self.micro // 2)
        return None if self.checkpointed or not self.can_checkpoint else Rung(1, True)

    def __str__(self) -> str:
        return f"micro-batch {self.micro}" + (", checkpointed" if self.checkpointed else "")


class Ladder:
    """The rung an update stands on. It is never climbed again within one update."""

    def __init__(self, rung: Rung) -> None:
        self.rung, self.steps = rung, 0

    def attempt(self, work: Callable[[Rung], T]) -> T:
        """`work` on this rung, or on the first one below it that has the memory. Raises OutOfMemory after the last."""
        while True:
            try:
                return work(self.rung)
            except (MemoryError, RuntimeError) as error:
                if not ran_out(error):
                    raise
                said = str(error)
            below = self.rung.below()  # outside of the `except`: its frames hold the activations
            if below is None:
                raise OutOfMemory(f"out of memory on the last rung ({self.rung}): {said[:200]!r}. Give the process more "
                                  "memory, lower [adapter] r, or name smaller blocks in [training] checkpoint_modules")
            self.rung, self.steps = below, self.steps + 1
            release()


def ran_out(error: BaseException) -> bool:
    """Whether the error says that memory ran out; PyTorch on a CPU tells it by a RuntimeError's text alone."""
    if isinstance(error, OutOfMemory):
        return False
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error).lower() for saying in SAYINGS)


def release() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
