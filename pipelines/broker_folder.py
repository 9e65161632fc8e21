"""The folder of a local broker: its lock, its address, its ports, and the last lines it logged.

The lock is what counts. The broker's processes inherit it and the system frees it when the last of them is gone, so
"is a broker running here?" has an exact answer, and a note with a stale pid can do no harm. This file starts and ends
nothing, and does not know Kafka's protocol.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

START_SECONDS = 60.0  # a first start takes 4 s; a busy machine and a recovery after kill -9 take longer
LOG_LINES = 8
_LOCK, _NOTE = "broker.lock", "broker.json"


class BrokerFailed(Exception):
    """No local Kafka: it could not be started, or did not answer."""


class PortInUse(BrokerFailed):
    """The port that was asked for belongs to somebody else."""


class FolderInUse(BrokerFailed):
    """A broker is running on this folder already."""


@dataclass(frozen=True, slots=True)
class Running:
    """What a folder's `broker.json` says. pid: the process to end; controller: Kafka's second port."""

    pid: int
    port: int
    controller: int
    detached: bool
    ready: bool

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"


def running(folder: Path, wait: float = START_SECONDS) -> str | None:
    """The address of the broker that runs on `folder`, None when none does. One that is starting is waited for."""
    deadline = time.monotonic() + wait
    while is_locked(folder):
        with suppress(OSError, ValueError, TypeError):  # being written
            if (now := noted(folder)).ready:
                return now.bootstrap
        if time.monotonic() > deadline:
            raise FolderInUse(
                f"a broker holds {folder / _LOCK} but gave no address in {wait:.0f} s{last_lines(folder)}"
            )
        time.sleep(0.1)
    return None


def take_lock(folder: Path) -> int:
    """The folder's lock, as a file descriptor: it belongs to all who inherit it, until the last of them is gone."""
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(5):  # `is_locked` of another process may hold it for a moment
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        time.sleep(0.05)
    os.close(lock)
    raise FolderInUse(
        f"a broker runs on {folder}: use its address ({_NOTE}), `headgate broker stop`, or another folder"
    )


def is_locked(folder: Path) -> bool:
    """Whether a broker runs on the folder, or is being started there."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def note(folder: Path, now: Running) -> None:
    """Write down what runs here, all at once."""
    fresh = folder / f"{_NOTE}.new"
    fresh.write_text(json.dumps(asdict(now)))
    fresh.replace(folder / _NOTE)


def noted(folder: Path) -> Running:
    """What was written down last; true while `is_locked`. Raises OSError, ValueError or TypeError when unreadable."""
    return Running(**json.loads((folder / _NOTE).read_text()))


def last_ports(folder: Path) -> tuple[int, int]:
    """The ports of the last start if they are free now, else any free ones."""
    with suppress(OSError, ValueError, TypeError):
        last = noted(folder)
        if is_free(last.port) and is_free(last.controller):
            return last.port, last.controller
    return free_port(), free_port()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a server could listen on the port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does: closed connections do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def is_open(port: int) -> bool:
    """Whether somebody answers on the port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def cluster_id(folder: Path) -> str:
    """The id the folder's data were formatted with."""
    for line in (folder / "data" / "meta.properties").read_text().splitlines():
        if line.startswith("cluster.id="):
            return line.partition("=")[2].replace("\\", "")
    raise BrokerFailed(f"no cluster.id in {folder / 'data' / 'meta.properties'}: move the folder away and start anew")


def port_was_taken(folder: Path) -> bool:
    """Whether the broker's log says that somebody else got the port first."""
    with suppress(OSError):
        return "Address already in use" in (folder / "kafka.log").read_text(errors="replace")
    return False


def last_lines(folder: Path) -> str:
    """The end of the broker's log, as the end of an error message; empty when there is none."""
    log = folder / "kafka.log"
    with suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return f"; the end of {log}:\n  " + "\n  ".join(lines)
    return ""
