"""The resident worker: runs each window when it is due, in one process, for short windows and for catching up.

A window that fails is tried again, later each time, and nothing behind it is run before it: the windows are a chain. It
shares the count of tries with the Dagster sensor, so either may take over from the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from threading import Event

from assets.stream.clock import NotDue
from assets.stream.log import StreamUnreachable
from assets.workspace import Workspace
from monitoring.alarms import raise_alarm
from pipelines.attempts import attempts_of, begin, next_attempt
from pipelines.run_window import WindowResult, due_window, run_window
from security.journal import JournalUnreachable

logger = logging.getLogger(__name__)
POLL = timedelta(seconds=2)
UNREACHABLE_TRIES = 3  # an alarm after this many in a row; one failure is a blip


def work(
    workspace: Workspace,
    stop: Event,
    *,
    until_idle: bool = False,
    on_window: Callable[[WindowResult], None] = lambda result: None,
    on_step: Callable[[str], None] = lambda name: None,
) -> int:
    """Run due windows until `stop` is set (or, with `until_idle`, until none is due); how many were run."""
    done = unreachable = 0
    while not stop.is_set():
        try:
            window = due_window(workspace)
            unreachable = 0
        except (StreamUnreachable, JournalUnreachable) as error:
            unreachable += 1
            _unreachable(workspace, error, unreachable)
            stop.wait((POLL * min(unreachable, 15)).total_seconds())
            continue
        if window is None:
            if until_idle:
                break
            stop.wait(POLL.total_seconds())
        elif _try(window, workspace, on_window, on_step):
            done += 1
        else:
            stop.wait(POLL.total_seconds())
    return done


def _try(
    window: str, workspace: Workspace, on_window: Callable[[WindowResult], None], on_step: Callable[[str], None]
) -> bool:
    task, now = workspace.task.name, workspace.now()
    attempt, reason = next_attempt(attempts_of(workspace.journal, task, window), now, running=False)
    if not attempt or not begin(workspace.journal, task, window, attempt, at=now, actor=workspace.actor):
        logger.debug("window %s waits: %s", window, reason)
        return False
    try:
        on_window(run_window(window, workspace, on_step))
    except NotDue as error:
        logger.info("window %s is not due yet: %s", window, error)
        return False
    except Exception:
        logger.exception("window %s failed in attempt %d; it is tried again, and nothing behind it runs first", window, attempt)
        return False
    return True


def _unreachable(workspace: Workspace, error: Exception, tries: int) -> None:
    logger.warning("%s (try %d)", error, tries)
    if tries == UNREACHABLE_TRIES and isinstance(error, StreamUnreachable):
        now = workspace.now()
        raise_alarm(
            workspace.journal, workspace.task.name, kind="stream_unreachable", window=f"{now:%Y-%m-%dT%H:%MZ}",
            message=f"{error} ({tries} times in a row)", figure=float(tries), limit=float(UNREACHABLE_TRIES), at=now,
            actor=workspace.actor,
        )  # fmt: skip
