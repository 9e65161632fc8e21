"""Values of one shape: the same names in the same order with the same blanks, as one program writes them.

Such a value is fixed texts (`{"a":`, `,"b":`, `}`) with one JSON value between each two. The fixed ones are compared, for
all values at once; what lies between is checked against JSON's grammar and cast, column by column. So every byte is
accounted for without a parser. Values of another shape are left to others, and so is each of which something is not sure.
This file does not know records, nor which values a column takes (json_fields.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from assets.stream.batch import Ints
from assets.stream.json_lines import names_in
from assets.stream.spans import gathered, with_nulls

LARGEST_EXAMPLE = 65_536  # bytes; in larger values the fixed texts are little
ROWS_AT_ONCE = 8192  # their bytes stay in the processor's cache

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]  # eight bytes of the text from each of its bytes on

_SPACE = rb"[ \t\r\n]*"
_NUMBER = r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?$"

_BIT = np.zeros(256, dtype=np.int64)  # which bit a byte has, if it has one
_BIT[1 << np.arange(8)] = np.arange(8)


@dataclass(frozen=True, slots=True)
class Shape:
    """raw: the fields, of the types string, bool, float64, int64, uint64 or list of float64; names: as they follow.

    fixed: the text before each value, ahead (fields,): its bytes up to `":`, behind (fields,): and from there on. end: the
    text behind the last value, up to eight bytes. wanted, together: see those who make them.
    """

    raw: pa.Schema
    names: tuple[str, ...]
    fixed: tuple[bytes, ...]
    ahead: Ints
    behind: Ints
    end: bytes
    wanted: list[_Wanted]
    together: list[tuple[pa.DataType, list[int]]]

    def read(self, text: Bytes, edges: Ints) -> tuple[Ints, pa.Table]:
        """Which of the n values text[edges[i]:edges[i + 1]] have this shape and are JSON, and their fields as `raw`."""
        found = [(np.empty(0, dtype=np.int64), self.raw.empty_table())]
        if len(text) >= 8:
            words = np.ndarray(len(text) - 7, np.dtype("<u8"), text, strides=(1,))
            for low in range(0, len(edges) - 1, ROWS_AT_ONCE):
                rows, table = self._read(text, words, edges[low : low + ROWS_AT_ONCE + 1])
                found.append((rows + low, table))
        return np.concatenate([rows for rows, _ in found]), pa.concat_tables(table for _, table in found)

    def _read(self, text: Bytes, words: Words, edges: Ints) -> tuple[Ints, pa.Table]:
        rows, begins, stops = self._places(text, words, edges)
        sure = np.ones(len(rows), dtype=np.bool_)
        columns = {}
        for kind, same in self.together:
            cells = _Cells(text, words, begins[:, same].reshape(-1), stops[:, same].reshape(-1))
            values, right = _values(cells, kind, self.comma)
            if not right.all():
                sure &= right.reshape(len(rows), -1).all(axis=1)
            for place, number in enumerate(same):
                columns[self.names[number]] = _every(values, place, len(same))
        table = pa.Table.from_arrays([columns[name] for name in self.raw.names], schema=self.raw)
        return (rows, table) if sure.all() else (rows[sure], table.filter(pa.array(sure)))

    @property
    def comma(self) -> str:
        """What is between the numbers of a list: what is between the fields."""
        return ", " if any(fixed.startswith(b", ") for fixed in self.fixed) else ","

    def _places(self, text: Bytes, words: Words, edges: Ints) -> tuple[Ints, Ints, Ints]:
        """Rows that have the fixed texts, m, and where the values of their fields begin and stop, (m, fields) each."""
        rows, closed = _names_closed(text, edges, len(self.names))
        start, end = edges[rows], edges[rows + 1]
        begins, stops = closed + self.behind, np.empty_like(closed)
        stops[:, :-1] = closed[:, 1:] - self.ahead[1:]
        stops[:, -1] = end - len(self.end)
        fits = np.ones(len(rows), dtype=np.bool_)
        for wanted in self.wanted:
            places = closed[:, wanted.fields] + wanted.offset
            if len(places) and (places[0].min() < 0 or places[-1].max() >= len(words)):
                np.clip(places, 0, len(words) - 1, out=places)
            same = words[places] & wanted.mask == wanted.bits
            if not same.all():
                fits &= same.all(axis=1)
        for row in np.flatnonzero(start < max(map(len, self.fixed)) + 8).tolist():  # no whole word is before their names
            fits[row] = all(text[b - len(f) : b].tobytes() == f for b, f in zip(begins[row], self.fixed, strict=True))
        fits &= (closed[:, 0] - self.ahead[0] == start) & _end_with(words, end, self.end)
        if not (ordered := begins < stops).all():
            fits &= ordered.all(axis=1)
        return (rows, begins, stops) if fits.all() else (rows[fits], begins[fits], stops[fits])


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Words that the text must hold, (k,) each: for which fields, how far from their `":`, under which mask."""

    fields: Ints
    offset: Ints
    mask: Words
    bits: Words


