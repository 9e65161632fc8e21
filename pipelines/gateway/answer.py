"""What the gateway says: one answer shape for success, one for every refusal.

Knows JSON and HTTP status numbers. It does not know which step refuses or why.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

JSON = b"application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, body and extra headers (lower-case names), ready for any server."""

    status: int
    body: bytes
    media: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Refused(Exception):
    """A request that is not served: `status`, the error `code` and a sentence with value, limit and cure."""

    def __init__(self, status: int, code: str, message: str, *, wait: float = 0.0, **more: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.wait, self.more = status, code, message, wait, more

    def answer(self) -> Answer:
        """The refusal as an answer; `wait` seconds become Retry-After, rounded up to whole seconds."""
        headers: tuple[tuple[bytes, bytes], ...] = ()
        if self.wait > 0:
            headers = ((b"retry-after", str(max(1, math.ceil(self.wait))).encode()),)
        if self.status == 401:  # RFC 6750 §3 asks for the scheme on every 401
            headers += ((b"www-authenticate", b"Bearer"),)
        if self.status == 405:
            headers += ((b"allow", str(self.more.pop("allow", "")).encode()),)
        return Answer(self.status, dump({"error": self.code, "message": self.message, **self.more}), headers=headers)


def dump(body: Mapping[str, Any]) -> bytes:
    """Compact JSON; NaN is refused rather than written."""
    return json.dumps(body, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def ok(body: Mapping[str, Any], status: int = 200) -> Answer:
    """A JSON answer."""
    return Answer(status, dump(body))
