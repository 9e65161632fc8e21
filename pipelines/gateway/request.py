"""Reads one event from a request body, strictly, by the task's own event schema.

Every field of the schema must be there with its JSON type, nothing else may be; NaN, infinity, duplicate names and
numbers that do not fit the column are refused with the name of the field. What comes out is what training saw: arrays
of length 1 with the column's numpy type. It does not know the task's `encode`, the token or the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np

from pipelines.gateway.answer import Refused

UNIT = "unit"
MAX_UNIT = 256


class SchemaUnusable(ValueError):
    """The task's event schema has a column that no JSON request can carry."""


class _Wrong(Exception):
    """A value does not fit its column; the text says what was wanted."""


@dataclass(frozen=True, slots=True)
class Column:
    """One field of the schema: `read` turns a JSON value into an array of length 1, or raises _Wrong.

    `wanted` says in words, `shape` as JSON schema, what may be sent.
    """

    name: str
    wanted: str
    read: Callable[[Any], np.ndarray]
    shape: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """One event: its id, the unit of the traffic split, and its columns ({name: array of length 1})."""

    event_id: str
    unit: str
    columns: Mapping[str, np.ndarray]


class RequestReader:
    """Reads bodies for one event schema; `subject` names the column that is the unit of the split, None = event_id."""

    def __init__(self, schema: Any, subject: str | None = None) -> None:
        self.columns = {field.name: _column(field) for field in schema}
        self._subject = subject
        self._takes_unit = UNIT not in self.columns

    def read(self, body: bytes) -> Request:
        """The event in `body`, or Refused: 400 for what is not JSON, 422 for what is not this task's event."""
        fields = _parse(body)
        given = fields.pop(UNIT, None) if self._takes_unit else None
        self._check_names(fields)
        columns = {}
        for name, column in self.columns.items():
            try:
                columns[name] = column.read(fields[name])
            except _Wrong as wrong:
                raise _field(name, f"field {name!r} is {wrong}; send {column.wanted}") from None
        event_id = _text(fields["event_id"], "event_id")
        return Request(event_id, self._unit(fields, given, event_id), columns)

    def _check_names(self, fields: Mapping[str, Any]) -> None:
        for name in self.columns:
            if name not in fields:
                raise _field(name, f"field {name!r} is missing; send {self.columns[name].wanted}")
        if len(fields) != len(self.columns):
            unknown = next(name for name in fields if name not in self.columns)
            known = ", ".join(self.columns)
            raise _field(unknown, f"field {unknown[:80]!r} is unknown; this task's event has {known}")

    def _unit(self, fields: Mapping[str, Any], given: Any, event_id: str) -> str:
        if self._subject is None:
            return event_id if given is None else _text(given, UNIT)
        subject = str(fields[self._subject])
        # Who is analysed is who is randomised: a client may not choose another unit than the task's subject.
        if given is not None and given != subject:
            raise _field(UNIT, f"field 'unit' differs from {self._subject!r}, this task's subject; leave 'unit' out")
        return _text(subject, self._subject)


def _field(name: str, message: str) -> Refused:
    return Refused(422, "invalid_event", message, field=name[:80])


def _parse(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body, parse_constant=_no_constant, object_pairs_hook=_no_twins)
    except Refused:
        raise
    except RecursionError:
        raise Refused(400, "invalid_json", "the body is nested too deeply; send one flat JSON object") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, an integer beyond 4,300 digits
        raise Refused(400, "invalid_json", f"the body is not JSON: {str(error)[:200]}; send one JSON object") from None
    if not isinstance(value, dict):
        raise Refused(400, "invalid_json", f"the body is a JSON {type(value).__name__}; send one JSON object")
    return value


def _no_constant(text: str) -> Any:
    raise Refused(400, "invalid_json", f"the body holds {text}, which JSON does not have; send finite numbers")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise Refused(400, "invalid_json", f"the name {twin[:80]!r} appears twice in one object; send it once")
    return found


def _text(value: Any, name: str) -> str:
    text = value if isinstance(value, str) else ""
    if not 0 < len(text) <= MAX_UNIT:
        raise _field(name, f"field {name!r} must be a text of 1 to {MAX_UNIT} characters")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can escape half a surrogate pair; hashes and Kafka keys are bytes
        raise _field(name, f"field {name!r} holds half a surrogate pair; send valid Unicode") from None
    return text


