"""Stand between us and the Java process, so that the broker ends when we do, however we end.

Run as a program: `python -I -S broker_watch.py PARENT_PID COMMAND...`. Two other ways were weighed. A death signal set
on Java by the parent (PR_SET_PDEATHSIG) follows the *thread* that started it, so a broker started from a pool would
stop with its worker; it also needs Linux, and code between fork and exec in a process with threads. A pipe held open by
the parent is inherited by every forked worker, and stays open with it. So this small process, which has one thread,
looks who its parent is; and it sets the death signal on Java, where that is safe, so that kill -9 of this process ends
the broker too.

It uses the standard library alone and knows nothing of Kafka.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from types import FrameType

LOOK_EVERY = 0.2  # seconds; five looks a second cost 0.1 % of a core
GRACE = 10.0  # seconds for an orderly end (Kafka needs about one), before kill -9
_PR_SET_PDEATHSIG = 1


def _end_with_me() -> None:
    """Between fork and exec of the child: Linux sends it SIGKILL when this process is gone."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end(process: subprocess.Popen[bytes], grace: float = GRACE) -> None:
    """End a process in order, by force after `grace` seconds."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def watch(parent: int, command: list[str]) -> int:
    """Run `command` until it ends, the parent is gone, or SIGTERM comes -> the command's return code."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, ask)
    # Descriptors pass through: one of them is the lock that says the folder is in use.
    process = subprocess.Popen(command, close_fds=False, preexec_fn=_end_with_me)
    while process.poll() is None:
        if asked or os.getppid() != parent:
            end(process)
            break
        time.sleep(LOOK_EVERY)
    return process.returncode


if __name__ == "__main__":
    raise SystemExit(min(255, abs(watch(int(sys.argv[1]), sys.argv[2:]))))
