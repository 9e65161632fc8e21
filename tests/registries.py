"""A schema registry on 127.0.0.1, for tests: the documented REST API, and every way in which a registry can misbehave."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"


@dataclass
class LocalRegistry:
    """What it knows and how it behaves. `asked`: the paths of all requests so far, in order."""

    url: str = ""
    schemas: list[dict[str, Any]] = field(default_factory=list)
    subjects: dict[str, list[int]] = field(default_factory=dict)
    user: tuple[str, str] | None = None
    failing: int = 0  # so many requests are answered with error 50001
    slow: float = 0.0  # seconds before an answer
    dripping: bool = False  # a byte every 0.1 s
    answer: tuple[int, dict[str, str], bytes] | None = None  # given to whoever asks for a schema
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def register(self, schema: Any, kind: str = "AVRO", subject: str = "flights-value", **more: Any) -> int:
        """As a producer does it: over HTTP. Returns the id."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        body = {"schema": text, "schemaType": kind, **more}
        found = httpx.post(f"{self.url}/subjects/{subject}/versions", json=body, auth=self.user, trust_env=False)
        found.raise_for_status()
        return int(found.json()["id"])

    def add(self, subject: str, body: dict[str, Any]) -> int:
        """The id of the schema: the same text has the same one, under every subject."""
        wanted = {key: body[key] for key in ("schema", "schemaType", "references") if body.get(key)}
        if wanted.get("schemaType") == "AVRO":  # the default is left out of answers
            del wanted["schemaType"]
        if wanted not in self.schemas:
            self.schemas.append(wanted)
        number = self.schemas.index(wanted) + 1
        versions = self.subjects.setdefault(subject, [])
        if number not in versions:
            versions.append(number)
        return number

    def reply(self, path: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        """Status and object for a request that is let in."""
        parts = path.strip("/").split("/")
        if body is not None and len(parts) == 3 and (parts[0], parts[2]) == ("subjects", "versions"):
            if "schema" not in body:
                return 422, {"error_code": 42201, "message": "Invalid schema"}
            return 200, {"id": self.add(parts[1], body)}
        if body is None and len(parts) == 3 and parts[:2] == ["schemas", "ids"] and parts[2].isdecimal():
            number = int(parts[2])
            if 1 <= number <= len(self.schemas):
                return 200, self.schemas[number - 1]
            return 404, {"error_code": 40403, "message": f"Schema {number} not found"}
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}


def _requests(registry: LocalRegistry) -> type[BaseHTTPRequestHandler]:
    class Request(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            registry.asked.append(self.path)
            registry.headers.append(dict(self.headers))
            time.sleep(registry.slow)
            if registry.failing > 0:
                registry.failing -= 1
                self.send(500, {"error_code": 50001, "message": "Error in the backend data store"})
            elif not self.let_in():
                self.send(401, {"error_code": 401, "message": "Unauthorized"})
            elif registry.answer is not None:
                self.raw(*registry.answer)
            else:
                self.send(*registry.reply(self.path, None))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send(*registry.reply(self.path, body) if self.let_in() else (401, {"error_code": 401}))

        def let_in(self) -> bool:
            due = registry.user and base64.b64encode(":".join(registry.user).encode()).decode()
            return due is None or self.headers.get("Authorization") == f"Basic {due}"

        def send(self, status: int, found: dict[str, Any]) -> None:
            self.raw(status, {"Content-Type": CONTENT_TYPE}, json.dumps(found).encode())

        def raw(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            step = 1 if registry.dripping else max(1, len(body))
            try:
                for at in range(0, len(body), step):
                    self.wfile.write(body[at : at + step])
                    time.sleep(0.1 * registry.dripping)
            except OSError:  # whoever asked went away
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    return Request


@contextmanager
def serving(registry: LocalRegistry | None = None) -> Iterator[LocalRegistry]:
    """The registry behind real HTTP on a free port."""
    registry = registry or LocalRegistry()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _requests(registry))
    registry.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
