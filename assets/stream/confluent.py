"""Values framed as schema registries have it (0, the id of the writer's schema in four bytes, the body) -> columns.

Each id is read by its own format: Avro by the writer's schema, JSON by the format given for it. This file does not know
where the registry is, and decides nothing about a registry that does not answer: it lets the error pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa

from assets.stream.avro_columns import EMPTY, TOMBSTONE, AvroColumns, payload_of
from assets.stream.avro_schema import WriterRefused
from assets.stream.batch import Batch
from assets.stream.cursor import at
from assets.stream.decode import ENVELOPE, Decoded
from assets.stream.document import SchemaRefused
from assets.stream.registry import RegisteredSchema, SchemaUnusable
from assets.stream.rejoin import rejoined

if TYPE_CHECKING:
    from assets.stream.formats import Columns

FRAME = 5  # bytes


class Schemas(Protocol):
    """What is asked for a schema: registry.Registry."""

    def schema(self, number: int) -> RegisteredSchema:
        """Raises SchemaUnusable when records of this id can never be read here; everything else passes through."""


class ConfluentColumns:
    """Build one for each partition of a window: what it once learned about an id holds for all that it decodes.

    schema, required: as for AvroColumns. json: the format of bodies whose schema is a JSON one; None rejects them.
    """

    def __init__(
        self, schema: pa.Schema, required: Sequence[str], registry: Schemas, *, json: Columns | None = None
    ) -> None:
        self._payload, self._required = payload_of(schema, required), tuple(required)
        self.schema = pa.schema([*ENVELOPE, *self._payload])
        if json is not None and json.schema != self.schema:
            ours, theirs = self.schema.names, json.schema.names
            raise SchemaRefused(f"Avro values become columns {ours}, JSON ones {theirs}: use one schema for both")
        self._registry, self._json = registry, json
        self._met: dict[int, Columns | str] = {}  # id -> its format, or why its records are rejected

    @property
    def schema_ids(self) -> list[int]:
        """The ids of the schemas that records were read by, so far."""
        return sorted(number for number, found in self._met.items() if not isinstance(found, str))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not read of a writer, and what is null, in words."""
        met = [(number, found) for number, found in sorted(self._met.items()) if isinstance(found, AvroColumns)]
        return tuple(f"schema id {number}: {note}" for number, found in met for note in found.notes)

    def decode(self, batch: Batch) -> Decoded:
        """Raises what the registry raises, and nothing about the content of a record."""
        starts, lengths = batch.values
        framed = lengths >= FRAME
        data = np.frombuffer(batch.data, dtype=np.uint8)
        framed[framed] = data[starts[framed]] == 0
        poison = {row: _unframed(int(lengths[row])) for row in np.flatnonzero(~framed).tolist()}
        ids = np.full(len(batch), -1, dtype=np.int64)
        ids[framed] = at(data, starts[framed] + 1, ">i4") if framed.any() else -1
        bodies = replace(batch, values=batch.values + np.array([[FRAME], [-FRAME]]))
        parts = []
        for number in np.unique(ids[framed]).tolist():
            columns, chosen = self._columns(number), framed & (ids == number)
            if isinstance(columns, str):
                poison |= dict.fromkeys(np.flatnonzero(chosen).tolist(), columns)
            else:
                parts.append(columns.decode(bodies if chosen.all() else bodies.take(chosen)))
        return rejoined(batch, self.schema, parts, poison)

    def _columns(self, number: int) -> Columns | str:
        if number not in self._met:
            try:
                self._met[number] = self._opened(number)
            except (SchemaUnusable, WriterRefused) as error:
                self._met[number] = str(error)
        return self._met[number]

    def _opened(self, number: int) -> Columns:
        if number < 0:
            raise SchemaUnusable(f"schema id {number} is negative: no registry gives such an id")
        found = self._registry.schema(number)
        if found.kind == "AVRO":
            try:
                return AvroColumns(found.text, self._payload, self._required)
            except WriterRefused as error:
                raise WriterRefused(f"schema id {number}: {error}") from None
        if self._json is None:
            raise SchemaUnusable(f"schema id {number} is a JSON schema, and this topic has none but Avro values")
        return self._json


def _unframed(length: int) -> str:
    if length < FRAME:
        short = f"too short: {length} bytes, and a schema id needs {FRAME}"
        return TOMBSTONE if length < 0 else EMPTY if length == 0 else short
    return "wrong magic byte: a value with a schema id begins with 0"
