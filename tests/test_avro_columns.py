"""Avro columns: what fastavro reads is what the columns hold, and a record that is wrong costs no other one."""

from __future__ import annotations

import json
import math
import random
import struct

import fastavro
import pyarrow as pa
import pytest

from assets.stream import avro_columns, cursor
from assets.stream.avro_columns import AvroColumns
from assets.stream.avro_schema import WriterRefused
from assets.stream.batch import Batch, pack
from assets.stream.decode import ENVELOPE
from assets.stream.document import SchemaRefused
from assets.stream.log import Record
from tests.avro_writers import LISTS, STAMPS, a_case, by_fastavro, plain, varint, writer_of

CASES = 2_000


def batch_of(*values: bytes | None) -> Batch:
    return pack(3, 10, 10 + len(values), [Record(3, 10 + n, 1000 + n, b"k%d" % n, v) for n, v in enumerate(values)])


def rows_of(table: pa.Table) -> dict[int, dict]:
    """Offset -> payload, times and dates as whole numbers."""
    plain_table = table
    for index, field in enumerate(table.schema):
        if pa.types.is_temporal(field.type):
            whole = pa.int32() if field.type == pa.date32() else pa.int64()
            plain_table = plain_table.set_column(index, field.name, table[field.name].cast(whole))
    offsets = plain_table["_offset"].to_pylist()
    return dict(zip(offsets, plain_table.drop_columns(ENVELOPE.names).to_pylist(), strict=True))


def decode(columns: AvroColumns, *values: bytes | None) -> tuple[dict[int, dict], dict[int, str]]:
    decoded = columns.decode(batch_of(*values))
    decoded.table.validate(full=True)
    return rows_of(decoded.table), {bad.record.offset: bad.error for bad in decoded.rejects}


def reason(writer: str, column: pa.Field, value: bytes) -> str:
    rows, errors = decode(AvroColumns(writer, pa.schema([column])), value)
    assert rows == {}
    return errors[10]


def test_every_record_is_what_fastavro_reads_or_is_rejected(monkeypatch):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng, counts = random.Random(seed), {"good": 0, "rejected": 0, "damaged and read": 0, "damaged": 0}
    for _ in range(CASES):
        writer, window, bodies, wrong = a_case(rng)
        monkeypatch.setattr(avro_columns, "ROWS_AT_ONCE", rng.choice([3, 8_192, 8_192]))
        rows, errors = decode(AvroColumns(json.dumps(writer), window), *bodies)
        parsed = fastavro.parse_schema(plain(writer))
        for number, body in enumerate(bodies):
            due, offset = by_fastavro(parsed, writer, body, list(window)), 10 + number
            assert (offset in rows) != (offset in errors)
            if offset in rows:
                assert repr(rows[offset]) == repr(due), (writer, body)  # repr: -0.0 is not 0.0
            elif not wrong[number] and body:
                assert due is None, (writer, body, errors[offset])
            counts["good" if offset in rows else "rejected"] += 1
            counts["damaged"] += wrong[number]
            counts["damaged and read"] += wrong[number] and offset in rows
    assert counts["good"] > 3 * CASES and counts["rejected"] > CASES
    assert counts["damaged and read"] > 0.02 * counts["damaged"], counts


def test_rows_do_not_depend_on_how_the_log_was_cut():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(100):
        writer, window, bodies, _ = a_case(rng)
        columns = AvroColumns(json.dumps(writer), window)
        whole = decode(columns, *bodies)
        rows, errors = {}, {}
        for number in range(len(bodies)):
            row, error = decode(columns, bodies[number])
            rows |= {10 + number: row[10]} if row else {}
            errors |= {10 + number: error[10]} if error else {}
        assert repr((rows, errors)) == repr(whole)


