"""One Avro value of each record -> one Arrow column, for every type of a writer that a column of a window can take.

Numbers may become wider (Avro 1.12, "Schema Resolution"), and narrower where every value fits: what does not fit is the
record's fault, as in JSON. Times become the column's unit, rounded down. Times are those of the years 1 to 9999.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from assets.stream.avro_schema import Kind
from assets.stream.avro_walk import NO_BRANCH, NO_SYMBOL, blocks
from assets.stream.batch import Ints
from assets.stream.cursor import Cursor, at
from assets.stream.document import is_float, largest
from assets.stream.spans import gathered, joined, not_utf8, texts

Read = Callable[[Cursor], pa.Array]
Numbers = npt.NDArray[Any]

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_MOMENTS = {  # logical type -> unit, and whether it is a point in time (or what a clock on a wall shows)
    f"{local}timestamp-{name}": (unit, not local)
    for name, unit in (("millis", "ms"), ("micros", "us"), ("nanos", "ns"))
    for local in ("", "local-")
}
_FLOATS = {"float": "<f4", "double": "<f8"}
_LONG = np.iinfo(np.int64)
_DAY = 86_400


def reader(kind: Kind, wanted: pa.DataType) -> Read | None:
    """What reads a value of this kind from each row into a column of this type; None: such a column cannot take it."""
    if kind.name == "null":
        return lambda cursor: pa.nulls(len(cursor), wanted)
    if kind.name == "union":
        return _optional(kind, wanted)
    if kind.logical == "decimal":
        return None
    if pa.types.is_string(wanted):
        return _symbols(kind) if kind.name == "enum" else _text if kind.name in ("string", "bytes") else None
    if pa.types.is_binary(wanted):
        return _raw if kind.name in ("string", "bytes") else None
    if pa.types.is_boolean(wanted):
        return _boolean if kind.name == "boolean" else None
    if pa.types.is_timestamp(wanted):
        unit, zoned = _MOMENTS.get(kind.logical, ("", False))
        return _moment(wanted, unit) if kind.name == "long" and unit and zoned == (wanted.tz is not None) else None
    if pa.types.is_date32(wanted):
        return _date if (kind.name, kind.logical) == ("int", "date") else None
    if pa.types.is_integer(wanted):
        return _integer(kind, wanted) if kind.name in ("int", "long") else None
    if is_float(wanted):
        return _number(kind, wanted) if kind.name in (*_FLOATS, "int", "long") else None
    if is_numbers(wanted) and kind.name == "array" and kind.parts[0].name in (*_FLOATS, "int", "long"):
        return _list(kind.parts[0], wanted)
    return None


def word(wanted: pa.DataType) -> str | None:
    """A column's type in words, as decode.py has them; None: no Avro value becomes such a column."""
    for found, words in (
        (pa.types.is_string(wanted), "a string"),
        (pa.types.is_binary(wanted), "bytes"),
        (pa.types.is_boolean(wanted), "a boolean"),
        (pa.types.is_integer(wanted), f"an integer ({wanted})"),
        (pa.types.is_timestamp(wanted) or pa.types.is_date32(wanted), "a time"),
        (is_float(wanted), "a number"),
        (is_numbers(wanted), "a list of numbers"),
    ):
        if found:
            return words
    return None


def is_numbers(kind: pa.DataType) -> bool:
    """A list of float32 or float64, of any size or of one that is not 0."""
    sized = pa.types.is_fixed_size_list(kind) and kind.list_size > 0
    return bool((pa.types.is_list(kind) or sized) and is_float(kind.value_type))


def _optional(kind: Kind, wanted: pa.DataType) -> Read | None:
    if [part.name == "null" for part in kind.parts] not in ([True, False], [False, True]):
        return None
    there = 0 if kind.parts[1].name == "null" else 1
    inner = reader(kind.parts[there], wanted)
    if inner is None:
        return None

    def read(cursor: Cursor) -> pa.Array:
        branch = cursor.varint()
        cursor.fail((branch < 0) | (branch > 1), NO_BRANCH)
        present = np.equal(branch, there)
        if present.all():
            return inner(cursor)
        rows = np.flatnonzero(present)
        if not len(rows):
            return pa.nulls(len(cursor), wanted)
        part = cursor.sub(rows)
        values = inner(part)
        cursor.back(rows, part)
        return values.take(pa.array(np.cumsum(present) - 1, mask=~present))

    return read


# -- text and bytes ---------------------------------------------------------------------------------------------------


def _raw(cursor: Cursor) -> pa.Array:
    return gathered(cursor.data, *cursor.spans(cursor.varint()))


def _text(cursor: Cursor) -> pa.Array:
    raw = _raw(cursor)
    found, wrong = texts(raw)
    for row in np.flatnonzero(wrong).tolist():
        cursor.fail_one(row, f"not UTF-8: byte {not_utf8(raw[row].as_py())}")
    return found


def _symbols(kind: Kind) -> Read:
    symbols = pa.array(kind.names, pa.string())

    def read(cursor: Cursor) -> pa.Array:
        index = cursor.varint()
        wrong = (index < 0) | (index >= len(symbols))
        cursor.fail(wrong, NO_SYMBOL)
        return symbols.take(pa.array(index, mask=wrong if wrong.any() else None))

    return read


# -- numbers ----------------------------------------------------------------------------------------------------------


def _boolean(cursor: Cursor) -> pa.Array:
    raw = cursor.data.take(cursor.fixed(1))
    cursor.fail(raw > 1, "a boolean that is neither 0 nor 1")
    return pa.array(raw.astype(np.bool_))


