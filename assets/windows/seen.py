"""Which event ids were already in the examples of an earlier window, without a limit in time and without a scan.

Each window keeps one block of sorted 64-bit hashes. Like a Fenwick tree, the block of window number n (from 1) holds the
windows (n - lowbit(n), n], so the ids of all windows before n lie in at most log2(n) blocks, asked where they lie on the
disk. A record sent again a year later is found, and learnt from once. Two different ids share a hash with probability
2^-64 for each pair: of 10^9 ids, about 5 in 10^11 new ones would be taken for known (and counted as such).

A block has 16 to 32 bits for each hash beside it, one of which is set: its first bits say which. Of the ids nobody has
seen, one of 17 to 33 is searched for in the sorted hashes, the others cost 4 ns and one page a block; a binary search on
the disk would be 0.5 µs and many pages. This file does not know where a block is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from assets.windows.idhash import Hashes

Bits = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

_BITS_A_HASH = 16  # at least
_ROWS = 65_536  # asked at a time, so that what comes in between stays in the cache
_PIECE = 1 << 20  # hashes that are merged at a time, about: what bounds the memory of a merge


class Block(NamedTuple):
    """hashes (m,), sorted. bits (filter_bytes(m),): bit number `hash's first bits` is set for each, lowest bit first."""

    hashes: Hashes
    bits: Bits


def filter_bytes(count: int) -> int:
    """How many bytes the bits of a block of so many hashes take: a whole number of 64-bit words."""
    return 1 << (_width(count) - 3) if count else 0


def covering(number: int) -> list[int]:
    """The windows whose blocks together hold windows 1 to `number`, the newest first.

    >>> covering(7)
    [7, 6, 4]
    """
    found = []
    while number > 0:
        found.append(number)
        number -= number & -number
    return found


def parts(number: int) -> list[int]:
    """The windows whose blocks, with the window's own ids, make the block of window `number`.

    >>> parts(8)
    [7, 6, 4]
    """
    low, step, found = number & -number, 1, []
    while step < low:
        found.append(number - step)
        step *= 2
    return found


def known(block: Callable[[int], Block], before: int, wanted: Hashes) -> Bools:
    """Which of the wanted hashes were in the examples of windows 1 to `before`, bool (n,)."""
    hit = np.zeros(len(wanted), dtype=np.bool_)
    left = np.arange(len(wanted))
    for number in covering(before):
        if not len(left):
            break
        found = _in_block(block(number), wanted[left])
        hit[left[found]] = True
        left = left[~found]
    return hit


def merged(blocks: Sequence[Hashes], own: Hashes) -> Iterator[Block]:
    """The block of a window, in pieces that follow one another. blocks: of its `parts`. own: its hashes, ascending."""
    sources = [*blocks, own]
    count = sum(map(len, sources))
    if not count:
        return
    width = _width(count)
    fold = max(0, (count // _PIECE).bit_length())  # 2^fold pieces, by the first bits
    bounds = np.arange(1, 1 << fold, dtype=np.uint64) << np.uint64(64 - fold) if fold else np.empty(0, dtype=np.uint64)
    cuts = [[0, *np.searchsorted(source, bounds).tolist(), len(source)] for source in sources]
    for piece in range(1 << fold):
        some = [source[cut[piece] : cut[piece + 1]] for source, cut in zip(sources, cuts, strict=True)]
        hashes = np.sort(np.concatenate(some))
        marks = np.zeros(1 << (width - fold), dtype=np.bool_)
        marks[(hashes >> np.uint64(64 - width)).astype(np.int64) - (piece << (width - fold))] = True
        yield Block(hashes, np.packbits(marks, bitorder="little"))


def _in_block(block: Block, wanted: Hashes) -> Bools:
    found = np.zeros(len(wanted), dtype=np.bool_)
    if not len(block.hashes):
        return found
    shift = np.uint64(64 - _width(len(block.hashes)))
    for start in range(0, len(wanted), _ROWS):
        place = wanted[start : start + _ROWS] >> shift
        byte = block.bits.take((place >> np.uint64(3)).view(np.int64))
        found[start : start + _ROWS] = (byte >> (place & np.uint64(7)).astype(np.uint8)) & 1
    maybe = np.flatnonzero(found)
    maybe = maybe[np.argsort(wanted[maybe])]  # in order a search is 5 to 10 times faster, and reads each page once
    place = np.minimum(np.searchsorted(block.hashes, wanted[maybe]), len(block.hashes) - 1)
    found[maybe] = block.hashes[place] == wanted[maybe]
    return found


def _width(count: int) -> int:
    """How many first bits of a hash say which bit is set."""
    return max(6, (_BITS_A_HASH * count - 1).bit_length())
