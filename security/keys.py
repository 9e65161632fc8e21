"""Key files: made once, never overwritten, refused when somebody else could read or change them.

A directory holds Ed25519 private keys (`trainer.pem` and so on), their public halves (`trainer.pub.pem`) and 32-byte
secrets (`vault.key`, `watermark.key`), all of mode 0400. It does not know what a key signs, nor where the directory is.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

SIGNING_KEYS = ("trainer", "approver", "token", "audit")
SECRETS = ("vault", "watermark")
SECRET_BYTES = 32
FILE_MODE = 0o400
MAX_FILE_BYTES = 4096
OTHERS_MAY_READ_OR_WRITE = 0o077
OTHERS_MAY_WRITE = 0o022


class KeyRefused(Exception):
    """A key file is absent, open to others, or not a key. The message has the path and the cure."""


def make_keys(directory: Path) -> list[Path]:
    """Write a fresh set of keys and return the files, all of mode 0400 in a directory of mode 0700.

    Raises KeyRefused, and writes nothing, when any of the files is already there: an overwritten vault key or
    watermark key cannot be recovered.
    """
    directory = Path(directory)
    contents = _fresh_contents()
    present = [name for name in contents if (directory / name).exists() or (directory / name).is_symlink()]
    if present:
        raise KeyRefused(
            f"{directory} already holds {', '.join(present)}: keys are never overwritten; to replace them move the "
            "old directory away and keep it, then run `headgate init`"
        )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        for name, content in contents.items():
            written.append(directory / name)
            _write_once(directory / name, content)
    except FileExistsError as error:  # another process made the same file meanwhile: it is not ours to remove
        _remove(written[:-1])
        raise KeyRefused(f"{written[-1]} appeared while keys were being made: keys are never overwritten") from error
    except OSError:
        _remove(written)
        raise
    return written


def private_key(directory: Path, name: str) -> Ed25519PrivateKey:
    """The private key `name`.pem. Raises KeyRefused when it is missing, open to others or no Ed25519 key."""
    path = Path(directory) / f"{_known(name, SIGNING_KEYS)}.pem"
    content = _read(path, OTHERS_MAY_READ_OR_WRITE)
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise _not_a_key(path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _not_a_key(path)
    return key


def public_key(directory: Path, name: str) -> Ed25519PublicKey:
    """The public half `name`.pub.pem. Others may read it; whoever may write it could pose as the signer."""
    path = Path(directory) / f"{_known(name, SIGNING_KEYS)}.pub.pem"
    content = _read(path, OTHERS_MAY_WRITE)
    try:
        key = load_pem_public_key(content)
    except (ValueError, TypeError) as error:
        raise _not_a_key(path) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _not_a_key(path)
    return key


def secret(directory: Path, name: str) -> bytes:
    """The 32 bytes of `name`.key. Raises KeyRefused when missing, open to others or of another length."""
    path = Path(directory) / f"{_known(name, SECRETS)}.key"
    content = _read(path, OTHERS_MAY_READ_OR_WRITE)
    if len(content) != SECRET_BYTES:
        raise KeyRefused(
            f"{path} has {len(content)} bytes, wanted {SECRET_BYTES}: it is no secret made by `headgate init`; "
            "restore it from your copy"
        )
    return content


def key_id(public: Ed25519PublicKey) -> str:
    """The first 16 hex digits of sha256 over the raw 32 bytes of the public key."""
    return hashlib.sha256(public.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def _fresh_contents() -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for name in SIGNING_KEYS:
        key = Ed25519PrivateKey.generate()
        contents[f"{name}.pem"] = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        contents[f"{name}.pub.pem"] = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for name in SECRETS:
        contents[f"{name}.key"] = secrets.token_bytes(SECRET_BYTES)
    return contents


def _write_once(path: Path, content: bytes) -> None:
    # O_EXCL refuses an existing file or link; the mode is set at creation, so there is no moment of openness.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _read(path: Path, forbidden: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        cure = "run `headgate init`, or set [keys] directory" if isinstance(error, FileNotFoundError) else "check it"
        raise KeyRefused(f"key file {path} cannot be read ({error.strerror}): {cure}") from error
    try:
        mode = os.fstat(descriptor).st_mode  # of the file that is open, not of what the path names by now
        if not stat.S_ISREG(mode):
            raise KeyRefused(f"key file {path} is not a regular file: run `headgate init`, or restore it")
        if stat.S_IMODE(mode) & forbidden:
            what = "written" if forbidden == OTHERS_MAY_WRITE else "read or written"
            raise KeyRefused(
                f"key file {path} has mode {stat.S_IMODE(mode):04o}, wanted {FILE_MODE:04o}: it can be {what} by "
                f"others; run `chmod 0400 {path}`, and replace the key if somebody else uses this machine"
            )
        return os.read(descriptor, MAX_FILE_BYTES)
    finally:
        os.close(descriptor)


def _known(name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise KeyRefused(f"no key is called {name!r}: the names are {', '.join(names)}")
    return name


def _not_a_key(path: Path) -> KeyRefused:
    return KeyRefused(f"{path} holds no Ed25519 key: restore it from your copy, or make a new set by `headgate init`")
