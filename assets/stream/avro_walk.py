"""Walking over Avro values of every type without looking at them, and through the blocks of arrays and maps.

Avro 1.12, "Binary Encoding". This file does not know columns, nor what becomes of a value.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from assets.stream.avro_schema import Kind
from assets.stream.batch import Ints
from assets.stream.cursor import Cursor

NO_SYMBOL, NO_BRANCH = "a symbol the enum does not have", "a branch the union does not have"


def skip(kind: Kind, cursor: Cursor) -> None:
    """Step over one value in each row."""
    if kind.width is not None:
        cursor.fixed(kind.width)
    elif kind.name in ("int", "long"):
        cursor.varint()
    elif kind.name == "enum":
        index = cursor.varint()
        cursor.fail((index < 0) | (index >= len(kind.names)), NO_SYMBOL)
    elif kind.name in ("string", "bytes"):
        cursor.spans(cursor.varint())
    elif kind.name == "record":
        for part in kind.parts:
            skip(part, cursor)
    elif kind.name == "union":
        _skip_branch(kind, cursor)
    else:
        for _, inside, counts in blocks(cursor):
            _skip_items(kind, inside, counts)


def blocks(cursor: Cursor) -> Iterator[tuple[Ints, Cursor, Ints]]:
    """The blocks of one array or map in each row: the k-th of every row that has so many in the k-th round.

    Yields the rows' indices, a cursor that stands before the items, and how many they are; whoever asked moves it behind
    them. A block that gives its size in bytes must have it.
    """
    rows = np.arange(len(cursor))
    while True:
        part = cursor.sub(rows)
        counts = part.varint()
        counts = np.where(part.spend((counts != 0).astype(np.int64)) > 0, counts, 0)
        cursor.back(rows, part)
        some = np.flatnonzero(counts)
        if not len(some):
            return
        rows, counts, part = rows[some], counts[some], part.sub(some)
        sized = np.flatnonzero(counts < 0)
        framed = part.sub(sized)
        sizes = framed.varint()
        part.back(sized, framed)
        yield rows, part, np.abs(counts)
        if len(sized):
            wrong = np.zeros(len(part), np.bool_)
            wrong[sized] = part.pos[sized] - framed.pos != sizes
            part.fail(wrong, "a block of another size than it says")
        cursor.back(rows, part)


def _skip_branch(kind: Kind, cursor: Cursor) -> None:
    branch = cursor.varint()
    cursor.fail((branch < 0) | (branch >= len(kind.parts)), NO_BRANCH)
    for number, part in enumerate(kind.parts):
        rows = np.flatnonzero(branch == number)
        if len(rows):
            inside = cursor.sub(rows)
            skip(part, inside)
            cursor.back(rows, inside)


def _skip_items(kind: Kind, cursor: Cursor, counts: Ints) -> None:
    item = kind.parts[0]
    if kind.name == "array" and item.width == 0:
        return
    if kind.name == "array" and item.width is not None:
        cursor.spans(counts, item.width)
        return
    if kind.name == "array" and item.name in ("int", "long"):
        cursor.run(counts)
        return
    counts = cursor.spend(cursor.within(counts))  # an item has a byte at least
    for step in range(int(counts.max(initial=0))):
        rows = np.flatnonzero(counts > step)
        part = cursor.sub(rows)
        if kind.name == "map":
            part.spans(part.varint())
        skip(item, part)
        cursor.back(rows, part)
