"""Step `window`: decide the cut, seal the files. The stream's own modules do the work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assets.stream.cut import cut
from assets.stream.seal import schemas_of, seal
from assets.workspace import Workspace


def window(window: str, workspace: Workspace) -> Mapping[str, Any]:
    """Cut and seal; the body of `window.sealed`. Raises NotDue, and what stops a seal."""
    task, policies, now = workspace.task, workspace.policies, workspace.now()
    cut(
        workspace.history, workspace.log, policies.window, workspace.topics, window, now=now, actor=workspace.actor
    )
    sealed = seal(
        workspace.history,
        workspace.log,
        workspace.store,
        window,
        schemas_of(workspace.topics, task.event, task.label),
        max_reject_share=policies.max_reject_share,
        now=workspace.now(),
        actor=workspace.actor,
    )
    return sealed.body()
