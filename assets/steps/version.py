"""Step `version`: make a signed version of the update that was trained in this window, and queue it for release.

Retention is measured, the release copy stamped and signed, written, read back through every loading check, and then
journalled, lineage head and rollout queue together. A step that dies before the entry leaves only unnamed files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from assets.lineage import Lineage
from assets.steps.adapter import ledger_of
from assets.steps.rollout import decide
from assets.stream.cut import find_cut
from assets.workspace import Workspace
from models import release
from models.rollout import Decision, Stream
from security.journal import stamp
from security.keys import private_key, secret

if TYPE_CHECKING:
    from models.release_copy import ReleaseCopy

SCHEME = "dual-stamp/1"
PUBLIC_INPUTS = 2000


def version(window: str, workspace: Workspace) -> Mapping[str, Any]:
    """The body of `version.registered`, or {"window", "reason"} when no update was trained in this window."""
    lineage = workspace.lineage()
    known = lineage.of_window(window, "versions")
    if known is None:
        update = lineage.of_window(window)
        if update is None or update["kind"] != "update.trained":
            return {"window": window, "reason": "no new version: no update was trained in this window"}
        known = _register(window, workspace, lineage, update)
    _start(window, workspace)
    _track(workspace, known)
    return known


def _register(window: str, workspace: Workspace, lineage: Lineage, update: Mapping[str, Any]) -> Mapping[str, Any]:
    from models.release_copy import release_copy
    from models.vault import read_vault
    from models.version import write_version

    task, now, base = workspace.task, workspace.now(), lineage.registered_base()
    clean = read_vault(workspace.store / update["vault"], update["vault_sha256"])
    claim = {"model": task.name, "version": f"v{update['number']:06d}", "recipient": "production", "base": base["digest"]}
    public = getattr(task, "public_inputs", None)
    copy = release_copy(
        task, workspace.base, clean, workspace.policies.adapter, secret=secret(workspace.keys, "watermark"), claim=claim,
        public=public(PUBLIC_INPUTS) if public else None,
    )  # fmt: skip
    described = {
        "windows": [_ranges(workspace, covered) for covered in update["windows"]],
        "settings_digest": workspace.settings_digest,
        "watermark": _watermark(copy, claim),
        "retention": _retention(workspace, clean),
        "guard": {"blocked": update["report"]["blocked"], "loss_change": update["report"]["loss_change"]},
        **_privacy(window, workspace, update),
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
        "path": str(written.path.relative_to(workspace.store)),
        "vault": update["vault"],
        "vault_sha256": update["vault_sha256"],
        "blocked": update["report"]["blocked"],
        "report": update["report"],
        "watermark": described["watermark"],
        "retention": described["retention"],
        "privacy": described["privacy"],
        "clock": stamp(workspace.clock(window)),
    }
    _journal(workspace, body)
    return body


def _journal(workspace: Workspace, body: Mapping[str, Any]) -> None:
    """Registration, lineage head and queue in one transaction. A blocked version waits for a person: neither head nor queue."""
    board, now = workspace.board(), workspace.clock(body["window"])
    decisions = [Decision(Stream.LINEAGE, "version.registered", body)]
    if body["blocked"] is None:
        moved = {"head": body["version"], "reason": "newest update that passed its checks", "clock": stamp(now)}
        decisions.append(Decision(Stream.LINEAGE, "head.moved", moved))
        decisions += release.enqueue(board, body["version"], body["number"], body["parent"], now)
    workspace.append_decisions(decisions)


def _start(window: str, workspace: Workspace) -> None:
    """Let the queue move at once, so that the next window is already evidence for the new version."""
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
        "scheme": SCHEME, "eta": 0.30, "bits": 64, "claim": dict(claim), "commitment": copy.stamp.commitment,
        "z": copy.stamp.z, "bits_right": copy.stamp.bits_right, "agreement": copy.agreement,
    }  # fmt: skip


def _privacy(window: str, workspace: Workspace, update: Mapping[str, Any]) -> dict[str, Any]:
    ledger = ledger_of(workspace, window)
    if ledger is None:
        return {"privacy": None, "not_covered": ["Everything: privacy is off."]}
    law = workspace.policies.privacy
    figures = {
        "unit": ledger.summary()["unit"], "epsilon": ledger.epsilon_per_event(), "delta": law.target_delta,
        "noise_multiplier": law.law().noise_multiplier, "sampling_rate": law.sampling_rate, "steps": update["report"]["steps"],
        "max_grad_norm": update["report"]["max_grad_norm"], "accountant": "PLD, replace-special adjacency",
        "stream": ledger.stream,
    }  # fmt: skip
    return {"privacy": figures, "not_covered": list(ledger.summary()["not_covered"])}


def _retention(workspace: Workspace, clean: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """Accuracy kept on the public golden set against the base; reported for every regime that is not protected."""
    golden = getattr(workspace.task, "golden", None)
    if golden is None:
        return None
    from models.predictor import Predictor
    from models.retention import correct, measure

    columns = golden()
    truth = workspace.task.target(columns)
    base = Predictor(workspace.task, workspace.base, None, workspace.policies.adapter)
    now = Predictor(workspace.task, workspace.base, clean, workspace.policies.adapter)
    kept = measure(correct(now.answers(columns), truth), correct(base.answers(columns), truth))
    return kept.as_dict()


def _track(workspace: Workspace, body: Mapping[str, Any]) -> None:
    """Show the update in MLflow, once a version; MLflow away costs nothing but the picture."""
    if workspace.tracker is None:
        return
    report = body["report"]
    metrics = {
        "retention": (body["retention"] or {}).get("value"),
        "epsilon": (body["privacy"] or {}).get("epsilon"),
        "gradient_norm": max(report["gradient_norms"], default=None),
        "weight_delta": report["weight_delta"],
    }
    workspace.tracker.record_update(
        workspace.task.name,
        body["version"],
        {"windows": len(body["windows"]), "parent": body["parent"], "learning_rate": report["learning_rate"]},
        {name: value for name, value in metrics.items() if value is not None},
        curves={"loss": report["losses"], "gradient_norm": report["gradient_norms"]},
        files=sorted((workspace.store / body["path"]).iterdir()),
    )
