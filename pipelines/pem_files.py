"""The certificate and key files that settings name: there, readable, private, in force, and fitting together.

Looked at once, before a client is made: a client that meets a bad file later only says that it has no connection. It
knows no hosts and opens no connection.
"""

from __future__ import annotations

import stat
from datetime import datetime
from pathlib import Path

from assets.stream.tls import Tls, is_text
from pipelines.client_properties import UnusableConnection
from pipelines.secret import Secret

OTHERS = 0o077  # the mode bits of everybody but the owner


def checked_tls(ca: str, certificate: str, key: str, password: Secret, check_hostname: bool, now: datetime) -> Tls:
    """The files as absolute paths (PEM text stays as it is). Raises UnusableConnection."""
    given = {"ssl_cafile": ca, "ssl_certfile": certificate, "ssl_keyfile": key}
    placed = {name: pem if not pem or is_text(pem) else str(Path(pem).absolute()) for name, pem in given.items()}
    for name, pem in placed.items():
        if pem:
            _check(name, pem, now)
    tls = Tls(placed["ssl_cafile"], placed["ssl_certfile"], placed["ssl_keyfile"], password, check_hostname)
    try:
        tls.context()
    except OSError as error:  # ssl.SSLError is one
        named = ", ".join(f"{name} = {_shown(pem)}" for name, pem in placed.items() if pem)
        raise UnusableConnection(
            f"[stream] {named or 'the certificates of the system'}: {getattr(error, 'reason', None) or error}. PEM files "
            "wanted; the key must belong to the certificate, and one that is encrypted needs ssl_key_password_file"
        ) from None
    return tls


def _check(name: str, pem: str, now: datetime) -> None:
    from security.certificates import validities

    content = pem.encode() if is_text(pem) else _content(name, Path(pem))
    if name == "ssl_keyfile":
        return
    try:
        reasons = [found.reason_against(now) for found in validities(content)]
    except ValueError as error:
        raise UnusableConnection(f"[stream] {name} = {_shown(pem)} holds no PEM certificate: {error}") from error
    # Of what we trust one that is in force is enough; of our own chain the first is ours.
    if reasons[0] if name == "ssl_certfile" else all(reasons):
        raise UnusableConnection(f"[stream] {name} = {_shown(pem)}: {reasons[0]}, now is {now:%Y-%m-%dT%H:%MZ}: get a new one")


def _content(name: str, path: Path) -> bytes:
    try:
        content, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise UnusableConnection(f"[stream] {name}: {error}: name a file that this user can read") from error
    if b"PRIVATE KEY-----" in content and mode & OTHERS:
        raise UnusableConnection(
            f"[stream] {name}: {path} holds a private key and has mode {mode:04o}, so others may read it; wanted 0400: "
            f"run chmod 0400 {path}"
        )
    return content


def _shown(pem: str) -> str:
    return "(text)" if is_text(pem) else pem