def _integer(kind: Kind, wanted: pa.DataType) -> Read:
    info = np.iinfo(wanted.to_pandas_dtype())
    low, high = int(info.min), int(info.max)

    def read(cursor: Cursor) -> pa.Array:
        values = _whole(kind, cursor)
        values = _between(cursor, values, low, high, f"integer overflow: outside {wanted}, {low} to {high}")
        return pa.array(values.astype(info.dtype, copy=False))

    return read


def _whole(kind: Kind, cursor: Cursor) -> Ints:
    low, high = _range(kind)
    return _between(cursor, cursor.varint(), low, high, "integer overflow: outside Avro's int")


def _range(kind: Kind) -> tuple[int, int]:
    info = np.iinfo(np.int32 if kind.name == "int" else np.int64)
    return int(info.min), int(info.max)


def _between(cursor: Cursor, values: Ints, low: int, high: int, why: str) -> Ints:
    """The values, 0 where one is outside of [low, high]."""
    if low <= _LONG.min and high >= _LONG.max:
        return values
    wrong = (values < max(low, _LONG.min)) | (values > min(high, _LONG.max))
    if not wrong.any():
        return values
    cursor.fail(wrong, why)
    return np.where(wrong, 0, values)


def _number(kind: Kind, wanted: pa.DataType) -> Read:
    def read(cursor: Cursor) -> pa.Array:
        values = at(cursor.data, cursor.fixed(kind.width), _FLOATS[kind.name]) if kind.width else _whole(kind, cursor)
        return pa.array(_finite(cursor, values, wanted))

    return read


def _finite(cursor: Cursor, values: Numbers, wanted: pa.DataType, owners: Ints | None = None, where: str = "") -> Numbers:
    """As the column's floats, without -0.0; 0 where the number is none. owners: the row of each, None = one each."""
    most = largest(wanted)
    exact = values.astype(np.float64, copy=False)
    fits = np.abs(exact) <= most  # not so for NaN either
    if not fits.all():
        nan = np.isnan(exact)
        for wrong, why in ((nan, f"NaN is no number{where}"), (~fits & ~nan, f"number overflow{where}: beyond {most:.6g}")):
            cursor.fail(wrong if owners is None else np.isin(np.arange(len(cursor)), owners[wrong]), why)
        exact = np.where(fits, exact, 0.0)
    return exact.astype(wanted.to_pandas_dtype(), copy=False) + wanted.to_pandas_dtype()(0)


def _list(item: Kind, wanted: pa.DataType) -> Read:
    def read(cursor: Cursor) -> pa.Array:
        totals, owners, values = _items(item, cursor)
        values = _finite(cursor, values, wanted.value_type, owners, " in the list")
        if pa.types.is_list(wanted):
            edges = np.concatenate([[0], np.cumsum(totals)]).astype(np.int32)
            return pa.ListArray.from_arrays(pa.array(edges), pa.array(values), type=wanted)
        right = totals == wanted.list_size
        for row in np.flatnonzero(~right).tolist():
            why = f"wrong length: found a list of {totals[row]}, wanted {wanted.list_size}"
            cursor.fail_one(row, why)
        full = np.zeros((len(cursor), wanted.list_size), values.dtype)
        full[right] = values[right[owners]].reshape(-1, wanted.list_size)
        return pa.FixedSizeListArray.from_arrays(pa.array(full.reshape(-1)), type=wanted)

    return read


def _items(item: Kind, cursor: Cursor) -> tuple[Ints, Ints, Numbers]:
    """How many items each row has, the row of each item, and the items, by row."""
    totals = np.zeros(len(cursor), np.int64)
    owners, found = [np.zeros(0, np.int64)], [np.zeros(0)]
    for rows, part, counts in blocks(cursor):
        if item.width:
            starts, counts = part.spans(counts, item.width)
            values = joined(part.data, starts, counts * item.width).view(_FLOATS[item.name])
        else:
            values, counts = part.run(counts)
            low, high = _range(item)
            wrong = np.repeat(np.arange(len(part)), counts)[(values < low) | (values > high)]
            part.fail(np.isin(np.arange(len(part)), wrong), "integer overflow in the list: outside Avro's int")
        totals[rows] += counts
        owners.append(np.repeat(rows, counts))
        found.append(values.astype(np.float64))
    if len(found) == 2:
        return totals, owners[1], found[1]
    order = np.argsort(np.concatenate(owners), kind="stable")
    return totals, np.concatenate(owners)[order], np.concatenate(found)[order]


# -- times ------------------------------------------------------------------------------------------------------------


def _moment(wanted: pa.DataType, unit: str) -> Read:
    first, last, why = 1, 9999, "time overflow: outside the years 1 to 9999"
    if wanted.unit == "ns":  # int64 nanoseconds reach from 1677 to 2262
        first, last, why = 1678, 2261, "time overflow: nanoseconds reach from 1678 to 2261"
    theirs, ours = _PER_SECOND[unit], _PER_SECOND[wanted.unit]
    low, high = _january(first) * theirs, (_january(last) + _days(last) * _DAY) * theirs - 1

    def read(cursor: Cursor) -> pa.Array:
        values = _between(cursor, cursor.varint(), low, high, why)
        if ours != theirs:
            values = values * (ours // theirs) if ours > theirs else values // (theirs // ours)
        return pa.array(values).view(wanted)

    return read


def _date(cursor: Cursor) -> pa.Array:
    low, high = _january(1) // _DAY, _january(9999) // _DAY + _days(9999) - 1
    values = _between(cursor, cursor.varint(), low, high, "time overflow: outside the years 1 to 9999")
    return pa.array(values.astype(np.int32)).view(pa.date32())


def _january(year: int) -> int:
    """Seconds from 1970 to the first of January."""
    return round((datetime(year, 1, 1, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())


def _days(year: int) -> int:
    return datetime(year, 12, 31, tzinfo=UTC).timetuple().tm_yday
