"""Values -> columns by pyarrow's own reader of JSON lines, which fails for all of them when one is bad: here it is found.

The reader is lenient: it takes NaN for a number, a missing field for null, any bytes for text. What it made is for others
to check (json_fields.py).

Rows are values, one to one: where a value ends and the next begins, the text is }, newline, {, and no document goes on
over that. Outside of strings there would be a comma, and no string holds a raw newline. So each value is at least one
document, and as many rows as values are one row for each. (A raw NUL would end the reading early.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from assets.stream.batch import Ints
from assets.stream.json_lines import Lines, names_in

MOST = 8192  # rows read at once: their bytes stay in the processor's cache
STEP = 512  # after failures: 2.3 us a row read in vain and 0.14 ms a call meet here, with one bad value in a thousand
FEW = 32  # rows the Decoder has read before pyarrow has begun
TRIES = 4

_Read = tuple[Ints, pa.Table]  # rows, and the columns pyarrow makes of them


class LineParser:
    """raw: the fields, of the types the reader is to read."""

    def __init__(self, raw: pa.Schema) -> None:
        self._raw = raw
        self._order: Sequence[str] = ()
        self._expect(raw.names)

    def read(self, lines: Lines, rows: Ints) -> tuple[Ints, pa.Table]:
        """Which of the rows the reader can read, and what it reads. Rows must be `plain`; few are not read."""
        found: list[_Read] = []
        if len(rows) > FEW:
            self._expect(names_in(lines.values[int(rows[0])].as_py()))
        for at in range(0, len(rows) if len(rows) > FEW else 0, MOST):
            step = rows[at : at + MOST]
            try:
                found.append(self._read(lines, step))
            except (pa.ArrowException, ValueError):
                for low in range(0, len(step), STEP):
                    found += self._read_around(lines, step[low : low + STEP])
        if not found:
            return rows[:0], self._raw.empty_table()
        return np.concatenate([rows for rows, _ in found]), pa.concat_tables(table for _, table in found)

    def _expect(self, names: Sequence[str]) -> None:
        """pyarrow is a sixth faster when fields come in the order of its schema."""
        if names != self._order and {*names} == {*self._raw.names}:
            ordered = pa.schema([self._raw.field(name) for name in names])
            self._order = names
            self._options = pj.ParseOptions(explicit_schema=ordered, unexpected_field_behavior="error")

    def _read_around(self, lines: Lines, rows: Ints) -> list[_Read]:
        """The same for a few rows: without those an error tells of, and where it does not, in eighths."""
        for _ in range(TRIES):
            if len(rows) <= FEW:
                return []
            try:
                return [self._read(lines, rows)]
            except (pa.ArrowException, ValueError) as error:
                row = re.search(r"in row (\d+)$", str(error))  # of bad syntax, a wrong type, a name twice
                if row is None or int(row[1]) >= len(rows):
                    break
                rows = np.delete(rows, int(row[1]))
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
        return rows, table.select(self._raw.names)
