"""The regimes of a task: where the golden rows of each lie, and the version at its birth, to which it is held for ever.

A regime is declared by the task (`golden()`: public rows) or by the settings (`[retention] regimes`: the golden rows of some
windows). Its anchor is named by the first version that was measured on it and stays, whatever becomes of that version: a
predecessor as measure would let a loss compound. The anchor's answers are computed anew each time, from its unstamped
adapter. It does not know what a loss leads to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from assets.lineage import Lineage
from assets.screening import held_back
from assets.windows.clock import windows_between
from assets.windows.columns import columns_of, concatenated
from assets.windows.golden import golden_rows
from assets.workspace import Workspace
from models.golden import GoldenRefused, golden_sets, right_answers
from models.retention import HISTORY, by_regime, measure, refused

if TYPE_CHECKING:
    from models.predictor import Predictor


@dataclass(frozen=True, slots=True)
class Regime:
    """`anchor`: a version, or the base. `public`: its figures may leave the house. `windows`: first and last, of production."""

    name: str
    anchor: str
    public: bool
    columns: Mapping[str, np.ndarray]
    windows: tuple[str, str] | None = None


def regimes(workspace: Workspace, parent: str) -> Iterator[Regime]:
    """The regimes an update of `parent` is measured on; those of production once a version has learnt their windows.

    Raises GoldenRefused for a set that is none, or a name that is used twice.
    """
    lineage, born = workspace.lineage(), workspace.policies.retention.born()
    known, base = anchors(lineage), str(lineage.registered_base()["version"])
    sets = golden_sets(workspace.task)
    if both := sorted(set(sets) & set(born)):
        raise GoldenRefused(f"regime {both[0]!r} is in golden() and in [retention] regimes: rename one of them")
    for name, columns in sets.items():
        yield Regime(name, known.get(name, base if name == HISTORY else parent), True, columns)
    for name, windows in born.items():
        anchor = known.get(name) or first_through(lineage, parent, windows[1])
        if anchor is not None:
            yield Regime(name, anchor, False, production_rows(workspace, windows), windows)


def retention(workspace: Workspace, parent: str, tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """What an update of `parent` keeps of each regime, {name: figures}; `refused` in those of a protected one that is lost.

    A regime that cannot be measured has an `error`; a protected one is then refused as well, for nothing is known of it.
    """
    from models.predictor import Predictor

    settings = workspace.policies.retention
    now = Predictor(workspace.task, workspace.base, tensors, workspace.policies.adapter)
    found: dict[str, dict[str, Any]] = {}
    for regime in regimes(workspace, parent):
        about = {"anchor": regime.anchor, "public": regime.public, "windows": list(regime.windows or ()) or None}
        protected = regime.name in settings.protected
        try:
            _check_any(regime)
            birth = right_answers(at_birth(workspace, regime.anchor), regime.columns)
            kept = measure(right_answers(now, regime.columns), birth)
        except ValueError as error:
            found[regime.name] = about | {"error": str(error), "refused": str(error) if protected else None}
            continue
        sentence = refused(regime.name, kept, settings.floor) if protected else None
        found[regime.name] = about | kept.as_dict() | {"floor": settings.floor, "refused": sentence}
    for name in sorted(set(settings.protected) - set(found) - set(settings.born())):
        there = ", ".join({**found, **settings.born()}) or "none"
        sentence = f"protected regime {name!r} is no regime of task {workspace.task.name}; there are {there}"
        found[name] = {"error": sentence, "public": False, "refused": f"{sentence}; correct [retention] protected"}
    return found


def anchors(lineage: Lineage) -> dict[str, str]:
    """{regime: the version its first measurement was against}."""
    base, found = str(lineage.registered_base()["version"]), dict[str, str]()
    for body in lineage.versions.values():
        for name, figures in by_regime(body["retention"]).items():
            if figures.get("value") is not None:
                found.setdefault(name, str(figures.get("anchor", base)))  # in older entries it is always the base
    return found


def first_through(lineage: Lineage, parent: str, window: str) -> str | None:
    """The oldest version on the line to `parent` that has learnt from this window or a later one."""
    found = None
    while parent in lineage.versions:
        body = lineage.versions[parent]
        if max(body["windows"]) >= window:
            found = parent
        parent = body["parent"]
    return found


def production_rows(workspace: Workspace, windows: tuple[str, str]) -> dict[str, np.ndarray]:
    """The golden rows of these windows, without those of windows that are held back as planted."""
    history = workspace.history.refresh()
    parts = {window: golden_rows(workspace.examples(window)) for window in windows_between(workspace.policies.window, *windows)}
    fit = [part for window, part in parts.items() if part.num_rows and not held_back(history, window)]
    return concatenated([columns_of(part) for part in fit or [parts[windows[0]].slice(0, 0)]])


def _check_any(regime: Regime) -> None:
    if regime.windows and not len(regime.columns["event_id"]):
        raise ValueError(
            f"regime {regime.name!r} has no golden row in windows {regime.windows[0]} to {regime.windows[1]}: they were joined "
            "with [retention] golden_share = 0, which cannot be made good, or are held back; name others"
        )


def at_birth(workspace: Workspace, anchor: str) -> Predictor:
    """The unstamped anchor with the adapter settings of its own time."""
    from models.config import AdapterConfig
    from models.predictor import Predictor
    from models.vault import read_vault

    lineage = workspace.lineage()
    if anchor == lineage.registered_base()["version"]:
        return Predictor(workspace.task, workspace.base, None, workspace.policies.adapter)
    body = lineage.versions[anchor]
    tensors = read_vault(workspace.store / body["vault"], body["vault_sha256"])
    config = AdapterConfig.of(body["adapter"]) if "adapter" in body else workspace.policies.adapter
    return Predictor(workspace.task, workspace.base, tensors, config)
