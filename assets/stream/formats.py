"""How the values of a topic become columns: the choice among the formats, as data that any process can open.

Here formats are only chosen and put around each other (an inner one for the value, around it what reads CloudEvents and
headers). What each of them does is in its own file. Nothing here knows settings, windows or Kafka.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pyarrow as pa

from assets.stream.batch import Batch
from assets.stream.decode import Decoded
from assets.stream.json_columns import JsonColumns
from assets.stream.log import Topics
from assets.stream.predictions import PREDICTION_SCHEMA
from assets.stream.registry import Registry

EVENT_ID = "event_id"
Values = Literal["json", "confluent"]

_AVRO_ONLY = (pa.types.is_binary, pa.types.is_date32)  # columns that JSON cannot carry


class Columns(Protocol):
    """An open format. schema: the envelope's columns, then the payload's; the same for every batch."""

    schema: pa.Schema

    def decode(self, batch: Batch) -> Decoded:
        """Raises nothing about the content of a record: what does not fit is in `rejects`."""


@dataclass(frozen=True)
class FormatPolicy:
    """How the producers of events and labels write. registry: of the schemas of "confluent" values.

    cloud_events: values are the data of CloudEvents. headers: names of record headers that are kept as columns.
    """

    events: Values = "json"
    labels: Values = "json"
    registry: Registry | None = None
    cloud_events: bool = False
    headers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if "confluent" in (self.events, self.labels) and self.registry is None:
            raise ValueError('values with a schema id (format "confluent") need a registry: set [stream] schema_registry')


@dataclass(frozen=True)
class ValueFormat:
    """The format of one topic. schema: of the values, with a field `event_id`. It can be pickled."""

    schema: pa.Schema
    values: Values = "json"
    registry: Registry | None = None
    cloud_events: bool = False
    headers: tuple[str, ...] = ()

    def columns(self) -> Columns:
        """Opens it, for one partition. Raises SchemaRefused for a schema the format cannot carry."""
        found: Columns = self._confluent(self.registry) if self.registry and self.values == "confluent" else self._json()
        if self.cloud_events:
            from assets.stream.cloud_events import CloudEventColumns

            found = CloudEventColumns(found, EVENT_ID)
        if self.headers:
            from assets.stream.header_columns import HeaderColumns

            found = HeaderColumns(found, self.headers)
        return found

    def _json(self) -> JsonColumns:
        return JsonColumns(_storable(self.schema), (EVENT_ID,))

    def _confluent(self, registry: Registry) -> Columns:
        from assets.stream.confluent import ConfluentColumns

        needs_avro = any(check(field.type) for field in self.schema for check in _AVRO_ONLY)
        return ConfluentColumns(_storable(self.schema), (EVENT_ID,), registry, json=None if needs_avro else self._json())


def _storable(schema: pa.Schema) -> pa.Schema:
    """pyarrow writes a null among vectors of fixed size, and cannot read it back: such a field is never null here."""
    fields = [field.with_nullable(field.nullable and not pa.types.is_fixed_size_list(field.type)) for field in schema]
    return pa.schema(fields)


def schema_ids(columns: Any) -> Sequence[int]:
    """The ids of the writers' schemas an open format has met; none where the format has none."""
    while hasattr(columns, "inner"):
        columns = columns.inner
    return getattr(columns, "schema_ids", ())


def formats_of(
    topics: Topics, event: pa.Schema, label: pa.Schema, policy: FormatPolicy | None = None
) -> Mapping[str, ValueFormat]:
    """Topic -> format, for a task's event and label schemas; the gateway's own records are JSON always."""
    policy = policy or FormatPolicy()
    around = (policy.registry, policy.cloud_events, policy.headers)
    return {
        topics.events: ValueFormat(event, policy.events, *around),
        topics.labels: ValueFormat(label, policy.labels, *around),
        topics.predictions: ValueFormat(PREDICTION_SCHEMA),
    }
