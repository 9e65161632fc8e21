"""One file of a spool: rows one after another, each framed with its length and a CRC-32, behind a head of 16 bytes.

The head says how far the rows have been taken off. A crash may leave a part of the last row, which the frame shows. It
knows bytes and one file; not when a file is begun or deleted, nor what a row means.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from assets.stream.log import Outgoing

MAGIC = b"hgspool1"
_HEAD = struct.Struct("<8sQ")  # magic, offset in this file up to which rows were taken off
_TAKEN = struct.Struct("<Q")
# Length of what follows, its complement, its CRC-32: a length that was changed must not pass for a row that was torn.
_FRAME = struct.Struct("<III")
_ALL_BITS = 0xFFFFFFFF
_ROW = struct.Struct("<qI")  # timestamp, length of the key; the key and the value follow
START = _HEAD.size


@dataclass(slots=True)
class Segment:
    """`end` is behind the last whole row, `taken` behind the last row taken off; `rows` lie between them.
    `damaged`: behind the end is more than a row that was torn by a crash."""

    path: Path
    end: int = START
    taken: int = START
    rows: int = 0
    damaged: bool = False


def begin(path: Path) -> int:
    """Make the file -> a handle to write to. Raises OSError, and leaves no file then."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        write(handle, _HEAD.pack(MAGIC, START), 0)
    except OSError:
        os.close(handle)
        path.unlink(missing_ok=True)
        raise
    return handle


def frame(key: bytes, value: bytes, timestamp: int) -> bytes:
    """A row as it is written."""
    body = _ROW.pack(timestamp, len(key)) + key + value
    length = len(body)
    return _FRAME.pack(length, length ^ _ALL_BITS, zlib.crc32(body)) + body


def write(handle: int, data: bytes, at: int) -> None:
    """All of it: a full disk takes a part without an error. What was written before an error counts for nothing."""
    done = os.pwrite(handle, data, at)
    while done < len(data):
        done += os.pwrite(handle, data[done:], at + done)


def note_taken(handle: int, taken: int) -> None:
    """Write into the head how far rows were taken off."""
    os.pwrite(handle, _TAKEN.pack(taken), len(MAGIC))


def frames(data: bytes, start: int = 0) -> Iterator[tuple[Outgoing, int]]:
    """Whole rows, each with the offset behind it, up to the first that is not whole."""
    while start + _FRAME.size <= len(data):
        length, complement, crc = _FRAME.unpack_from(data, start)
        if length ^ complement != _ALL_BITS:
            return
        first, start = start + _FRAME.size, start + _FRAME.size + length
        body = data[first:start]
        if len(body) < length or zlib.crc32(body) != crc:
            return
        timestamp, keys = _ROW.unpack_from(body)
        yield Outgoing(body[_ROW.size : _ROW.size + keys], body[_ROW.size + keys :], timestamp), start


def find(path: Path) -> Segment | None:
    """A file that another process left; None when it died before the head was written."""
    try:
        data = path.read_bytes()
    except OSError:  # it must not keep the other files from being read
        return Segment(path, damaged=True)
    if len(data) < START:
        return None
    magic, noted = _HEAD.unpack_from(data)
    if magic != MAGIC:
        return Segment(path, damaged=True)
    found = Segment(path)
    for _, found.end in frames(data, START):
        found.rows += 1
        if found.end == noted:  # a note that is behind no row of this file is none: all are given again
            found.taken, found.rows = noted, 0
    found.damaged = not _may_be_torn(data[found.end :])
    return found


def _may_be_torn(rest: bytes) -> bool:
    """Whether this can come of a crash: nothing, a part of one row, or zeros that a power cut left. A row that is
    there in full and has another checksum cannot."""
    if len(rest) < _FRAME.size or not any(rest):
        return True
    length, complement, _ = _FRAME.unpack_from(rest)
    return bool(length ^ complement == _ALL_BITS and len(rest) < _FRAME.size + length)
