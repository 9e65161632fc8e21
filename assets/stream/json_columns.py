"""JSON values -> columns, a whole batch at a time: the tables and rejects of decode.Decoder, many times faster.

Three readers, one law. Values of one shape are read column by column (json_shape.py), those of other shapes by pyarrow
(json_parser.py). Both give the same raw columns, which are checked against the schema (json_fields.py); whatever is not
surely what the Decoder would say, the Decoder is asked about, record by record. So how a value is read is a matter of
time only. This file does not know what the types are, nor where records come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from assets.stream.batch import Batch, Ints
from assets.stream.decode import ENVELOPE, Decoded, Decoder
from assets.stream.json_fields import columns_from, raw_schema
from assets.stream.json_lines import Lines
from assets.stream.json_parser import FEW, LineParser
from assets.stream.json_shape import Shape, shape_of
from assets.stream.spans import binary, envelope

BYTES_AT_ONCE = 16 << 20  # the readers need a few times as much memory
SAMPLE = 64  # values that are read to learn whether a shape is worth while
WORTH = 0.75  # of the values have the shape


class JsonColumns:
    """Decodes the records of one topic. `required`: fields that are never null, whatever the schema says of them.

    schema: envelope columns, then the payload's. one_by_one: how many records had to be read alone so far.
    """

    def __init__(self, schema: pa.Schema, required: Sequence[str] = ()) -> None:
        self._decoder = Decoder(schema, required)
        self._payload = self._decoder.schema
        self.schema = pa.schema([*ENVELOPE, *self._payload])
        self.one_by_one = 0
        self._raw = raw_schema(self._payload)
        self._parser = LineParser(self._raw)
        self._shape: Shape | None = None  # of the values before

    def decode(self, batch: Batch) -> Decoded:
        """Raises nothing about the content of a record: what does not fit is in `rejects`."""
        if len(batch) <= FEW:
            self.one_by_one += len(batch)
            return self._decoder.decode(batch)
        parts = [self._part(part) for part in _parts(batch)]
        if len(parts) == 1:
            return parts[0]
        return Decoded(pa.concat_tables(part.table for part in parts), [gone for part in parts for gone in part.rejects])

    def _part(self, batch: Batch) -> Decoded:
        rows, columns = self._surely(Lines(binary(batch.data, *batch.values)))
        before = envelope(batch)
        if len(rows) < len(batch):
            before = [column.take(pa.array(rows)) for column in before]
        table = pa.Table.from_arrays([*before, *columns], schema=self.schema)
        if len(rows) == len(batch):
            return Decoded(table, [])
        rest = np.delete(np.arange(len(batch)), rows)
        self.one_by_one += len(rest)
        others = self._decoder.decode(map(batch.record, rest.tolist()))
        if others.table.num_rows:
            table = pa.concat_tables([table, others.table]).sort_by("_offset")
        return Decoded(table, others.rejects)

    def _surely(self, lines: Lines) -> tuple[Ints, list[pa.Array]]:
        """Rows of which it is sure what the Decoder would say, in order, and their columns."""
        shaped, first = self._of_one_shape(lines)
        left = lines.plain() if len(shaped) < len(lines.values) else shaped[:0]
        others, second = self._parser.read(lines, left[~np.isin(left, shaped)])
        columns, nulls, sure = columns_from(pa.concat_tables([first, second]), self._payload)
        unclear = nulls[len(shaped) :]  # null, or a missing field
        if unclear.any():
            sure[len(shaped) :] &= unclear == lines.nulls()[others]
        rows = np.concatenate([shaped, others])
        if sure.all() and not (len(shaped) and len(others)):
            return rows, columns
        chosen = np.flatnonzero(sure)
        chosen = chosen[np.argsort(rows[chosen])]
        return rows[chosen], [column.take(pa.array(chosen)) for column in columns]

    def _of_one_shape(self, lines: Lines) -> tuple[Ints, pa.Table]:
        """The rows that have the shape of most, and what they hold; none where most have none."""
        if self._shape is None:
            for row in lines.plain()[:1].tolist():
                shape, sample = shape_of(lines.values[row].as_py(), self._raw), lines.edges[: SAMPLE + 1]
                if shape is not None and len(shape.read(lines.text, sample)[0]) >= WORTH * (len(sample) - 1):
                    self._shape = shape
        if self._shape is None:
            return np.empty(0, dtype=np.int64), self._raw.empty_table()
        rows, table = self._shape.read(lines.text, lines.edges)
        if len(rows) < WORTH * len(lines.values):
            self._shape = None
        return rows, table


def _parts(batch: Batch) -> Iterator[Batch]:
    """The batch in parts that the readers can take at once."""
    number = np.cumsum(np.maximum(batch.values[1], 0)) // BYTES_AT_ONCE
    if not number.any():
        yield batch
        return
    for part in np.unique(number):
        yield batch.take(number == part)
