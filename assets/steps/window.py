"""Step `window`: decide the cut, seal the files. The stream's own modules do the work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assets.stream.cut import cut
from assets.stream.seal import seal
from assets.workspace import Workspace


def window(window: str, workspace: Workspace) -> Mapping[str, Any]:
    """Cut and seal; the body of `window.sealed`. Raises NotDue, and what stops a seal."""
    policies, now = workspace.policies, workspace.now()
    cut(
        workspace.history, workspace.log, policies.window, workspace.topics, window, now=now, actor=workspace.actor
    )
    sealed = seal(
        workspace.history,
        workspace.log,
        workspace.store,
        window,
        workspace.formats(),
        policy=policies.seal,
        now=workspace.now(),
        actor=workspace.actor,
    )
    return sealed.body()
