"""Random bytes that nobody can repeat: AES-256 in counter mode under a key from the operating system.

For privacy noise and for sampling under privacy. A seedable generator is the wrong tool there: a fresh
`torch.Generator()` has a fixed published seed, a Mersenne Twister's state can be recovered from its output (Garfinkel
& Leclerc 2020), and a forked child repeats its parent's stream. Knows nothing of distributions (`models/private/noise.py`) and
cannot be seeded.
"""

from __future__ import annotations

import os
import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

CHUNK = 1 << 20  # the zero block that is encrypted is no longer than this, so that a large draw costs no second copy


class KeyStream:
    """One private stream of bytes; the key is drawn here, never shown and dropped with the object.

    A process that was forked off draws a new key before its first byte.
    """

    __slots__ = ("_cipher", "_pid")

    def __init__(self) -> None:
        self._rekey()

    def _rekey(self) -> None:
        self._pid = os.getpid()
        cipher = Cipher(algorithms.AES(secrets.token_bytes(32)), modes.CTR(secrets.token_bytes(16)))
        self._cipher: CipherContext = cipher.encryptor()

    def __reduce__(self) -> str:
        raise TypeError("a KeyStream cannot be copied or pickled: two copies would draw the same noise; make a new one")

    def read(self, count: int) -> bytes:
        """The next `count` bytes."""
        if self._pid != os.getpid():
            self._rekey()
        parts = [self._cipher.update(bytes(min(CHUNK, count - at))) for at in range(0, count, CHUNK)]
        return b"".join(parts)

    def words(self, count: int) -> np.ndarray:
        """The next `count` uniform 64-bit words, uint64 (count,)."""
        return np.frombuffer(self.read(8 * count), dtype=np.uint64)
