"""A table as the columns a Task reads: {name: numpy array (n,) or (n, k)}. Knows types, not meanings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa


def columns_of(table: pa.Table) -> dict[str, np.ndarray]:
    """Every column of the table: lists of fixed size as (n, k), nulls (in numbers, of a list) as NaN, text as objects."""
    return {name: _column(table.column(name)) for name in table.column_names}


def concatenated(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The rows of several windows below each other; all must have the same columns."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _column(column: pa.ChunkedArray) -> np.ndarray:
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        flat = np.asarray(column.combine_chunks().flatten().to_numpy(zero_copy_only=False)).reshape(-1, kind.list_size)
        if not column.null_count:
            return flat
        filled = np.full((len(column), kind.list_size), np.nan, dtype=flat.dtype)  # flatten leaves the nulls out
        filled[column.is_valid().to_numpy()] = flat
        return filled
    return np.asarray(column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy())
