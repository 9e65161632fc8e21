"""Files that are there whole or not at all, and that a power cut does not take. It does not know what is in them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def put(path: Path, payload: bytes, mode: int = 0o600) -> None:
    """Write a file in the place of the one that is there: a temporary name beside it, flushed to the disk, renamed.

    Its folder is made if need be. Raises OSError, and leaves what was there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    settle(path.parent)


def settle(folder: Path) -> None:
    """Flush the names in a folder to the disk: after this, a journal entry may promise that the files are there."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
