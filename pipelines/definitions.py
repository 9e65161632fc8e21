"""The Dagster location: composition only. Start it with `dagster dev` (the module is named in pyproject.toml)."""

import dagster as dg

from assets.checks import window_checks
from assets.definitions import window_assets
from assets.partitions import window_partitions
from pipelines.resources import WorkspaceResource
from pipelines.sensors import drivers
from pipelines.settings import Settings, load_settings, settings_file


def definitions(settings: Settings, file: str) -> dg.Definitions:
    """Everything Dagster runs for one installation. Steps run in the run's own process: a spawned one costs 2.8 CPU s."""
    partitions = window_partitions(settings.window)
    job = dg.define_asset_job("window_job", selection=dg.AssetSelection.groups("window"), partitions_def=partitions)
    sensor, schedule = drivers(job)
    return dg.Definitions(
        assets=window_assets(partitions),
        asset_checks=window_checks(),
        jobs=[job],
        sensors=[sensor],
        schedules=[schedule],
        resources={"workspace": WorkspaceResource(settings_file=file)},
        executor=dg.in_process_executor,
    )


defs = definitions(load_settings(), str(settings_file()))