def test_the_envelope_is_the_records_and_the_schema_is_always_the_same():
    columns = AvroColumns(writer_of(event_id="string"), pa.schema([("event_id", pa.string())]), required=("event_id",))
    table = columns.decode(batch_of(b"\x02a", b"\x02b")).table
    assert table.schema == columns.schema == columns.decode(batch_of()).table.schema
    assert table["_partition"].to_pylist() == [3, 3]
    assert table["_offset"].to_pylist() == [10, 11]
    assert table["_timestamp"].cast(pa.int64()).to_pylist() == [1000, 1001]
    assert table["_key"].to_pylist() == [b"k0", b"k1"]
    assert not table.schema.field("event_id").nullable


def test_values_that_share_bytes_or_lie_in_another_order_are_read_all_the_same():
    batch = batch_of(b"\x02a", b"\x02b", b"\x02c")
    turned = Batch(
        3, 10, 13, batch.offsets, batch.timestamps, batch.data, batch.keys[:, ::-1], batch.values[:, [2, 0, 0]],
        batch.headers, batch.marks, batch.kind,
    )  # fmt: skip
    table = AvroColumns(writer_of(x="string"), pa.schema([("x", pa.string())])).decode(turned).table
    assert table["x"].to_pylist() == ["c", "a", "a"]
    assert table["_key"].to_pylist() == [b"k2", b"k1", b"k0"]


@pytest.mark.parametrize(
    ("node", "column", "value", "why"),
    [
        ("int", pa.int64(), None, "tombstone"),
        ("int", pa.int64(), b"", "empty value"),
        ("int", pa.int64(), b"\x80", "field 'x': the value ends inside it"),
        ("int", pa.int64(), varint(2**31), "field 'x': integer overflow: outside Avro's int"),
        ("long", pa.int64(), b"\xff" * 9 + b"\x02", "field 'x': an integer of more than 64 bits"),
        ("long", pa.int64(), b"\x80" * 11 + b"\x01", "field 'x': an integer of more than 64 bits"),
        ("long", pa.int8(), varint(128), "field 'x': integer overflow: outside int8, -128 to 127"),
        ("long", pa.uint64(), varint(-1), "field 'x': integer overflow: outside uint64"),
        ("long", pa.int64(), b"\x02\x00\x00", "trailing bytes: 2 after the last field"),
        ("double", pa.float64(), b"\0" * 7, "field 'x': the value ends inside it"),
        ("double", pa.float64(), struct.pack("<d", math.nan), "field 'x': NaN is no number"),
        ("double", pa.float64(), struct.pack("<d", -math.inf), "field 'x': number overflow: beyond 1.79769e+308"),
        ("double", pa.float32(), struct.pack("<d", 1e39), "field 'x': number overflow: beyond 3.40282e+38"),
        ("boolean", pa.bool_(), b"\x02", "field 'x': a boolean that is neither 0 nor 1"),
        ("string", pa.string(), b"\x06a\xff", "field 'x': the value ends inside it"),
        ("string", pa.string(), b"\x04a\xff", "field 'x': not UTF-8: byte 1"),
        ("string", pa.string(), b"\x06\xed\xa0\x80", "field 'x': not UTF-8: byte 0"),
        ("string", pa.string(), varint(-1) + b"a", "field 'x': the value ends inside it"),
        ("string", pa.string(), varint(2**62) + b"a", "field 'x': the value ends inside it"),
        (["null", "long"], pa.int64(), b"\x04\x00", "field 'x': a branch the union does not have"),
        (["null", "long"], pa.int64(), b"\x00", "field 'x': wrong type: found null, wanted an integer (int64)"),
        ({"type": "enum", "name": "E", "symbols": ["A"]}, pa.string(), b"\x02", "a symbol the enum does not have"),
        ({"type": "array", "items": "float"}, LISTS[2], b"\x02" + b"\0" * 5, "wrong length: found a list of 1, wanted 2"),
        ({"type": "array", "items": "float"}, LISTS[0], varint(2**60), "field 'x': the value ends inside it"),
        ({"type": "array", "items": "long"}, LISTS[0], b"\x04\x00\x80", "field 'x': the value ends inside it"),
        ({"type": "array", "items": "long"}, LISTS[0], b"\x02" + b"\x80" * 10 + b"\1\0", "integer of more than 64 bits"),
        ({"type": "array", "items": "int"}, LISTS[0], b"\x02" + varint(2**31) + b"\0", "outside Avro's int"),
        ({"type": "array", "items": "int"}, LISTS[0], b"\x01\x04\x00\x00", "a block of another size than it says"),
        ({"type": "long", "logicalType": "timestamp-millis"}, STAMPS[1], varint(2**60), "outside the years 1 to 9999"),
        ({"type": "long", "logicalType": "timestamp-micros"}, STAMPS[3], varint(2**60), "nanoseconds reach from 1678"),
        ({"type": "int", "logicalType": "date"}, pa.date32(), varint(2**30), "outside the years 1 to 9999"),
    ],
)
def test_what_does_not_fit_has_a_reason(node, column, value, why):
    assert why in reason(writer_of(x=node), pa.field("x", column, nullable=False), value)


