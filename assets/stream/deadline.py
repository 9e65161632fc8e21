"""Calls that must end: a client's blocking calls run on a thread of their own, and the caller waits only so long.

kafka-python 3.0 waits for its IO thread without a time limit (its issue 3121: consumers stalled for hours), so a time
limit inside the client is not enough. This file does not know Kafka: it opens a client, uses it, and throws it away
together with its thread when a call fails or does not come back. The thread is a daemon, so that a stuck client cannot
hold up the end of the process.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar


class Closeable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=Closeable)
T = TypeVar("T")

_Job = tuple[Callable[[], Any], "queue.SimpleQueue[tuple[Any, BaseException | None]]"]


class Overdue(Exception):
    """A call did not come back in time; its client has been given up."""


class _Thread:
    """One daemon thread that runs jobs in turn until it is told to end."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, answer = job
            try:
                answer.put((call(), None))
            except BaseException as error:  # noqa: BLE001 (handed to the caller, who raises it)
                answer.put((None, error))

    def run(self, call: Callable[[], T], seconds: float) -> T:
        answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._jobs.put((call, answer))
        try:
            value, error = answer.get(timeout=seconds)
        except queue.Empty:
            raise Overdue(f"no answer within {seconds:.1f} s") from None
        if error is not None:
            raise error
        return value

    def end(self) -> None:
        self._jobs.put(None)


class Reopening(Generic[C]):
    """A client that is opened on first use, and opened anew after a failure."""

    def __init__(self, name: str, open_client: Callable[[], C], open_seconds: float) -> None:
        self._name = name
        self._open = open_client
        self._open_seconds = open_seconds
        self._lock = threading.RLock()
        self._thread: _Thread | None = None
        self._client: C | None = None
        self.generation = 0

    def use(self, call: Callable[[C], T], seconds: float) -> T:
        """`call(client)` within `seconds` (and the time to open it). Any error gives the client up, then is raised."""
        with self._lock:
            try:
                if self._thread is None:
                    self._thread = _Thread(self._name)
                if self._client is None:
                    self._client = self._thread.run(self._open, self._open_seconds)
                client = self._client
                return self._thread.run(lambda: call(client), seconds)
            except BaseException:
                self.drop()
                raise

    def drop(self) -> None:
        """Give the client and its thread up, without waiting for either: `close` itself may hang."""
        with self._lock:
            client, self._client = self._client, None
            thread, self._thread = self._thread, None
            self.generation += 1  # here, so that who asks before the next `use` sees that its client is gone
        if thread is not None:
            thread.end()
        if client is not None:
            threading.Thread(target=_close, args=(client,), name=f"{self._name}-close", daemon=True).start()

    def close(self, seconds: float) -> None:
        """Close the client properly, waiting at most `seconds`."""
        with self._lock:
            if self._client is not None and self._thread is not None:
                client, self._client = self._client, None
                with suppress(Overdue):
                    self._thread.run(lambda: _close(client), seconds)
            self.drop()


def _close(client: Closeable) -> None:
    with suppress(Exception):  # a client that is being thrown away has nothing left to tell
        client.close()
