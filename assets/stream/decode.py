"""Record values (JSON bytes) -> columns of the task's schema; every record that does not fit has a reason.

A field is there or the record is rejected: a missing field is never read as null, and null is taken only where the
schema says nullable. Reasons name fields and types, never values. This file does not know where records come from and
what becomes of the rejected ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from assets.stream.log import Record
from assets.stream.store import MILLISECONDS

ENVELOPE = pa.schema(
    [
        pa.field("_partition", pa.int32(), nullable=False),
        pa.field("_offset", pa.int64(), nullable=False),
        pa.field("_timestamp", MILLISECONDS, nullable=False),
        pa.field("_key", pa.binary()),
    ]
)
NAME_SHOWN = 80

_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "an integer", float: "a number"}

Convert = Callable[[Any], Any]


class SchemaRefused(ValueError):
    """The task's schema names a field or a type that a JSON record cannot carry."""


class Poison(Exception):
    """Why one record is rejected."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that is not in the table, and why."""

    record: Record
    error: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """The good records as a table (envelope columns, then the schema's), in the order given, and the others."""

    table: pa.Table
    rejects: list[Rejected]


class Decoder:
    """Decodes records of one topic. `required`: fields that are never null, whatever the schema says of them."""

    def __init__(self, schema: pa.Schema, required: Sequence[str] = ()) -> None:
        for name in required:
            if name not in schema.names:
                raise SchemaRefused(f"the schema has no field {name!r} (it has {', '.join(schema.names)}): add it")
        self.schema = pa.schema(
            [field.with_nullable(field.nullable and field.name not in required) for field in schema]
        )
        self._fields = [(field.name, _converter(field)) for field in self.schema]
        self._names = frozenset(self.schema.names)
        if len(self._names) != len(self._fields):
            raise SchemaRefused(f"the schema has a field twice: {', '.join(self.schema.names)}")
        self._json = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)

    def decode(self, records: Sequence[Record]) -> Decoded:
        """Raises nothing about the content of a record: what does not fit is in `rejects`."""
        good: list[Record] = []
        rows: list[list[Any]] = []
        rejects: list[Rejected] = []
        for record in records:
            try:
                rows.append(self._row(record.value))
            except Poison as poison:
                rejects.append(Rejected(record, str(poison)))
            else:
                good.append(record)
        return Decoded(self._table(good, rows), rejects)

    def _row(self, value: bytes | None) -> list[Any]:
        document = self._document(value)
        if document.keys() != self._names:
            missing = [name for name, _ in self._fields if name not in document]
            if missing:
                raise Poison(f"missing field {_shown(missing[0])}")
            raise Poison(f"unknown field {_shown(next(name for name in document if name not in self._names))}")
        row = []
        for name, convert in self._fields:
            try:
                row.append(convert(document[name]))
            except Poison as poison:
                raise Poison(f"field {_shown(name)}: {poison}") from None
        return row

    def _document(self, value: bytes | None) -> dict[str, Any]:
        if value is None:
            raise Poison("tombstone: the record has no value")
        if not value:
            raise Poison("empty value")
        try:
            document = self._json.decode(value.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise Poison(f"not UTF-8: byte {error.start}") from None
        except json.JSONDecodeError as error:
            if error.msg == "Extra data":
                raise Poison(f"two documents in one value: the second begins at character {error.pos}") from None
            raise Poison(f"not JSON: {error.msg} at character {error.pos}") from None
        except RecursionError:
            raise Poison("not JSON that can be read: nested too deeply") from None
        except ValueError:  # more digits than Python converts (4,300)
            raise Poison("integer overflow: more digits than any integer type holds") from None
        if type(document) is not dict:
            raise Poison(f"not an object: found {_kind(document)}")
        return document

    def _table(self, records: list[Record], rows: list[list[Any]]) -> pa.Table:
        envelope = [
            pa.array([record.partition for record in records], pa.int32()),
            pa.array([record.offset for record in records], pa.int64()),
            pa.array([record.timestamp for record in records], pa.int64()).cast(MILLISECONDS),
            pa.array([record.key for record in records], pa.binary()),
        ]
        columns = zip(*rows, strict=True) if rows else ([] for _ in self._fields)
        payload = [_column(list(column), field.type) for column, field in zip(columns, self.schema, strict=True)]
        return pa.Table.from_arrays(envelope + payload, schema=pa.schema([*ENVELOPE, *self.schema]))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise Poison(f"duplicate key {_shown(next(name for name in names if names.count(name) > 1))}")
    return found


def _no_constant(name: str) -> Any:
    raise Poison(f"{name} is no JSON number")


def _shown(name: str) -> str:
    return ascii(name if len(name) <= NAME_SHOWN else name[:NAME_SHOWN] + "...")


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "null")


def _wrong(value: Any, wanted: str) -> Poison:
    return Poison(f"wrong type: found {_kind(value)}, wanted {wanted}")