@pytest.mark.parametrize(
    ("node", "column", "why"),
    [
        ({"type": "bytes", "logicalType": "decimal", "precision": 4}, pa.float64(), "Avro decimal.*send it as double"),
        ({"type": "fixed", "name": "F", "size": 4}, pa.binary(), "Avro fixed.*send it as bytes"),
        ({"type": "record", "name": "R", "fields": []}, pa.string(), "Avro record.*send its fields beside the others"),
        (["int", "string"], pa.string(), "a union of int and string, which a column of type string cannot take"),
        (["null", "int", "long"], pa.int64(), "a union of null and int and long"),
        ({"type": "map", "values": "int"}, pa.int64(), "Avro map of int"),
        ({"type": "array", "items": "string"}, LISTS[0], "Avro array of string"),
        ("double", pa.int64(), "Avro double, which a column of type int64 cannot take"),
        ("string", pa.int64(), "Avro string"),
        ("long", pa.timestamp("ms", "UTC"), "Avro long"),
        ({"type": "long", "logicalType": "timestamp-millis"}, pa.timestamp("ms"), "Avro timestamp-millis"),
        ("Elsewhere", pa.string(), "names a type 'Elsewhere' and does not declare it"),
        ({"type": "record", "name": "Event", "fields": [{"name": "x", "type": "Event"}]}, pa.string(), "contains itself"),
        ({"type": "fixed", "name": "F", "size": -1}, pa.string(), "has no size"),
        ({"type": "enum", "name": "E", "symbols": ["A", "A"]}, pa.string(), "a list of different names"),
        (7, pa.string(), "no Avro type"),
    ],
)
def test_a_writer_that_can_fill_no_row_is_refused_with_the_field_and_the_cure(node, column, why):
    with pytest.raises(WriterRefused, match=why):
        AvroColumns(writer_of(x=node), pa.schema([("x", column)]))


def test_a_text_that_is_no_schema_of_a_record_is_refused():
    bomb = '{"type": "record", "name": "A0", "fields": [{"name": "x", "type": "int"}]}'
    for level in range(1, 6):
        fields = ", ".join(f'{{"name": "f{n}", "type": {bomb if n == 0 else json.dumps(f"A{level - 1}")}}}' for n in range(9))
        bomb = f'{{"type": "record", "name": "A{level}", "fields": [{fields}]}}'
    for text, why in [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('"string"', "Avro string where a record was wanted"),
        ("{}", "no Avro type"),
        ('{"type": "record", "name": "R"}', "no list of fields"),
        (bomb, "parts > 10000"),
    ]:
        with pytest.raises(WriterRefused, match=why):
            AvroColumns(text, pa.schema([("x", pa.string())]))


