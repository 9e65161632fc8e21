"""Children of a test that run a piece of work and may be killed in it. It loads nothing: what is forked begins small."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


def finished(child: int) -> int:
    """The exit code, waited for; minus the signal of one that was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork(work: Callable[[], Any]) -> int:
    """The process id of a child that does the work and ends with 0, or with 1 when it failed, and says why."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - printed, and told by the exit code
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return child
