"""kafka-python reads its sockets 4 KiB at a time; here the reader's own get more with each call.

A fetch of 8 MiB is 2,000 calls otherwise: an eighth of the CPU time of reading. Whatever the size, kafka-python reads until
there is nothing more, so only the number of calls changes. It does not know what is read.
"""

from __future__ import annotations

from typing import Any

AT_ONCE = 1 << 20  # bytes


class WideSocket:
    """A socket that gives up to AT_ONCE bytes, however few are asked for."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def recv(self, _: int) -> bytes:
        data: bytes = self._inner.recv(AT_ONCE)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def widen(consumer: Any) -> None:
    """Every connection this consumer makes from now on. Left as it is where kafka-python's inside is another."""
    manager: Any = getattr(consumer, "_manager", None)
    build = getattr(manager, "_build_transport", None)
    if build is None:
        return

    async def built(*args: Any, **settings: Any) -> Any:
        transport = await build(*args, **settings)
        if hasattr(transport, "_sock"):
            transport._sock = WideSocket(transport._sock)
        return transport

    manager._build_transport = built
