"""Headers of Kafka records as columns beside those of another format: `_header_<name>`, text or null.

Where a header is there more than once, the last one counts, as for Kafka's own `lastHeader`. Bytes that are no UTF-8 are
shown with backslashes: a header is for people and for tracing, and never a reason to reject a record. This file does not
know what is in the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from assets.stream.batch import NULL, Batch, Ints, read_varint
from assets.stream.cursor import Cursor, at, padded
from assets.stream.decode import ENVELOPE, Decoded
from assets.stream.document import SchemaRefused
from assets.stream.spans import binary, texts

if TYPE_CHECKING:
    from assets.stream.formats import Columns

PREFIX = "_header_"
_FEW = 32  # of so few records, the headers are read one by one: a record may have a million of them


class HeaderColumns:
    """names: of the headers that become columns, behind the envelope's. Raises SchemaRefused for an empty or double one."""

    def __init__(self, inner: Columns, names: Sequence[str]) -> None:
        if not all(names) or len({*names}) != len(names):
            raise SchemaRefused(f"headers {list(names)!r}: each needs a name, and is named once")
        self.inner, self._names = inner, tuple(names)
        self.schema = wider(inner.schema, [pa.field(f"{PREFIX}{name}", pa.string()) for name in names])

    def decode(self, batch: Batch) -> Decoded:
        """Raises nothing about the content of a record."""
        spans = header_spans(batch, self._names)
        return beside(batch, self.inner.decode(batch), [texts(binary(batch.data, *found))[0] for found in spans], self.schema)


def wider(schema: pa.Schema, fields: Sequence[pa.Field]) -> pa.Schema:
    """The schema with more fields behind the envelope's."""
    known = list(schema)
    return pa.schema([*known[: len(ENVELOPE)], *fields, *known[len(ENVELOPE) :]])


def beside(batch: Batch, decoded: Decoded, columns: Sequence[pa.Array], schema: pa.Schema) -> Decoded:
    """columns: of all records of the batch; those of the rejected ones are left out."""
    table = decoded.table
    if table.num_rows != len(batch):
        rows = pa.array(np.searchsorted(batch.offsets, table["_offset"].to_numpy()))
        columns = [column.take(rows) for column in columns]
    known = table.columns
    wide = [*known[: len(ENVELOPE)], *columns, *known[len(ENVELOPE) :]]
    return Decoded(pa.Table.from_arrays(wide, schema=schema), decoded.rejects)


def header_spans(batch: Batch, names: Sequence[str]) -> list[Ints]:
    """For each name, where each record's last header of this name is in the batch's data, (2, n): start, length or NULL."""
    starts, left = batch.headers[0].copy(), batch.headers[1].copy()
    wanted = {name.encode(): np.full((2, len(batch)), [[0], [NULL]], dtype=np.int64) for name in names}
    live = np.flatnonzero(left)
    if len(live) > _FEW:
        data = padded(batch.data)
        while len(live) > _FEW:
            starts[live] = _next(data, starts[live], live, wanted)
            left[live] -= 1
            live = live[left[live] > 0]
    for row in live.tolist():
        _rest(batch.data, int(starts[row]), int(left[row]), row, wanted)
    return list(wanted.values())


def _next(data: npt.NDArray[np.uint8], starts: Ints, rows: Ints, wanted: dict[bytes, Ints]) -> Ints:
    """Reads one header of each of the rows; where the next one begins."""
    cursor = Cursor(data, starts, np.full(len(rows), len(data)))
    name, size = cursor.spans(cursor.varint())
    length = cursor.varint()
    value, _ = cursor.spans(np.maximum(length, 0))
    for text, found in wanted.items():
        hits = np.flatnonzero(size == len(text))
        if len(hits):
            hits = hits[at(data, name[hits], f"S{len(text)}") == text]
            found[:, rows[hits]] = value[hits], length[hits]
    return cursor.pos


def _rest(data: bytes, start: int, count: int, row: int, wanted: dict[bytes, Ints]) -> None:
    for _ in range(count):
        size, start = read_varint(data, start)
        name, start = data[start : start + size], start + size
        length, start = read_varint(data, start)
        if name in wanted:
            wanted[name][:, row] = start, length
        start += max(length, 0)
