"""What users of each arm brought about: a window's mature examples, joined with the predictions that answered them.

Part of the step `evidence`. A window's predictions become exposures when the window is scored (assets/windows/exposure.py);
their outcomes enter windows later, when the label is mature, never on arrival: what comes early is not what comes. So for each
window it is told which units were drawn in it, and what came of those whose label has matured in it.

A request without an answer has the worst outcome, 1: a version cannot look better by failing. It knows sums; what follows
from them is for the release rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from assets.stream.formats import EVENT_ID
from assets.stream.predictions import PREDICTION_SCHEMA
from assets.windows import exposure as rules
from assets.windows import store
from assets.windows.clock import NotDue, previous_window, window_bounds
from assets.windows.exposure import BOTH, FIRST, Exposures, Step
from assets.windows.history import SEALED
from assets.windows.idhash import IdHash
from assets.windows.lookup import Lookup
from assets.windows.seal import find_sealed, read_sealed
from assets.windows.store import StoreDamaged
from assets.workspace import Workspace
from models.task import Columns, has_outcome, outcomes
from monitoring import evidence as sums
from monitoring.evidence import SCORED, Exposed
from monitoring.outcome import Outcome, bets
from monitoring.sample_ratio import SampleRatio

LEAST_DUE = 30  # predictions of an arm: of fewer, the share with a label says too little to hold a rollout
LONGEST_REACH = timedelta(days=1)  # between a prediction and its event: a gateway keeps records through an outage
NO_FORECAST = 0.5


@dataclass(frozen=True)
class Served:
    """What the predictions of a window, and those its examples were answered by, add to `evidence.scored`: `entry` its
    arguments, `body` what else is journalled."""

    entry: Mapping[str, Any]
    body: Mapping[str, Any]


def predictions(window: str, workspace: Workspace) -> pa.Table:
    """The sealed predictions of the window, what is needed of them; none before it is sealed."""
    names = [*rules.COLUMNS, "prediction_id", "latency_ms"]
    sealed = find_sealed(workspace.history.refresh(), window)
    if sealed is None:
        return PREDICTION_SCHEMA.empty_table().select(names)
    return read_sealed(workspace.store, sealed, workspace.topics.predictions, names)


def served(window: str, workspace: Workspace, table: pa.Table, columns: Columns, counted: np.ndarray) -> Served:
    """table: as `predictions` gives it. columns: its examples; counted, bool (n,): those that are
    evidence. Raises NotDue before the evidence of the window before; TaskError for outcomes that are none; StoreDamaged."""
    planned = _steps(workspace)
    own = _expose(window, workspace, table, planned)
    past = [*_told(workspace, window), *([own] if own else [])]
    if not past:
        return Served({}, {})
    found = _joined(window, workspace, past, columns)
    due = _due(window, workspace, found, columns)
    y = _outcomes(workspace, columns, found, counted)
    mature = found.of(y, counted)
    counts = {int(epoch): both for epoch, both in (own or {}).get("drawn", {}).items() if any(both)}
    drawn = {epoch: SampleRatio(planned[epoch].share, *both) for epoch, both in counts.items()}
    of_stable = found.answered & ~found.canary & ~np.isnan(y)
    entry = {
        "exposed": [_exposed(workspace, planned[epoch], mature, drawn) for epoch in sorted({*drawn, *mature})],
        "stable_outcome": (int(of_stable.sum()), float(y[of_stable].sum())),
        "arm_coverage": _coverage(workspace, window, due),
    }
    return Served(entry, {"exposure": own, "due": due})


def restore(window: str, workspace: Workspace, known: Mapping[str, Any] | None) -> None:
    """Make the window's files again if one is missing; raises StoreDamaged when they are not what the journal names."""
    if not known or all(store.present(workspace.store, path) for path in known["files"]):
        return
    made = _expose(window, workspace, predictions(window, workspace), _steps(workspace))
    if made is None or made["files"] != known["files"]:
        raise StoreDamaged(
            f"window {window}: its exposures made again differ from those the journal names ({', '.join(known['files'])}): "
            "bring the files of the windows before, or these, back from a backup"
        )


# -- this window's own predictions -------------------------------------------------------------------------------------


def _steps(workspace: Workspace) -> dict[int, Step]:
    routings = workspace.journal.read(f"routing/{workspace.task.name}", kinds=["routing.set"])
    return rules.steps((entry.body for entry in routings), workspace.task.subject is not None)


