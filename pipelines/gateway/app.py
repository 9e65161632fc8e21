"""The ASGI shell: routes, header and body limits, and nothing that decides about a prediction.

One table says which scope each route needs; a route that is not in it does not exist. Tokens are checked before a
body is read. Header time-outs and TLS belong to the proxy in front, because the server below has none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from pipelines.gateway.answer import Answer, Refused
from pipelines.gateway.core import DURABLE_SECONDS, PREDICT, Core, Instant
from pipelines.gateway.rollouts import LOOKS, PREFIX, READ, Asked, Rollouts, scope_of, split
from pipelines.verbs import VERBS

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BODY_SECONDS = 10.0  # a client that sends a byte a second would hold a connection for 18 hours


@dataclass(frozen=True, slots=True)
class Route:
    """One route; `{version}` in its path stands for any. `scope` None = open to everybody who can connect, which must be
    said here and in docs/gateway.md."""

    method: str
    path: str
    scope: str | None
    summary: str


ROUTES = (
    Route("POST", "/v1/predict", PREDICT, "One prediction for one event."),
    Route("GET", "/v1/versions", "versions:read", "What is served, and how this replica stands with the journal."),
    Route("GET", "/metrics", "metrics:read", "Figures for Prometheus; open when the gateway listens on loopback only."),
    Route("GET", "/healthz", None, "The process answers."),
    Route("GET", "/readyz", None, "A verified version is loaded."),
    Route("GET", "/openapi.json", None, "This interface."),
    Route("GET", PREFIX, READ, "Every rollout of the task, oldest first."),
    *(Route("GET", f"{PREFIX}/{{version}}/{word}".rstrip("/"), READ, text) for word, text in LOOKS.items()),
    *(Route("POST", f"{PREFIX}/{{version}}/{verb}", scope_of(verb), how.text) for verb, how in VERBS.items()),
)

Page = Callable[[], Answer]


class App:
    """ASGI application. `pages` answers the GET routes by path, `rollouts` those below `/v1/rollouts`; `open_metrics`:
    /metrics needs no token."""

    def __init__(self, core: Core, pages: MutableMapping[str, Page], rollouts: Rollouts, *, open_metrics: bool) -> None:
        self._core, self._pages, self._rollouts = core, pages, rollouts
        self._open_metrics = open_metrics
        table = {(route.method, route.path): route for route in ROUTES}
        self._routes = {key: route for key, route in table.items() if not route.path.startswith(PREFIX)}
        self._releases = {key: route for key, route in table.items() if key not in self._routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        answer = await self._answer(scope, receive)
        headers = [
            (b"content-type", answer.media),
            (b"content-length", str(len(answer.body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            *answer.headers,
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        now = Instant.now()
        route = self._routes.get((scope["method"], scope["path"]))
        try:
            if route is None:
                return await self._release(scope, receive, now)
            authorization, length = _headers(scope["headers"])
            needed = None if route.path == "/metrics" and self._open_metrics else route.scope
            if needed is not None:
                self._core.admit(authorization, needed, now)
            if route.scope != PREDICT:
                return self._pages[route.path]()
            return await self._predict(await self._body(receive, length), now)
        except Refused as refused:
            return self._core.refuse(refused) if route is not None and route.scope == PREDICT else refused.answer()

    async def _release(self, scope: Scope, receive: Receive, now: Instant) -> Answer:
        """A route about rollouts; Refused 404 or 405 when it is none."""
        path, version, word = split(scope["path"]) or (scope["path"], None, "")
        route = self._releases.get((scope["method"], path))
        if route is None:
            raise _no_route(scope["method"], path)
        authorization, length = _headers(scope["headers"])
        claims = self._core.admit(authorization, route.scope or READ, now)
        body = await self._body(receive, length) if route.method == "POST" else b""
        return await self._rollouts.answer(Asked(route.method, version, word, claims, body, _match(scope["headers"])))

    async def _predict(self, body: bytes, now: Instant) -> Answer:
        predicted = self._core.predict(body, now)
        if predicted.durable is not None:
            try:
                async with asyncio.timeout(DURABLE_SECONDS):
                    await asyncio.wrap_future(predicted.durable)
            except OSError as error:  # a time-out is one
                raise self._core.not_recorded() from error
        return self._core.counted(predicted)

    async def _body(self, receive: Receive, declared: int) -> bytes:
        if declared > self._core.max_body:
            raise self._core.too_large(declared)
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    body = await self._rest(receive, body)
            except TimeoutError:
                text = f"the body did not arrive within {BODY_SECONDS:g} s: send it at once"
                raise Refused(408, "too_slow", text) from None
        return body

    async def _rest(self, receive: Receive, first: bytes) -> bytes:
        parts, size, more = [first], len(first), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "incomplete", "the connection closed before the whole body came")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._core.max_body:
                raise self._core.too_large(size)
            more = message.get("more_body", False)
        return b"".join(parts)


def _no_route(method: str, path: str) -> Refused:
    allowed = [route.method for route in ROUTES if route.path == path]
    if allowed:
        text = f"{method} is not allowed on {path}: use {', '.join(allowed)}"
        return Refused(405, "method_not_allowed", text, allow=", ".join(allowed))
    known = ", ".join(route.path for route in ROUTES)
    return Refused(404, "not_found", f"there is no {path[:80]!r}: this gateway has {known}")


def _match(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    found = [value.decode("latin-1") for name, value in headers if name == b"if-match"]
    if len(found) > 1:
        raise Refused(400, "ambiguous", "the header if-match appears twice: send it once")
    return found[0] if found else None


def _headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, int]:
    """The authorization value and the declared length; Refused for what two servers could read in two ways."""
    authorization, length, chunked = "", 0, False
    seen = set()
    for name, value in headers:
        if name == b"authorization" or name == b"content-length":
            if name in seen:
                raise Refused(400, "ambiguous", f"the header {name.decode()} appears twice: send it once")
            seen.add(name)
        if name == b"authorization":
            authorization = value.decode("latin-1")
        elif name == b"content-length":
            length = int(value) if value.isdigit() else 0
        elif name == b"transfer-encoding":
            chunked = True
    if chunked and b"content-length" in seen:  # RFC 9112 §6.1: the classic request smuggling pair
        raise Refused(400, "ambiguous", "content-length and transfer-encoding together: send one of them")
    return authorization, length
