"""A record that is written again and again and outlives its process: two copies in turn, without waiting for the disk.

Killed with signal 9 in the middle of a write, a process leaves the other copy whole; renaming a new file into place would
do the same for 50 times the cost. A power cut may take both, or give back an older record. Each copy has a number and is
encrypted (AES-256-GCM), so that one that is torn, damaged or not ours is never read. Knows nothing of what is in it.
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NUMBER, NONCE = 8, 12  # bytes
ABOUT = b"headgate checkpoint 1"


class Checkpoint:
    """The record at `path`.a and `path`.b, for one writer at a time. `master`: 32 secret bytes; the key is made of them."""

    def __init__(self, path: Path, master: bytes) -> None:
        self.copies = path.with_name(f"{path.name}.a"), path.with_name(f"{path.name}.b")
        self._cipher = AESGCM(hmac.digest(master, ABOUT, "sha256"))
        self._number = 0

    def write(self, content: bytes) -> None:
        """The next record, in the place of the one before the last. Raises OSError, and the last one is still there."""
        self._number += 1
        nonce = secrets.token_bytes(NONCE)
        sealed = nonce + self._cipher.encrypt(nonce, self._number.to_bytes(NUMBER, "big") + content, ABOUT)
        _write(self.copies[self._number % 2], len(sealed).to_bytes(NUMBER, "big") + sealed)

    def read(self) -> bytes | None:
        """The newest record that is whole, None when there is none; `write` goes on after it. Raises OSError."""
        found = [whole for copy in self.copies if (whole := self._whole(copy)) is not None]
        if not found:
            return None
        self._number, content = max(found)
        return content

    def exists(self) -> bool:
        """Whether anything is there, whole or not."""
        return any(copy.exists() for copy in self.copies)

    def remove(self) -> None:
        """Nothing is there any more; it may be called again."""
        for copy in self.copies:
            copy.unlink(missing_ok=True)
        self._number = 0

    def _whole(self, copy: Path) -> tuple[int, bytes] | None:
        try:
            found = copy.read_bytes()
            sealed = found[NUMBER : NUMBER + int.from_bytes(found[:NUMBER], "big")]  # behind it: the end of a longer one
            content = self._cipher.decrypt(sealed[:NONCE], sealed[NONCE:], ABOUT)
        except (FileNotFoundError, ValueError, InvalidTag):
            return None
        return int.from_bytes(content[:NUMBER], "big"), content[NUMBER:]


def _write(path: Path, payload: bytes) -> None:
    """Over what is there: cutting the file off first would take as long as a small training step."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        written = 0
        while written < len(payload):
            written += os.pwrite(handle, payload[written:], written)
    finally:
        os.close(handle)
