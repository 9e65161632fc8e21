"""What must hold of a window, as Dagster asset checks. They read the journal and change nothing.

A failed check colours the partition; it promotes and blocks nothing by itself. The release rules read their evidence again,
because a failed check does not take back a materialisation.
"""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from assets.workspace import Workspace
from models.retention import by_regime, refusal, retention_told

LEAST_Z = 6.5  # below, a stamp could not be claimed against one candidate (security/watermark.py)
Finding = tuple[bool, str]


def completeness(window: str, workspace: Workspace) -> Finding:
    """Every record of the cut is in the files or among the rejects."""
    sealed = workspace.body("window.sealed", window)
    if sealed is None:
        return False, f"window {window} is not sealed"
    return True, f"{sum(sealed['rows'].values())} rows, {sealed['rejects']} rejects"


def guard(window: str, workspace: Workspace) -> Finding:
    """The update of this window, if one was due, was neither interrupted nor blocked."""
    update = workspace.lineage().of_window(window)
    if update is None:
        return True, "no update was due"
    if update["kind"] == "update.interrupted":
        return False, update["message"]
    blocked = update["report"]["blocked"]
    return blocked is None, f"blocked: {blocked}" if blocked else "passed"


def retention(window: str, workspace: Workspace) -> Finding:
    """Accuracy kept of each regime on golden data; reported, and enforced for protected regimes."""
    version = workspace.lineage().of_window(window, "versions")
    kept = by_regime(version["retention"]) if version else {}
    if not kept:
        return True, "no new version, or the task has no golden set"
    told = "; ".join(retention_told(name, figures) for name, figures in kept.items())
    return refusal(kept) is None, told


def watermark(window: str, workspace: Workspace) -> Finding:
    """The release copy can be recognised as ours."""
    version = workspace.lineage().of_window(window, "versions")
    if version is None:
        return True, "no new version"
    z = version["watermark"]["z"]
    return z >= LEAST_Z, f"z {z:.1f}, least {LEAST_Z}"


def budget(window: str, workspace: Workspace) -> Finding:
    """No labelled event is charged more than the budget."""
    version = workspace.lineage().of_window(window, "versions")
    if version is None or version["privacy"] is None:
        return True, "nothing was charged"
    spent, limit = version["privacy"]["epsilon"], workspace.policies.privacy.target_epsilon
    return spent <= limit, f"epsilon {spent:.4f} for each labelled event, budget {limit}"


def drift(window: str, workspace: Workspace) -> Finding:
    """The detector worked, and did not alarm."""
    tested = workspace.body("drift.tested", window)
    if tested is None:
        return False, f"window {window} was not tested"
    return tested["state"] != "ERROR" and not tested["alarm"], f"{tested['state']}: {tested['message']}"


CHECKS: Mapping[str, tuple[str, Callable[[str, Workspace], Finding]]] = {
    "completeness": ("window", completeness),
    "guard": ("adapter", guard),
    "retention": ("version", retention),
    "watermark": ("version", watermark),
    "budget": ("version", budget),
    "drift_alarm": ("drift", drift),
}


def window_checks() -> list[dg.AssetChecksDefinition]:
    """All checks; they need the resource `workspace` of the assets."""
    return [_check(name, asset, find) for name, (asset, find) in CHECKS.items()]


def _check(name: str, asset: str, find: Callable[[str, Workspace], Finding]) -> Any:
    @dg.asset_check(
        name=name, asset=asset, description=(find.__doc__ or "").strip(), required_resource_keys={"workspace"}
    )
    def run(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        passed, text = find(context.op_execution_context.partition_key, context.resources.workspace.get())
        return dg.AssetCheckResult(passed=passed, description=text, severity=dg.AssetCheckSeverity.WARN)

    return run
