"""Step `version`: make a signed version of the update that was trained in this window, and queue it for release.

Retention is measured, the release copy stamped and signed, written, read back through every loading check, and then
journalled, lineage head and rollout queue together. A step that dies before the entry leaves only unnamed files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from assets.lineage import Lineage
from assets.regimes import retention
from assets.steps.adapter import ledger_of
from assets.steps.rollout import ATTEMPTS, decide
from assets.windows.columns import concatenated
from assets.windows.cut import find_cut
from assets.workspace import Workspace
from models import release
from models.golden import golden_sets
from models.retention import by_regime, refusal, worst
from models.rollout import Decision, Stream
from monitoring.alarms import raise_alarm
from monitoring.quality import binary_metrics
from security.journal import Conflict, stamp
from security.keys import private_key, secret
from security.manifest import digest, encode
from security.privacy import NOT_COVERED, UNIT

if TYPE_CHECKING:
    from models.release_copy import ReleaseCopy

SCHEME = "dual-stamp/1"
PUBLIC_INPUTS = 2000
REFUSED = "version.refused"


def version(window: str, workspace: Workspace) -> Mapping[str, Any]:
    """The body of `version.registered`, or {"window", "reason"} when this window's update makes no version."""
    lineage = workspace.lineage()
    known = lineage.of_window(window, "versions")
    if known is None:
        update = lineage.of_window(window)
        if update is None or update["kind"] != "update.trained":
            return {"window": window, "reason": "no new version: no update was trained in this window"}
        known = workspace.body(REFUSED, window) or _register(window, workspace, lineage, update)
    if "version" not in known:
        return known
    _warn(window, workspace, known)
    _start(window, workspace)
    _track(workspace, known)
    return known


def _register(window: str, workspace: Workspace, lineage: Lineage, update: Mapping[str, Any]) -> Mapping[str, Any]:
    from models.release_copy import StampRefused, release_copy
    from models.vault import read_vault
    from models.version import write_version
    from security.watermark import WatermarkFailed

    task, now, base = workspace.task, workspace.now(), lineage.registered_base()
    clean = read_vault(workspace.store / update["vault"], update["vault_sha256"])
    claim = {"model": task.name, "version": f"v{update['number']:06d}", "recipient": "production", "base": base["digest"]}
    public = getattr(task, "public_inputs", None)
    try:
        copy = release_copy(
            task, workspace.base, clean, workspace.policies.adapter, secret=secret(workspace.keys, "watermark"),
            claim=claim, public=public(PUBLIC_INPUTS) if public else None,
        )  # fmt: skip
    except (StampRefused, WatermarkFailed) as error:
        return _refuse(window, workspace, str(error))
    kept = retention(workspace, update["parent"], clean)
    blocked = update["report"]["blocked"] or ("retention" if refusal(kept) else None)
    described = {
        "windows": [_ranges(workspace, covered) for covered in update["windows"]],
        "settings_digest": workspace.settings_digest,
        "watermark": _watermark(copy, claim),
        # a manifest leaves the house: no figure of private records
        "retention": {name: figures for name, figures in kept.items() if figures["public"]},
        "guard": {"blocked": blocked},
        **_privacy(window, workspace, lineage, update),
    }
    written = write_version(
        workspace.store / task.name / "versions", number=update["number"], task=task.name, parent=update["parent"],
        base_digest=base["digest"], tensors=copy.tensors, adapter_config=workspace.policies.adapter,
        manifest_extra=described, key=private_key(workspace.keys, "trainer"), now=now,
    )  # fmt: skip
    body = {
        "version": written.id,
        "number": update["number"],
        "window": window,
        "parent": update["parent"],
        "windows": update["windows"],
        "manifest_digest": digest(encode(written.manifest)),
        "path": str(written.path.relative_to(workspace.store)),
        "vault": update["vault"],
        "vault_sha256": update["vault_sha256"],
        "blocked": blocked,
        "adapter": workspace.policies.adapter.listed(),
        "report": update["report"],
        "watermark": described["watermark"],
        "retention": kept,
        "privacy": described["privacy"],
        "clock": stamp(workspace.clock(window)),
    }
    _announce(window, workspace, lineage, update, body)
    return _journal(workspace, body)


