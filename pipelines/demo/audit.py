"""The demo's reckoning: everything read back from the journal, the store and the gateway, counted against the replayer.

It knows what should have happened (one honest version promoted, the bad one stopped, nothing lost or doubled) and says
which part did not.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

from assets.steps.adapter import ledger_of
from assets.windows.clock import parse_window, window_bounds
from assets.windows.seal import find_sealed, read_sealed
from assets.workspace import Workspace
from pipelines.demo.clients import Clients
from pipelines.demo.replay import Replayer
from pipelines.demo.retraining import Retraining
from pipelines.demo.story import Story
from security.journal import unstamp


def summary(
    workspace: Workspace, replayer: Replayer, clients: Clients, retraining: Retraining, windows: list[str], broker: str,
    seconds: dict[str, float],
) -> dict[str, Any]:  # fmt: skip
    """The content of summary.json."""
    lost, doubled = count_examples(workspace, replayer, windows)
    rows = count_rows(workspace, windows)
    lost += max(0, replayer.totals.events - rows["events"]) + max(0, replayer.totals.labels - rows["labels"])
    lost += max(0, clients.requests - rows["requests"])
    doubled += max(0, rows["events"] - replayer.totals.events) + max(0, rows["labels"] - replayer.totals.labels)
    lineage, ledger = workspace.lineage(), ledger_of(workspace, windows[-1])
    return {
        "broker": broker,
        "events": rows["events"],
        "labels": rows["labels"],
        "lost": lost,
        "duplicates": doubled,
        "windows": len(windows),
        "updates": len(lineage.updates),
        "epsilon_per_event": ledger.epsilon_per_event() if ledger else None,
        **releases(workspace),
        "requests": rows["requests"],
        "request_errors": rows["request_errors"] + clients.errors,
        "watermark_z": min(body["watermark"]["z"] for body in lineage.versions.values()),
        **losses(workspace, retraining, windows),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }


def count_examples(workspace: Workspace, replayer: Replayer, windows: list[str]) -> tuple[int, int]:
    """(lost, doubled) labelled events over all windows, against what the replayer published."""
    horizon, grid = workspace.task.label_horizon, workspace.policies.window
    found: Counter[str] = Counter()
    for window in windows:
        found.update(workspace.examples(window).column("event_id").to_pylist())
    first, last = window_bounds(grid, windows[0])[0], window_bounds(grid, windows[-1])[1]
    expected = replayer.labelled_events(first - horizon, last - horizon)
    return len(expected - found.keys()) + len(found.keys() - expected), sum(n - 1 for n in found.values())


def count_rows(workspace: Workspace, windows: list[str]) -> dict[str, int]:
    """Rows in the sealed files by topic, and failed requests among the predictions."""
    counts = Counter(events=0, labels=0, requests=0, request_errors=0)
    topics = workspace.topics
    for window in windows:
        sealed = find_sealed(workspace.history.refresh(), window)
        if sealed is None:
            continue
        counts["events"] += read_sealed(workspace.store, sealed, topics.events, ["event_id"]).num_rows
        counts["labels"] += read_sealed(workspace.store, sealed, topics.labels, ["event_id"]).num_rows
        answered = read_sealed(workspace.store, sealed, topics.predictions, ["score"]).column("score")
        counts["requests"] += len(answered)
        counts["request_errors"] += answered.null_count
    return dict(counts)


def releases(workspace: Workspace) -> dict[str, Any]:
    """Who was promoted, refused or withdrawn, on which day of the stream, with the figure that decided."""
    refused, withdrawn, promoted = [], [], []
    for entry in workspace.journal.read(f"rollout/{workspace.task.name}"):
        body = entry.body
        day = stream_day(workspace, unstamp(body["clock"])) if "clock" in body else 0
        if entry.kind == "rollout.withdrawn":
            withdrawn.append(body["version"])
        elif body.get("to") in ("REJECTED", "ROLLING_BACK"):
            figure = body["figures"]["harm_e"]
            refused.append({"version": body["version"], "reason": body["reason"], "figure": figure, "day": day})
        elif body.get("to") == "PROMOTED":
            promoted.append({"version": body["version"], "day": day})
    return {"refused": refused, "withdrawn": withdrawn, "promoted": promoted}


def stream_day(workspace: Workspace, moment: datetime) -> int:
    """The day of the stream, from 1, that ends at this moment."""
    return (moment - workspace.policies.window.start).days


def losses(workspace: Workspace, retraining: Retraining, windows: list[str]) -> dict[str, float]:
    """Mean log loss over the stream's examples: the frozen base, what was served, a weekly full retrain."""
    base = workspace.lineage().registered_base()["version"]
    totals: Counter[str] = Counter()
    for window in windows:
        body = workspace.body("evidence.scored", window) or {}
        n = body.get("examples", 0)
        if n:
            totals["n"] += n
            totals["frozen"] += n * body["losses"][base]
            totals["served"] += n * body["losses"][body["stable"]]
            totals["retrained"] += n * retraining.losses[window]
    return {f"loss_{name}": totals[name] / totals["n"] for name in ("frozen", "served", "retrained")}


def faults(workspace: Workspace, found: dict[str, Any]) -> list[str]:
    """What of the promise did not happen, one sentence each; empty when all did."""
    story, wrong = Story(), []
    bad = {
        name
        for name, body in workspace.lineage().versions.items()
        if any(story.wrong_from <= parse_window(window) < story.wrong_until for window in body["windows"])
    }
    wrong += [f"{found[name]} labelled events or predictions {name}" for name in ("lost", "duplicates") if found[name]]
    promoted = {row["version"] for row in found["promoted"]}
    if not promoted - bad:
        wrong.append("no honest version was promoted")
    if promoted & bad:
        wrong.append(f"a version trained on wrong labels was promoted: {', '.join(sorted(promoted & bad))}")
    if not bad & {row["version"] for row in found["refused"]}:
        wrong.append("the version trained on the week of wrong labels was not stopped")
    if found["request_errors"]:
        wrong.append(f"{found['request_errors']} of {found['requests']} requests failed")
    return wrong + [f"the journal is damaged: {fault}" for fault in workspace.journal.verify().faults]
