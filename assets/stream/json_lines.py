"""The values of a batch behind each other, and what their bytes say without being parsed, for all of them at once.

It knows braces, quotes and blanks; it does not know types or records.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from assets.stream.batch import Ints
from assets.stream.document import Poison, document

BLANKS = 2  # before or after a value: "\r\n"

_BLANK = np.zeros(256, dtype=np.int64)
_BLANK[list(b" \t\r\n")] = 1
_BEFORE_CLOSING_QUOTE = np.ones(256, dtype=np.bool_)
_BEFORE_CLOSING_QUOTE[list(b'\\"{[,: \t\r\n')] = False


class Lines:
    """values: a binary array (n,), null = tombstone. text: their bytes. edges (n + 1,): where in it each begins and ends."""

    def __init__(self, values: pa.Array) -> None:
        self.values = values
        _, edges, text = values.buffers()
        self.edges: Ints = np.frombuffer(edges, dtype=np.int32)[: len(values) + 1].astype(np.int64)
        self.text = np.frombuffer(text or b"", dtype=np.uint8)

    def take(self, rows: Ints) -> pa.Array:
        """The values of some rows, in order."""
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
            return self.values.slice(int(rows[0]), len(rows))
        return self.values.take(pa.array(rows))

    def plain(self) -> Ints:
        """Rows of values that begin with { and end with }, but for a few blanks, and hold no NUL."""
        if not len(self.text):
            return np.empty(0, dtype=np.int64)
        first, last = self.edges[:-1], self.edges[1:] - 1
        for _ in range(BLANKS):
            first = first + _BLANK[self.text.take(first, mode="clip")]
            last = last - _BLANK[self.text.take(last, mode="clip")]
        good = (self.text.take(first, mode="clip") == ord("{")) & (self.text.take(last, mode="clip") == ord("}"))
        good &= first < last  # else they are of its neighbours
        if not self.text.min():
            good[self._row_of(np.flatnonzero(self.text == 0))] = False
        return np.flatnonzero(good)

    def nulls(self) -> Ints:
        """How many fields of each value say `name": null`, (n,): of values that pyarrow has read, and rather too few.

        A quote that ends a string with : behind it ends a name. One that begins a string has {, [, :, a comma or a blank
        before it, one inside a string a backslash: those are passed over, with names that end in one of these, or have
        many blanks behind them.
        """
        text = self.text
        at = np.flatnonzero((text[:-1] == ord("l")) & (text[1:] == ord("l"))) - 2  # a pair of l is rarer than an n
        at = at[at >= 5]  # {"a":null
        at = at[(text[at] == ord("n")) & (text[at + 1] == ord("u"))] - 1
        for byte in b':"':
            for _ in range(BLANKS):
                at = at - _BLANK[text[at]]
            at = at[text[at] == byte] - 1
        at = at[_BEFORE_CLOSING_QUOTE[text[at]] & (at > 0)]
        return np.bincount(self._row_of(at), minlength=len(self.values))

    def _row_of(self, places: Ints) -> Ints:
        return np.searchsorted(self.edges, places, "right") - 1


def names_in(value: bytes) -> list[str]:
    """The names of the fields, in order; none of what is no JSON object."""
    try:
        return list(document(value))
    except Poison:
        return []
