"""Step `window`: decide the cut, seal the files, copy what was rejected. The stream's own modules do the work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assets.stream.log import OffsetsGone
from assets.windows.cut import cut
from assets.windows.dead_letters import publish_once
from assets.windows.seal import SealedWindow, seal
from assets.workspace import Workspace
from monitoring.alarms import raise_alarm


def window(window: str, workspace: Workspace) -> Mapping[str, Any]:
    """Cut and seal; the body of `window.sealed`. Raises NotDue, and what stops a seal. Lost offsets are an alarm."""
    try:
        decide(window, workspace)
        sealed = _sealed(window, workspace)
    except OffsetsGone as gone:
        raise_alarm(
            workspace.journal, workspace.task.name, kind="stream_gap", window=window, message=str(gone), figure=1.0, limit=0.0,
            at=workspace.now(), actor=workspace.actor,
        )  # fmt: skip
        way = f"`headgate window accept-gap {window} --topic ... --partition ... --reason ...` goes on without them"
        raise OffsetsGone(f"{gone}. If they are lost for good, {way}; of a sealed file a backup is the only copy") from gone
    if workspace.policies.dead_letters:
        publish_once(
            workspace.history, workspace.log, workspace.store, sealed, now=workspace.now(), actor=workspace.actor
        )
    return sealed.body()


def decide(window: str, workspace: Workspace) -> None:
    """Cut the window, if it is due. Raises NotDue, and what stops a cut. A window that is cut stays as it is."""
    cut(
        workspace.history, workspace.log, workspace.policies.window, workspace.topics, window, now=workspace.now(),
        actor=workspace.actor,
    )  # fmt: skip


def _sealed(window: str, workspace: Workspace) -> SealedWindow:
    return seal(
        workspace.history, workspace.log, workspace.store, window, workspace.formats(), policy=workspace.policies.seal,
        now=workspace.now(), actor=workspace.actor,
    )  # fmt: skip
