"""The steps of a window: one idempotent function a step, `(window, workspace) -> body of its journal entry`.

Drivers (a Dagster run, the resident worker, the demo) only loop over `STEPS`; no step knows which of them called it.
The order is the promise *test, then train*: a window's examples judge the versions that exist before anything is trained
on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from assets.steps.adapter import adapter
from assets.steps.drift import drift
from assets.steps.evidence import evidence
from assets.steps.examples import examples
from assets.steps.rollout import rollout
from assets.steps.version import version
from assets.steps.window import window
from assets.workspace import FINISHED, Workspace

Step = Callable[[str, Workspace], Mapping[str, Any]]

STEPS: tuple[tuple[str, Step], ...] = (
    ("window", window),
    ("examples", examples),
    ("evidence", evidence),
    ("rollout", rollout),
    ("drift", drift),
    ("adapter", adapter),
    ("version", version),
)

__all__ = ["FINISHED", "STEPS", "Step", "finish"]


def finish(window: str, workspace: Workspace) -> None:
    """Say that the window's last step is done; from here on the next window may be due."""
    workspace.history.once(FINISHED, {"window": window}, actor=workspace.actor, at=workspace.now())
