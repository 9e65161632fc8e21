"""What a client of the cluster trusts, and who it says it is: certificates and keys, as files or as text.

kafka-python takes a ready `ssl_context`, which cannot be sent to another process and would go on using files that were
renewed since. A `Tls` stands in for one: it can be pickled, and makes a fresh context for each connection. It knows no
Kafka and no settings.
"""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_PEM = "-----BEGIN "


@dataclass(frozen=True)
class Tls:
    """ca, certificate, key: the path of a PEM file, or PEM text; ca "" = what the system trusts, key "" = in `certificate`.

    TLS 1.2 or later, and a certificate of the other side that was signed by `ca`, are not negotiable; `check_hostname`
    False accepts such a certificate whatever host it was made for.
    """

    ca: str = ""
    certificate: str = field(default="", repr=False)
    key: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    check_hostname: bool = True

    def context(self) -> ssl.SSLContext:
        """A context with these files as they are now. Raises OSError (ssl.SSLError is one) when they cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # asks for a certificate and checks it
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = self.check_hostname
        if not self.ca:
            context.load_default_certs()
        elif is_text(self.ca):
            context.load_verify_locations(cadata=self.ca)
        else:
            context.load_verify_locations(self.ca)
        if self.certificate:
            with _as_file(self.certificate) as certificate, _as_file(self.key) as key:
                # Without a password, even an empty one, OpenSSL would stop and ask the terminal for it.
                context.load_cert_chain(certificate, key or None, password=self.password)
        return context

    def wrap_socket(self, sock: Any, **how: Any) -> ssl.SSLSocket:
        """As SSLContext's: what kafka-python calls for each connection."""
        return self.context().wrap_socket(sock, **how)


def is_text(pem: str) -> bool:
    """Whether this is PEM text and not the path of a file."""
    return pem.lstrip().startswith(_PEM)


@contextmanager
def _as_file(pem: str) -> Iterator[str]:
    """The path of a file that holds it: OpenSSL loads keys from files only. One made here is mode 0600 and goes at once."""
    if not is_text(pem):
        yield pem
        return
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(pem)
        file.flush()
        yield file.name
