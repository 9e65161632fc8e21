"""Simulated clients of the demo: they ask the real gateway over HTTP, with a token, about the day's flights.

They know a URL, a token and event documents. What they are answered they only count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from security.keys import private_key
from security.tokens import issue

LIFETIME = timedelta(hours=1)


class Clients:
    """Ask evenly over the day's events; `requests` and `errors` count everything that was asked."""

    def __init__(self, url: str, keys: Path, *, issuer: str, audience: str, most: int) -> None:
        self.most = most
        self.requests = self.errors = 0
        now = datetime.now(UTC)
        key = private_key(keys, "token")
        token = issue(
            key, subject="demo-clients", scopes=["model:predict", "versions:read", "metrics:read"], issuer=issuer,
            audience=audience, lifetime=LIFETIME, now=now,
        )  # fmt: skip
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=10.0, trust_env=False)

    def ask(self, documents: Sequence[bytes]) -> None:
        """At most `most` of the documents, evenly spaced; a limited client waits as long as it is told."""
        step = max(1, len(documents) // self.most) if self.most else len(documents) + 1
        for document in documents[: step * self.most : step]:
            answer = self._http.post("/v1/predict", content=document)
            while answer.status_code == 429:
                time.sleep(float(answer.headers.get("retry-after", "0.1")))
                answer = self._http.post("/v1/predict", content=document)
            self.requests += 1
            self.errors += answer.status_code != 200

    def epoch(self) -> int:
        """The routing epoch the gateway answers by now."""
        return int(self._http.get("/v1/versions").json()["epoch"])

    def close(self) -> None:
        """Hang up."""
        self._http.close()
