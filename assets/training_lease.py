"""Who is training an update right now: a sign of life beside the journal, so that a slow trainer is not taken for a dead one.

A reservation without a result means either. A process that finds one asks here first; only when the signs of life have
stopped for a lease is the update declared lost. Operating state, not a decision: it may be lost with the process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from assets.workspace import Workspace
from security.journal import JournalUnreachable
from security.replicas import Replicas

LEASE, BEAT = timedelta(seconds=30), timedelta(seconds=5)


@contextmanager
def hold(workspace: Workspace, update: str) -> Iterator[None]:
    """Give signs of life for the update while the block runs; none afterwards, however it ended."""
    replicas, place, done = Replicas(workspace.journal.engine), _place(workspace), threading.Event()
    replicas.acknowledge(place, update, 0, workspace.wall())

    def beat() -> None:
        while not done.wait(BEAT.total_seconds()):
            with suppress(JournalUnreachable):  # the next beat tries again; the lease is several beats long
                replicas.acknowledge(place, update, 0, workspace.wall())

    thread = threading.Thread(target=beat, name=f"lease of {update}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with suppress(JournalUnreachable):  # then the lease runs out by itself
            replicas.forget(place, update)


def held(workspace: Workspace, update: str) -> bool:
    """Whether some process gave a sign of life for this update within the lease."""
    live = Replicas(workspace.journal.engine).live(_place(workspace), workspace.wall(), LEASE)
    return any(replica.replica == update for replica in live)


def _place(workspace: Workspace) -> str:
    return f"{workspace.task.name}/training"
