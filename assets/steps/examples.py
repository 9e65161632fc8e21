"""Step `examples`: join the events whose labels have matured in the window, each once. `assets/stream/join.py` does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assets.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa


def examples(window: str, workspace: Workspace) -> Mapping[str, Any]:
    """Join; the body of `examples.joined`. Raises NotDue while a topic is not sealed through the window."""
    from assets.stream.join import join

    task = workspace.task
    return join(
        workspace.history,
        workspace.store,
        workspace.policies.window,
        workspace.topics,
        window,
        horizon=task.label_horizon,
        negative_if_absent=task.negative_if_absent,
        now=workspace.now(),
        actor=workspace.actor,
    ).body()


def read(window: str, workspace: Workspace) -> pa.Table:
    """The window's examples, checked against the journalled hash. LookupError before they are joined."""
    from assets.stream.join import find_examples, read_examples

    found = find_examples(workspace.history.refresh(), window)
    if found is None:
        raise LookupError(f"window {window} has no examples yet: run the step `examples` first")
    return read_examples(workspace.store, found)
