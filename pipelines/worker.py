"""The resident worker: runs each window when it is due, in one process, for short windows and for catching up.

A window that fails is tried again, later each time, and nothing behind it is run before it: the windows are a chain. It
shares the count of tries with the Dagster sensor, so either may take over from the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from threading import Event

from assets.stream.log import StreamUnreachable
from assets.windows.clock import NotDue
from assets.workspace import Workspace
from monitoring.alarms import raise_alarm
from pipelines.attempts import attempts_of, begin, failed, next_attempt
from pipelines.expected import expected
from pipelines.run_window import WindowResult, due_window, held, run_window
from security.journal import JournalUnreachable

logger = logging.getLogger(__name__)
POLL = timedelta(seconds=2)
LONGEST_POLL = timedelta(seconds=30)  # while stream or journal do not answer
FAILING_TRIES = 2
UNREACHABLE_TRIES = 3  # an alarm after this many in a row; one failure is a blip


@dataclass(frozen=True)
class Shift:
    """How many windows were run, and why the next cannot be run now; "" when none is due."""

    done: int
    waits: str = ""


def work(
    workspace: Workspace,
    stop: Event,
    *,
    until_idle: bool = False,
    on_window: Callable[[WindowResult], None] = lambda result: None,
    on_step: Callable[[str], None] = lambda name: None,
) -> Shift:
    """Run due windows until `stop` is set or, with `until_idle`, until there is nothing that can be run now.

    With `until_idle` a stream or journal that does not answer is raised after three tries.
    """
    done, unreachable = 0, 0
    while not stop.is_set():
        try:
            window = due_window(workspace)
            waits = "" if window is None else _try(window, workspace, on_window, on_step)
        except (StreamUnreachable, JournalUnreachable) as error:
            unreachable += 1
            logger.warning("%s (try %d)", error, unreachable)
            if unreachable == UNREACHABLE_TRIES:
                _raise_alarm(workspace, error)
                if until_idle:
                    raise
            stop.wait(min(LONGEST_POLL, POLL * unreachable).total_seconds())
            continue
        if not waits:  # a window that waits for its next attempt says nothing about the stream
            unreachable = 0
        if window is not None and not waits:
            done += 1
            continue
        if until_idle:
            return Shift(done, waits)
        stop.wait(POLL.total_seconds())
    return Shift(done)


def _try(
    window: str, workspace: Workspace, on_window: Callable[[WindowResult], None], on_step: Callable[[str], None]
) -> str:
    """Run the window if its turn has come; why not, or why it failed, else "".

    Raises StreamUnreachable and JournalUnreachable when they did not answer; the attempt counts.
    """
    task, now = workspace.task.name, workspace.now()
    attempt, reason = next_attempt(attempts_of(workspace.journal, task, window), now, running=False)
    if attempt:
        reason = held(window, workspace)
    if reason:
        return f"window {window} waits: {reason}"
    if not begin(workspace.journal, task, window, attempt, at=now, actor=workspace.actor):
        return f"window {window} waits: another driver has just begun it"
    try:
        on_window(run_window(window, workspace, on_step))
    except (StreamUnreachable, JournalUnreachable):
        raise
    except NotDue as error:
        logger.info("window %s is not due yet: %s", window, error)
        return f"window {window} is not due yet: {error}"
    except Exception as error:
        logger.error(
            "window %s failed in attempt %d; it is tried again, and nothing behind it runs first: %s: %s", window, attempt,
            type(error).__name__, error, exc_info=not expected(error),
        )  # fmt: skip
        _tell(workspace, window, attempt, error)
        return f"window {window} failed in attempt {attempt}: {error}"
    return ""


def _tell(workspace: Workspace, window: str, attempt: int, error: Exception) -> None:
    """Put the failure where `headgate status` finds it; from the second one in a row it is an alarm."""
    task, now, actor = workspace.task.name, workspace.now(), workspace.actor
    failed(workspace.journal, task, window, attempt, f"{type(error).__name__}: {error}", at=now, actor=actor)
    if attempt >= FAILING_TRIES:
        raise_alarm(
            workspace.journal, task, kind="stale", window=window, figure=float(attempt), limit=float(FAILING_TRIES),
            message=f"window {window} failed {attempt} times, last with {type(error).__name__}: {error}", at=now,
            actor=actor,
        )  # fmt: skip


def _raise_alarm(workspace: Workspace, error: Exception) -> None:
    """Tell people once that the stream is away. When the journal is away too there is no place to write it."""
    if not isinstance(error, StreamUnreachable):
        return
    try:
        now = workspace.now()
        raise_alarm(
            workspace.journal, workspace.task.name, kind="stream_unreachable", window=f"{now:%Y-%m-%dT%H:%MZ}",
            message=f"{error} ({UNREACHABLE_TRIES} times in a row)", figure=float(UNREACHABLE_TRIES),
            limit=float(UNREACHABLE_TRIES), at=now, actor=workspace.actor,
        )  # fmt: skip
    except JournalUnreachable as silent:
        logger.error("the alarm stream_unreachable could not be journalled: %s", silent)
