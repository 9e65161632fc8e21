"""The steps of a window as Dagster assets, one each, of the same name and in the same order.

An asset calls its step and shows the journalled body as metadata. Lineage is drawn here and decided in the journal: the
edge from the previous window's adapter is a picture, the parent of an update is the lineage head.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import dagster as dg

from assets.steps import STEPS, Step, finish

TRAINER_POOL = "headgate_trainer"
SHOWN = 400  # characters of a text in the metadata

# Which asset reads which: evidence before training, release before the next update.
UPSTREAM: Mapping[str, tuple[str, ...]] = {
    "window": (),
    "examples": ("window",),
    "evidence": ("examples",),
    "rollout": ("evidence",),
    "drift": ("window",),
    "adapter": ("examples", "rollout", "drift"),
    "version": ("adapter",),
}


def window_assets(partitions: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    """All steps as assets over these partitions; they need a resource `workspace` whose `get()` is a Workspace."""
    return [_asset(name, step, partitions) for name, step in STEPS]


def _asset(name: str, step: Step, partitions: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        name=name,
        partitions_def=partitions,
        deps=[*UPSTREAM[name], *_previous(name)],
        description=(step.__doc__ or "").strip(),
        required_resource_keys={"workspace"},
        group_name="window",
        pool=TRAINER_POOL if name == "adapter" else None,
    )
    def materialise(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        workspace = context.resources.workspace.get()
        body = step(context.partition_key, workspace)
        if name == STEPS[-1][0]:
            finish(context.partition_key, workspace)
        return dg.MaterializeResult(metadata=metadata(body), data_version=dg.DataVersion(content_hash(body)))

    return materialise


def _previous(name: str) -> list[dg.AssetDep]:
    if name != "adapter":
        return []
    before = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1, allow_nonexistent_upstream_partitions=True)
    return [dg.AssetDep("adapter", partition_mapping=before)]


def metadata(body: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as figures (Dagster draws them over time), everything else as short JSON."""
    shown: dict[str, Any] = {}
    for key, value in body.items():
        if isinstance(value, bool | str) or value is None:
            shown[key] = str(value)[:SHOWN]
        elif isinstance(value, int | float):
            shown[key] = value
        else:
            shown[key] = dg.MetadataValue.md(f"`{json.dumps(value, default=str)[:SHOWN]}`")
    if report := body.get("report"):
        figures = {"loss_before": report["loss_before"], "loss_after": report["loss_after"], "epsilon": report["epsilon"]}
        shown |= {key: value for key, value in figures.items() if value is not None}
    return shown


def content_hash(body: Mapping[str, Any]) -> str:
    """The same body is the same data version, so a repeated run marks nothing stale."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode()).hexdigest()[:32]