def _announce(
    window: str, workspace: Workspace, lineage: Lineage, update: Mapping[str, Any], body: Mapping[str, Any]
) -> None:
    """RELEASE in the privacy ledger before the version is published: it refuses one that exceeds what was reserved."""
    ledger = ledger_of(workspace, window)
    if ledger is not None:
        ledger.release(
            version=body["version"], artefact=body["manifest_digest"], updates=_updates(workspace, lineage, update),
            parent=None if update["parent"] not in lineage.versions else update["parent"],
            actor=workspace.actor, at=workspace.now(),
        )  # fmt: skip


def _updates(workspace: Workspace, lineage: Lineage, update: Mapping[str, Any]) -> list[str]:
    """Every update the weights descend from, oldest first."""
    found, parent = [update["update"]], update["parent"]
    while parent in lineage.versions:
        body = lineage.versions[parent]
        found.append(f"{workspace.task.name}/{body['number']:06d}")
        parent = body["parent"]
    return found[::-1]


def _refuse(window: str, workspace: Workspace, reason: str) -> Mapping[str, Any]:
    """No release copy could be made: the lineage head stays, the update's windows stay charged, and people are told."""
    raise_alarm(
        workspace.journal, workspace.task.name, kind="security", window=window, message=reason, figure=None, limit=None,
        at=workspace.now(), actor=workspace.actor,
    )  # fmt: skip
    body = {"window": window, "reason": reason}
    return workspace.history.once(REFUSED, body, actor=workspace.actor, at=workspace.now()).body


