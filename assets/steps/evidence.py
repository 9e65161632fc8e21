"""Step `evidence`: score the versions under test on the window's examples, before anything is trained on them.

Stable and candidate answer the same examples. Requests by arm come from the sealed predictions. What is written are sums
and counts; what follows from them is for the release rules. Examples whose life touches an accepted gap do not count, and
those outside the ranges a record must keep are not scored: what they say, a loss may not even know.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import numpy as np

from assets.screening import ranges
from assets.steps.rollout import verified
from assets.windows.clock import window_bounds
from assets.windows.columns import columns_of
from assets.windows.gap import touched
from assets.windows.seal import find_sealed, read_sealed
from assets.workspace import Workspace
from models.poisoning import null_records
from monitoring import evidence as sums


def evidence(window: str, workspace: Workspace) -> Mapping[str, Any]:
    """The body of `evidence.scored`: pairs with their block sums, requests by arm, mean losses by version (in-zone)."""
    known = workspace.body("evidence.scored", window)
    if known is not None:
        return known
    board = workspace.board()
    table = workspace.examples(window)
    everything = columns_of(table)
    fit = ~null_records(everything, ranges(workspace))
    columns = {name: column[fit] for name, column in everything.items()}
    joined = workspace.body("examples.joined", window) or {}
    losses = _losses(workspace, columns, [version for pair in board.pairs() for version in pair])
    comparable = [pair for pair in board.pairs() if set(pair) <= set(losses)]  # a refused version is no evidence
    policy, grid = workspace.policies.rollout, workspace.policies.window
    matured = everything["_matured"].astype("datetime64[ms]").astype(np.int64)
    sound, void = _without_gaps(workspace, window, matured)
    matured, sound = matured[fit], sound[fit]
    pairs = {
        (candidate, stable): sums.score(
            losses[stable][sound], losses[candidate][sound], matured[sound], policy.block, sums.milliseconds(grid.start)
        )
        for candidate, stable in comparable
    }
    # The window's end, also by the wall clock: catching up after an outage, the time of day closes no block and is no news.
    end = window_bounds(grid, window)[1]
    body = sums.entry(window, end, pairs, _served(window, workspace), joined.get("coverage"))
    body |= {"examples": table.num_rows, "stable": board.stable, "losses": _shown(workspace, columns, board.head)} | void
    return workspace.history.once("evidence.scored", body, actor=workspace.actor, at=workspace.now()).body


def _without_gaps(workspace: Workspace, window: str, matured: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Which examples count, bool (n,), by maturity in ms UTC (n,); and what to journal of those that do not.

    A block (a day) that touches an accepted gap is void as a whole: a part of a day is another observation than the day. Of
    a window with a gap, what matured in [start, end + horizon) was alive in it; a label lies up to a horizon before or after
    its event's arrival, so that in [start, end + 2 horizons) it may be the label that is lost (the join has the same rule).
    """
    grid, horizon = workspace.policies.window, workspace.task.label_horizon
    length = workspace.policies.rollout.block // timedelta(milliseconds=1)
    origin, begin = sums.milliseconds(grid.start), sums.milliseconds(window_bounds(grid, window)[0])
    lives = {}
    for topic, reach in ((workspace.topics.events, horizon), (workspace.topics.labels, 2 * horizon)):
        for name in touched(workspace.history.refresh(), (topic,)):
            start, end = window_bounds(grid, name)
            lives[name] = sums.milliseconds(start), sums.milliseconds(end + reach)
    block = (matured - origin) // length * length + origin
    blocks = {*block.tolist(), (begin - origin) // length * length + origin}  # its own, of which windows before have parts
    void = sorted(k for k in blocks if any(k < high and low < k + length for low, high in lives.values()))
    sound = ~np.isin(block, void)
    if not void:
        return sound, {}
    names = [name for name, (low, high) in sorted(lives.items()) if any(k < high and low < k + length for k in void)]
    return sound, {"void": {"windows": names, "blocks": void, "examples": int((~sound).sum())}}


def _losses(workspace: Workspace, columns: Mapping[str, Any], versions: list[str]) -> dict[str, np.ndarray]:
    ready = {version: verified(workspace, version) for version in sorted(set(versions))}
    return {version: predictor.losses(columns) for version, predictor in ready.items() if predictor}


def _shown(workspace: Workspace, columns: Mapping[str, Any], head: str | None) -> dict[str, float]:
    """Mean training loss by version for display: the base, the stable version and the lineage head. Never a decision."""
    base = workspace.lineage().registered_base()["version"]
    shown = sorted({base, workspace.board().stable or base, head or base})
    if not len(columns["event_id"]):
        return {}
    ready = {version: verified(workspace, version) for version in shown}
    return {version: float(one.train_losses(columns).mean()) for version, one in ready.items() if one}


def _served(window: str, workspace: Workspace) -> list[sums.Served]:
    sealed = find_sealed(workspace.history, window)
    if sealed is None:
        return []
    names = ["prediction_id", "epoch", "arm", "score", "latency_ms"]
    table = read_sealed(workspace.store, sealed, workspace.topics.predictions, names)
    return sums.count_served(
        table.column("epoch").to_numpy(),
        table.column("arm").to_pylist(),
        table.column("score").is_null().to_numpy(),
        table.column("latency_ms").to_numpy(),
        workspace.policies.rollout.slow_ms,
        table.column("prediction_id").to_pylist(),
    )
