"""CloudEvents: both modes give the same rows, and an event that is none has a reason."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from assets.stream.avro_columns import AvroColumns
from assets.stream.batch import Batch, pack
from assets.stream.cloud_events import CloudEventColumns
from assets.stream.formats import ValueFormat
from assets.stream.header_columns import HeaderColumns
from assets.stream.log import Record

WINDOW = pa.schema([("event_id", pa.string()), pa.field("x", pa.float64(), nullable=False)])
TIME = "2024-05-01T10:00:00.123456789+02:00"
GOOD = {"specversion": "1.0", "id": "e1", "source": "/gates", "type": "flight.left", "time": TIME}
ROW = {
    "_ce_id": "e1",
    "_ce_source": "/gates",
    "_ce_type": "flight.left",
    "_ce_time": datetime(2024, 5, 1, 8, 0, 0, 123456, tzinfo=UTC),
    "event_id": "a",
    "x": 0.5,
}


def binary(data: object, **changes: object) -> dict:
    """A record's value and headers in binary mode; an attribute that is None is left out."""
    found = {**GOOD, **changes}
    headers = [(f"ce_{name}", v if isinstance(v, bytes) else v.encode()) for name, v in found.items() if v is not None]
    value = data if isinstance(data, bytes | None) else json.dumps(data).encode()
    return {"value": value, "headers": (("content-type", b"application/json"), *headers)}


def structured(data: object, media: str = "application/cloudevents+json", **changes: object) -> dict:
    event = {name: value for name, value in {**GOOD, "data": data, **changes}.items() if value is not None}
    return {"value": json.dumps(event).encode(), "headers": (("content-type", media.encode()),)}


def batch_of(*records: dict, first: int = 0) -> Batch:
    found = [Record(0, first + n, 1000 + first + n, b"k", **record) for n, record in enumerate(records)]
    return pack(0, first, first + len(found), found)


def decode(*records: dict):
    decoded = CloudEventColumns(ValueFormat(WINDOW).columns()).decode(batch_of(*records))
    decoded.table.validate(full=True)
    return decoded


def reason(record: dict) -> str:
    decoded = decode(record)
    assert decoded.table.num_rows == 0
    (bad,) = decoded.rejects
    assert (bad.record.value, bad.record.headers) == (record["value"], record["headers"])
    return bad.error


DATA = {"event_id": "a", "x": 0.5}


def test_both_modes_give_the_same_row():
    decoded = decode(
        binary(DATA), structured(DATA), structured(DATA, "Application/CloudEvents+JSON; charset=UTF-8", subject="more")
    )
    assert decoded.rejects == []
    assert decoded.table["_offset"].to_pylist() == [0, 1, 2]
    assert decoded.table.schema.names[4:8] == ["_ce_id", "_ce_source", "_ce_type", "_ce_time"]
    assert decoded.table.select(list(ROW)).to_pylist() == [ROW] * 3
    assert decoded.table.schema == CloudEventColumns(ValueFormat(WINDOW).columns()).schema == decode().table.schema


def test_an_event_needs_no_time():
    decoded = decode(binary(DATA, time=None), structured(DATA, time=None))
    assert decoded.table["_ce_time"].to_pylist() == [None, None]


