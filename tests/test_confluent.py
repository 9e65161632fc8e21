"""Framed values: each is read by the schema it names, in offset order, and a registry that is down costs no record."""

from __future__ import annotations

import io
import json
import random
import struct

import fastavro
import pyarrow as pa
import pytest

from assets.stream import registry as registry_module
from assets.stream.batch import Batch, pack
from assets.stream.confluent import ConfluentColumns
from assets.stream.document import SchemaRefused
from assets.stream.formats import ValueFormat
from assets.stream.log import Outgoing, Record
from assets.stream.registry import Registry, RegistryUnreachable
from tests.registries import LocalRegistry, serving

WINDOW = pa.schema([("event_id", pa.string()), ("x", pa.float64()), ("note", pa.string())])


def writer(**fields: object) -> dict:
    return {"type": "record", "name": "Event", "fields": [{"name": n, "type": t} for n, t in fields.items()]}


OLD, NEW = writer(event_id="string", x="int", old="long"), writer(note=["null", "string"], x="double", event_id="string")


def framed(number: int, body: bytes) -> bytes:
    return struct.pack(">bi", 0, number) + body


def avro(number: int, schema: dict, **fields: object) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(dict(schema)), fields)
    return framed(number, out.getvalue())


def batch_of(*values: bytes | None, first: int = 10) -> Batch:
    records = [Record(3, first + n, 1000 + first + n, b"k", value) for n, value in enumerate(values)]
    return pack(3, first, first + len(values), records)


@pytest.fixture
def server():
    with serving() as found:
        yield found


def columns_on(server: LocalRegistry) -> ConfluentColumns:
    schema = pa.schema([field.with_nullable(field.name != "event_id") for field in WINDOW])
    registry = Registry(server.url, timeout=2, retries=0)
    return ConfluentColumns(schema, ("event_id",), registry, json=ValueFormat(schema).columns())


def a_log(server: LocalRegistry, rng: random.Random, count: int) -> list[bytes | None]:
    """Values of two Avro writers and one of JSON, and of everything that may go wrong."""
    old, new, by_json = server.register(OLD), server.register(NEW), server.register({"type": "object"}, "JSON")
    values: list[bytes | None] = []
    for n in range(count):
        good = [
            avro(old, OLD, event_id=f"e{n}", x=n, old=n),
            avro(new, NEW, event_id=f"e{n}", x=n / 4, note=rng.choice([None, "naïve"])),
            framed(by_json, json.dumps({"event_id": f"e{n}", "x": n, "note": None}).encode()),
        ]
        bad = [None, b"", b"\0\0\0", b"{}", b"\1" + good[0][1:], framed(99, b"x"), framed(-2, b"x"), framed(old, b"")]
        bad += [good[0][:-1], good[1] + b"!", framed(by_json, b"{}")]
        values.append(rng.choice(good if rng.random() < 0.8 else bad))
    return values


def test_each_record_is_read_by_its_writers_schema_and_rows_stay_in_offset_order(server):
    old, new, by_json = server.register(OLD), server.register(NEW), server.register({"type": "object"}, "JSON")
    columns = columns_on(server)
    decoded = columns.decode(
        batch_of(
            avro(new, NEW, event_id="a", x=0.5, note="hm"),
            avro(old, OLD, event_id="b", x=7, old=1),
            framed(by_json, b'{"event_id": "c", "x": 1.5, "note": null}'),
            avro(new, NEW, event_id="d", x=-0.0, note=None),
        )
    )
    decoded.table.validate(full=True)
    assert decoded.rejects == []
    assert decoded.table.schema == columns.schema
    assert decoded.table.drop_columns(["_key", "_timestamp"]).to_pylist() == [
        {"_partition": 3, "_offset": 10, "event_id": "a", "x": 0.5, "note": "hm"},
        {"_partition": 3, "_offset": 11, "event_id": "b", "x": 7.0, "note": None},
        {"_partition": 3, "_offset": 12, "event_id": "c", "x": 1.5, "note": None},
        {"_partition": 3, "_offset": 13, "event_id": "d", "x": 0.0, "note": None},
    ]
    assert columns.schema_ids == sorted([old, new, by_json])
    assert columns.notes == (
        f"schema id {old}: not read, the window does not have them: 'old'",
        f"schema id {old}: null, the writer does not have them: 'note'",
    )


def test_what_is_not_framed_or_does_not_fit_is_rejected_whole_with_its_reason(server):
    old = server.register(OLD)
    wrong = [
        (None, "tombstone: the record has no value"),
        (b"", "empty value"),
        (b"\0\0\0\0", "too short: 4 bytes, and a schema id needs 5"),
        (b'{"event_id": "a"}', "wrong magic byte: a value with a schema id begins with 0"),
        (framed(old, b""), "empty value"),
        (framed(old, b"\x02a"), "field 'x': the value ends inside it"),
        (framed(99, b"x"), "schema id 99 is unknown to the registry"),
        (framed(-1, b"x"), "schema id -1 is negative: no registry gives such an id"),
    ]
    decoded = columns_on(server).decode(batch_of(*(value for value, _ in wrong)))
    assert decoded.table.num_rows == 0
    assert [(bad.record.value, bad.error) for bad in decoded.rejects] == wrong


