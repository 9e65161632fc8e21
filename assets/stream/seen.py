"""Which event ids were already in the examples of an earlier window, without a limit in time and without a scan.

Each window writes one file of sorted 64-bit hashes. Like a Fenwick tree, the file of window number n (from 1) holds the
windows (n - lowbit(n), n], so the ids of all windows before n lie in at most log2(n) files, searched where they lie on
the disk. A record sent again a year later is found, and learnt from once. Two different ids share a hash with
probability 2^-64 for each pair: of 10^9 ids, about 5 in 10^11 new ones would be taken for known (and counted as such).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from assets.stream.store import StoreDamaged

Hashes = npt.NDArray[np.uint64]
# The file of window number n: its path relative to the store, and how many hashes it holds.
Block = Callable[[int], tuple[str, int]]

_HASH_BYTES = 8


def hashes(ids: Iterable[Any]) -> Hashes:
    """One 64-bit hash an id, in the same order."""
    digests = b"".join(hashlib.blake2b(str(each).encode(), digest_size=_HASH_BYTES).digest() for each in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def covering(number: int) -> list[int]:
    """The windows whose files together hold windows 1 to `number`.

    >>> covering(7)
    [7, 6, 4]
    """
    found = []
    while number > 0:
        found.append(number)
        number -= number & -number
    return found


def parts(number: int) -> list[int]:
    """The windows whose files, with the window's own ids, make the file of window `number`.

    >>> parts(8)
    [7, 6, 4]
    """
    low, step, found = number & -number, 1, []
    while step < low:
        found.append(number - step)
        step *= 2
    return found


def known(root: Path, block: Block, before: int, wanted: Hashes) -> npt.NDArray[np.bool_]:
    """Which of the wanted hashes were in the examples of windows 1 to `before`, bool (n,)."""
    hit = np.zeros(len(wanted), dtype=np.bool_)
    for number in covering(before):
        have = _load(root, *block(number))
        if len(have):
            place = np.minimum(np.searchsorted(have, wanted), len(have) - 1)
            hit |= have[place] == wanted
    return hit


def block_bytes(root: Path, block: Block, number: int, own: Hashes) -> bytes:
    """The file of window `number`, whose own ids have these hashes."""
    every = np.concatenate([own, *(_load(root, *block(part)) for part in parts(number))])
    return np.sort(every).astype("<u8").tobytes()


def rows_in(payload: bytes) -> int:
    """How many hashes the bytes of a file hold."""
    return len(payload) // _HASH_BYTES


def _load(root: Path, path: str, rows: int) -> Hashes:
    size = (root / path).stat().st_size if (root / path).is_file() else -1
    if size != rows * _HASH_BYTES:
        raise StoreDamaged(
            f"{root / path} has {size} bytes (-1: it is missing), the journal promises {rows * _HASH_BYTES}: delete it "
            "and run the window of that folder again, else an old event could be learnt from twice"
        )
    return np.memmap(root / path, dtype="<u8", mode="r") if rows else np.empty(0, dtype=np.uint64)
