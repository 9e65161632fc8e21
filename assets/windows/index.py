"""The index of a window: what the join of later windows needs of it, so that none of them opens its Parquet again.

One file of 64-bit words, little-endian: a header; hash of the id and time stamp of each event, then of each label, in the
order of the sealed rows; and the window's block of seen.py. Read where it lies, in part. The rows carry a sum of their
words (a wrong match must not come from a damaged disk), which is checked at 10 GB/s each time they are read.

It knows the file's layout. It does not know what the hashes are compared with.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from assets.windows.idhash import Hashes
from assets.windows.seen import Block, filter_bytes
from assets.windows.store import StoreDamaged

NAME = "index.u64"
Ints = npt.NDArray[np.int64]
Columns = tuple[Hashes, Ints]  # hashes of the ids and time stamps in ms since 1970, (n,) each

_MAGIC = int.from_bytes(b"window 2", "little")
_HEADER = 8  # words: magic, events, labels, hashes of the block, sum of the events, sum of the labels, two spare


class IndexOutdated(Exception):
    """The windows before were joined by a version whose files cannot be read any more."""


def write(file: Path, events: Columns, labels: Columns, count: int, block: Iterable[Block]) -> str:
    """Make the file and flush it to the disk; its sha256. block: pieces, `count` hashes in all."""
    header = [_MAGIC, len(events[0]), len(labels[0]), count, _sum(events), _sum(labels), 0, 0]
    with file.open("wb") as out:
        out.write(np.array(header, dtype="<u8").tobytes())
        for hashes, at in (events, labels):
            out.write(hashes.astype("<u8").data)
            out.write(at.astype("<i8").data)
        here = out.tell()
        bits_at = here + 8 * count
        for piece in block:
            out.seek(here)
            here += out.write(piece.hashes.astype("<u8").data)
            out.seek(bits_at)
            bits_at += out.write(piece.bits.data)
        out.flush()
        os.fsync(out.fileno())
    with file.open("rb") as whole:
        return hashlib.file_digest(whole, "sha256").hexdigest()


class Index:
    """An index that is read where it lies. rows: how many hashes its block has, as the journal says.

    Raises IndexOutdated for the file of an older version, StoreDamaged for one that is missing or not whole.
    """

    def __init__(self, root: Path, path: str, rows: int) -> None:
        self._file = root / path
        refuse_outdated(path)
        length = self._file.stat().st_size if self._file.is_file() else -1
        if length < 8 * _HEADER or length % 8:
            raise self._damaged(f"has {length} bytes (-1: it is missing)")
        words: Hashes = np.asarray(np.memmap(self._file, dtype="<u8", mode="r"))
        head = [int(word) for word in words[:_HEADER]]
        size = _HEADER + 2 * (head[1] + head[2]) + rows + filter_bytes(rows) // 8
        if len(words) != size or head[0] != _MAGIC or head[3] != rows:
            raise self._damaged(f"has {len(words)} words, {size} are due")
        self._words, self._events, self._labels, self._rows = words, head[1], head[2], rows
        self._sums = head[4:6]

    def events(self) -> Columns:
        """Of the window's events."""
        return self._columns(_HEADER, self._events, self._sums[0])

    def labels(self) -> Columns:
        """Of the window's labels."""
        return self._columns(_HEADER + 2 * self._events, self._labels, self._sums[1])

    def block(self) -> Block:
        """The window's block of known ids. Its words are not summed: it may be as long as the stream."""
        begin = _HEADER + 2 * (self._events + self._labels)
        end = begin + self._rows
        return Block(self._words[begin:end], self._words[end:].view(np.uint8))

    def _columns(self, begin: int, count: int, wanted: int) -> Columns:
        middle = begin + count
        found = self._words[begin:middle], self._words[middle : middle + count].view(np.int64)
        if _sum(found) != wanted:
            raise self._damaged("has other words than were written (their sum differs)")
        return found

    def _damaged(self, what: str) -> StoreDamaged:
        return StoreDamaged(
            f"{self._file} {what}: delete it and run the window of that folder again, else an event could be learnt from "
            "twice, or with another's label"
        )


def refuse_outdated(path: str) -> None:
    """Raises IndexOutdated for the name of an older version's file."""
    if not path.endswith(f"/{NAME}"):
        raise IndexOutdated(
            f"{path} was written by Headgate 0.1, which hashed event ids without a key; this version reads {NAME} only. "
            "Give the task another name, so that its windows are cut, sealed and joined again from the topics, or go on "
            "with Headgate 0.1"
        )


def _sum(columns: Columns) -> int:
    hashes, at = columns
    return (int(np.add.reduce(hashes)) + int(np.add.reduce(at.view(np.uint64)))) % (1 << 64)
