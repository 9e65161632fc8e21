"""Record values (JSON bytes) -> columns of the task's schema, one record at a time; what does not fit has a reason.

A field is there or the record is rejected: a missing field is never read as null, and null is taken only where the
schema says nullable. This is the law; json_columns.py keeps it at speed. What a single value may be is in document.py.
This file does not know where records come from and what becomes of the rejected ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.stream.document import Poison, SchemaRefused, document, is_float, reader, required_of, shown
from assets.stream.log import Record
from assets.stream.spans import MILLISECONDS

__all__ = ["ENVELOPE", "Decoded", "Decoder", "Rejected", "SchemaRefused"]

ENVELOPE = pa.schema(
    [
        pa.field("_partition", pa.int32(), nullable=False),
        pa.field("_offset", pa.int64(), nullable=False),
        pa.field("_timestamp", MILLISECONDS, nullable=False),
        pa.field("_key", pa.binary()),
    ]
)


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
        self.schema = required_of(schema, required)
        self._fields = [(field.name, reader(field)) for field in self.schema]
        self._names = frozenset(self.schema.names)

    def decode(self, records: Iterable[Record]) -> Decoded:
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
        if value is None:
            raise Poison("tombstone: the record has no value")
        if not value:
            raise Poison("empty value")
        found = document(value)
        if found.keys() != self._names:
            missing = [name for name, _ in self._fields if name not in found]
            if missing:
                raise Poison(f"missing field {shown(missing[0])}")
            raise Poison(f"unknown field {shown(next(name for name in found if name not in self._names))}")
        row = []
        for name, convert in self._fields:
            try:
                row.append(convert(found[name]))
            except Poison as poison:
                raise Poison(f"field {shown(name)}: {poison}") from None
        return row

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


def floats(numbers: pa.Array, kind: pa.DataType) -> pa.Array:
    """The numbers as float32 or float64 without a negative zero: JSON's -0 is an integer, and -0.0 would be other bytes."""
    return pc.add(numbers.cast(kind, safe=False), pa.scalar(0.0, kind))


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if is_float(kind):
        return floats(pa.array(values, pa.float64()), kind)
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind)):
        return pa.array(values, kind)
    absent = np.array([value is None for value in values], dtype=bool)
    mask = pa.array(absent) if absent.any() else None
    if pa.types.is_fixed_size_list(kind):
        filler = [0.0] * kind.list_size
        flat = _flat([filler if value is None else value for value in values], len(values) * kind.list_size)
        return pa.FixedSizeListArray.from_arrays(floats(flat, kind.value_type), type=kind, mask=mask)
    lengths = [0 if value is None else len(value) for value in values]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    flat = _flat([value for value in values if value is not None], int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), floats(flat, kind.value_type), type=kind, mask=mask)


def _flat(lists: list[list[Any]], count: int) -> pa.Array:
    return pa.array(np.fromiter(chain.from_iterable(lists), dtype=np.float64, count=count))
