"""One window through every step. The one loop that a Dagster run, the worker, the command line and the demo share.

It knows the order of the steps and how long each took, nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from assets.steps import FINISHED, STEPS, finish
from assets.steps.window import decide
from assets.stream.log import IdentityChanged, OffsetsGone, TopicMismatch, UnknownTopic
from assets.windows.clock import NotDue
from assets.windows.cut import CutRefused, next_due_window
from assets.workspace import Workspace

_STOPS = (CutRefused, IdentityChanged, OffsetsGone, TopicMismatch, UnknownTopic)


@dataclass(frozen=True)
class WindowResult:
    """What each step journalled, and its CPU seconds."""

    window: str
    steps: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float] = field(default_factory=dict)


def run_window(window: str, workspace: Workspace, on_step: Callable[[str], None] = lambda name: None) -> WindowResult:
    """Run all steps of a window, in order. Safe to repeat after a crash at any point: what is journalled is not redone."""
    bodies: dict[str, Mapping[str, Any]] = {}
    seconds: dict[str, float] = {}
    for name, step in STEPS:
        on_step(name)
        started = time.process_time()
        bodies[name] = step(window, workspace)
        seconds[name] = time.process_time() - started
    finish(window, workspace)
    return WindowResult(window, bodies, seconds)


def due_window(workspace: Workspace) -> str | None:
    """The earliest window that is not finished, if it is due; sensor, schedule, worker and catch-up all ask this."""
    return next_due_window(
        workspace.history, workspace.log, workspace.policies.window, workspace.topics, now=workspace.now(), kind=FINISHED
    )


def held(window: str, workspace: Workspace) -> str:
    """Why a window that is due cannot be cut yet, "" when it can: an open transaction is waited for, and is no failed try.

    Decides the cut when it can, so that a cut is not late because what comes after it is.
    """
    try:
        decide(window, workspace)
    except NotDue as error:
        return str(error)
    except _STOPS:
        return ""  # the attempt meets it again, and tells
    return ""
