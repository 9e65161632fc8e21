"""Values of one shape: the same names in the same order with the same blanks, as one program writes them.

Such a value is fixed texts (`{"a":`, `,"b":`, `}`) with one JSON value between each two. The fixed ones are compared, for
all values at once; what lies between is checked against JSON's grammar and cast, column by column. So every byte is
accounted for and no parser runs, which takes half the time. Values of another shape, and strings with an escape, are left
to others. This file does not know records, nor what a column may hold (json_fields.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from assets.stream.batch import Ints
from assets.stream.spans import gathered, with_nulls

LARGEST_EXAMPLE = 65_536  # bytes; where values are larger, their names cost nothing

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]  # eight bytes of the text from each of its bytes on

_SPACE = rb"[ \t\r\n]*"
_NUMBER = r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?$"


@dataclass(frozen=True, slots=True)
class Shape:
    """fixed: the texts before each value and behind the last one. ahead: of each but the last, its bytes up to `":`."""

    names: tuple[str, ...]
    fixed: tuple[bytes, ...]
    ahead: tuple[int, ...]

    @property
    def comma(self) -> str:
        """What separates the numbers of a list, if it is as between the fields."""
        return ", " if any(text.startswith(b", ") for text in self.fixed) else ","


def shape_of(value: bytes, names: Sequence[str]) -> Shape | None:
    """The shape of a JSON object with these names in this order; None when it has none, as with an escaped name."""
    closed = [found.start() for found in re.finditer(rb'":', value[:LARGEST_EXAMPLE])]
    if len(value) > LARGEST_EXAMPLE or len(closed) != len(names):
        return None
    fixed: list[bytes] = []
    ahead: list[int] = []
    for at, name in zip(closed, names, strict=True):
        quoted = b'"%s":' % name.encode()
        before = re.search((rb"^" + _SPACE + rb"\{" if not fixed else rb",") + _SPACE + rb"\Z", value[: at + 2 - len(quoted)])
        if before is None or not value.startswith(quoted, before.end()):
            return None
        after = re.compile(_SPACE).match(value, at + 2)
        fixed.append(value[before.start() : after.end() if after else at + 2])
        ahead.append(at - before.start())
    end = re.search(_SPACE + rb"\}" + _SPACE + rb"\Z", value)
    return Shape(tuple(names), (*fixed, end[0]), tuple(ahead)) if end else None


def read(shape: Shape, text: Bytes, edges: Ints, raw: pa.Schema) -> tuple[Ints, pa.Table]:
    """Which of the n values text[edges[i]:edges[i + 1]] have the shape and are good JSON, and their fields as `raw` says.

    Types of `raw`: string, bool, float64, int64, uint64, list of float64.
    """
    words = np.ndarray(len(text) - 7, np.dtype("<u8"), text, strides=(1,))
    rows, begins, stops = _places(shape, text, words, edges)
    sure = np.ones(len(rows), dtype=np.bool_)
    columns = {}
    for number, name in enumerate(shape.names):
        cells = _Cells(text, words, begins[number], stops[number])
        columns[name], right = _column(cells, raw.field(name).type, shape.comma)
        sure &= right
    table = pa.Table.from_arrays([columns[name] for name in raw.names], schema=raw)
    return (rows, table) if sure.all() else (rows[sure], table.filter(pa.array(sure)))


def _places(shape: Shape, text: Bytes, words: Words, edges: Ints) -> tuple[Ints, Ints, Ints]:
    """Rows of the shape, m, and where the values of their fields begin and stop, (fields, m) each."""
    rows, closed = _names_closed(text, edges, len(shape.names))
    begins, stops = np.empty_like(closed), np.empty_like(closed)
    start, end = edges[rows], edges[rows + 1]
    fits = closed[0] - shape.ahead[0] == start
    for number, (fixed, ahead) in enumerate(zip(shape.fixed, shape.ahead, strict=False)):
        first = closed[number] - ahead
        begins[number] = first + len(fixed)
        known = ahead if len(fixed) == ahead + 2 else len(fixed)  # `":` has been found
        fits &= _are(words, first, fixed[:known], before=number > 0)
        if number:
            stops[number - 1] = first
    stops[-1] = end - len(shape.fixed[-1])
    fits &= _are(words, stops[-1], shape.fixed[-1], before=True)
    fits &= (begins < stops).all(axis=0)
    return (rows, begins, stops) if fits.all() else (rows[fits], begins[:, fits], stops[:, fits])


def _names_closed(text: Bytes, edges: Ints, fields: int) -> tuple[Ints, Ints]:
    """Rows with as many `":` as there are fields, m, and where those are, (fields, m)."""
    part = text[edges[0] : edges[-1]]
    found = np.flatnonzero((part[:-1] == ord('"')) & (part[1:] == ord(":"))) + edges[0]
    if len(found) == (len(edges) - 1) * fields:
        closed = np.ascontiguousarray(found.reshape(-1, fields).T)
        if (closed[0] >= edges[:-1]).all() and (closed[-1] < edges[1:]).all():
            return np.arange(len(edges) - 1), closed
    counted = np.searchsorted(found, edges)
    rows = np.flatnonzero(np.diff(counted) == fields)
    return rows, found[counted[rows] + np.arange(fields)[:, None]]


def _are(words: Words, first: Ints, wanted: bytes, *, before: bool) -> Bools:
    """Whether the bytes at `first` are these. Less than eight are compared with those before them, or those behind."""
    size = len(wanted)
    if size >= 8:
        same = np.ones(len(first), dtype=np.bool_)
        for at in (*range(0, size - 8, 8), size - 8):
            place = np.clip(first + at, 0, len(words) - 1)  # of a row that is none
            same &= words[place] == int.from_bytes(wanted[at : at + 8], "little")
        return same
    shift = 8 * (8 - size)
    at = first - (8 - size) if before else first
    there = (at >= 0) & (at < len(words))
    found = words[np.where(there, at, 0)]
    if before:
        return there & (found >> shift == int.from_bytes(wanted, "little"))
    return there & (found << shift == int.from_bytes(wanted, "little") << shift)


@dataclass(frozen=True, slots=True)
class _Cells:
    """The JSON values of one field: text[begin:stop], in order."""

    text: Bytes
    words: Words
    begin: Ints
    stop: Ints

    def are(self, word: bytes) -> Bools:
        """Which of them are this word of less than 8 bytes."""
        same = self.text[self.begin] == word[0]
        if same.any():
            same &= (self.stop - self.begin == len(word)) & _are(self.words, self.begin, word, before=True)
        return np.asarray(same)

    def between(self, opening: str, closing: str) -> Bools:
        """Which of them begin and end like this."""
        marked = (self.text[self.begin] == ord(opening)) & (self.text[self.stop - 1] == ord(closing))
        return marked & (self.stop - self.begin >= 2)

    def inside(self, wanted: Bools, skip: int = 0) -> pa.Array:
        """Those that are wanted as text, without `skip` bytes at both ends; the others null."""
        lengths = np.where(wanted, self.stop - self.begin - 2 * skip, 0)
        found = gathered(self.text, self.begin + skip, lengths)
        texts = pa.Array.from_buffers(pa.string(), len(found), found.buffers())
        return texts if wanted.all() else with_nulls(texts, ~wanted)


def _column(cells: _Cells, kind: pa.DataType, comma: str) -> tuple[pa.Array, Bools]:
    """The values of a field, null where the text says so, and of which that is sure."""
    null = cells.are(b"null")
    if pa.types.is_string(kind):
        wanted = cells.between('"', '"')
        column = cells.inside(wanted, 1)
        right = _plain(column)
    elif pa.types.is_boolean(kind):
        true = cells.are(b"true")
        right = wanted = true | cells.are(b"false")
        column = pa.array(true, mask=~wanted)
    elif pa.types.is_list(kind):
        wanted = cells.between("[", "]")
        column, right = _lists(cells.inside(wanted, 1), kind, comma)
    else:
        wanted = ~null
        column, right = _numbers(cells.inside(wanted), kind)
    return column, (right & wanted) | null


def _bytes_of(texts: pa.Array) -> tuple[Bytes, Ints]:
    """The bytes of the texts behind each other, and where they are, (n + 1,); a null has none."""
    _, edges, data = texts.buffers()
    return np.frombuffer(data or b"", np.uint8), np.frombuffer(edges, np.int32)[: len(texts) + 1].astype(np.int64)


def _plain(texts: pa.Array) -> Bools:
    """Which of them, between quotes, are JSON strings that mean themselves."""
    data, edges = _bytes_of(texts)
    odd = np.flatnonzero((data < 0x20) | (data == ord('"')) | (data == ord("\\")))
    right = np.ones(len(texts), dtype=np.bool_)
    right[np.searchsorted(edges, odd, "right") - 1] = False
    return right


def _lists(texts: pa.Array, kind: pa.DataType, comma: str) -> tuple[pa.Array, Bools]:
    parts = pc.split_pattern(texts, comma)
    numbers, good = _numbers(parts.values, kind.value_type)
    right = np.ones(len(texts), dtype=np.bool_)
    right[np.searchsorted(parts.offsets.to_numpy(), np.flatnonzero(~good), "right") - 1] = False
    mask = parts.is_null() if parts.null_count else None
    return pa.ListArray.from_arrays(parts.offsets, numbers, type=kind, mask=mask), right


def _numbers(texts: pa.Array, kind: pa.DataType) -> tuple[pa.Array, Bools]:
    """The texts as numbers, and which of them are JSON numbers; the others are null."""
    good = _at_a_glance(texts, kind)
    if pa.types.is_floating(kind) and not good.all():
        others = np.flatnonzero(~good)
        good[others] = pc.match_substring_regex(texts.take(pa.array(others)), _NUMBER).fill_null(False)
    try:
        return (texts if good.all() else with_nulls(texts, ~good)).cast(kind), good
    except pa.ArrowInvalid:  # two points, or an integer beyond its type
        pattern = _NUMBER if pa.types.is_floating(kind) else "^-?[0-9]{1,18}$"
        good &= pc.match_substring_regex(texts, pattern).fill_null(False).to_numpy(zero_copy_only=False)
        return with_nulls(texts, ~good).cast(kind), good


def _at_a_glance(texts: pa.Array, kind: pa.DataType) -> Bools:
    """Which of them are numbers, but for two points in one and integers beyond their type; of integers, all that are.

    It takes a third of a pattern's time; exponents are not seen.
    """
    data, edges = _bytes_of(texts)
    if not len(data):
        return np.zeros(len(texts), dtype=np.bool_)
    digit = np.append(data - np.uint8(ord("0")) < 10, (False, False))
    first, last = np.minimum(edges[:-1], len(data) - 1), edges[1:] - 1
    signed = (data[first] == ord("-")) & (not pa.types.is_unsigned_integer(kind))
    lead = first + signed
    good = (lead <= last) & digit[lead] & digit[last]
    good &= (lead == last) | ~digit[lead + 1] | (data[np.minimum(lead, len(data) - 1)] != ord("0"))
    known = digit[:-2].copy()
    known[first[signed]] = True
    if pa.types.is_floating(kind):
        known[1:-1] |= (data[1:-1] == ord(".")) & digit[:-4] & digit[2:-2]
    good[np.searchsorted(edges, np.flatnonzero(~known), "right") - 1] = False
    return good
