"""Avro values of one writer's schema -> columns of the window's, field by field, all records at once.

The bytes of a record say nothing of where its fields are: only reading finds out. So a cursor stands in every record, and
each field is read from all of them before the next. A record whose bytes are too few, too many or wrong is rejected
alone. Fields are matched by name; what the window does not want is stepped over; a nullable column the writer does not
have is null. Values obey the same law as JSON's (decode.py). This file does not know where a schema comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from assets.stream.avro_schema import Kind, WriterRefused, record_of
from assets.stream.avro_values import Read, reader, word
from assets.stream.avro_walk import skip
from assets.stream.batch import Batch, Ints
from assets.stream.cursor import Cursor, padded
from assets.stream.decode import ENVELOPE, Decoded, Rejected
from assets.stream.document import SchemaRefused, required_of, shown
from assets.stream.spans import envelope

ROWS_AT_ONCE = 8_192
BYTES_AT_ONCE = 256 << 20  # Arrow's offsets are 32 bits wide
TOMBSTONE, EMPTY = "tombstone: the record has no value", "empty value"  # decode.py's words

_CURES = {
    "decimal": "send it as double or string",
    "record": "send its fields beside the others",
    "fixed": "send it as bytes or string",
}


class AvroColumns:
    """Decodes the records of one writer's schema. notes: what is not read, and what is null, in words, for people.

    writer: the schema as JSON text. schema: of the window's values. required: fields that are never null, whatever the
    schema says of them. Raises WriterRefused when no record of this writer can be a row of the window, SchemaRefused
    when no record of any writer can.
    """

    def __init__(self, writer: str, schema: pa.Schema, required: Sequence[str] = ()) -> None:
        self._payload = payload_of(schema, required)
        self.schema = pa.schema([*ENVELOPE, *self._payload])
        record = record_of(writer)
        self._steps = [
            (name, _step(name, kind, self._payload)) for name, kind in zip(record.names, record.parts, strict=True)
        ]
        missing = [field for field in self._payload if field.name not in record.names]
        for field in missing:
            if not field.nullable:
                raise WriterRefused(f"missing field {field.name!r}: it is never null, and the writer does not have it")
        unwanted = [name for name in record.names if name not in self._payload.names]
        self.notes = tuple(
            f"{what}: {', '.join(map(repr, names))}"
            for what, names in (
                ("not read, the window does not have them", unwanted),
                ("null, the writer does not have them", [field.name for field in missing]),
            )
            if names
        )

    def decode(self, batch: Batch) -> Decoded:
        """Raises nothing about the content of a record: what does not fit is in `rejects`."""
        lengths = batch.values[1]
        errors = {row: TOMBSTONE if lengths[row] < 0 else EMPTY for row in np.flatnonzero(lengths <= 0).tolist()}
        blocks = []
        for rows, cursor in _cursors(batch):
            blocks.append(self._block(cursor))
            errors |= {int(rows[row]): why for row, why in cursor.errors.items()}
        columns = [
            pa.chunked_array([block[number] for block in blocks], field.type)
            for number, field in enumerate(self._payload)
        ]
        ours = envelope(batch)
        if errors:
            good = np.ones(len(batch), np.bool_)
            good[list(errors)] = False
            ours = [column.filter(pa.array(good)) for column in ours]
        rejects = [Rejected(batch.record(row), errors[row]) for row in sorted(errors)]
        return Decoded(pa.Table.from_arrays([*ours, *columns], schema=self.schema), rejects)

    def _block(self, cursor: Cursor) -> list[pa.Array]:
        """The payload's columns, of the rows that are good."""
        found: dict[str, pa.Array] = {}
        for name, step in self._steps:
            cursor.begin(f"field {shown(name)}: ")
            found[name] = step(cursor)
        cursor.begin("")
        left = cursor.end - cursor.pos
        for row in np.flatnonzero(left).tolist():
            cursor.fail_one(row, f"trailing bytes: {left[row]} after the last field")
        columns = [
            found[field.name] if field.name in found else pa.nulls(len(cursor), field.type) for field in self._payload
        ]
        bad = cursor.failed()
        return [column.filter(pa.array(~bad)) for column in columns] if bad.any() else columns


def payload_of(schema: pa.Schema, required: Sequence[str]) -> pa.Schema:
    """The schema with the required fields never null. Raises SchemaRefused for what no Avro record can carry."""
    payload = required_of(schema, required)
    for field in payload:
        if word(field.type) is None:
            raise SchemaRefused(
                f"field {field.name!r} has type {field.type}, which an Avro record cannot carry here: use string, binary, "
                "bool, an integer, float32, float64, timestamp, date32, or a list of float32 or float64"
            )
    return payload


def _step(name: str, kind: Kind, payload: pa.Schema) -> Callable[[Cursor], pa.Array | None]:
    if name not in payload.names:
        return partial(skip, kind)
    field = payload.field(name)
    read = reader(kind, field.type)
    if read is None:
        cure = _CURES.get(kind.logical or kind.name, "change one of the two, or leave the column out")
        raise WriterRefused(f"field {shown(name)} is {kind}, which a column of type {field.type} cannot take: {cure}")
    return read if field.nullable else partial(_never_null, read, f"wrong type: found null, wanted {word(field.type)}")


def _never_null(read: Read, why: str, cursor: Cursor) -> pa.Array:
    array = read(cursor)
    if array.null_count:
        cursor.fail(array.is_null().to_numpy(zero_copy_only=False), why)
    return array


def _cursors(batch: Batch) -> Iterator[tuple[Ints, Cursor]]:
    """The rows of values that are there, some thousands at a time, and a cursor in a copy of their bytes."""
    rows = np.flatnonzero(batch.values[1] > 0)
    starts, lengths = batch.values[:, rows]
    data = memoryview(batch.data)
    ends = starts + lengths
    if (starts[1:] < ends[:-1]).any():  # a batch may share bytes, or have them in any order; columns need them in this one
        data = memoryview(b"".join(data[low:high] for low, high in zip(starts.tolist(), ends.tolist(), strict=True)))
        ends = np.cumsum(lengths)
        starts = ends - lengths
    low = 0
    while low < len(rows):
        high = min(len(rows), low + ROWS_AT_ONCE)
        while high - low > 1 and ends[high - 1] - starts[low] > BYTES_AT_ONCE:
            high = (low + high) // 2
        first = starts[low]
        copy = padded(data[first : ends[high - 1]])
        yield rows[low:high], Cursor(copy, starts[low:high] - first, ends[low:high] - first)
        low = high
