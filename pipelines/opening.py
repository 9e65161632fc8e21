"""From settings to an open workspace: the one place where names in a file become journal, log, store and task."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from assets.stream.formats import FormatPolicy
from assets.stream.log import EventLog, TimestampType, Topics
from assets.stream.registry import Registry
from assets.windows.columns import columns_of
from assets.windows.seal import SealPolicy
from assets.workspace import Policies, Workspace
from models.task import Columns, Task, load_task, misfits
from pipelines.connection import Connection, connection_of
from pipelines.settings import Settings, SettingsError
from security.journal import Journal

if TYPE_CHECKING:
    from pipelines.broker import LocalBroker

BROKER = Path("var/broker")


@contextmanager
def opened(settings: Settings, *, actor: str = "pipeline") -> Iterator[Workspace]:
    """A workspace with its log connected; a local broker that had to be started ends with it."""
    log, broker, _ = open_stream(settings)
    with ExitStack() as closing:  # also when the journal does not answer
        if broker is not None:
            closing.callback(broker.stop)
        closing.callback(log.close)
        journal = Journal(settings.journal.url)
        closing.callback(journal.close)
        yield workspace_of(settings, journal, log, actor=actor)


def open_stream(settings: Settings) -> tuple[EventLog, LocalBroker | None, str]:
    """The event log that [stream] describes, as `pipelines.broker.open_log` returns it. Raises UnusableConnection."""
    from pipelines.broker import open_log

    connection = announced(settings)
    return open_log(connection.servers, BROKER, client=connection.client)


def announced(settings: Settings) -> Connection:
    """The way to the cluster; what is dangerous about it and allowed is said aloud."""
    connection = connection_of(settings.stream, datetime.now(UTC))
    for warning in connection.warnings:
        print(f"headgate: INSECURE, by [stream] allow_insecure: {warning}", file=sys.stderr, flush=True)
    return connection


def workspace_of(
    settings: Settings, journal: Journal, log: EventLog, *, task: Task | None = None, actor: str = "pipeline"
) -> Workspace:
    """The workspace of these settings on a journal and a log that are open already."""
    task = task or load_task(settings.task)
    _check_derived(task, settings)
    if faults := misfits(task, settings.rollout, no_rows(task)):
        raise SettingsError("; ".join(faults))
    tracker = None
    if settings.tracking.mlflow_url:
        from monitoring.tracking import Tracker

        tracker = Tracker(settings.tracking.mlflow_url)
    return Workspace(
        task=task, journal=journal, log=log, store=Path(settings.store.url), keys=Path(settings.keys.directory),
        topics=topics_of(settings), policies=policies_of(settings), settings_digest=settings.digest(), tracker=tracker,
        actor=actor,
    )  # fmt: skip


def no_rows(task: Task) -> Columns:
    """The columns of the task's examples without any row: what its functions may be asked with before there is data."""
    return {**columns_of(task.label.empty_table()), **columns_of(task.event.empty_table())}


def topics_of(settings: Settings) -> Topics:
    """The names of the task's topics."""
    return Topics(settings.stream.events, settings.stream.labels, settings.stream.predictions)


def policies_of(settings: Settings) -> Policies:
    """The sections that the steps obey."""
    return Policies(
        window=settings.window, update=settings.update, adapter=settings.adapter, training=settings.training,
        privacy=settings.privacy, guard=settings.guard, poisoning=settings.poisoning, retention=settings.retention,
        rollout=settings.rollout, drift=settings.drift, formats=formats_policy(settings),
        seal=SealPolicy(settings.stream.max_reject_share, settings.stream.processes), dead_letters=settings.stream.dead_letters,
    )  # fmt: skip


def formats_policy(settings: Settings) -> FormatPolicy:
    """How the producers write, and the registry that has their schemas."""
    stream = settings.stream
    registry = None
    if stream.schema_registry:
        registry = Registry(
            stream.schema_registry, username=stream.schema_registry_username or None,
            password=stream.schema_registry_password.reveal(), ca_file=stream.schema_registry_cafile or None,
            allow_insecure=stream.allow_insecure,
        )  # fmt: skip
    return FormatPolicy(stream.events_format, stream.labels_format, registry, stream.cloudevents, stream.headers)


def create_topics(settings: Settings, log: EventLog) -> None:
    """Make the three topics where they do not exist; a topic that exists differently is an error."""
    stamped: TimestampType = "CreateTime" if settings.window.clock == "stream" else "LogAppendTime"
    for topic in topics_of(settings).all:
        log.create_topic(topic, settings.stream.partitions, timestamp_type=stamped, retention_ms=-1)


def _check_derived(task: Task, settings: Settings) -> None:
    """Columns made of other records' labels carry those labels past the accounting; a task must declare them public."""
    if settings.privacy.enabled and task.label_derived and not settings.privacy.label_derived_public:
        raise SettingsError(
            f"task {task.name} has {len(task.label_derived)} columns made of other records' labels "
            f"({', '.join(task.label_derived[:3])}, ...): epsilon {settings.privacy.target_epsilon} for each event would not "
            "hold. Leave them out, or set [privacy] label_derived_public = true if they are public (docs/label-derived.md)"
        )
