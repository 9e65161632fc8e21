"""Event ids as 64-bit hashes which nobody who only chooses ids can aim at one another.

Ids come from outside. Whoever could find an id with the hash of somebody else's would make that event look like a copy
of his own, and it would never be learnt from. With a hash without a key that is a search anybody can run: among 2^30 ids
that can be guessed (order numbers), one of 2^34 tries hits. So the hash has a secret: the digest of the first cut, which
holds the topics' random ids; it is in the journal, the same for ever, and not known to those who send events.

The hash is multilinear (Lemire and Kaser, "Strongly universal string hashing is fast", 2014, section 3): the length and
the 32-bit words of an id, each times a 64-bit factor of the secret, summed mod 2^64; the upper half of the sum. Two such
halves make 64 bits: any two different ids share a hash with probability 2^-64, over the secret. This file does not know
what is done with a hash.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from assets.stream.decode import SchemaRefused

Hashes = npt.NDArray[np.uint64]

LONGEST = 256  # bytes of an id that are hashed in columns; a longer one goes alone, through keyed BLAKE2b
_ROWS = 16_384  # at a time: 16,384 ids of 20 characters as words take 0.7 MB, which stays in the cache
_HALF = np.uint64(32)
_UPPER = np.uint64(0xFFFFFFFF00000000)


class IdHash:
    """The hash with one secret. 18 ns for an id of 20 characters (2.3 GHz); the ids of one task use one secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = hashlib.sha256(secret).digest()
        drawn = hashlib.shake_256(b"event ids" + self._secret).digest(2 * 8 * (LONGEST // 4 + 2))
        self._factors: Hashes = np.frombuffer(drawn, dtype="<u8").astype(np.uint64).reshape(2, -1)

    def __call__(self, ids: pa.ChunkedArray) -> Hashes:
        """One hash an id, (n,), in the same order. ids: strings, binary, integers, booleans or times, none null.

        Raises SchemaRefused for ids of another type.
        """
        found = np.empty(len(ids), dtype=np.uint64)
        done = 0
        for chunk in ids.chunks:
            for start in range(0, len(chunk), _ROWS):
                some = self._some(chunk.slice(start, _ROWS))
                found[done : done + len(some)] = some
                done += len(some)
        return found

    def _some(self, ids: pa.Array) -> Hashes:
        kind = ids.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return self._texts(ids)
        if pa.types.is_binary(kind):
            return self._texts(ids.view(pa.string()))
        if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_timestamp(kind):
            whole = ids.cast(pa.int64(), safe=False).to_numpy(zero_copy_only=False)
            return self._sums(whole.astype("<i8").view("<u4").reshape(-1, 2), np.full(len(whole), 8, dtype=np.uint64))
        raise SchemaRefused(f"event_id has type {kind}, by which nothing can be found again: use a string or an integer")

    def _texts(self, ids: pa.Array) -> Hashes:
        lengths = pc.binary_length(ids).to_numpy()
        long = np.flatnonzero(lengths > LONGEST)
        if len(long):
            short = pc.if_else(pa.array(lengths <= LONGEST), ids, pa.scalar("", ids.type))
            found = self._texts(short)
            found[long] = [self._alone(text) for text in ids.take(pa.array(long)).to_pylist()]
            return found
        width = max(4, -(-int(lengths.max(initial=0)) // 4) * 4)
        # The zeros that fill up a short id add nothing to its sums; its length tells it from one that ends in zeros.
        padded = pc.ascii_rpad(ids, width, padding="\0")
        words = np.frombuffer(padded.buffers()[2], dtype="<u4", count=len(ids) * width // 4, offset=_begin(padded))
        return self._sums(words.reshape(len(ids), -1), lengths.astype(np.uint64))

    def _sums(self, words: npt.NDArray[np.uint32], lengths: Hashes) -> Hashes:
        wide = words.astype(np.uint64)
        high, low = (factors[0] + lengths * factors[1] for factors in self._factors)
        for column in range(wide.shape[1]):
            high += wide[:, column] * self._factors[0, column + 2]
            low += wide[:, column] * self._factors[1, column + 2]
        result: Hashes = (high & _UPPER) | (low >> _HALF)
        return result

    def _alone(self, text: str | bytes) -> int:
        raw = text.encode() if isinstance(text, str) else text
        return int.from_bytes(hashlib.blake2b(raw, digest_size=8, key=self._secret).digest(), "little")


def _begin(texts: Any) -> int:
    """Where in the data buffer the first text begins, bytes."""
    wide = pa.types.is_large_string(texts.type)
    return int(np.frombuffer(texts.buffers()[1], dtype="<i8" if wide else "<i4")[texts.offset]) if len(texts) else 0
