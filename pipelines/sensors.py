"""What starts a window's run: a sensor that looks for the next due one, and an hourly schedule that asks the same.

Both only ask `due_window` and count attempts in the journal; the windows form a chain, so there is never more than one.
"""

from typing import Any

import dagster as dg

from assets.workspace import Workspace
from pipelines.attempts import attempts_of, begin, next_attempt
from pipelines.run_window import due_window, held

SENSOR_SECONDS = 30
_IN_PROGRESS = [
    dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING,
]  # fmt: skip


def request(workspace: Workspace, instance: dg.DagsterInstance) -> dg.RunRequest | dg.SkipReason:
    """A run of the next due window, or why there is none."""
    window = due_window(workspace)
    if window is None:
        return dg.SkipReason("no window is due")
    tags = {"dagster/partition": window}
    running = bool(instance.get_runs(dg.RunsFilter(tags=tags, statuses=_IN_PROGRESS), limit=1))
    task, now = workspace.task.name, workspace.now()
    attempt, reason = next_attempt(attempts_of(workspace.journal, task, window), now, running=running)
    if attempt:
        reason = held(window, workspace)
    if reason:
        return dg.SkipReason(f"window {window}: {reason}")
    if not begin(workspace.journal, task, window, attempt, at=now, actor=workspace.actor):
        return dg.SkipReason(f"window {window}: another driver has just begun it")
    return dg.RunRequest(run_key=f"{window}#{attempt}", partition_key=window)


def drivers(job: Any) -> tuple[dg.SensorDefinition, dg.ScheduleDefinition]:
    """The sensor `next_due_window` and the schedule `hourly`, on the same function; stopped until switched on."""

    @dg.sensor(
        name="next_due_window", job=job, minimum_interval_seconds=SENSOR_SECONDS, required_resource_keys={"workspace"}
    )
    def next_due_window(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        return request(context.resources.workspace.get(), context.instance)

    @dg.schedule(name="hourly", job=job, cron_schedule="0 * * * *", required_resource_keys={"workspace"})
    def hourly(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        return request(context.resources.workspace.get(), context.instance)

    return next_due_window, hourly