def _journal(workspace: Workspace, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Registration, lineage head and queue in one transaction; the body that is registered.

    A blocked version waits for a person: neither head nor queue. One whose ancestor was stopped while it was trained is
    withdrawn at once, and the next update must not start from it: the head stays where the stop has put it.
    """
    now = workspace.clock(body["window"])
    for _ in range(ATTEMPTS):
        board = workspace.board()
        known = workspace.lineage().of_window(body["window"], "versions")
        if known is not None:  # another process was faster
            return known
        decisions = [Decision(Stream.LINEAGE, "version.registered", body)]
        if body["blocked"] is None:
            queued = release.enqueue(board, body["version"], body["number"], body["parent"], now)
            if not any(decision.kind == "rollout.withdrawn" for decision in queued):
                moved = {"head": body["version"], "reason": "newest update that passed its checks", "clock": stamp(now)}
                decisions.append(Decision(Stream.LINEAGE, "head.moved", moved))
            decisions += queued
        try:
            workspace.append_decisions(decisions)
        except Conflict:  # a person's verb came in between: decide again on the board as it is now
            continue
        return body
    raise Conflict(f"the board of {workspace.task.name} was changed by others {ATTEMPTS} times in a row: try again")


def _start(window: str, workspace: Workspace) -> None:
    """Let the queue move at once, so that the next window is already evidence for the new version."""
    if (workspace.board().stepped or window) > window:  # an old window, materialised again: its time is over
        return
    while decide(workspace, workspace.clock(window)):
        pass


def _ranges(workspace: Workspace, window: str) -> dict[str, Any]:
    """A window's id with its offset ranges: the lineage of a version goes down to the record."""
    decided = find_cut(workspace.history.refresh(), window)
    if decided is None:
        raise LookupError(f"window {window} has no cut in the journal, yet an update covers it: run `headgate journal verify`")
    return {"window": window, "cluster_id": decided.cluster_id, "topics": decided.body()["topics"]}


def _watermark(copy: ReleaseCopy, claim: Mapping[str, str]) -> dict[str, Any]:
    return {
        "scheme": SCHEME, "eta": copy.eta, "bits": 64, "claim": dict(claim), "commitment": copy.stamp.commitment,
        "z": copy.stamp.z, "bits_right": copy.stamp.bits_right, "agreement": copy.agreement,
    }  # fmt: skip


def _privacy(window: str, workspace: Workspace, lineage: Lineage, update: Mapping[str, Any]) -> dict[str, Any]:
    ledger = ledger_of(workspace, window)
    if ledger is None:
        return {"privacy": None, "not_covered": ["Everything: privacy is off."]}
    charges = {charge.update: charge for charge in ledger.charges()}
    # The law that was reserved and executed, not the one the settings ask for by now.
    law = charges[update["update"]].law
    figures = {
        "unit": UNIT, "epsilon": ledger.epsilon_per_event(), "delta": ledger.policy.target_delta,
        "noise_multiplier": law.noise_multiplier, "sampling_rate": law.sampling_rate, "steps": law.steps,
        "steps_taken": update["report"]["steps"] + update["report"].get("lost_steps", 0),
        "max_grad_norm": update["report"]["max_grad_norm"],
        "accountant": "PLD, replace-special adjacency", "stream": ledger.stream, "ledger": ledger.position(),
    }  # fmt: skip
    free = [name for name in _updates(workspace, lineage, update) if name not in charges]
    unbound = [f"Updates that this ledger never charged, trained with privacy off: {', '.join(free)}."] if free else []
    return {"privacy": figures, "not_covered": [*NOT_COVERED, *unbound]}


def _warn(window: str, workspace: Workspace, body: Mapping[str, Any]) -> None:
    """A protected regime that was lost is told to people; once, however often the step is repeated."""
    sentence = refusal(body["retention"])
    if sentence is None:
        return
    bounds = [figures["bound"] for figures in body["retention"].values() if figures["refused"] and "bound" in figures]
    raise_alarm(
        workspace.journal, workspace.task.name, kind="retention", window=window, message=f"{body['version']}: {sentence}",
        figure=min(bounds, default=None), limit=workspace.policies.retention.floor, at=workspace.now(), actor=workspace.actor,
    )  # fmt: skip


def _public_quality(workspace: Workspace, version: str) -> dict[str, float]:
    """Accuracy, F1, AUC, log loss and calibration error on the public golden sets, for a task with two classes."""
    sets = golden_sets(workspace.task)
    if not sets:
        return {}
    columns = concatenated(list(sets.values()))
    truth, answers = workspace.task.target(columns), workspace.predictor(version).answers(columns)
    if not (np.isin(truth, (0, 1)).all() and np.issubdtype(answers.dtype, np.floating)):
        return {}
    return binary_metrics(truth, answers)


def _track(workspace: Workspace, body: Mapping[str, Any]) -> None:
    """Show the update in MLflow, once a version; MLflow away costs nothing but the picture."""
    if workspace.tracker is None:
        return
    report = body["report"]
    metrics = {
        **_public_quality(workspace, body["version"]),
        "retention": worst(body["retention"]).get("value"),
        **{f"{figure}_{regime}": figures.get(key) for regime, figures in by_regime(body["retention"]).items()
           for figure, key in (("retention", "value"), ("retention_bound", "bound"))},
        "epsilon": (body["privacy"] or {}).get("epsilon"),
        "gradient_norm": max(report["gradient_norms"], default=None),
        "weight_delta": report["weight_delta"],
    }
    layers = {f"gradient_norm_{layer}": norms for layer, norms in report.get("layer_norms", {}).items()}
    workspace.tracker.record_update(
        workspace.task.name,
        body["version"],
        {"windows": len(body["windows"]), "parent": body["parent"], "learning_rate": report["learning_rate"]},
        {name: value for name, value in metrics.items() if value is not None},
        curves={"loss": report["losses"], "gradient_norm": report["gradient_norms"]} | layers,
        files=sorted((workspace.store / body["path"]).iterdir()),
    )
