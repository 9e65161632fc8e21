"""The frozen base of a task: trained on declared-public history, registered once, never changed.

With it come the figures that have to be taken from public data: the clip of private training, the reference of drift and
the ranges a record must keep. It does not know windows; the base is there before the first one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from assets.windows import store
from assets.workspace import Workspace
from models import release
from models.poisoning import class_columns, public_ranges
from models.rollout import Decision, Stream
from monitoring.drift import build_reference


class HistoryMissing(Exception):
    """The task declares no public history, so nothing can be trained or compared."""


def train_and_register(workspace: Workspace, *, epochs: int = 2) -> dict[str, Any]:
    """Train the base on the task's public history, store it, journal it, and make it the stable version.

    Returns the body of `base.registered`; `fit` says how well labels go with its answers (`models/label_fit.py`). A base that
    is registered already is returned as it is.
    """
    from models.base import auto_clip, digest, train_base
    from models.label_fit import label_fit
    from models.predictor import Predictor

    known = workspace.lineage().base
    if known is not None:
        return dict(known)
    columns = _history(workspace)
    state = train_base(workspace.task, columns, epochs=epochs)
    clip = auto_clip(workspace.task, state, columns, workspace.policies.adapter)
    loss, fit = label_fit(Predictor(workspace.task, state, None, workspace.policies.adapter), columns)
    name = digest(state)
    path = f"{workspace.task.name}/bases/{name}.safetensors"
    store.put(workspace.store, path, state)
    version = f"base-{name[:8]}"
    body: dict[str, Any] = {
        "version": version,
        "digest": name,
        "path": path,
        "rows": len(next(iter(columns.values()))),
        "max_grad_norm": clip,
        "loss": loss,
        "fit": fit,
        "reference": _reference(workspace, columns),
        "ranges": public_ranges(columns, _ranged(workspace.task)),
        "classes": class_columns(columns, [name for name in workspace.task.label.names if name != "event_id"]),
        "parent": None,
    }
    first = [Decision(Stream.LINEAGE, "base.registered", body), *release.found(version, workspace.now())]
    workspace.board()
    workspace.append_decisions(first)
    return body


def _history(workspace: Workspace) -> dict[str, np.ndarray]:
    history = getattr(workspace.task, "history", None)
    if history is None:
        raise HistoryMissing(
            f"task {workspace.task.name} has no history(): add a method that returns the columns of declared-public "
            "events with their labels; the base, the clip and the drift reference come from it"
        )
    return dict(history())


def _ranged(task: Any) -> list[str]:
    """Fields of event and label that may have a range: not ids, and not the time, which always goes on."""
    without = {"event_id", task.subject, getattr(task, "event_time", None)}
    return [name for name in (*task.event.names, *task.label.names) if name not in without]


def _reference(workspace: Workspace, columns: dict[str, np.ndarray]) -> str:
    """Store the drift reference of the monitored columns; blocks are as long as a window, so that days vary as days."""
    watched = monitored(workspace.task)
    reference = build_reference(
        {name: columns[name] for name in watched}, workspace.policies.drift, blocks=_blocks(workspace, columns)
    )
    path = f"{workspace.task.name}/bases/reference.npz"
    (workspace.store / path).parent.mkdir(parents=True, exist_ok=True)
    reference.save(workspace.store / path)
    return path


def _blocks(workspace: Workspace, columns: dict[str, np.ndarray]) -> np.ndarray | None:
    """The window each row of the history would have been in, by the task's `event_time` column; None without one."""
    name = getattr(workspace.task, "event_time", None)
    if name is None:
        return None
    texts = [text.removesuffix("Z") for text in columns[name].tolist()]
    seconds = np.array(texts, "datetime64[s]").astype(np.int64) - int(workspace.policies.window.start.timestamp())
    return np.asarray(seconds // int(workspace.policies.window.every.total_seconds()))


def monitored(task: Any) -> tuple[str, ...]:
    """The columns drift looks at: what the task names, else every plain field of the event but its id."""
    named = getattr(task, "monitored", None)
    if named:
        return tuple(named)
    import pyarrow as pa

    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_boolean)
    return tuple(f.name for f in task.event if f.name != "event_id" and any(is_kind(f.type) for is_kind in plain))
