"""Which of many hashes are among a few: a table that is asked for millions of them at 3 to 7 ns each.

A hash's first bits are its place in the table. Nothing is sorted on the asking side, and most strangers are turned away
by an empty place. The hashes must be uniform (idhash.py); this file knows nothing else of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from assets.windows.idhash import Hashes

Ints = npt.NDArray[np.int64]

PLACES = 8  # at least, for each hash: an unknown one meets an empty place 8 times of 9
_BITS = 10, 24  # of a place: at least, and at most, where the table has 84 MB and is slower for more than 2 M hashes
_ROWS = 32_768  # asked at a time, so that what comes in between stays in the cache


class Lookup:
    """A table of n different hashes, in ascending order: 5 bytes a place, 40 to 80 bytes a hash, 84 MB at most."""

    def __init__(self, hashes: Hashes) -> None:
        self._hashes = hashes
        bits = min(max(_BITS[0], (PLACES * len(hashes) - 1).bit_length()), _BITS[1])
        self._shift = np.uint64(64 - bits)
        places = (hashes >> self._shift).view(np.int64)
        self._taken = np.zeros(1 << bits, dtype=np.bool_)
        self._taken[places] = True
        # Of hashes with one place the last stays, numpy says; the others lie right before it.
        self._last = np.empty(1 << bits, dtype=np.int32)
        self._last[places] = np.arange(len(hashes), dtype=np.int32)

    def find(self, asked: Hashes) -> tuple[Ints, Ints]:
        """(rows, indices), (m,) each: `asked[rows]` are in the table, as `hashes[indices]`; rows ascend."""
        found = [np.empty(0, dtype=np.int64)]
        for start in range(0, len(asked), _ROWS):
            taken = self._taken.take((asked[start : start + _ROWS] >> self._shift).view(np.int64))
            found.append(np.flatnonzero(taken) + start)
        rows = np.concatenate(found)
        wanted = asked[rows]
        indices = self._last.take((wanted >> self._shift).view(np.int64)).astype(np.int64)
        have = self._hashes.take(indices)
        beyond = np.flatnonzero(have > wanted)
        while len(beyond):
            indices[beyond] -= 1
            beyond = beyond[indices[beyond] >= 0]
            have[beyond] = self._hashes[indices[beyond]]
            beyond = beyond[have[beyond] > wanted[beyond]]
        same = have == wanted
        return rows[same], indices[same]
