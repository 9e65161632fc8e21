"""CloudEvents 1.0 on Kafka around another format: the event's attributes as columns, its data decoded by the inner one.

Binary mode: attributes in headers `ce_id`, `ce_source`, `ce_type`, `ce_time`, `ce_specversion`, the value is the data.
Structured mode: header `content-type` application/cloudevents+json, the value is a JSON object with the attributes and
`data`. Data without a field `event_id` gets the event's id there. (CloudEvents 1.0.2, "Kafka Protocol Binding" and "JSON
Event Format".) This file does not know what the data means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from assets.stream.avro_columns import EMPTY, TOMBSTONE
from assets.stream.batch import Batch, pack
from assets.stream.decode import Decoded
from assets.stream.document import Poison, document, kind_of, reader
from assets.stream.header_columns import beside, header_spans, wider
from assets.stream.json_fields import columns_from
from assets.stream.log import Record
from assets.stream.rejoin import rejoined
from assets.stream.spans import binary, texts

if TYPE_CHECKING:
    from assets.stream.formats import Columns

VERSION = "1.0"
MEDIA_TYPE = "application/cloudevents+json"
BINARY, STRUCTURED, UNREAD = range(3)  # modes
REQUIRED = ("id", "source", "type")
FIELDS = [
    *(pa.field(f"_ce_{name}", pa.string(), nullable=False) for name in REQUIRED),
    pa.field("_ce_time", pa.timestamp("us", tz="UTC")),
]
NO_EVENT = f"no CloudEvent: neither headers ce_specversion and ce_id, nor content-type {MEDIA_TYPE}"

_HEADERS = ("content-type", "ce_specversion", *(f"ce_{name}" for name in REQUIRED), "ce_time")
_TIME = pa.schema([pa.field("time", FIELDS[-1].type)])
_moment = reader(pa.field("time", FIELDS[-1].type, nullable=False))

Mask = npt.NDArray[np.bool_]


class CloudEventColumns:
    """inner: the format of the data, which stays reachable. id_field: the field of the data that the event's id stands in for.

    Binary mode is as fast as the inner format and reading the headers; structured mode, and data without the id field, go
    record by record, and only JSON data can be completed or taken out of an envelope.
    """

    def __init__(self, inner: Columns, id_field: str = "event_id") -> None:
        self.inner = inner
        self._id_field = id_field if id_field in inner.schema.names else None
        self.schema = wider(inner.schema, FIELDS)

    def decode(self, batch: Batch) -> Decoded:
        """Raises what the inner format raises, and nothing about the content of a record."""
        events = _Events.of(batch)
        parts = self._binary(batch, events) + self._structured(batch, events)
        decoded = rejoined(batch, self.inner.schema, parts, events.poison)
        return beside(batch, decoded, events.columns(), self.schema)

    def _binary(self, batch: Batch, events: _Events) -> list[Decoded]:
        chosen = events.binary.copy()
        chosen[list(events.poison)] = False
        if not chosen.any():
            return []
        first = self.inner.decode(batch if chosen.all() else batch.take(chosen))
        if self._id_field is None or not first.rejects:
            return [first]
        completed = {}
        for rejected in first.rejects:
            row = int(np.searchsorted(batch.offsets, rejected.record.offset))
            if (value := self._completed(rejected.record.value, events.attributes[0][row].as_py())) is not None:
                completed[rejected.record.offset] = replace(rejected.record, value=value, headers=())
        if not completed:
            return [first]
        left = [rejected for rejected in first.rejects if rejected.record.offset not in completed]
        return [Decoded(first.table, left), self.inner.decode(_packed(batch, completed))]

    def _structured(self, batch: Batch, events: _Events) -> list[Decoded]:
        records = {}
        for row in np.flatnonzero(events.structured).tolist():
            record = batch.record(row)
            try:
                event = _envelope(record.value)
                events.late[row] = event
                records[record.offset] = replace(record, value=self._data(event), headers=())
            except Poison as poison:
                events.poison[row] = str(poison)
        return [self.inner.decode(_packed(batch, records))] if records else []

    def _data(self, event: Mapping[str, Any]) -> bytes:
        if "data_base64" in event:
            raise Poison("data_base64 is not read: send the data as a JSON object in `data`")
        data = event.get("data")
        if type(data) is not dict:
            raise Poison(f"data: not an object: found {kind_of(data)}" if "data" in event else "no data in the event")
        if self._id_field is not None:
            data = {self._id_field: event["id"], **data}
        return json.dumps(data).encode()

    def _completed(self, value: bytes | None, name: str) -> bytes | None:
        """The data with the id in it; None where it has one, or is no JSON object."""
        try:
            data = document(value or b"")
        except Poison:
            return None
        return None if self._id_field in data else json.dumps({self._id_field: name, **data}).encode()


@dataclass(slots=True)
class _Events:
    """What a batch's headers say. attributes: id, source, type as text (n,), times; null in structured rows.

    binary, structured (n,): the modes. late: the envelopes of structured rows, by row. poison: row -> reason.
    """

    attributes: list[pa.Array]
    binary: Mask
    structured: Mask
    poison: dict[int, str] = field(default_factory=dict)
    late: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch) -> _Events:
        """Reads the headers; poison are those of neither mode, and of binary mode without what it needs."""
        found = [texts(binary(batch.data, *spans)) for spans in header_spans(batch, _HEADERS)]
        media = found[0][0].dictionary_encode()  # a topic has few of them
        modes = [_mode(text) for text in media.dictionary.to_pylist()]
        mode = np.array([*modes, BINARY])[media.indices.fill_null(len(modes)).to_numpy()]
        wrapped, structured = mode != BINARY, mode == STRUCTURED
        marked = _true(found[1][0].is_valid()) | _true(found[2][0].is_valid())
        events = cls([text for text, _ in found[2:5]], ~wrapped & marked, structured)
        events._reject(wrapped & ~structured, f"of CloudEvents with their attributes inside, only {MEDIA_TYPE} is read")
        events._reject(~wrapped & ~marked, NO_EVENT)
        for name, (text, wrong) in zip(_HEADERS[1:5], found[1:5], strict=True):
            events._reject(events.binary & ~_true(pc.greater(pc.binary_length(text), 0)), f"missing attribute {name}")
            events._reject(events.binary & wrong, f"attribute {name}: not UTF-8")
        events._reject(events.binary & ~_true(pc.equal(found[1][0], VERSION)), f"ce_specversion is not {VERSION}")
        events.attributes.append(events._times(found[5][0]))
        return events

    def columns(self) -> list[pa.Array]:
        """The attributes of all rows; those of rejected ones mean nothing."""
        if not self.late:
            return self.attributes
        rows = sorted(self.late)
        mask = np.zeros(len(self.binary), np.bool_)
        mask[rows] = True
        found = [[self.late[row].get(name) for row in rows] for name in (*REQUIRED, "time")]
        pairs = zip(self.attributes, found, FIELDS, strict=True)
        return [pc.replace_with_mask(known, pa.array(mask), pa.array(new, each.type)) for known, new, each in pairs]

    def _reject(self, which: Mask, why: str) -> None:
        for row in np.flatnonzero(which).tolist():
            self.poison.setdefault(row, why)

    def _times(self, found: pa.Array) -> pa.Array:
        (times,), _, sure = columns_from(pa.table([found], _TIME.names), _TIME)
        odd = ~sure & self.binary
        if not odd.any():
            return times
        moments = []
        for row in np.flatnonzero(odd).tolist():
            try:
                moments.append(_moment(found[row].as_py()))
            except Poison as poison:
                moments.append(None)
                self.poison.setdefault(row, f"attribute ce_time: {poison}")
        return pc.replace_with_mask(times, pa.array(odd), pa.array(moments, times.type))


def _mode(media: str) -> int:
    """The mode that a content-type says."""
    plain = media.partition(";")[0].strip().lower()
    return STRUCTURED if plain == MEDIA_TYPE else UNREAD if plain.startswith("application/cloudevents") else BINARY


def _true(values: pa.Array) -> Mask:
    """Where it is true, and not null."""
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), dtype=np.bool_)


def _envelope(value: bytes | None) -> dict[str, Any]:
    """The event in JSON with its attributes checked, and its time as one. Raises Poison."""
    if not value:
        raise Poison(TOMBSTONE if value is None else EMPTY)
    event = document(value)
    for name in ("specversion", *REQUIRED):
        found = event.get(name)
        if found is None or found == "":
            raise Poison(f"missing attribute {name}")
        if type(found) is not str:
            raise Poison(f"attribute {name}: wrong type: found {kind_of(found)}, wanted a string")
        if not found.isascii() and any("\ud800" <= letter <= "\udfff" for letter in found):
            raise Poison(f"attribute {name}: lone surrogate in a string")
    if event["specversion"] != VERSION:
        raise Poison(f"specversion is not {VERSION}")
    try:
        event["time"] = None if event.get("time") is None else _moment(event["time"])
    except Poison as poison:
        raise Poison(f"attribute time: {poison}") from None
    return event


def _packed(batch: Batch, records: Mapping[int, Record]) -> Batch:
    return pack(batch.partition, batch.begin, batch.end, list(records.values()))
