"""A path to a broker that goes bad: it is slow, falls silent for ever, or breaks off, always in the middle of an answer.

A proxy on 127.0.0.1 that passes Kafka's answers on whole (four bytes of length, then so many), so that the n-th large one
is the same in every run. The broker's own address in them (metadata) is replaced by the proxy's, which has as many bytes:
else a client would go round it. It knows nothing else of the protocol.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

LARGE = 4 << 10  # bytes; answers with records, and no others, are larger here
CHUNK, PAUSE = 4 << 10, 0.005  # of a slow path: bytes, and seconds between them
DRIP = 0.25  # seconds between the chunks of a path on which no large answer arrives in time


class BadPath:
    """`bootstrap` leads to the broker at `upstream`. bad: what happens to the large answer of that number (from 1).

    Kinds: "slow" and "drips" (that and all later ones), "stops" (this connection falls silent), "dies" (from now on every
    connection does), "closes". met: numbers of the answers to which it happened. A context manager.
    """

    def __init__(self, upstream: str, bad: dict[int, str]) -> None:
        host, port = upstream.rsplit(":", 1)
        assert host == "127.0.0.1", "an address of another length cannot be replaced"
        self._upstream, self._bad = (host, int(port)), bad
        self._server = socket.create_server(("127.0.0.1", 0))
        own = self._server.getsockname()[1]
        self.bootstrap = f"127.0.0.1:{own}"
        self._theirs, self._ours = (host.encode() + struct.pack(">i", number) for number in (int(port), own))
        self._lock, self._large, self._pace = threading.Lock(), 0, 0.0
        self._dead, self._ended = threading.Event(), threading.Event()
        self.met: list[int] = []

    def __enter__(self) -> BadPath:
        _thread(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.close()

    def heal(self) -> None:
        """From now on everything passes, on new connections."""
        self._bad, self._pace = {}, 0.0
        self._dead.clear()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                broker = socket.create_connection(self._upstream)
                _thread(lambda ends=(client, broker): self._ask(*ends))
                _thread(lambda ends=(client, broker): self._answer(*ends))

    def _ask(self, client: socket.socket, broker: socket.socket) -> None:
        with suppress(OSError), client, broker:
            while data := client.recv(64 << 10):
                broker.sendall(data)

    def _answer(self, client: socket.socket, broker: socket.socket) -> None:
        with suppress(OSError), client, broker:
            while frame := _frame(broker):
                frame = frame.replace(self._theirs, self._ours)
                kind, half = self._kind(frame), len(frame) // 2
                if self._dead.is_set() or kind in ("stops", "dies"):
                    client.sendall(frame[:half] if kind in ("stops", "dies") else b"")
                    self._ended.wait()
                    return
                if kind == "closes":
                    client.sendall(frame[:half])
                    break
                for start in range(0, len(frame), CHUNK):
                    time.sleep(self._pace)
                    client.sendall(frame[start : start + CHUNK])
            client.shutdown(socket.SHUT_RDWR)  # `close` alone says nothing while another thread still reads

    def _kind(self, frame: bytes) -> str:
        if len(frame) < LARGE:
            return ""
        with self._lock:
            self._large += 1
            kind = self._bad.get(self._large, "")
            if kind:
                self.met.append(self._large)
            self._pace = {"slow": PAUSE, "drips": DRIP}.get(kind, self._pace)
            if kind == "dies":
                self._dead.set()
        return kind


def _frame(end: socket.socket) -> bytes:
    """The next answer with its length, b"" at the end."""
    length = _exactly(end, 4)
    return length + _exactly(end, struct.unpack(">i", length)[0]) if length else b""


def _exactly(end: socket.socket, size: int) -> bytes:
    parts, left = [], size
    while left:
        part = end.recv(min(left, 1 << 20))
        if not part:
            return b""
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()