def _expose(window: str, workspace: Workspace, table: pa.Table, planned: Mapping[int, Step]) -> dict[str, Any] | None:
    """The files of the window, and what is journalled of them; None without predictions."""
    if not table.num_rows:
        return None
    _check_turn(window, workspace)
    mine = [planned[e] for e in np.unique(table["epoch"].to_numpy()).tolist() if e in planned]
    since = min((step.first for step in mine), default=0)
    before = [body for body in _told(workspace, window) if mine and body["epochs"][1] >= since]
    met = (rules.read_units(workspace.store, *_file(body, rules.UNITS)) for body in before)
    by_subject = workspace.task.subject is not None
    found, units, counts = rules.expose(table, _ids(workspace), planned, by_subject, met)
    files = rules.write(workspace.store, store.window_folder(workspace.task.name, window), found, units)
    return {
        "window": window, "files": files, "span": [int(found.at.min()), int(found.at.max())],
        "epochs": [int(found.epoch.min()), int(found.epoch.max())],
        "drawn": {str(step.epoch): list(found.drawn(step.epoch)) for step in mine}, **asdict(counts),
    }  # fmt: skip


def _check_turn(window: str, workspace: Workspace) -> None:
    """Who was met before this window has to be known first."""
    before = previous_window(workspace.policies.window, window)
    sealed = before and find_sealed(workspace.history, before)
    if before and sealed and sealed.rows.get(workspace.topics.predictions) and workspace.body(SCORED, before) is None:
        raise NotDue(f"evidence of window {window} waits for that of window {before}: it says who was met before")


def _told(workspace: Workspace, window: str) -> list[dict[str, Any]]:
    """What is journalled of the exposures of the windows before, oldest first."""
    bodies = [entry.body for entry in workspace.history.refresh().entries(SCORED) if entry.body["window"] < window]
    return sorted((body["exposure"] for body in bodies if body.get("exposure")), key=lambda body: str(body["window"]))


def _file(body: Mapping[str, Any], name: str) -> tuple[str, str]:
    """Path and sha256 of one of the two files."""
    return next((path, digest) for path, digest in body["files"].items() if path.endswith(f"/{name}"))


def _ids(workspace: Workspace) -> IdHash:
    """As the join hashes ids: with the digest of the first cut."""
    sealed = workspace.history.find(SEALED, min(workspace.history.windows(SEALED)))
    return IdHash(bytes.fromhex(sealed.body["cut_hash"] if sealed else ""))


