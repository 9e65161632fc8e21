"""Step `examples`: join the events whose labels have matured in the window, each once. `assets/windows/join.py` does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assets.windows.join import join
from assets.workspace import Workspace


def examples(window: str, workspace: Workspace) -> Mapping[str, Any]:
    """Join; the body of `examples.joined`. Raises NotDue while a topic is not sealed through the window."""
    task = workspace.task
    return join(
        workspace.history,
        workspace.store,
        workspace.policies.window,
        workspace.topics,
        window,
        horizon=task.label_horizon,
        negative_if_absent=task.negative_if_absent,
        golden_share=workspace.policies.retention.golden_share,
        now=workspace.now(),
        actor=workspace.actor,
    ).body()
