"""Reads one event from a request body, strictly, by the task's own event schema.

What a JSON object is and what a field may hold is decided where the stream decides it (assets.stream.document), so an
event that is refused here would be rejected there. A missing measurement (null in a nullable float) is NaN to `encode`,
as in training; no other null is an event. What comes out is what training saw: arrays of length 1 with the column's numpy
type. It does not know the task's `encode`, the token or the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from assets.stream.document import Poison, SchemaRefused, document, is_float, reader
from pipelines.gateway.answer import Refused

UNIT = "unit"
MAX_UNIT = 256


class SchemaUnusable(ValueError):
    """The task's event schema has a column that no JSON request can carry."""


@dataclass(frozen=True, slots=True)
class Column:
    """One field of the schema: `read` turns a JSON value into an array of length 1, or raises Poison.

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
            except Poison as poison:
                raise _field(name, f"field {name!r}: {poison}; send {column.wanted}") from None
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
        return document(body)
    except Poison as poison:
        raise Refused(400, "invalid_json", f"the body is refused: {poison}; send one JSON object in UTF-8") from None


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
    try:
        convert = reader(field.with_nullable(False))
    except SchemaRefused as error:
        raise SchemaUnusable(f"event {error}") from None
    wanted, shape, dtype = _described(field.type)
    if dtype.kind == "M":
        return Column(field.name, wanted, lambda value: _moment(convert(value), dtype), shape)
    if field.nullable and is_float(field.type):
        either = {**shape, "type": [shape["type"], "null"]}
        return Column(field.name, f"{wanted} or null", lambda value: _array(_or_nan(convert, value), dtype), either)
    return Column(field.name, wanted, lambda value: _array(convert(value), dtype), shape)


def _or_nan(convert: Callable[[Any], Any], value: Any) -> Any:
    return np.nan if value is None else convert(value)


def _array(value: Any, dtype: np.dtype[Any]) -> np.ndarray:
    found = np.array([value], dtype=dtype)
    return found + dtype.type(0) if dtype.kind == "f" else found  # without a negative zero, as in the stream


def _moment(value: Any, dtype: np.dtype[Any]) -> np.ndarray:
    naive = value.replace(tzinfo=None) if hasattr(value, "tzinfo") else value
    return np.array([naive], dtype="datetime64[us]").astype(dtype)


def _described(kind: Any) -> tuple[str, dict[str, Any], np.dtype[Any]]:
    """What may be sent, in words and as JSON schema, and the numpy type of the column."""
    import pyarrow.types as kinds

    if kinds.is_string(kind):
        return "a text", {"type": "string"}, np.dtype(object)
    if kinds.is_boolean(kind):
        return "true or false", {"type": "boolean"}, np.dtype(bool)
    if kinds.is_timestamp(kind):
        wanted = f"an ISO 8601 time {'with its' if kind.tz else 'without a'} zone"
        return wanted, {"type": "string", "format": "date-time"}, np.dtype(f"datetime64[{kind.unit}]")
    if kinds.is_date32(kind):
        return "an ISO 8601 date", {"type": "string", "format": "date"}, np.dtype("datetime64[D]")
    if kinds.is_integer(kind):
        dtype = np.dtype(kind.to_pandas_dtype())
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        return f"a whole number from {low} to {high}", {"type": "integer", "minimum": low, "maximum": high}, dtype
    if kinds.is_fixed_size_list(kind):
        item, size = _described(kind.value_type), kind.list_size
        ends = {"minItems": size, "maxItems": size}
        return f"a list of {size} numbers, each {item[0]}", {"type": "array", "items": item[1], **ends}, item[2]
    if kinds.is_list(kind):
        raise SchemaUnusable("an event field is a list of any length, which no column of numbers holds: give it a size")
    return "a finite number", {"type": "number"}, np.dtype(kind.to_pandas_dtype())