def shape_of(value: bytes, raw: pa.Schema) -> Shape | None:
    """The shape of a value with just these fields; None when it is another, or not so simple, as with an escaped name."""
    names = names_in(value) if len(value) <= LARGEST_EXAMPLE else []
    closed = [found.start() for found in re.finditer(rb'":', value)]
    end = re.search(_SPACE + rb"\}" + _SPACE + rb"\Z", value)
    if not names or {*names} != {*raw.names} or len(closed) != len(names) or end is None or len(end[0]) > 8:
        return None
    fixed: list[bytes] = []
    ahead: list[int] = []
    for at, name in zip(closed, names, strict=True):
        quoted = b'"%s":' % name.encode()
        before = re.search((rb"," if fixed else rb"^" + _SPACE + rb"\{") + _SPACE + rb"\Z", value[: at + 2 - len(quoted)])
        if before is None or not value.startswith(quoted, before.end()):
            return None
        after = re.compile(_SPACE).match(value, at + 2)
        fixed.append(value[before.start() : after.end() if after else at + 2])
        ahead.append(at - before.start())
    before_it = np.array(ahead, dtype=np.int64)
    behind = np.array([len(text) for text in fixed], dtype=np.int64) - before_it
    return Shape(
        raw, tuple(names), tuple(fixed), before_it, behind, end[0], _wanted(fixed, behind), _together(raw, names)
    )  # fmt: skip


def _wanted(fixed: Sequence[bytes], behind: Ints) -> list[_Wanted]:
    """The fixed texts as words, from their ends to their beginnings; without a `":` at the end, which has been found."""
    known = [text[:-2] if more == 2 else text for text, more in zip(fixed, behind, strict=True)]
    ends = np.where(behind == 2, 0, behind)
    found = []
    for back in range(8, max(map(len, known)) + 8, 8):
        fields = np.array([number for number, text in enumerate(known) if len(text) > back - 8])
        pieces = [known[number][max(0, len(known[number]) - back) : len(known[number]) - back + 8] for number in fields]
        bits = np.array([int.from_bytes(piece.rjust(8, b"\0"), "little") for piece in pieces], dtype=np.uint64)
        mask = np.array([2**64 - 256 ** (8 - len(piece)) for piece in pieces], dtype=np.uint64)
        found.append(_Wanted(fields, ends[fields] - back, mask, bits))
    return found


def _together(raw: pa.Schema, names: Sequence[str]) -> list[tuple[pa.DataType, list[int]]]:
    """Fields that are read at once: a call costs as much as many values, but texts cost more to part again."""
    found: dict[Any, list[int]] = {}
    for number, name in enumerate(names):
        kind = raw.field(name).type
        found.setdefault(kind if pa.types.is_primitive(kind) else number, []).append(number)
    return [(raw.field(names[same[0]]).type, same) for same in found.values()]


def _names_closed(text: Bytes, edges: Ints, fields: int) -> tuple[Ints, Ints]:
    """Rows with as many `":` as there are fields, m, and where those are, (m, fields)."""
    part = text[edges[0] : edges[-1]]
    found = _marked((part[:-1] == ord('"')) & (part[1:] == ord(":"))) + edges[0]
    if len(found) == (len(edges) - 1) * fields:
        closed = found.reshape(-1, fields)
        if (closed[:, 0] >= edges[:-1]).all() and (closed[:, -1] < edges[1:]).all():
            return np.arange(len(edges) - 1), closed
    counted = np.searchsorted(found, edges)
    rows = np.flatnonzero(np.diff(counted) == fields)
    return rows, found[counted[rows][:, None] + np.arange(fields)]


def _marked(few: Bools) -> Ints:
    """numpy.flatnonzero, a quarter faster where one in ten is true: it looks at eight at once."""
    packed = np.packbits(few, bitorder="little")
    eights = np.flatnonzero(packed != 0)
    bits = packed[eights]
    if (bits & (bits - np.uint8(1))).any():  # two in one
        return np.flatnonzero(few)
    return eights * 8 + _BIT.take(bits)


def _end_with(words: Words, ends: Ints, wanted: bytes) -> Bools:
    """Whether the texts that end there end with these bytes, up to eight."""
    found = words[np.maximum(ends - 8, 0)] >> (8 * (8 - len(wanted)))
    return np.asarray((ends >= 8) & (found == int.from_bytes(wanted, "little")))


@dataclass(frozen=True, slots=True)
class _Cells:
    """The JSON values of some fields of one type: text[begin:stop], in order."""

    text: Bytes
    words: Words
    begin: Ints
    stop: Ints

    def are(self, word: bytes) -> Bools:
        """Which of them are this word, of up to eight bytes."""
        same = self.text[self.begin] == word[0]
        if same.any():
            same &= (self.stop - self.begin == len(word)) & _end_with(self.words, self.stop, word)
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