def test_data_without_an_event_id_gets_the_events():
    decoded = decode(binary({"x": 0.5}), structured({"x": 0.5}), binary(DATA), binary({"x": 1, "y": 2}), binary({}))
    assert decoded.table["event_id"].to_pylist() == ["e1", "e1", "a"]
    assert decoded.table["_ce_id"].to_pylist() == ["e1"] * 3
    assert [(bad.record.offset, bad.error) for bad in decoded.rejects] == [(3, "unknown field 'y'"), (4, "missing field 'x'")]


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"value": b"{}", "headers": ()}, "no CloudEvent"),
        ({"value": b"{}", "headers": (("content-type", b"application/json"),)}, "no CloudEvent"),
        (binary(DATA, specversion=None), "missing attribute ce_specversion"),
        (binary(DATA, specversion="0.3"), "ce_specversion is not 1.0"),
        (binary(DATA, id=None), "missing attribute ce_id"),
        (binary(DATA, source=""), "missing attribute ce_source"),
        (binary(DATA, type=b"\xff"), "attribute ce_type: not UTF-8"),
        (binary(DATA, time="yesterday"), "attribute ce_time: not a time in ISO 8601"),
        (binary(DATA, time="2024-05-01T10:00:00"), "attribute ce_time: time without a time zone"),
        (binary(None), "tombstone"),
        (binary(b""), "empty value"),
        (binary(b"{"), "not JSON"),
        (binary([1]), "not an object"),
        (structured(DATA, "application/cloudevents-batch+json"), "only application/cloudevents+json is read"),
        (structured(DATA, "application/cloudevents+avro"), "only application/cloudevents+json is read"),
        (structured(DATA, specversion=None), "missing attribute specversion"),
        (structured(DATA, specversion="1.1"), "specversion is not 1.0"),
        (structured(DATA, id=""), "missing attribute id"),
        (structured(DATA, source=7), "attribute source: wrong type: found an integer, wanted a string"),
        (structured(DATA, type="\ud800"), "attribute type: lone surrogate"),
        (structured(DATA, time=7), "attribute time: wrong type: found an integer"),
        (structured(None), "no data in the event"),
        (structured("text"), "data: not an object: found a string"),
        (structured(None, data_base64="YQ=="), "data_base64 is not read: send the data as a JSON object"),
        (structured({**DATA, "x": "1"}), "field 'x': wrong type: found a string, wanted a number"),
        ({**structured(DATA), "value": None}, "tombstone"),
        ({**structured(DATA), "value": b"[]"}, "not an object: found a list"),
        ({**structured(DATA), "value": b'{"id": "a", "id": "b"}'}, "duplicate key 'id'"),
    ],
)
def test_an_event_that_is_none_has_a_reason(record, why):
    assert why in reason(record)


def test_binary_mode_carries_any_format_and_headers_may_stand_beside_it():
    writer = json.dumps({"type": "record", "name": "E", "fields": [{"name": "event_id", "type": "string"}]})
    inner = AvroColumns(writer, pa.schema([("event_id", pa.string())]))
    columns = HeaderColumns(CloudEventColumns(inner), ["ce_subject"])
    decoded = columns.decode(batch_of(binary(b"\x02a", subject="s"), binary(b"\x04a"), binary(b"\x02b")))
    assert decoded.table["event_id"].to_pylist() == ["a", "b"]
    assert decoded.table["_header_ce_subject"].to_pylist() == ["s", None]
    assert decoded.table.schema.names[4:6] == ["_header_ce_subject", "_ce_id"]
    assert [bad.error for bad in decoded.rejects] == ["field 'event_id': the value ends inside it"]


def test_rows_and_rejects_do_not_depend_on_how_the_log_was_cut():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    kinds = [
        binary(DATA), structured(DATA), binary({"x": 2}), binary(DATA, id=None), binary(DATA, time="?"), binary(b"\xff"),
        structured("text"), {"value": b"{}", "headers": ()}, structured(DATA, time=None),
    ]  # fmt: skip
    records = rng.choices(kinds, k=300)
    whole, columns = decode(*records), CloudEventColumns(ValueFormat(WINDOW).columns())
    tables, rejects, at = [], [], 0
    while at < len(records):
        size = rng.choice([1, 2, 7, 60])
        part = columns.decode(batch_of(*records[at : at + size], first=at))
        tables, rejects, at = [*tables, part.table], [*rejects, *part.rejects], at + size
    assert pa.concat_tables(tables).equals(whole.table)
    assert rejects == whole.rejects
    assert len(rejects) + whole.table.num_rows == 300