@pytest.mark.parametrize(
    ("schema", "kind", "more", "why"),
    [
        (writer(x="double"), "AVRO", {}, "schema id 1: missing field 'event_id': it is never null"),
        (writer(event_id="string", x="string"), "AVRO", {}, "schema id 1: field 'x' is Avro string, which a"),
        ("{", "AVRO", {}, "schema id 1: the text is no JSON"),
        (writer(event_id="Id"), "AVRO", {"references": [{"name": "Id"}]}, "schema id 1 refers to other schemas"),
        ('syntax = "proto3";', "PROTOBUF", {}, "schema id 1 is of type 'PROTOBUF'"),
    ],
)
def test_a_schema_that_cannot_fill_the_window_rejects_its_own_records_only(server, schema, kind, more, why):
    assert server.register(schema, kind, **more) == 1
    columns = columns_on(server)
    new = server.register(NEW)
    good = avro(new, NEW, event_id="a", x=1.0, note=None)
    decoded = columns.decode(batch_of(framed(1, b"xx"), good, framed(1, b"yy")))
    assert decoded.table["_offset"].to_pylist() == [11]
    assert [bad.error[: len(why)] for bad in decoded.rejects] == [why] * 2
    assert columns.schema_ids == [new]


def test_without_a_format_for_json_its_records_are_rejected(server):
    number = server.register({"type": "object"}, "JSON")
    columns = ConfluentColumns(WINDOW, (), Registry(server.url))
    decoded = columns.decode(batch_of(framed(number, b"{}")))
    why = f"schema id {number} is a JSON schema, and this topic has none but Avro values"
    assert [bad.error for bad in decoded.rejects] == [why]
    with pytest.raises(SchemaRefused, match="use one schema for both"):
        ConfluentColumns(WINDOW, (), Registry(server.url), json=ValueFormat(WINDOW.remove(1)).columns())


def test_a_registry_that_is_down_stops_the_batch_and_the_next_try_reads_it_all(server):
    old = server.register(OLD)
    batch = batch_of(avro(old, OLD, event_id="a", x=1, old=1))
    columns = columns_on(server)
    server.failing = 1
    with pytest.raises(RegistryUnreachable):
        columns.decode(batch)
    assert columns.schema_ids == []
    assert columns.decode(batch).table["event_id"].to_pylist() == ["a"]


def test_an_id_is_asked_for_once_and_an_unknown_one_twice(server):
    old, columns = server.register(OLD), columns_on(server)
    for _ in range(3):
        columns.decode(batch_of(avro(old, OLD, event_id="a", x=1, old=1), framed(99, b"x"), framed(-5, b"x")))
    assert server.asked == [f"/schemas/ids/{old}", "/schemas/ids/99", "/schemas/ids/99"]


def test_rows_and_rejects_do_not_depend_on_how_the_log_was_cut(server, monkeypatch):
    monkeypatch.setattr(registry_module, "FIRST_PAUSE", 0)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    values = a_log(server, rng, 400)
    whole = columns_on(server).decode(batch_of(*values))
    assert 200 < whole.table.num_rows < 390
    assert whole.table.num_rows + len(whole.rejects) == 400
    for _ in range(3):
        columns, tables, rejects, at = columns_on(server), [], [], 0
        while at < len(values):
            size = rng.choice([1, 2, 7, 60])
            part = columns.decode(batch_of(*values[at : at + size], first=10 + at))
            tables, rejects, at = [*tables, part.table], [*rejects, *part.rejects], at + size
        assert pa.concat_tables(tables).equals(whole.table)
        assert rejects == whole.rejects


def test_it_reads_what_a_real_log_gives(server, event_log, topic):
    rng = random.Random(7)
    values = [value for value in a_log(server, rng, 300) if value is not None]
    event_log.create_topic(topic, 1)
    event_log.append(topic, [Outgoing(b"k", value, 1000 + n, 0) for n, value in enumerate(values)])
    columns = columns_on(server)
    parts = [columns.decode(batch) for batch in event_log.read(topic, 0, 0, len(values))]
    due = columns_on(server).decode(batch_of(*values, first=0))
    table = pa.concat_tables(part.table for part in parts)
    assert table.drop_columns(["_partition"]).equals(due.table.drop_columns(["_partition"]))
    assert [bad.error for part in parts for bad in part.rejects] == [bad.error for bad in due.rejects]
