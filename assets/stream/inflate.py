"""The bytes of a compressed record batch, and never more of them than a limit.

A few kilobytes can claim or unfold to gigabytes; here they end in an error that names both sizes. The wheels are the
ones kafka-python has found (`kafka.codec`). This file knows Kafka's five codecs and their framings, and nothing about
what is inside.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

from kafka import codec

NAMES = ("none", "gzip", "snappy", "lz4", "zstd")

# A response of kafka-python is at most 128 MiB, the largest record of ours 8 MiB, a batch of Java's client 16 KiB before
# it is packed: 256 MiB refuses no honest batch, and fits beside everything else in the 1.5 GB a reader may use.
MAX_BYTES = 256 << 20

_XERIAL = b"\x82SNAPPY\x00"  # then two int32 versions, then blocks of (int32 length, raw snappy)
_LZ4_MOST = 255  # a block cannot unfold further: each byte of a match length adds 255
_ZSTD_PIECE = 4 << 10  # four bytes may stand for 128 KiB, so one piece unfolds to 128 MiB at most


class Inflater:
    """Unpacks batches one after the other; not for two threads at once (zstd keeps its tables)."""

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self._limit = limit
        self._zstd: Any = None

    def __call__(self, number: int, body: memoryview) -> bytes | memoryview:
        """The records of a batch whose attributes name codec `number`. Raises ValueError with the reason."""
        if number == 0:
            return body
        if number >= len(NAMES):
            raise ValueError(f"codec {number} is none of {', '.join(NAMES)}: written by a newer client than this reader")
        try:
            return (self._gzip, self._snappy, self._lz4, self._zstandard)[number - 1](body)
        except _TooLarge as error:
            raise ValueError(f"codec {NAMES[number]}: {len(body)} bytes unfold to {error}") from None
        except Exception as error:  # each wheel raises its own kinds, MemoryError among them
            raise ValueError(f"codec {NAMES[number]} cannot unpack {len(body)} bytes: {error}") from error

    def _check(self, size: int) -> int:
        if size > self._limit:
            raise _TooLarge(
                f"{size} or more > the limit of {self._limit} a batch: not what a producer writes by mistake; find out "
                "who wrote it, or read this range on the ordinary path (KafkaLog(raw=False)), which has no limit"
            )
        return size

    def _gzip(self, body: memoryview) -> bytes:
        parts, size, rest = [], 0, bytes(body)
        while rest:
            stream = zlib.decompressobj(wbits=31)
            parts.append(stream.decompress(rest, self._limit + 1 - size))
            size = self._check(size + len(parts[-1]))
            if not stream.eof:
                raise EOFError("the stream is cut off")
            rest = stream.unused_data
        return b"".join(parts)

    def _snappy(self, body: memoryview) -> bytes:
        if len(body) <= 16 or body[:8] != _XERIAL:
            self._check(_snappy_size(body))
            return bytes(codec.snappy.decompress(body))
        parts, size, at = [], 0, 16
        while at < len(body):
            (length,) = struct.unpack_from(">i", body, at)
            at += 4
            if not 0 <= length <= len(body) - at:
                raise EOFError(f"a block of {length} bytes where {len(body) - at} are left")
            size = self._check(size + _snappy_size(body[at : at + length]))
            parts.append(codec.snappy.decompress(body[at : at + length]))
            at += length
        return b"".join(parts)

    def _lz4(self, body: memoryview) -> bytes:
        if body[4] & 8:  # the frame says how large its content is
            self._check(int(struct.unpack_from("<Q", body, 6)[0]))
        if len(body) * _LZ4_MOST <= self._limit:
            return bytes(codec.lz4.decompress(body))
        stream = codec.lz4.LZ4FrameDecompressor()
        whole = bytes(stream.decompress(body, max_length=self._limit + 1))
        self._check(len(whole))
        if not stream.eof:
            raise EOFError("the frame is cut off")
        return whole

    def _zstandard(self, body: memoryview) -> bytes:
        """Piece by piece: Java's client does not write the size into the frame, and there may be several frames."""
        if self._zstd is None:
            self._zstd = codec.zstd.ZstdDecompressor()
        self._check(codec.zstd.frame_content_size(body))  # -1 when it is not written
        parts, size = [], 0
        while body:
            stream, at = self._zstd.decompressobj(), 0
            while at < len(body) and not stream.eof:
                parts.append(stream.decompress(body[at : at + _ZSTD_PIECE]))
                size, at = self._check(size + len(parts[-1])), at + _ZSTD_PIECE
            if not stream.eof:
                raise EOFError("the frame is cut off")
            body = memoryview(stream.unused_data + body[at:])
        return b"".join(parts)


class _TooLarge(Exception):
    """The message has the sizes."""


def _snappy_size(block: memoryview) -> int:
    """The length a raw snappy block says it unfolds to: its first bytes, seven bits each."""
    size = 0
    for index in range(5):
        size |= (block[index] & 0x7F) << 7 * index
        if block[index] < 0x80:
            return size
    raise ValueError("its length takes more than 5 bytes")
