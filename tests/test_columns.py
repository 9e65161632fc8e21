"""Tables as the columns a Task reads."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from assets.windows.columns import columns_of


def test_a_list_that_is_null_is_a_row_of_nan_and_moves_no_other_row():
    kind = pa.list_(pa.float32(), 2)
    near = pa.chunked_array([pa.array([[1, 2], None], kind), pa.array([[5, 6]], kind)])
    found = columns_of(pa.table({"near": near}))["near"]
    assert found.shape == (3, 2) and found.dtype == np.float32
    assert np.array_equal(found, [[1, 2], [np.nan, np.nan], [5, 6]], equal_nan=True)


def test_nulls_in_numbers_are_nan_and_in_text_none():
    found = columns_of(pa.table({"n": pa.array([1, None]), "text": pa.array(["a", None])}))
    assert np.array_equal(found["n"], [1, np.nan], equal_nan=True) and found["text"].tolist() == ["a", None]
