"""Step `evidence`: score the versions under test on the window's examples, before anything is trained on them.

Stable and candidate answer the same examples. Requests by arm come from the sealed predictions, and with mature labels what
came of them (exposure.py). What is written are sums and counts; what follows from them is for the release rules. Examples
whose life touches an accepted gap do not count, and those outside the ranges a record must keep are not scored: what they
say, a loss may not even know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from assets.screening import ranges
from assets.steps import exposure
from assets.steps.rollout import verified
from assets.windows.clock import window_bounds
from assets.windows.columns import columns_of
from assets.windows.gap import touched
from assets.workspace import Workspace
from models.poisoning import null_records
from models.release_board import Board
from models.release_policy import RolloutPolicy
from models.task import Columns, slices
from monitoring import evidence as sums


def evidence(window: str, workspace: Workspace) -> Mapping[str, Any]:
    """The body of `evidence.scored`: pairs with their block sums, requests by arm, mean losses by version (in-zone)."""
    known = workspace.body(sums.SCORED, window)
    if known is not None:
        exposure.restore(window, workspace, known.get("exposure"))
        return known
    board = workspace.board()
    table = workspace.examples(window)
    everything = columns_of(table)
    fit = ~null_records(everything, ranges(workspace))
    columns = {name: column[fit] for name, column in everything.items()}
    joined = workspace.body("examples.joined", window) or {}
    losses = _losses(workspace, columns, [version for pair in board.pairs() for version in pair])
    matured = everything["_matured"].astype("datetime64[ms]").astype(np.int64)
    lengths = {workspace.policies.rollout.block, *(_policy(workspace, board, pair).block for pair in board.pairs())}
    sound, void = _without_gaps(workspace, window, matured, fit, lengths)
    answers = exposure.predictions(window, workspace)
    used = exposure.served(window, workspace, answers, everything, fit & sound)
    matured, sound = matured[fit], sound[fit]
    pairs, parts = _scored(workspace, board, columns, losses, matured, sound)
    # The window's end, also by the wall clock: catching up after an outage, the time of day closes no block and is no news.
    end = window_bounds(workspace.policies.window, window)[1]
    body = sums.entry(window, end, pairs, _served(workspace, answers), joined.get("coverage"), slices=parts, **used.entry)
    body |= {"examples": table.num_rows, "stable": board.stable, "losses": _shown(workspace, columns, board.head)}
    body |= {"null": int((~fit).sum())} if not fit.all() else {}  # examples that no pair was scored on
    return workspace.history.once(sums.SCORED, {**body, **used.body, **void}, actor=workspace.actor, at=workspace.now()).body


def _scored(
    workspace: Workspace,
    board: Board,
    columns: Columns,
    losses: Mapping[str, np.ndarray],
    matured: np.ndarray,
    sound: np.ndarray,
) -> tuple[dict[sums.Pair, list[sums.BlockSum]], dict[sums.Pair, dict[str, list[sums.BlockSum]]]]:
    """The blocks of each pair, and of each protected slice of it, by the policy its rollout was started under."""
    origin = sums.milliseconds(workspace.policies.window.start)
    known = slices(workspace.task, columns)
    pairs, parts = {}, {}
    for pair in board.pairs():
        if not set(pair) <= set(losses):  # a refused version is no evidence
            continue
        policy = _policy(workspace, board, pair)

        def blocks(rows: np.ndarray, pair: sums.Pair = pair, length: timedelta = policy.block) -> list[sums.BlockSum]:
            return sums.score(losses[pair[1]][rows], losses[pair[0]][rows], matured[rows], length, origin)

        pairs[pair] = blocks(sound)
        # a slice the task has lost has no evidence: the version is never promoted
        parts[pair] = {name: blocks(sound & known[name]) for name in policy.protected_slices if name in known}
    return pairs, parts


def _policy(workspace: Workspace, board: Board, pair: sums.Pair) -> RolloutPolicy:
    return board.policy_of(board.rollouts[pair[0]], workspace.policies.rollout)


def _without_gaps(
    workspace: Workspace, window: str, matured: np.ndarray, fit: np.ndarray, lengths: Iterable[timedelta]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Which examples count, bool (n,), by maturity in ms UTC (n,) and blocks of these lengths; and what to journal of those
    that are fit and do not.

    A block (a day) that touches an accepted gap is void as a whole: a part of a day is another observation than the day. Of
    a window with a gap, what matured in [start, end + horizon) was alive in it; a label lies up to a horizon before or after
    its event's arrival, so that in [start, end + 2 horizons) it may be the label that is lost (the join has the same rule).
    """
    grid, horizon = workspace.policies.window, workspace.task.label_horizon
    origin, begin = sums.milliseconds(grid.start), sums.milliseconds(window_bounds(grid, window)[0])
    lives = {}
    for topic, reach in ((workspace.topics.events, horizon), (workspace.topics.labels, 2 * horizon)):
        for name in touched(workspace.history.refresh(), (topic,)):
            start, end = window_bounds(grid, name)
            lives[name] = sums.milliseconds(start), sums.milliseconds(end + reach)
    sound, void, names = np.ones(len(matured), dtype=np.bool_), set[int](), set[str]()
    for length in (each // timedelta(milliseconds=1) for each in lengths):
        block = (matured - origin) // length * length + origin
        # its own too, of which windows before have parts
        for start in {*block.tolist(), (begin - origin) // length * length + origin}:
            touching = {name for name, (low, high) in lives.items() if start < high and low < start + length}
            if touching:
                names |= touching
                void.add(start)
                sound &= block != start
    if not void:
        return sound, {}
    examples = int((fit & ~sound).sum())
    return sound, {"void": {"windows": sorted(names), "blocks": sorted(void), "examples": examples}}


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


def _served(workspace: Workspace, table: pa.Table) -> list[sums.Served]:
    return sums.count_served(
        table.column("epoch").to_numpy(),
        table.column("arm").to_pylist(),
        table.column("score").is_null().to_numpy(),
        table.column("latency_ms").to_numpy(),
        workspace.policies.rollout.slow_ms,
        table.column("prediction_id").to_pylist(),
    )