def _column(field: Any) -> Column:
    import pyarrow.types as kinds

    kind = field.type.value_type if kinds.is_dictionary(field.type) else field.type
    if kinds.is_string(kind) or kinds.is_large_string(kind):
        return Column(field.name, "a text", _read_text, {"type": "string"})
    if kinds.is_boolean(kind):
        return Column(field.name, "true or false", _read_bool, {"type": "boolean"})
    if kinds.is_timestamp(kind):
        moment = {"type": "string", "format": "date-time"}
        return Column(field.name, "an ISO 8601 time with its zone", _time_reader(kind.unit), moment)
    if kinds.is_date(kind):
        return Column(field.name, "an ISO 8601 date", _read_date, {"type": "string", "format": "date"})
    if kinds.is_fixed_size_list(kind) and _is_number(kind.value_type):
        return _vector(field.name, kind.value_type, kind.list_size)
    if _is_number(kind):
        wanted, number, shape = _number(kind)
        dtype = np.dtype(kind.to_pandas_dtype())
        if field.nullable and dtype.kind == "f":  # absent in training too: a missing measurement is NaN to `encode`
            return _measurement(field.name, wanted, number, shape, dtype)
        return Column(field.name, wanted, lambda value: np.array([number(value)], dtype=dtype), shape)
    raise SchemaUnusable(
        f"event field {field.name!r} has type {field.type}, which a JSON request cannot carry; use text, bool, "
        "integer, float, timestamp, date or a fixed-size list of numbers"
    )


def _measurement(
    name: str, wanted: str, number: Callable[[Any], int | float], shape: Mapping[str, Any], dtype: np.dtype[Any]
) -> Column:
    def read(value: Any) -> np.ndarray:
        return np.array([np.nan if value is None else number(value)], dtype=dtype)

    return Column(name, f"{wanted} or null", read, {**shape, "type": [shape["type"], "null"]})


def _is_number(kind: Any) -> bool:
    import pyarrow.types as kinds

    return bool(kinds.is_integer(kind) or kinds.is_float32(kind) or kinds.is_float64(kind))


def _number(kind: Any) -> tuple[str, Callable[[Any], int | float], Mapping[str, Any]]:
    dtype = np.dtype(kind.to_pandas_dtype())
    if dtype.kind == "f":
        largest = float(np.finfo(dtype).max)
        return "a finite number", lambda value: _read_float(value, largest), {"type": "number"}
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    shape = {"type": "integer", "minimum": low, "maximum": high}
    return f"a whole number from {low} to {high}", lambda value: _read_int(value, low, high), shape


def _vector(name: str, kind: Any, size: int) -> Column:
    wanted, number, item = _number(kind)
    dtype = np.dtype(kind.to_pandas_dtype())
    shape = {"type": "array", "items": item, "minItems": size, "maxItems": size}

    def read(value: Any) -> np.ndarray:
        if not isinstance(value, list) or len(value) != size:
            raise _Wrong(f"a list of {len(value)}" if isinstance(value, list) else _kind_of(value))
        return np.array([[number(item) for item in value]], dtype=dtype)

    return Column(name, f"a list of {size} numbers, each {wanted}", read, shape)


def _kind_of(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def _read_text(value: Any) -> np.ndarray:
    if not isinstance(value, str):
        raise _Wrong(_kind_of(value))
    return np.array([value], dtype=object)


def _read_bool(value: Any) -> np.ndarray:
    if not isinstance(value, bool):
        raise _Wrong(_kind_of(value))
    return np.array([value])


def _read_int(value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Wrong("a number with a fraction" if isinstance(value, float) else _kind_of(value))
    if not low <= value <= high:
        raise _Wrong("out of range")
    return value


def _read_float(value: Any, largest: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Wrong(_kind_of(value))
    if not -largest <= value <= largest:  # 1e309 arrives as infinity
        raise _Wrong("out of range")
    return float(value)


def _time_reader(unit: str) -> Callable[[Any], np.ndarray]:
    def read(value: Any) -> np.ndarray:
        try:
            moment = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            raise _Wrong(_kind_of(value) + " that is no time") from None
        if moment.tzinfo is None:
            raise _Wrong("a time without a zone")
        seconds = (moment - datetime.fromisoformat("1970-01-01T00:00:00+00:00")).total_seconds()
        return np.array([math.floor(seconds * 1e6)], dtype="datetime64[us]").astype(f"datetime64[{unit}]")

    return read


def _read_date(value: Any) -> np.ndarray:
    try:
        return np.array([date.fromisoformat(value)], dtype="datetime64[D]")
    except (TypeError, ValueError):
        raise _Wrong(_kind_of(value) + " that is no date") from None