def _values(cells: _Cells, kind: pa.DataType, comma: str) -> tuple[pa.Array, Bools]:
    """The values, null where the text says so, and of which that is sure."""
    if pa.types.is_string(kind):
        wanted = cells.between('"', '"')
        column, right = _strings(cells.inside(wanted, 1))
    elif pa.types.is_boolean(kind):
        true = cells.are(b"true")
        right = wanted = true | cells.are(b"false")
        column = pa.array(true, mask=~wanted)
    elif pa.types.is_list(kind):
        wanted = cells.between("[", "]")
        column, right = _lists(cells.inside(wanted, 1), kind, comma)
    else:
        wanted = np.ones(len(cells.begin), dtype=np.bool_)
        column, right = _numbers(cells.inside(wanted), kind)
    sure = right & wanted
    return column, sure if sure.all() else sure | cells.are(b"null")


def _every(values: pa.Array, place: int, step: int) -> pa.Array:
    """Those at `place` and each `step` further."""
    if step == 1:
        return values
    if pa.types.is_string(values.type) or pa.types.is_list(values.type) or values.null_count:
        return values.take(pa.array(np.arange(place, len(values), step)))
    return pa.array(values.to_numpy(zero_copy_only=False)[place::step])


def _bytes_of(texts: pa.Array) -> tuple[Bytes, Ints]:
    """The bytes of the texts behind each other, and where they are, (n + 1,); a null has none."""
    _, bounds, data = texts.buffers()
    edges = np.frombuffer(bounds, np.int32)[: len(texts) + 1].astype(np.int64)
    return np.frombuffer(data or b"", np.uint8)[: edges[-1]], edges


def _strings(texts: pa.Array) -> tuple[pa.Array, Bools]:
    """What stands between the quotes of JSON strings -> what it means, and which of them are good."""
    data, edges = _bytes_of(texts)
    right = np.ones(len(texts), dtype=np.bool_)
    odd = np.flatnonzero((data < 0x20) | (data == ord('"')) | (data == ord("\\")))
    if not len(odd):
        return texts, right
    rows = np.unique(np.searchsorted(edges, odd, "right") - 1)
    meant = [_meaning(text) for text in texts.take(pa.array(rows)).cast(pa.binary()).to_pylist()]
    right[rows] = [text is not None for text in meant]
    mask = np.zeros(len(texts), dtype=np.bool_)
    mask[rows] = True
    return pc.replace_with_mask(texts, pa.array(mask), pa.array(meant, pa.string())), right


def _meaning(text: bytes) -> str | None:
    try:
        meant: str = json.loads(f'"{text.decode()}"')
        meant.encode()  # fails for half a surrogate pair
    except ValueError:
        return None
    return meant


def _lists(texts: pa.Array, kind: pa.DataType, comma: str) -> tuple[pa.Array, Bools]:
    parts = pc.split_pattern(texts, comma)
    numbers, good = _numbers(parts.values, kind.value_type)
    right = np.ones(len(texts), dtype=np.bool_)
    right[np.searchsorted(parts.offsets.to_numpy(), np.flatnonzero(~good), "right") - 1] = False
    mask = parts.is_null() if parts.null_count else None
    return pa.ListArray.from_arrays(parts.offsets, numbers, type=kind, mask=mask), right


def _numbers(texts: pa.Array, kind: pa.DataType) -> tuple[pa.Array, Bools]:
    """The texts as numbers, and which of them are JSON numbers of that type; the others are null."""
    good = _at_a_glance(texts, kind)
    if pa.types.is_floating(kind) and not good.all():
        others = np.flatnonzero(~good)
        good[others] = pc.match_substring_regex(texts.take(pa.array(others)), _NUMBER).fill_null(False)
    try:
        return (texts if good.all() else with_nulls(texts, ~good)).cast(kind), good
    except pa.ArrowInvalid:  # two points in one, or an integer beyond the type
        rows = np.flatnonzero(good)
        known = texts.take(pa.array(rows))
        good[rows] = pc.match_substring_regex(known, _NUMBER) if pa.types.is_floating(kind) else _within(known, kind)
        return with_nulls(texts, ~good).cast(kind), good


def _within(integers: pa.Array, kind: pa.DataType) -> list[bool]:
    info = np.iinfo(kind.to_pandas_dtype())
    return [len(text) <= 20 and info.min <= int(text) <= info.max for text in integers.to_pylist()]


def _at_a_glance(texts: pa.Array, kind: pa.DataType) -> Bools:
    """Which of them are numbers, in a third of a pattern's time: with two points in one or too large, it may be; without
    exponents.
    """
    data, edges = _bytes_of(texts)
    data = np.append(data, np.zeros(2, np.uint8))  # so that an empty text at the end has a byte behind it, and that one too
    digit = data - np.uint8(ord("0")) < 10
    first, last = edges[:-1], edges[1:] - 1
    signed = (data[first] == ord("-")) & (not pa.types.is_unsigned_integer(kind))
    lead = first + signed
    good = (lead <= last) & digit[lead] & digit[last]
    zeros = np.flatnonzero(data[lead] == ord("0"))
    good[zeros] &= (lead[zeros] == last[zeros]) | ~digit[lead[zeros] + 1]
    known = digit[:-2].copy()
    known[first[signed]] = True
    if pa.types.is_floating(kind):
        known |= data[:-2] == ord(".")
    good[np.searchsorted(edges, np.flatnonzero(~known), "right") - 1] = False
    return good
