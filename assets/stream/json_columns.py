"""JSON values -> columns, a whole batch at a time: the tables and rejects of decode.Decoder, several times faster.

pyarrow reads the values of a batch as lines of JSON. It is lenient where the Decoder is strict, and one bad line fails
all. So it only gets values that begin with { and end with } and hold no NUL; what it made of them is checked column by
column (json_fields.py), and whatever is not surely what the Decoder would say, the Decoder is asked about.

Rows are values, one to one. Where a value ends and the next begins, the text is }, newline, {. No document goes on over
that: outside of strings there would be a comma, and no string holds a raw newline. So each value is at least one document,
and as many rows as values are one row for each. (A raw NUL would end the reading early.) This file does not know types,
nor where records come from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from assets.stream.batch import Batch, Ints
from assets.stream.decode import ENVELOPE, Decoded, Decoder
from assets.stream.document import Poison, document
from assets.stream.json_fields import columns_from, raw_schema
from assets.stream.json_lines import Lines
from assets.stream.spans import binary, envelope

BYTES_AT_ONCE = 16 << 20  # pyarrow's reader needs a few times as much memory
MOST = 8192  # rows read at once: their bytes stay in the processor's cache
STEP = 512  # after failures: 2.3 us a row read in vain and 0.14 ms a call meet here, with one bad value in a thousand
FEW = 32  # rows the Decoder has read before pyarrow has begun
TRIES = 4

_FIRST = {"string": '"', "number": r"[-\dNI]", "boolean": "[tf]", "array": r"\[", "object": r"\{"}
_Read = tuple[Ints, pa.Table]  # rows, and the columns pyarrow makes of them


class JsonColumns:
    """Decodes the records of one topic. `required`: fields that are never null, whatever the schema says of them.

    schema: envelope columns, then the payload's. one_by_one: how many records had to be read alone so far.
    """

    def __init__(self, schema: pa.Schema, required: Sequence[str] = ()) -> None:
        self._decoder = Decoder(schema, required)
        self._payload = self._decoder.schema
        self.schema = pa.schema([*ENVELOPE, *self._payload])
        self.one_by_one = 0
        self._order: Sequence[str] = ()
        self._expect(self._payload.names)
        self._integers = "|".join(re.escape(field.name) for field in self._payload if pa.types.is_integer(field.type))

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
        lines = Lines(binary(batch.data, *batch.values))
        rows, columns = self._surely(lines)
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
        """Rows of which it is sure what the Decoder would say, and their columns."""
        shaped, first = self._read_shaped(lines)
        others, second = self._read_all(lines, np.setdiff1d(lines.plain(), shaped, assume_unique=True))
        rows = np.concatenate([shaped, others])
        columns, nulls, sure = columns_from(pa.concat_tables([first, second]), self._payload)
        if nulls[len(shaped) :].any():  # a shape has no missing field
            sure[len(shaped) :] &= nulls[len(shaped) :] == lines.nulls()[others]
        if sure.all():
            return rows, columns
        return rows[sure], [column.filter(pa.array(sure)) for column in columns]

    def _read_shaped(self, lines: Lines) -> tuple[Ints, pa.Table]:
        """The rows of one shape, and their fields, when most have the same."""
        ...

    def _expect(self, names: Sequence[str]) -> None:
        """pyarrow is a sixth faster when fields come in the order of its schema."""
        if names != self._order and {*names} == {*self._payload.names}:
            ordered = raw_schema([self._payload.field(name) for name in names])
            self._order = names
            self._options = pj.ParseOptions(explicit_schema=ordered, unexpected_field_behavior="error")

    def _read_all(self, lines: Lines) -> tuple[Ints, pa.Table]:
        """The rows that pyarrow can read, and what it reads."""
        rows, found = lines.plain(), list[_Read]()
        if len(rows):
            self._expect(_names(lines.values[int(rows[0])].as_py()))
        at, searched = 0, False
        while at < len(rows) > FEW:
            step = rows[at : at + MOST]
            try:
                found.append(self._read(lines, step))
            except (pa.ArrowException, ValueError) as error:
                if not searched:  # often all bad rows of a batch have the same mistake
                    searched = True
                    suspects = self._suspects(str(error), lines.take(rows[at:]))
                    rows = np.delete(rows, at + suspects)
                    continue
                for low in range(0, len(step), STEP):
                    found += self._read_around(lines, step[low : low + STEP])
            at += len(step)
        if not found:
            return rows[:0], raw_schema(self._payload).empty_table()
        return np.concatenate([rows for rows, _ in found]), pa.concat_tables(table for _, table in found)

    def _read_around(self, lines: Lines, rows: Ints) -> list[_Read]:
        """The same for a few rows: without those an error is about, and where it does not say, in eighths."""
        for _ in range(TRIES):
            if len(rows) <= FEW:
                return []
            try:
                return [self._read(lines, rows)]
            except (pa.ArrowException, ValueError) as error:
                suspects = self._suspects(str(error), lines.take(rows))
                rows = np.delete(rows, suspects)
                if not len(suspects):
                    break
        found = []
        for part in np.array_split(rows, 8):
            with suppress(pa.ArrowException, ValueError):
                found.append(self._read(lines, part))
        return found

    def _read(self, lines: Lines, rows: Ints) -> _Read:
        """Raises an ArrowException or a ValueError when any of the rows is bad."""
        values = lines.take(rows)
        joined = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values), b"\n")
        text = joined[0].as_buffer()
        one_block = pj.ReadOptions(use_threads=False, block_size=text.size + 1)
        table = pj.read_json(pa.BufferReader(text), read_options=one_block, parse_options=self._options)
        if table.num_rows != len(rows):
            raise ValueError(f"{table.num_rows} documents in {len(rows)} values")
        return rows, table.select(self._payload.names)

    def _suspects(self, error: str, values: pa.Array) -> Ints:
        """Which of the values have the mistake that the error tells of, as far as it does; only time depends on it."""
        if "unexpected field" in error:  # one field more is one '":' more
            return np.flatnonzero(pc.not_equal(pc.count_substring(values, '":'), len(self._payload)))
        at = re.search(r"in row (\d+)$", error)
        row = np.flatnonzero(np.arange(len(values)) == (int(at[1]) if at else -1))
        if changed := re.search(r"Column\(/(.*)\) changed from \w+ to (\w+)", error):
            pattern = rf'"{re.escape(changed[1])}"\s*:\s*{_FIRST.get(changed[2], "x")}'
        elif number := re.search(r"couldn't parse:([-+.\w]{1,99})$", error):
            pattern = rf'"(?:{self._integers})"\s*:\s*(?:-?\d+[.eE]|{re.escape(number[1])}\s*[,}}])'
        elif at:
            return row
        else:
            pattern = r"\}\s*\{"  # more documents than values
        try:
            return np.union1d(row, np.flatnonzero(pc.match_substring_regex(values, pattern)))
        except pa.ArrowInvalid:  # names that make no pattern
            return row


def _names(value: bytes) -> list[str]:
    """The names in a value, in order."""
    try:
        return list(document(value))
    except Poison:
        return []


def _parts(batch: Batch) -> Iterator[Batch]:
    """The batch in parts that pyarrow can take at once."""
    number = np.cumsum(np.maximum(batch.values[1], 0)) // BYTES_AT_ONCE
    if not number.any():
        yield batch
        return
    for part in np.unique(number):
        yield batch.take(number == part)
