"""Step `drift`: test the window's events against the reference, keep both detectors' figures, raise the alarm.

The decision is ours (`monitoring.drift.decide`); Evidently's column tests are kept beside it and decide nothing. Its HTML
report is written when an alarm opens. An alarm never touches the stable version or, under privacy, a schedule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from assets.base import monitored
from assets.windows import store
from assets.windows.clock import previous_window
from assets.windows.columns import columns_of
from assets.windows.seal import find_sealed, read_sealed
from assets.workspace import Workspace
from monitoring import drift as tests
from monitoring.alarms import is_open, raise_alarm
from monitoring.reference import Reference

KIND = "drift.tested"


def drift(window: str, workspace: Workspace) -> Mapping[str, Any]:
    """The body of `drift.tested`: state, share of drifted columns, the worst of them, Evidently's count, the alarm."""
    known = workspace.body(KIND, window)
    if known is not None:
        if not workspace.finished(window):  # the process may have died between the entry and its alarm
            _alarm(workspace, window, known)
        return known
    reference = Reference.load(workspace.store / workspace.lineage().registered_base()["reference"])
    columns = _columns(window, workspace)
    result = tests.test_window(reference, columns, workspace.policies.drift)
    found = result.body()
    recent = [*_before(window, workspace), found]
    alarm, reason = tests.decide(recent), tests.reason(recent)
    body = found | {"window": window, "alarm": alarm, "reason": reason, "evidently": None, "files": []}
    folder = f"{workspace.task.name}/drift/{window.replace(':', '')}"
    _keep(workspace, body, f"{folder}.json", json.dumps(result.details(), indent=1).encode())
    if workspace.reports and result.rows >= workspace.policies.drift.min_rows:
        _evidently(workspace, body, folder, reference, columns)
    entry = workspace.history.once(KIND, body, actor=workspace.actor, at=workspace.now())
    _alarm(workspace, window, entry.body)
    return entry.body


def _columns(window: str, workspace: Workspace) -> dict[str, Any]:
    sealed = find_sealed(workspace.history.refresh(), window)
    if sealed is None:
        raise LookupError(f"window {window} is not sealed: run the step `window` first")
    names = list(monitored(workspace.task))
    return columns_of(read_sealed(workspace.store, sealed, workspace.topics.events, names).select(names))


def _before(window: str, workspace: Workspace) -> list[Mapping[str, Any]]:
    """What was journalled of the windows right before this one, oldest first; fewer at the start of the stream."""
    bodies: list[Mapping[str, Any]] = []
    before = previous_window(workspace.policies.window, window)
    while before is not None and len(bodies) < tests.WINDOWS - 1:
        body = workspace.body(KIND, before)
        if body is None:
            break
        bodies.insert(0, body)
        before = previous_window(workspace.policies.window, before)
    return bodies


def _evidently(
    workspace: Workspace, body: dict[str, Any], folder: str, reference: Reference, columns: Mapping[str, Any]
) -> None:
    """Evidently's pinned column tests as JSON, and its page when we raise the alarm; its failure is an ERROR, not a rest."""
    from monitoring import drift_report

    try:
        found = drift_report.column_tests(reference.sample, columns, reference.kinds)
        body["evidently"] = {"drifted": found.drifted, "tested": found.tested}
        _keep(workspace, body, f"{folder}.evidently.json", found.text.encode())
        if body["alarm"] and not is_open(workspace.journal, workspace.task.name, "drift"):  # a page costs 3 CPU s
            page = drift_report.html_report(reference.sample, columns, reference.kinds)
            _keep(workspace, body, f"{folder}.html", page)
    except Exception as error:  # noqa: BLE001 - a report that fails must not cost the window; it is said in the entry
        body["evidently"] = {"error": f"{type(error).__name__}: {error}"}


def _keep(workspace: Workspace, body: dict[str, Any], path: str, payload: bytes) -> None:
    store.put(workspace.store, path, payload)
    body["files"].append(path)


def _alarm(workspace: Workspace, window: str, body: Mapping[str, Any]) -> None:
    if body["state"] == "ERROR" or body["alarm"]:
        raise_alarm(
            workspace.journal, workspace.task.name, kind="drift", window=window,
            message=body["reason"] if body["alarm"] else body["message"],
            figure=body["share"], limit=body["threshold"], at=workspace.now(), actor=workspace.actor,
        )  # fmt: skip
