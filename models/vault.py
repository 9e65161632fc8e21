"""The vault: unstamped adapters that training goes on from. They never leave the trust zone and are never served.

A file is written once, readable by its owner only, and read back against the hash in the journal. Safetensors, no pickle.
It knows neither versions nor watermarks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from security import disk


class VaultDamaged(Exception):
    """An unstamped adapter is missing or is not the one the journal names."""


def write_vault(path: Path, tensors: Mapping[str, np.ndarray]) -> str:
    """Write the tensors whole or not at all, to the disk; returns the file's sha256."""
    from safetensors.numpy import save

    payload = save({name: np.ascontiguousarray(value) for name, value in sorted(tensors.items())})
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    disk.put(path, payload, mode=0o400)  # flushed: the journal is about to promise that the file is there
    return hashlib.sha256(payload).hexdigest()


def read_vault(path: Path, sha256: str) -> dict[str, np.ndarray]:
    """The tensors, if the file is the one with this hash. Raises VaultDamaged."""
    from safetensors.numpy import load

    try:
        payload = path.read_bytes()
    except FileNotFoundError as error:
        raise VaultDamaged(f"{path} is missing: bring it back from a backup, or start again from the stable version") from error
    found = hashlib.sha256(payload).hexdigest()
    if found != sha256:
        raise VaultDamaged(f"{path} has sha256 {found[:16]}..., the journal says {sha256[:16]}...: it was changed, restore it")
    return load(payload)
