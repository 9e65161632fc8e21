"""One JSON document, read strictly: bytes -> {name: value}, and each value -> what its column holds, or why it does not fit.

Names appear once, numbers are finite, text is Unicode that can be stored. Reasons name fields and types, never values.
This file does not know records, tables or requests: whoever reads JSON by a schema can read it by this law.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa

NAME_SHOWN = 80

_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "an integer", float: "a number"}

Convert = Callable[[Any], Any]


class SchemaRefused(ValueError):
    """The task's schema names a field or a type that a JSON record cannot carry."""


class Poison(Exception):
    """Why a document or a value is refused."""


def document(value: bytes) -> dict[str, Any]:
    """The names and values of one JSON object. Raises Poison for everything else."""
    try:
        found = _READ.decode(value.decode("utf-8"))
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
    if type(found) is not dict:
        raise Poison(f"not an object: found {kind_of(found)}")
    return found


def required_of(schema: pa.Schema, required: Sequence[str]) -> pa.Schema:
    """The schema with the required fields never null. Raises SchemaRefused for names that no format can keep apart."""
    for name in required:
        if name not in schema.names:
            raise SchemaRefused(f"the schema has no field {name!r} (it has {', '.join(schema.names)}): add it")
    if len({*schema.names}) != len(schema.names):
        raise SchemaRefused(f"the schema has a field twice: {', '.join(schema.names)}")
    for name in schema.names:
        if name.startswith("_"):
            raise SchemaRefused(f"field {name!r}: names with a leading underscore are Headgate's own; rename it")
    return pa.schema([field.with_nullable(field.nullable and field.name not in required) for field in schema])


def reader(field: pa.Field) -> Convert:
    """What turns the JSON value of a field into the value of its column (None = null), or raises Poison.

    Raises SchemaRefused for a field that no JSON record can carry.
    """
    convert = _reader_of(field.type)
    if convert is None:
        raise SchemaRefused(
            f"field {field.name!r} has type {field.type}, which a JSON record cannot carry here: use string, bool, an "
            "integer, float32, float64, timestamp or date32 (ISO 8601 strings), or a list of float32 or float64"
        )
    if not field.nullable:
        return convert
    return lambda value: None if value is None else convert(value)


def shown(name: str) -> str:
    """The name of a field for a message: short, and ASCII."""
    return ascii(name if len(name) <= NAME_SHOWN else name[:NAME_SHOWN] + "...")


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    return _KINDS.get(type(value), "null")


def largest(kind: pa.DataType) -> float:
    """The largest number of a float type."""
    return float(np.finfo(np.float32).max) if pa.types.is_float32(kind) else sys.float_info.max


def is_float(kind: pa.DataType) -> bool:
    """float32 or float64."""
    return bool(pa.types.is_float32(kind) or pa.types.is_float64(kind))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise Poison(f"duplicate key {shown(next(name for name in names if names.count(name) > 1))}")
    return found


def _no_constant(name: str) -> Any:
    raise Poison(f"{name} is no JSON number")


_READ = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _wrong(value: Any, wanted: str) -> Poison:
    return Poison(f"wrong type: found {kind_of(value)}, wanted {wanted}")


def _reader_of(kind: pa.DataType) -> Convert | None:
    if pa.types.is_string(kind):
        return _text
    if pa.types.is_boolean(kind):
        return _boolean
    if pa.types.is_integer(kind):
        return _integer(str(kind), np.iinfo(kind.to_pandas_dtype()))
    if pa.types.is_timestamp(kind):
        return _moment(kind)
    if pa.types.is_date32(kind):
        return _day
    if is_float(kind):
        return _number(largest(kind))
    if pa.types.is_fixed_size_list(kind) and is_float(kind.value_type) and kind.list_size:  # Arrow divides by the size
        return _numbers(largest(kind.value_type), kind.list_size)
    if pa.types.is_list(kind) and is_float(kind.value_type):
        return _numbers(largest(kind.value_type), None)
    return None


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


def _number(most: float) -> Convert:
    def convert(value: Any) -> float:
        if type(value) is not float and type(value) is not int:
            raise _wrong(value, "a number")
        if not -most <= value <= most:  # 1e999 is read as infinity
            raise Poison(f"number overflow: beyond {most:.6g}")
        return float(value)

    return convert


def _numbers(most: float, size: int | None) -> Convert:
    def convert(value: Any) -> list[Any]:
        if type(value) is not list:
            raise _wrong(value, "a list of numbers")
        if size is not None and len(value) != size:
            raise Poison(f"wrong length: found a list of {len(value)}, wanted {size}")
        if not set(map(type, value)) <= {float, int}:
            odd = next(item for item in value if type(item) is not float and type(item) is not int)
            raise _wrong(odd, "numbers in the list")
        if value and not (-most <= min(value) and max(value) <= most):
            raise Poison(f"number overflow in the list: beyond {most:.6g}")
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


def _day(value: Any) -> date:
    if type(value) is not str:
        raise _wrong(value, "a date as an ISO 8601 string")
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise Poison("not a date in ISO 8601") from None