def test_a_window_no_writer_can_fill_is_refused():
    for schema, required, why in [
        (pa.schema([("_x", pa.string())]), (), "Headgate's own"),
        (pa.schema([("x", pa.decimal128(4, 2))]), (), "cannot carry"),
        (pa.schema([("x", pa.list_(pa.float32(), 0))]), (), "cannot carry"),
        (pa.schema([("x", pa.string()), ("x", pa.string())]), (), "twice"),
        (pa.schema([("x", pa.string())]), ("event_id",), "no field 'event_id'"),
    ]:
        with pytest.raises(SchemaRefused, match=why):
            AvroColumns(writer_of(x="string"), schema, required)


def test_what_the_writer_lacks_is_null_where_it_may_be_and_what_the_window_lacks_is_noted():
    window = pa.schema([pa.field("new", pa.float64()), pa.field("x", pa.int64(), nullable=False)])
    columns = AvroColumns(writer_of(old="string", x="long"), window)
    assert decode(columns, b"\x02a\x04") == ({10: {"new": None, "x": 2}}, {})
    assert columns.notes == (
        "not read, the window does not have them: 'old'",
        "null, the writer does not have them: 'new'",
    )
    with pytest.raises(WriterRefused, match=r"missing field 'new': it is never null"):
        AvroColumns(writer_of(x="long"), window, required=("new",))


def test_a_named_type_is_found_by_its_name_and_its_namespace():
    enum = {"type": "enum", "name": "Sort", "symbols": ["A", "B"]}
    fields = [{"name": name, "type": node} for name, node in (("x", enum), ("y", "Sort"), ("z", "shop.Sort"))]
    writer = json.dumps({"type": "record", "name": "Event", "namespace": "shop", "fields": fields})
    window = pa.schema([(name, pa.string()) for name in "xyz"])
    assert decode(AvroColumns(writer, window), b"\x00\x02\x02") == ({10: {"x": "A", "y": "B", "z": "B"}}, {})


def test_one_record_of_many_blocks_or_items_is_rejected_and_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(cursor, "MOST_STEPS", 20)
    texts = {"type": "array", "items": "string"}
    nodes = {"x": {"type": "array", "items": "float"}, "y": texts, "z": {"type": "array", "items": texts}}
    columns = AvroColumns(writer_of(**nodes), pa.schema([("x", LISTS[0])]))
    block = b"\x02" + b"\0" * 4
    xs = [block * 20 + b"\0", block * 21 + b"\0"]
    ys = [varint(19) + b"\0" * 20, varint(20) + b"\0" * 21]  # the block is a step, too
    zs = [b"\x04" + (varint(7) + b"\0" * 8) * 2 + b"\0", b"\x04" + (varint(8) + b"\0" * 9) * 2 + b"\0"]
    rows, errors = decode(columns, xs[0] + ys[0] + zs[0], xs[1] + b"\0\0", xs[0] + ys[1] + b"\0", b"\0\0" + zs[1], b"\0\0\0")
    assert {offset: len(row["x"]) for offset, row in rows.items()} == {10: 20, 14: 0}
    assert errors == {
        offset: f"field '{name}': more than 20 blocks or items that are read one by one"
        for offset, name in ((11, "x"), (12, "y"), (13, "z"))
    }


def test_long_lists_of_integers_cost_as_little_as_many_short_ones():
    values = [random.randrange(2**40) for _ in range(200_000)]
    writer = writer_of(x={"type": "array", "items": "long"})
    body = varint(len(values)) + b"".join(map(varint, values)) + b"\0"
    rows, _ = decode(AvroColumns(writer, pa.schema([("x", LISTS[1])])), body, b"\x00")
    assert rows == {10: {"x": [float(value) for value in values]}, 11: {"x": []}}


def test_a_reason_names_fields_and_no_values():
    writer = writer_of(**{"k" * 5000: ["null", "int"], "x": "string"})
    error = reason(writer, pa.field("x", pa.string()), b"\x06secret")
    assert "secret" not in error
    assert len(error) < 200
