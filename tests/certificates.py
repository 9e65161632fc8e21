"""Certificates for tests: an authority, and what it signs, as PEM files made on the spot."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Signed:
    """A certificate and its key: both in one file of mode 0600, and each in one of its own."""

    both: Path
    certificate: Path
    key: Path


class Authority:
    """Signs certificates; `file` is what those who trust it need."""

    def __init__(self, folder: Path, name: str = "Test authority") -> None:
        self._folder, self._name = folder, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._builder(self._name, self._key.public_key(), 365 * DAY, authority=True)
        self.file = folder / "ca.pem"
        folder.mkdir(parents=True, exist_ok=True)
        self.file.write_bytes(certificate.public_bytes(Encoding.PEM))

    def sign(self, name: str, *hosts: str, lasts: timedelta = 365 * DAY, password: str = "") -> Signed:
        """A certificate of CN=`name` for host names and addresses; `lasts` < 0 is one that has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        pem = self._builder(subject, key.public_key(), lasts, hosts=hosts).public_bytes(Encoding.PEM)
        cipher = BestAvailableEncryption(password.encode()) if password else NoEncryption()
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, cipher)
        stem = f"{name}{'-expired' if lasts < timedelta(0) else ''}{'-encrypted' if password else ''}"
        signed = Signed(*(self._folder / f"{stem}{end}" for end in (".pem", ".crt", ".key")))
        for path, content in ((signed.both, secret + pem), (signed.certificate, pem), (signed.key, secret)):
            path.touch(mode=0o600)
            path.write_bytes(content)
        return signed

    def _builder(self, subject, public, lasts, *, hosts=(), authority=False) -> x509.Certificate:
        end = datetime.now(UTC) + lasts
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(end, datetime.now(UTC)) - DAY)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
