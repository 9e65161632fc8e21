"""Columns as pyarrow's JSON reader gives them -> columns of the schema, with a mask: which rows are surely right.

A row is surely right when document.reader would give the same value, bit for bit. Where the two readers could differ
(numbers at the end of their range, text that is not UTF-8, a time in another spelling) the mask says False, and the row
is read again alone. This file does not know where lines of JSON come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from assets.stream.batch import Ints
from assets.stream.decode import floats
from assets.stream.document import is_float, largest
from assets.stream.spans import high, not_utf8

Bools = npt.NDArray[np.bool_]
Convert = Callable[[pa.Array], tuple[pa.Array, Bools | None]]  # None = all rows are surely right

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# What Arrow and datetime.fromisoformat read alike: a day that exists, maybe a time of it, maybe with a zone.
_DAY = (
    r"(?:(?:[1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])-"
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
    r"|(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)"
)
_CLOCK = r"[T ](?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?"
_ZONE = r"(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"


def raw_schema(fields: Iterable[pa.Field]) -> pa.Schema:
    """What pyarrow is to read: a wider type where it would refuse a whole batch for one value."""
    return pa.schema([(field.name, _reading(field.type)[0]) for field in fields])


def columns_from(raw: pa.Table, payload: pa.Schema) -> tuple[list[pa.Array], Ints, Bools]:
    """The columns of the payload; in each row, how many of them are null, (n,); and which rows are surely right, (n,).

    pyarrow takes a missing field for null: which it was, is for the caller to find out.
    """
    sure = np.ones(raw.num_rows, dtype=np.bool_)
    nulls = np.zeros(raw.num_rows, dtype=np.int64)
    columns = []
    for field, chunks in zip(payload, raw.columns, strict=True):
        column, right = _reading(field.type)[1](chunks.combine_chunks())
        columns.append(column)
        if right is not None:
            sure &= right
        if column.null_count:
            absent = _bools(column.is_null())
            nulls += absent
            if not field.nullable:
                sure &= ~absent
    return columns, nulls, sure


def _reading(kind: pa.DataType) -> tuple[pa.DataType, Convert]:
    """How pyarrow is to read a column of this type, and what makes it of that."""
    if pa.types.is_string(kind):
        return kind, _texts
    if pa.types.is_timestamp(kind):
        return pa.string(), partial(_moments, kind)
    if pa.types.is_date32(kind):
        return pa.string(), _days
    if is_float(kind):
        return pa.float64(), partial(_floats, kind)
    if pa.types.is_integer(kind) and kind.bit_width < 64:
        return pa.int64(), partial(_integers, kind)
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(pa.float64()), partial(_lists, kind)
    return kind, lambda raw: (raw, None)


def _bools(array: pa.Array) -> Bools:
    """Null counts as True: nulls are somebody else's matter."""
    return np.asarray((array.fill_null(True) if array.null_count else array).to_numpy(zero_copy_only=False))


def _texts(raw: pa.Array) -> tuple[pa.Array, Bools | None]:
    """pyarrow reads no escaped half of a surrogate pair, but lets pass any bytes that stand for themselves."""
    if not len(high(raw)):
        return raw, None
    try:
        raw.validate(full=True)
    except pa.ArrowInvalid:
        return raw, np.array([not_utf8(value or b"") is None for value in raw.cast(pa.binary()).to_pylist()])
    return raw, None


def _integers(kind: pa.DataType, raw: pa.Array) -> tuple[pa.Array, Bools | None]:
    info = np.iinfo(kind.to_pandas_dtype())
    within = pc.and_(pc.greater_equal(raw, int(info.min)), pc.less_equal(raw, int(info.max)))
    return raw.cast(kind, safe=False), _bools(within)


def _floats(kind: pa.DataType, raw: pa.Array) -> tuple[pa.Array, Bools | None]:
    return floats(raw, kind), _bools(_in_range(raw, kind))


def _in_range(numbers: pa.Array, kind: pa.DataType) -> pa.Array:
    """Not at the very end: there a long integer beyond it may have been rounded to it. False for NaN and infinity."""
    return pc.less(pc.abs(numbers), largest(kind))


def _lists(kind: pa.DataType, raw: pa.Array) -> tuple[pa.Array, Bools | None]:
    absent = _bools(raw.is_null())
    lengths = raw.value_lengths().fill_null(0).to_numpy()
    edges = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    flat = raw.flatten()
    right = np.ones(len(raw), dtype=np.bool_)
    wrong = ~_in_range(flat, kind.value_type).fill_null(False).to_numpy(zero_copy_only=False)
    right[np.searchsorted(edges, np.flatnonzero(wrong), "right") - 1] = False
    numbers = floats(flat, kind.value_type)
    mask = pa.array(absent) if absent.any() else None
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(pa.array(edges.astype(np.int32)), numbers, type=kind, mask=mask), right
    whole = lengths == kind.list_size
    square = np.zeros((len(raw), kind.list_size), dtype=kind.value_type.to_pandas_dtype())
    square[whole] = numbers.to_numpy(zero_copy_only=False)[np.repeat(whole, lengths)].reshape(-1, kind.list_size)
    array = pa.FixedSizeListArray.from_arrays(pa.array(square.reshape(-1)), type=kind, mask=mask)
    return array, right & (whole | absent)


def _days(raw: pa.Array) -> tuple[pa.Array, Bools | None]:
    spelled = pc.match_substring_regex(raw, f"^{_DAY}$")
    return pc.if_else(spelled, raw, "1970-01-01").cast(pa.date32()), _bools(spelled)


def _moments(kind: pa.DataType, raw: pa.Array) -> tuple[pa.Array, Bools | None]:
    pattern = f"^{_DAY}{_CLOCK}{_ZONE}$" if kind.tz else f"^{_DAY}(?:{_CLOCK})?$"
    spelled = pc.match_substring_regex(raw, pattern)
    texts = pc.if_else(spelled, raw, "1970-01-01T00:00:00" + ("Z" if kind.tz else ""))
    unit = pa.timestamp("us", kind.tz and "UTC")
    try:
        moments = texts.cast(unit)
    except pa.ArrowInvalid:  # more than six digits: fromisoformat drops the rest
        moments = pc.replace_substring_regex(texts, r"(\.\d{6})\d+", r"\1").cast(unit)
    ticks = moments.cast(pa.int64()).fill_null(0).to_numpy()
    low, high = (1678, 2262) if kind.unit == "ns" else (1, 10_000)
    right = _bools(spelled) & (ticks >= _micros(low)) & (ticks < _micros(high))
    if kind.unit == "ns":
        ticks = ticks * 1000
    elif kind.unit != "us":
        ticks = ticks // (1000 if kind.unit == "ms" else 1_000_000)
    absent = _bools(raw.is_null())
    return pa.array(ticks, pa.int64(), mask=absent).cast(kind), right


def _micros(year: int) -> int:
    """Microseconds from 1970 to the year's begin; the year 10,000 is too far for a datetime."""
    if year > datetime.max.year:
        return (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND + 1
    return (datetime(year, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND
