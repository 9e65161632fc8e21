"""A schema registry over HTTP: the schema that has an id, asked for once (Confluent's REST API, which others speak too).

Ids never change their meaning, so what was answered is kept for ever. That nothing answers is nobody's poison: the window
is tried again later. This file does not know records, nor what a schema says.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import httpx

from assets.stream.log import StreamUnreachable
from security.listening import is_loopback

LARGEST_ANSWER = 4 << 20
FIRST_PAUSE = 0.25  # seconds before the second try; each pause is twice the one before
UNKNOWN_SCHEMA = 40403
_BUSY = (408, 425, 429)  # and every 5xx
_HEADERS = {"Accept": "application/vnd.schemaregistry.v1+json, application/json", "Accept-Encoding": "identity"}


class RegistryUnreachable(StreamUnreachable):
    """The registry gave no answer, or an error of its own, each time it was asked. Trying again later may help."""


class RegistryRefused(Exception):
    """It answers, but not as a registry that may be asked: address, user or settings are wrong. Nothing is rejected."""


class SchemaUnusable(Exception):
    """The id is unknown, or its schema is of a sort that cannot be read here: its records are rejected for this reason."""


@dataclass(frozen=True, slots=True)
class RegisteredSchema:
    """kind: AVRO or JSON. text: as it was registered."""

    kind: str
    text: str


class Registry:
    """The registry at `url`. It can be pickled; each process keeps answers of its own.

    username, password: for HTTP basic authentication. ca_file: PEM, of an authority of one's own. timeout: seconds for one
    answer. retries: how often it is asked again after no answer. Raises RegistryRefused for an address that cannot be used.
    """

    def __init__(
        self, url: str, *, username: str | None = None, password: str | None = None, ca_file: str | None = None,
        timeout: float = 5.0, retries: int = 3, allow_insecure: bool = False,
    ) -> None:  # fmt: skip
        self._url = _checked(url, allow_insecure)
        self._auth = None if username is None else (username, password or "")
        self._ca_file, self._timeout, self._retries = ca_file, timeout, retries
        self._known: dict[int, RegisteredSchema] = {}

    def schema(self, number: int) -> RegisteredSchema:
        """The schema with this id. Raises SchemaUnusable, RegistryUnreachable, RegistryRefused."""
        if number not in self._known:
            self._known[number] = self._usable(number, self._ask(number))
        return self._known[number]

    def _usable(self, number: int, answer: dict[str, Any] | None) -> RegisteredSchema:
        if answer is None:
            raise SchemaUnusable(f"schema id {number} is unknown to the registry")
        kind, text = answer.get("schemaType") or "AVRO", answer.get("schema")
        if not isinstance(text, str) or not isinstance(kind, str):
            raise RegistryRefused(f"{self._place(number)} answers with something that is no schema: is it a registry?")
        if kind not in ("AVRO", "JSON"):
            raise SchemaUnusable(f"schema id {number} is of type {kind[:20]!r}, only AVRO and JSON can be read")
        if kind == "AVRO" and answer.get("references"):
            raise SchemaUnusable(f"schema id {number} refers to other schemas, which are not followed: register it whole")
        return RegisteredSchema(kind, text)

    def _ask(self, number: int) -> dict[str, Any] | None:
        """The answer's object; None when the id is unknown, also when asked once more past any cache in between."""
        verify = httpx.create_ssl_context(verify=self._ca_file or True) if self._url.scheme == "https" else False
        with httpx.Client(auth=self._auth, verify=verify, trust_env=False, timeout=self._timeout, headers=_HEADERS) as client:
            found = self._patiently(client, number, {})
            return found if found is not None else self._patiently(client, number, {"Cache-Control": "no-cache"})

    def _patiently(self, client: httpx.Client, number: int, headers: dict[str, str]) -> dict[str, Any] | None:
        for attempt in range(self._retries + 1):
            try:
                return self._read(*self._get(client, number, headers), number)
            except (httpx.TransportError, RegistryUnreachable) as error:
                trouble = str(error) if isinstance(error, RegistryUnreachable) else _words(error)
            if attempt < self._retries:
                time.sleep(FIRST_PAUSE * 2**attempt)
        raise RegistryUnreachable(
            f"{self._place(number)} was asked {self._retries + 1} times, the last time: {trouble}. The window is tried "
            "again later; see that the registry runs, and that this is its address"
        )

    def _get(self, client: httpx.Client, number: int, headers: dict[str, str]) -> tuple[httpx.Response, bytes]:
        deadline = time.monotonic() + self._timeout
        with client.stream("GET", self._path(number), headers=headers) as answer:
            body = bytearray()
            for part in answer.iter_bytes():
                body += part
                if len(body) > LARGEST_ANSWER:
                    raise RegistryRefused(f"{self._place(number)} answers with more than {LARGEST_ANSWER} bytes")
                if time.monotonic() > deadline:  # httpx's own limit is for each read: a drop at a time would last for ever
                    raise RegistryUnreachable(f"no whole answer within {self._timeout:g} s")
        return answer, bytes(body)

    def _read(self, answer: httpx.Response, body: bytes, number: int) -> dict[str, Any] | None:
        status = answer.status_code
        if status >= 500 or status in _BUSY:
            raise RegistryUnreachable(f"HTTP {status}")
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = None
        if status == 404 and isinstance(found, dict) and found.get("error_code") == UNKNOWN_SCHEMA:
            return None
        if status in (401, 403):
            cure = "set the user and the password it wants" if self._auth is None else "see that user and password are right"
            raise RegistryRefused(f"{self._place(number)} lets nobody in like this (HTTP {status}): {cure}")
        if answer.is_redirect:
            raise RegistryRefused(f"{self._place(number)} sends us elsewhere (HTTP {status}): set the address it means")
        if status != 200 or not isinstance(found, dict):
            raise RegistryRefused(f"{self._place(number)} answers HTTP {status} and no schema: is it a registry's address?")
        return found

    def _path(self, number: int) -> httpx.URL:
        return self._url.copy_with(path=f"{self._url.path.rstrip('/')}/schemas/ids/{number}")

    def _place(self, number: int) -> str:
        return f"schema registry {self._path(number)}"


def _words(error: httpx.TransportError) -> str:
    """Without the address, which is said before it."""
    return "no answer in time" if isinstance(error, httpx.TimeoutException) else f"{type(error).__name__}: {error}"


def _checked(text: str, allow_insecure: bool) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.userinfo or url.query or url.fragment:
        raise RegistryRefused("the registry's address has a user, a query or a fragment in it: give user and password apart")
    if url.scheme not in ("http", "https") or not url.host:
        raise RegistryRefused(f"the registry's address {text!r} is none: write it as https://HOST:PORT")
    if url.scheme == "http" and not is_loopback(url.host) and not allow_insecure:
        raise RegistryRefused(
            f"the registry's address {text!r} is plain HTTP to another machine, which shows passwords and lets others change "
            "schemas on the way: use https, or allow it with allow_insecure"
        )
    return url
