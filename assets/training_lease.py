"""Who is training an update right now: a sign of life beside the journal, so that a slow trainer is not taken for a dead one.

A reservation without a result means either. A process that finds one asks here first; only when the signs of life have
stopped for a lease does it go on in the other's place, and then a second that does so at the same moment is seen by both,
and both stand back. On one machine a lock decides first: it is free when its holder is dead, and never while it is merely
stopped. Operating state, not a decision: it may be lost with the process.
"""

from __future__ import annotations

import fcntl
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta

from assets.windows.clock import NotDue
from assets.workspace import Workspace
from security.journal import JournalUnreachable
from security.replicas import Replicas

LEASE, BEAT = timedelta(seconds=30), timedelta(seconds=5)


@contextmanager
def hold(workspace: Workspace, update: str, *, locked: bool) -> Iterator[str]:
    """Give signs of life for the update while the block runs, under the name it gets; none afterwards, however it ended.

    locked: nobody else on this machine trains for the task meanwhile, else NotDue is raised.
    """
    replicas, place, done = Replicas(workspace.journal.engine), _place(workspace), threading.Event()
    name = f"{update}#{secrets.token_hex(4)}"

    def beat() -> None:
        while not done.wait(BEAT.total_seconds()):
            with suppress(JournalUnreachable):  # the next beat tries again; the lease is several beats long
                replicas.acknowledge(place, name, 0, workspace.wall())

    with lock(workspace, update) if locked else nullcontext():
        replicas.acknowledge(place, name, 0, workspace.wall())
        thread = threading.Thread(target=beat, name=f"lease of {update}", daemon=True)
        thread.start()
        try:
            yield name
        finally:
            done.set()
            thread.join()
            with suppress(JournalUnreachable):  # then the lease runs out by itself
                replicas.forget(place, name)


def refuse_held(workspace: Workspace, update: str, but: str = "") -> None:
    """Raises NotDue when some process, other than the one named, gave a sign of life for this update within the lease."""
    live = Replicas(workspace.journal.engine).live(_place(workspace), workspace.wall(), LEASE)
    if any(replica.replica.startswith(f"{update}#") and replica.replica != but for replica in live):
        raise _elsewhere(update)


@contextmanager
def lock(workspace: Workspace, update: str) -> Iterator[None]:
    """The lock of the task's trainers on this machine, until the block ends, or the process. Raises NotDue."""
    folder = workspace.store / workspace.task.name / "vault"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "training.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _elsewhere(update) from error
        yield


def _elsewhere(update: str) -> NotDue:
    return NotDue(f"update {update} is being trained by another process: its result, or its end, is awaited")


def _place(workspace: Workspace) -> str:
    return f"{workspace.task.name}/training"
