"""How the values of a topic become columns: the choice among the formats, as data that any process can open.

Here formats are only chosen and put around each other (an inner one for the value, around it what reads CloudEvents and
headers). What each of them does is in its own file. Nothing here knows settings, windows or Kafka.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import pyarrow as pa

from assets.stream.batch import Batch
from assets.stream.cut import Topics
from assets.stream.decode import ENVELOPE, Decoded, Decoder
from assets.stream.predictions import PREDICTION_SCHEMA

EVENT_ID = "event_id"
Values = Literal["json", "confluent"]


class Columns(Protocol):
    """An open format. schema: the envelope's columns, then the payload's; the same for every batch."""

    schema: pa.Schema

    def decode(self, batch: Batch) -> Decoded:
        """Raises nothing about the content of a record: what does not fit is in `rejects`."""


@dataclass(frozen=True, slots=True)
class ValueFormat:
    """The format of one topic. schema: of the values, with a field `event_id`. It can be pickled."""

    schema: pa.Schema
    values: Values = "json"

    def columns(self) -> Columns:
        """Opens it. Raises SchemaRefused for a schema the format cannot carry."""
        return ByRecord(self.schema)


class ByRecord:
    """JSON by the reference decoder, one record at a time: slow, and the law for the others."""

    def __init__(self, schema: pa.Schema) -> None:
        self._decoder = Decoder(schema, required=(EVENT_ID,))
        self.schema = pa.schema([*ENVELOPE, *self._decoder.schema])

    def decode(self, batch: Batch) -> Decoded:
        return self._decoder.decode(list(batch))


def schema_ids(columns: Columns) -> Iterable[int]:
    """The ids of the writers' schemas an open format has met; none where the format has none."""
    return ()


def formats_of(topics: Topics, event: pa.Schema, label: pa.Schema) -> Mapping[str, ValueFormat]:
    """Topic -> format, for a task's event and label schemas; the gateway's own records are JSON always."""
    return {
        topics.events: ValueFormat(event),
        topics.labels: ValueFormat(label),
        topics.predictions: ValueFormat(PREDICTION_SCHEMA),
    }
