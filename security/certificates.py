"""When a certificate is in force. It checks no signature and knows no connection: TLS itself does that."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509


@dataclass(frozen=True, slots=True)
class Validity:
    """Whose certificate it is, and from when until when, UTC."""

    subject: str
    begins: datetime
    ends: datetime

    def reason_against(self, now: datetime) -> str:
        """Why it is not in force at `now`; "" when it is."""
        if now < self.begins:
            return f"{self.subject} is not valid before {self.begins:%Y-%m-%dT%H:%MZ}"
        return f"{self.subject} expired at {self.ends:%Y-%m-%dT%H:%MZ}" if now > self.ends else ""


def validities(pem: bytes) -> list[Validity]:
    """Of every certificate in PEM text, in its order. Raises ValueError when there is none."""
    return [
        Validity(found.subject.rfc4514_string(), found.not_valid_before_utc, found.not_valid_after_utc)
        for found in x509.load_pem_x509_certificates(pem)
    ]
