"""From columns to tensors, on one thread: what training, prediction and the base all do the same way.

Knows how a Task's arrays become tensors and checks their shapes; knows nothing of adapters, privacy or versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from models.memory import Ladder, Rung
from models.task import Columns, Task

CHUNK = 8192  # rows of one forward pass
FEW = 8  # rows on which it shows whether a loss couples records


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, then as before: sums come out in one order, and small layers run faster than on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def row_count(columns: Columns) -> int:
    """The common length of all columns. Raises ValueError when there is none or they differ."""
    lengths = {name: len(column) for name, column in columns.items()}
    if not lengths:
        raise ValueError("no columns given: the task cannot encode an empty table; pass {name: array}")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns differ in length: {lengths}; every column needs one value a row")
    return next(iter(lengths.values()))


def tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor of the array's values; float64 becomes float32, the type of the base."""
    array = np.ascontiguousarray(array)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    elif not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array)


def inputs(task: Task, columns: Columns) -> tuple[torch.Tensor, ...]:
    """Model inputs for every row. Raises ValueError when `encode` does not give one entry a row."""
    rows = row_count(columns)
    encoded = task.encode(columns)
    parts = tuple(tensor(part) for part in (encoded if isinstance(encoded, tuple) else (encoded,)))
    for part in parts:
        if part.shape[:1] != (rows,):
            raise ValueError(f"task {task.name}: encode gave shape {tuple(part.shape)} for {rows} rows; one a row")
    return parts


def targets(task: Task, columns: Columns) -> torch.Tensor:
    """The truth for every row. Raises ValueError when `target` does not give one entry a row."""
    truth, rows = tensor(task.target(columns)), row_count(columns)
    if truth.shape[:1] != (rows,):
        raise ValueError(f"task {task.name!r}: target gave shape {tuple(truth.shape)} for {rows} rows")
    return truth


def take(parts: tuple[torch.Tensor, ...], rows: torch.Tensor | slice) -> tuple[torch.Tensor, ...]:
    """The same inputs for some rows."""
    return tuple(part[rows] for part in parts)


@torch.inference_mode()
def outputs(module: torch.nn.Module, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The module's output for every row, first dimension = row; `CHUNK` rows at a time, fewer where memory runs out."""
    rows = max(len(parts[0]), 1)

    def forward(rung: Rung) -> torch.Tensor:
        out = [module(*take(parts, slice(at, at + rung.micro))) for at in range(0, rows, rung.micro)]
        return torch.cat(out) if len(out) > 1 else out[0]

    return Ladder(Rung(min(rows, CHUNK), can_checkpoint=False)).attempt(forward)


def per_example(losses: torch.Tensor, rows: int, name: str) -> torch.Tensor:
    """`losses` unchanged when it is (rows,).

    Raises ValueError otherwise: a mean couples records (privacy is then void), and (n, 1) against (n,) broadcasts to
    (n, n).
    """
    if losses.shape != (rows,):
        raise ValueError(f"{name} gave shape {tuple(losses.shape)} for {rows} examples; it must be ({rows},): one each")
    return losses


@torch.inference_mode()
def losses(task: Task, output: torch.Tensor, truth: torch.Tensor, name: str = "loss") -> np.ndarray:
    """`loss` or `gate_loss` of each example, float64 (n,)."""
    return per_example(getattr(task, name)(output, truth), len(truth), name).double().numpy()


@torch.inference_mode()
def couples_records(task: Task, module: torch.nn.Module, parts: tuple[torch.Tensor, ...], truth: torch.Tensor) -> bool:
    """Whether the loss of an example depends on the others beside it, seen on a few of n > 0 rows (one row: beside itself).

    In-batch negatives give one loss for each example all the same, so that their shape says nothing.
    """
    rows = torch.arange(max(2, min(FEW, len(truth)))) % len(truth)
    together = task.loss(module(*take(parts, rows)), truth[rows])
    alone = torch.cat([task.loss(module(*take(parts, row)), truth[row]) for row in torch.split(rows, 1)])
    both = torch.isfinite(together) & torch.isfinite(alone)
    return not torch.allclose(together[both], alone[both], rtol=1e-2, atol=1e-4)