# -- one value of one field -------------------------------------------------------------------------------------------


def _converter(field: pa.Field) -> Convert:
    if field.name.startswith("_"):
        raise SchemaRefused(f"field {field.name!r}: names with a leading underscore are Headgate's own; rename it")
    convert = _converter_of(field.type)
    if convert is None:
        raise SchemaRefused(
            f"field {field.name!r} has type {field.type}, which a JSON record cannot carry here: use string, bool, an "
            "integer, float32, float64, timestamp (an ISO 8601 string), or a list of float32 or float64"
        )
    if not field.nullable:
        return convert
    return lambda value: None if value is None else convert(value)


def _converter_of(kind: pa.DataType) -> Convert | None:
    if pa.types.is_string(kind):
        return _text
    if pa.types.is_boolean(kind):
        return _boolean
    if pa.types.is_integer(kind):
        return _integer(str(kind), np.iinfo(kind.to_pandas_dtype()))
    if pa.types.is_timestamp(kind):
        return _moment(kind)
    if _is_float(kind):
        return _number(_largest(kind))
    if pa.types.is_fixed_size_list(kind) and _is_float(kind.value_type):
        return _numbers(_largest(kind.value_type), kind.list_size)
    if pa.types.is_list(kind) and _is_float(kind.value_type):
        return _numbers(_largest(kind.value_type), None)
    return None


def _is_float(kind: pa.DataType) -> bool:
    return bool(pa.types.is_float32(kind) or pa.types.is_float64(kind))


def _largest(kind: pa.DataType) -> float:
    return float(np.finfo(np.float32).max) if pa.types.is_float32(kind) else sys.float_info.max


def _text(value: Any) -> str:
    if type(value) is not str:
        raise _wrong(value, "a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Poison("lone surrogate in a string") from None
    return value


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise _wrong(value, "a boolean")
    return value


def _integer(kind: str, info: Any) -> Convert:
    low, high = int(info.min), int(info.max)

    def convert(value: Any) -> int:
        if type(value) is not int:  # true is not 1, and 1.0 is not 1
            raise _wrong(value, f"an integer ({kind})")
        if not low <= value <= high:
            raise Poison(f"integer overflow: outside {kind}, {low} to {high}")
        return value

    return convert


def _number(largest: float) -> Convert:
    def convert(value: Any) -> float:
        if type(value) is not float and type(value) is not int:
            raise _wrong(value, "a number")
        if not -largest <= value <= largest:  # 1e999 is read as infinity
            raise Poison(f"number overflow: beyond {largest:.6g}")
        return float(value)

    return convert


def _numbers(largest: float, size: int | None) -> Convert:
    def convert(value: Any) -> list[Any]:
        if type(value) is not list:
            raise _wrong(value, "a list of numbers")
        if size is not None and len(value) != size:
            raise Poison(f"wrong length: found a list of {len(value)}, wanted {size}")
        if not set(map(type, value)) <= {float, int}:
            odd = next(item for item in value if type(item) is not float and type(item) is not int)
            raise _wrong(odd, "numbers in the list")
        if value and not (-largest <= min(value) and max(value) <= largest):
            raise Poison(f"number overflow in the list: beyond {largest:.6g}")
        return value

    return convert


def _moment(kind: pa.DataType) -> Convert:
    nanoseconds = kind.unit == "ns"  # int64 nanoseconds reach from 1677 to 2262

    def convert(value: Any) -> datetime:
        if type(value) is not str:
            raise _wrong(value, "a time as an ISO 8601 string")
        try:
            moment = datetime.fromisoformat(value)
            if (moment.tzinfo is None) != (kind.tz is None):
                raise Poison(f"time {'without' if moment.tzinfo is None else 'with'} a time zone, unlike the schema's")
            moment = moment.astimezone(UTC) if moment.tzinfo is not None else moment
        except (ValueError, OverflowError):
            raise Poison("not a time in ISO 8601") from None
        if nanoseconds and not 1678 <= moment.year <= 2261:
            raise Poison("time overflow: nanoseconds reach from 1678 to 2261")
        return moment

    return convert


# -- one column of many values ----------------------------------------------------------------------------------------


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind)):
        return pa.array(values, kind)
    absent = np.array([value is None for value in values], dtype=bool)
    mask = pa.array(absent) if absent.any() else None
    dtype = np.float32 if pa.types.is_float32(kind.value_type) else np.float64
    if pa.types.is_fixed_size_list(kind):
        filler = [0.0] * kind.list_size
        flat = _flat([filler if value is None else value for value in values], len(values) * kind.list_size, dtype)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind, mask=mask)
    lengths = [0 if value is None else len(value) for value in values]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    flat = _flat([value for value in values if value is not None], int(offsets[-1]), dtype)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), type=kind, mask=mask)


def _flat(lists: list[list[Any]], count: int, dtype: Any) -> Any:
    return np.fromiter(chain.from_iterable(lists), dtype=np.float64, count=count).astype(dtype)
