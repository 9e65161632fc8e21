"""The fast path keeps the law: for every batch the same table, bit for bit, and the same rejects as the Decoder."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.stream.batch import pack
from assets.stream.decode import Decoder, SchemaRefused
from assets.stream.json_columns import BYTES_AT_ONCE, JsonColumns
from assets.stream.json_parser import FEW, MOST, STEP
from assets.stream.log import Record
from tests.json_values import EDGES, FAST, GOOD, KINDS, SCHEMA, SHAPED, STYLES, TIMES, body, damaged, record


def batch_of(*values, partition=3, start=10, keys=(b"k",)):
    records = [Record(partition, start + n, 1000 + start + n, keys[n % len(keys)], value) for n, value in enumerate(values)]
    return pack(partition, start, start + len(values), records)


def check_same(columns, batch, schema=SCHEMA, required=()):
    """Decodes both ways, compares everything, returns what was decoded."""
    found, due = columns.decode(batch), Decoder(schema, required).decode(batch)
    assert found.rejects == due.rejects
    assert found.table.schema.equals(due.table.schema, check_metadata=True)
    assert found.table.schema.equals(columns.schema, check_metadata=True)
    found.table.validate(full=True)
    assert found.table.equals(due.table)
    assert bits(found.table) == bits(due.table)
    return found


def bits(table):
    """For .equals, -0.0 is 0.0; as a file they differ, and how the rows were cut is no matter."""
    pq.write_table(table.combine_chunks(), sink := pa.BufferOutputStream(), use_dictionary=False, write_statistics=False)
    return bytes(sink.getvalue())


SPELLINGS = [
    json.dumps(GOOD, separators=(",", ":")).encode(), body(), json.dumps(GOOD, indent=1).encode(),
    json.dumps(dict(reversed(GOOD.items()))).encode(),
]  # fmt: skip


def among_good(value, at, good, rows=200):
    return batch_of(*(value if row == at else good[row % len(good)] for row in range(rows)))


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("at", [0, 77, 199])
def test_an_edge_case_is_what_the_decoder_says_and_costs_no_other_record(edge, at):
    same, mixed = JsonColumns(SCHEMA), JsonColumns(SCHEMA)
    same.decode(batch_of(*[body()] * 50))
    check_same(same, among_good(EDGES[edge], at, [body()]))
    assert same.one_by_one <= (edge not in SHAPED)
    check_same(mixed, among_good(EDGES[edge], at, SPELLINGS))
    assert mixed.one_by_one <= (0 if edge in FAST else 25)


def test_all_edge_cases_at_once_and_each_alone():
    values = list(EDGES.values())
    check_same(JsonColumns(SCHEMA), batch_of(*values, *([body()] * 100), *reversed(values)))
    for value in values:
        check_same(JsonColumns(SCHEMA), batch_of(value))
        check_same(JsonColumns(SCHEMA), batch_of(*([value] * (FEW + 1))))


def test_good_spellings_are_read_at_once():
    columns = JsonColumns(SCHEMA)
    assert not check_same(columns, batch_of(*(list(FAST.values()) * 3))).rejects
    assert columns.one_by_one == 0


@pytest.mark.parametrize("byte", range(256))
def test_any_byte_in_any_place(byte):
    spelled = body()
    places = [0, 1, *map(spelled.index, (b":", b"5", b"na", b"-06", b"]")), len(spelled) - 1, len(spelled)]
    values = [spelled[:at] + bytes([byte]) + spelled[at:] for at in places]
    check_same(JsonColumns(SCHEMA), batch_of(*([body()] * FEW), *values))


def test_a_value_of_two_documents_is_not_made_up_for_by_one_of_none():
    good, two, lines = [body()] * 50, body() + body(), body() + b"\n" + body()
    for first, second in [
        (two, b""), (two, b" "), (lines, b"\n\n\n"), (two, body()[:-1] + b"\0}"), (two, body() + b"\0" + body()),
        (b'{"note": "', body()), (b'{"note": [{}', b"{}]}"), (b'{"note": "}', b'{"}'), (b"{} {}", b"\t"),
    ]:  # fmt: skip
        for values in ([*good, first, second, *good], [*good, first, second], [first, *good, second], [second, *good, first]):
            check_same(JsonColumns(SCHEMA), batch_of(*values))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if pa.types.is_temporal(kind)], ids=str)
def test_times_in_every_spelling(kind):
    schema = pa.schema([pa.field("at", kind)])
    spellings = TIMES + [text.replace("Z", "") for text in TIMES]
    for some in (spellings, [text for text in spellings if "9999999" not in text and "123456789" not in text]):
        values = [json.dumps({"at": text}).encode() for text in some]
        check_same(JsonColumns(schema), batch_of(*values, *([b'{"at":null}'] * FEW)), schema)


def test_every_day_of_the_calendar_is_read_at_once():
    schema = pa.schema([pa.field("at", pa.timestamp("us", "UTC"), nullable=False)])
    first = datetime(1, 1, 1, 13, tzinfo=UTC)
    days = [first + timedelta(days=number) for number in (*range(0, 3_652_059, 61), *range(734_000, 739_000))]
    days += [datetime(year, 2, 28, tzinfo=UTC) + timedelta(days=1) for year in range(1, 10_000)]
    columns = JsonColumns(schema)
    decoded = columns.decode(batch_of(*(b'{"at":"%s"}' % day.isoformat().encode() for day in days)))
    assert decoded.table["at"].to_pylist() == days
    assert columns.one_by_one == 0


def test_more_digits_than_microseconds_are_cut_off_at_once():
    schema = pa.schema([("at", pa.timestamp("ns", "UTC"))])
    columns = JsonColumns(schema)
    texts = [f"2013-06-03T08:00:00.{'123456789'[:digits]}Z" for digits in range(1, 10)]
    check_same(columns, batch_of(*(b'{"at":"%s"}' % text.encode() for text in texts * 9)), schema)
    assert columns.one_by_one == 0


def test_batches_of_no_records_and_of_no_values():
    assert check_same(JsonColumns(SCHEMA), batch_of()).table.num_rows == 0
    assert len(check_same(JsonColumns(SCHEMA), batch_of(*([None] * 50))).rejects) == 50
    assert len(check_same(JsonColumns(SCHEMA), batch_of(*([b""] * 50), keys=(None,))).rejects) == 50


def test_the_envelope_tells_an_empty_key_from_none():
    values = [*([body()] * 40), b"x", *([body()] * 40)]
    found = check_same(JsonColumns(SCHEMA), batch_of(*values, keys=(None, b"", b"{", b"key")))
    assert found.table["_key"].to_pylist()[:4] == [None, b"", b"{", b"key"]


def test_a_schema_keeps_its_refusals_and_what_is_required():
    with pytest.raises(SchemaRefused, match="'blob' has type binary"):
        JsonColumns(pa.schema([("blob", pa.binary())]))
    schema = pa.schema([("event_id", pa.string()), ("x", pa.float64())])
    values = [b'{"event_id":"e","x":null}'] * 50 + [b'{"event_id":null,"x":1}']
    found = check_same(JsonColumns(schema, ("event_id",)), batch_of(*values), schema, ("event_id",))
    assert (found.table.num_rows, len(found.rejects)) == (50, 1)
    nothing = pa.schema([])
    assert check_same(JsonColumns(nothing), batch_of(*([b"{}"] * 50), b'{"a":1}'), nothing).table.num_rows == 50


def test_metadata_of_the_schema_leaves_no_trace():
    schema = SCHEMA.with_metadata({"a": "b"})
    assert check_same(JsonColumns(schema), batch_of(*([body()] * 50)), schema).table.schema.metadata is None


def test_names_of_any_kind():
    names = ["", "a b", "é", 'q"', "b\\", "c:", "o{", "comma,", "null", "n\t", "sp ", "(", "\U0001f600", "NaN", "x" * 300]
    schema = pa.schema([pa.field(name, pa.int64()) for name in names])
    for ascii_only in (True, False):
        records = [{name: None if (n + m) % 3 else m for m, name in enumerate(names)} for n in range(99)]
        records += [dict.fromkeys(set(names) - {name}, 1) for name in names]
        records += [dict.fromkeys(names, 1) | {name: 1.5} for name in names]
        values = [json.dumps(each, ensure_ascii=ascii_only).encode() for each in records]
        check_same(JsonColumns(schema), batch_of(*values), schema)


def test_bytes_between_the_values_and_their_order_are_no_matter():
    batch = batch_of(*(body(count=n) for n in range(60)), None, b"", b"[]")
    mixed = np.random.default_rng(1).permutation(len(batch))
    check_same(JsonColumns(SCHEMA), replace(batch, values=batch.values[:, mixed]))
    check_same(JsonColumns(SCHEMA), replace(batch, values=np.repeat(batch.values[:, :1], len(batch), axis=1)))
    moved = {part: getattr(batch, part) + np.array([[100], [0]]) for part in ("keys", "values", "headers")}
    check_same(JsonColumns(SCHEMA), replace(batch, data=b"}{" * 50 + batch.data + b"}", **moved))


def test_the_table_does_not_depend_on_how_the_records_were_cut():
    values = [body(count=n, note=None if n % 3 else "x", path=[n] * (n % 4)) if n % 97 else b"poison" for n in range(1000)]
    whole = JsonColumns(SCHEMA).decode(batch_of(*values))
    for size in (1, 50, 700):
        columns = JsonColumns(SCHEMA)
        parts = [columns.decode(batch_of(*values[n : n + size], start=10 + n)) for n in range(0, len(values), size)]
        table = pa.concat_tables(part.table for part in parts)
        assert [gone for part in parts for gone in part.rejects] == whole.rejects
        assert all(chunk.type == column.type for column in table.columns for chunk in column.chunks)
        assert bits(table) == bits(whole.table)


def test_records_of_5_mb_among_small_ones():
    large = [body(note="e" * 5_000_000, count=n) for n in range(4)]
    assert sum(map(len, large)) > BYTES_AT_ONCE
    small, columns = [body()] * 50, JsonColumns(SCHEMA)
    found = check_same(columns, batch_of(*small, large[0], *small, b"{" * 5_000_000, *small, *large[1:], *small))
    assert (found.table.num_rows, len(found.rejects), columns.one_by_one) == (204, 1, 1)


@pytest.mark.parametrize("style", [{"separators": (",", ":")}, {}, {"indent": 4}], ids=["compact", "spaced", "pretty"])
def test_mostly_null_fields_are_read_at_once(style):
    draw, columns = random.Random(1), JsonColumns(SCHEMA)
    optional = {field.name for field in SCHEMA if field.nullable}
    records = [{k: None if k in optional and draw.random() < 0.8 else v for k, v in GOOD.items()} for _ in range(3000)]
    check_same(columns, batch_of(*(json.dumps(each, **style).encode() for each in records)))
    assert columns.one_by_one == 0


@pytest.mark.parametrize("garbage", [b"null", b":null", b'":null', b'"  :  null', b'"a":null', b"{null", b"nul", b"ll"])
def test_a_batch_may_begin_or_end_with_half_a_null(garbage):
    values = [garbage, *([body(small=None)] * 50), garbage]
    assert len(check_same(JsonColumns(SCHEMA), batch_of(*values, keys=(None,))).rejects) == 2


COMMON = [
    "truncated", "no comma", "unknown", "missing", "twice", "text for integer", "float for integer", "int64 overflow", "NaN",
    "int8 overflow", "null where it must not be", "short list", "high surrogate", "not UTF-8", "no time", "no such day",
    "two documents",
]  # fmt: skip


@pytest.mark.parametrize("edge", COMMON)
def test_a_bad_record_in_a_thousand_is_found_without_its_neighbours(edge):
    values = [EDGES[edge] if n % 1000 == 400 else body(count=n) for n in range(5 * STEP + 3000)]
    columns = JsonColumns(SCHEMA)
    assert len(check_same(columns, batch_of(*values)).rejects) == columns.one_by_one == 6


def test_bad_records_of_many_kinds_are_found_with_few_of_their_neighbours():
    bad = [EDGES[edge] for edge in COMMON * 4]
    values = [bad[n // 200] if n % 200 == 77 else body(count=n) for n in range(200 * len(bad))]
    assert len(values) > MOST
    columns = JsonColumns(SCHEMA)
    assert len(check_same(columns, batch_of(*values)).rejects) == len(bad) <= columns.one_by_one < 4 * len(bad)


def test_one_bad_record_in_60_000_does_not_cost_two_readings_more():
    schema, seconds = pa.schema([("event_id", pa.string()), ("x", pa.float64())]), []
    values = [b'{"event_id":"e%d","x":%d.5}' % (n, n) for n in range(60_000)]
    for value in (values[41_234], b'{"event_id":7,"x":1}'):
        values[41_234] = value
        columns, batch, tries = JsonColumns(schema), batch_of(*values), []
        for _ in range(3):
            before = time.process_time()
            columns.decode(batch)
            tries.append(time.process_time() - before)
        seconds.append(min(tries))
    assert columns.one_by_one == 3
    assert seconds[1] < 3 * seconds[0], seconds  # about 1.1; the Decoder alone takes 5 times as long


def differ(least):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw, total, rejects, alone = random.Random(seed), 0, 0, 0
    while total < least:
        names = ["event_id", *(f"f{number}" for number in range(draw.randint(0, 8)))]
        schema = pa.schema([pa.field(name, draw.choice(KINDS), nullable=draw.random() < 0.5) for name in names])
        columns = JsonColumns(schema)
        for share in (0, 0.001, 0.01, 0.2):
            style = draw.choice([None, *STYLES])
            records = [record(schema, draw, style) for _ in range(draw.choice([1, 40, 300, 1500]))]
            values = [damaged(value, pairs, draw) if draw.random() < share else value for value, pairs in records]
            batch = batch_of(*values, partition=draw.randrange(9), start=draw.randrange(10**9), keys=(None, b"", b"\0k", b"{}"))
            rejects += len(check_same(columns, batch, schema).rejects)
            total += len(batch)
        alone += columns.one_by_one
    assert 0.02 * total < rejects < alone < 0.6 * total, (total, rejects, alone)


def test_random_values_of_random_schemas():
    differ(20_000)


@pytest.mark.slow
def test_very_many_random_values_of_random_schemas():
    differ(1_000_000)