# -- joined with the examples ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Joined:
    """Of each example, (n,): whether it was answered, by whom, in which epoch; score NaN where the request failed; `tested`:
    its unit was met first by it, and in no other arm. `near`: the exposures they were looked for in."""

    answered: np.ndarray
    canary: np.ndarray
    epoch: np.ndarray
    score: np.ndarray
    tested: np.ndarray
    near: tuple[Exposures, ...]

    def of(self, outcome: np.ndarray, counted: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Arm (1 canary) and outcome of the tested units, by epoch."""
        chosen = self.tested & counted & ~np.isnan(outcome)
        return {
            epoch: (self.canary[here].astype(np.float64), outcome[here])
            for epoch in np.unique(self.epoch[chosen]).tolist()
            if len(here := np.flatnonzero(chosen & (self.epoch == epoch)))
        }


def _joined(window: str, workspace: Workspace, past: list[dict[str, Any]], columns: Columns) -> _Joined:
    """Each example with the first prediction for it, of those near its arrival. The examples of a window arrived in no more
    than a window and a few late ones, so that only some windows are opened, however long the horizon is."""
    near = tuple(rules.read(workspace.store, *_file(body, rules.EXPOSURES)) for body in _near(window, workspace, past))
    hashes = _ids(workspace)(pa.chunked_array([pa.array(columns[EVENT_ID]).cast(pa.string())]))
    order = np.argsort(hashes)
    table, n = Lookup(hashes[order]), len(hashes)
    answered, canary, tested = (np.zeros(n, dtype=np.bool_) for _ in range(3))
    epoch, score, unit = np.zeros(n, dtype=np.int64), np.full(n, np.nan), np.zeros(n, dtype=np.uint64)
    for one in near:
        rows, places = table.find(one.event)
        mine = order[places]
        fresh = ~answered[mine]
        rows, mine = rows[fresh], mine[fresh]
        answered[mine] = True
        canary[mine], epoch[mine], score[mine], unit[mine] = one.canary[rows], one.epoch[rows], one.score[rows], one.unit[rows]
        tested[mine] = one.use[rows] == FIRST
    both = np.concatenate([np.empty(0, dtype=np.uint64), *(one.unit[one.use == BOTH] for one in near)])
    if len(both):
        tested &= ~np.isin(unit >> np.uint64(1), both >> np.uint64(1))
    return _Joined(answered, canary, epoch, score, tested, near)


def _near(window: str, workspace: Workspace, past: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    grid, horizon = workspace.policies.window, workspace.task.label_horizon
    start, end = (sums.milliseconds(moment) for moment in window_bounds(grid, window))
    reach = max(grid.every, min(horizon, LONGEST_REACH)) // timedelta(milliseconds=1)
    low, high = (moment - horizon // timedelta(milliseconds=1) for moment in (start, end))
    return (body for body in past if body["span"][1] >= low - reach and body["span"][0] < high + reach)


def _outcomes(workspace: Workspace, columns: Columns, found: _Joined, counted: np.ndarray) -> np.ndarray:
    """Of each example (n,) what came of its answer; NaN where it was not answered or does not count."""
    y = np.full(len(counted), np.nan)
    if not has_outcome(workspace.task):
        return y
    failed = np.isnan(found.score)
    y[found.answered & counted & failed] = 1.0
    rows = np.flatnonzero(found.answered & counted & ~failed)
    if len(rows):
        y[rows] = outcomes(workspace.task, {name: column[rows] for name, column in columns.items()}, found.score[rows])
    return y


def _exposed(
    workspace: Workspace, step: Step, mature: Mapping[int, tuple[np.ndarray, np.ndarray]], drawn: Mapping[int, SampleRatio]
) -> Exposed:
    """The tests on one step; the forecast is the one that was frozen when the rollout met its first users."""
    board, policy = workspace.board(), workspace.policies.rollout
    rollout, forecast = board.rollouts.get(step.candidate), NO_FORECAST
    if rollout is not None:
        policy, forecast = board.policy_of(rollout, policy), NO_FORECAST if rollout.forecast is None else rollout.forecast
    outcome = Outcome()
    if step.epoch in mature:
        arm, y = mature[step.epoch]
        outcome = bets(arm, step.share, y, forecast, min(policy.margin, 1.0))
    return Exposed(step.candidate, step.epoch, outcome, drawn.get(step.epoch, SampleRatio(step.share)))


# -- labels by arm -----------------------------------------------------------------------------------------------------


def _due(window: str, workspace: Workspace, found: _Joined, columns: Columns) -> dict[str, Any]:
    """{"of": canary, arm: [predictions whose horizon has passed here, examples with a label that they answered]}: of the steps
    of the version that is canary now; without one, of stable."""
    canary = workspace.board().canary
    epochs = [] if canary is None else [taken.epoch for taken in canary.taken]
    answered = found.answered & ~columns["_label_absent"].astype(np.bool_)
    passed = _passed(window, workspace, found.near)
    told: dict[str, Any] = {"of": canary.version if epochs and canary else None}
    for arm in ("canary", "stable") if epochs else ("stable",):
        told[arm] = [
            int((rows & (is_canary == (arm == "canary")) & (np.isin(epoch, epochs) | (not epochs))).sum())
            for rows, is_canary, epoch in ((True, *passed), (answered, found.canary, found.epoch))
        ]
    return told


def _passed(window: str, workspace: Workspace, near: tuple[Exposures, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Arm (true: canary) and epoch of the events' first predictions whose horizon has passed in the window."""
    start, end = (sums.milliseconds(moment) for moment in window_bounds(workspace.policies.window, window))
    horizon = workspace.task.label_horizon // timedelta(milliseconds=1)
    due = [np.flatnonzero((one.at + horizon >= start) & (one.at + horizon < end)) for one in near]
    none = np.empty(0, dtype=np.int64)
    event, at, canary, epoch = (
        np.concatenate([none.astype(kind), *(getattr(one, name)[rows] for one, rows in zip(near, due, strict=True))])
        for name, kind in (("event", np.uint64), ("at", np.int64), ("canary", np.bool_), ("epoch", np.int64))
    )
    first = rules.first_of(event, at)
    table, earliest = Lookup(event[first]), at[first]
    for one in near:
        rows, places = table.find(one.event)
        np.minimum.at(earliest, places, one.at[rows])
    first = first[earliest == at[first]]
    return canary[first], epoch[first]


def _coverage(workspace: Workspace, window: str, due: Mapping[str, Any]) -> dict[str, float]:
    """Share by arm of the predictions that have a label once their horizon has passed; where they are few in this window, with
    those of the windows before. A prediction and its event may lie in two windows: at most 1."""
    entries = [entry.body for entry in workspace.history.entries(SCORED) if entry.body["window"] < window]
    before = sorted((body for body in entries if "due" in body), key=lambda body: str(body["window"]), reverse=True)
    shares = {}
    for arm in due.keys() - {"of"}:
        passed, labelled = due[arm]
        for body in before:
            if passed >= LEAST_DUE or body["due"]["of"] != due["of"]:
                break
            passed, labelled = passed + body["due"][arm][0], labelled + body["due"][arm][1]
        if passed >= LEAST_DUE:
            shares[arm] = min(1.0, labelled / passed)
    return dict(sorted(shares.items()))
