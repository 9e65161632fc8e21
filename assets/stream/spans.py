"""Spans of a buffer as Arrow columns, and the envelope of a batch, which every format puts in front of its own columns.

This file does not know what the bytes mean.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from assets.stream.batch import NULL, Batch, Ints, span

MILLISECONDS = pa.timestamp("ms", tz="UTC")

LARGEST = 2**31 - 1  # of an Arrow offset, in bytes


def gathered(data: bytes | npt.NDArray[np.uint8], starts: Ints, lengths: Ints) -> pa.Array:
    """The n spans as a binary array. They must follow each other in `data`, and `data` be no larger than LARGEST.

    Measured, for 18 bytes a row: 16 ns. An index of every byte (numpy.repeat) takes 131 ns, a mask 510 ns.
    """
    n = len(starts)
    if not n:
        return pa.array([], pa.binary())
    edges = np.empty(2 * n, dtype=np.int32)
    edges[::2] = starts
    np.add(starts, lengths, out=edges[1::2], casting="unsafe")
    both = pa.Array.from_buffers(pa.binary(), 2 * n - 1, [None, pa.py_buffer(edges), pa.py_buffer(data)])
    return both.take(pa.array(np.arange(0, 2 * n, 2, dtype=np.int32)))  # every other one lies between two spans


def joined(data: npt.NDArray[np.uint8], starts: Ints, lengths: Ints) -> npt.NDArray[np.uint8]:
    """The bytes of the spans, one after the other; as for `gathered`."""
    buffer = gathered(data, starts, lengths).buffers()[2]
    return np.frombuffer(buffer or b"", dtype=np.uint8)


def binary(data: bytes | npt.NDArray[np.uint8], starts: Ints, lengths: Ints) -> pa.Array:
    """The n spans as a binary array, in whatever order they are; length NULL = null."""
    absent = lengths == NULL
    if absent.any():
        lengths = np.where(absent, 0, lengths)
        before = np.maximum.accumulate(np.where(absent, 0, starts + lengths))  # where an absent one is, between its neighbours
        starts = np.where(absent, before, starts)
    if (starts[1:] < starts[:-1] + lengths[:-1]).any() or len(data) > LARGEST:
        raw = bytes(data)
        pairs = zip(starts.tolist(), lengths.tolist(), absent.tolist(), strict=True)
        return pa.array([None if gone else span(raw, start, size) for start, size, gone in pairs], pa.binary())
    found = gathered(data, starts, lengths)
    return with_nulls(found, absent) if absent.any() else found


def texts(raw: pa.Array) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """A binary array, not sliced, as text; and which values are no UTF-8, (n,): those have backslashes for their bytes."""
    wrong = np.zeros(len(raw), dtype=np.bool_)
    if len(places := high(raw)):  # an array of ASCII alone, which most are, needs no look at its values
        try:
            return raw.cast(pa.string()), wrong
        except pa.ArrowInvalid:
            edges = np.frombuffer(raw.buffers()[1], np.int32)[: len(raw) + 1]
            rows = np.unique(np.searchsorted(edges, places, "right") - 1)
        wrong[rows] = [not_utf8(raw[row].as_py()) is not None for row in rows.tolist()]
        shown = [raw[row].as_py().decode(errors="backslashreplace").encode() for row in np.flatnonzero(wrong).tolist()]
        raw = pc.replace_with_mask(raw, pa.array(wrong), pa.array(shown, pa.binary()))
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers()), wrong


def not_utf8(value: bytes) -> int | None:
    """The first byte that is no part of a text; None: it is one."""
    try:
        value.decode()
    except UnicodeDecodeError as error:
        return error.start
    return None


def high(raw: pa.Array) -> Ints:
    """Where in the array's bytes one is that is not ASCII."""
    data = np.frombuffer(raw.buffers()[2] or b"", np.uint8)
    return np.flatnonzero(data >= 0x80) if int(data.max(initial=0)) >= 0x80 else np.empty(0, np.int64)


def with_nulls(array: pa.Array, absent: npt.NDArray[np.bool_]) -> pa.Array:
    """The same values, null where `absent`, bool (n,): of an array without nulls, not sliced."""
    valid = pa.array(~absent).buffers()[1]
    return pa.Array.from_buffers(array.type, len(array), [valid, *array.buffers()[1:]])


def envelope(batch: Batch) -> list[pa.Array]:
    """The columns of decode.ENVELOPE."""
    return [
        pa.array(np.full(len(batch), batch.partition, dtype=np.int32)),
        pa.array(batch.offsets),
        pa.array(batch.timestamps).view(MILLISECONDS),
        binary(batch.data, *batch.keys),
    ]
