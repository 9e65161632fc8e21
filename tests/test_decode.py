"""Decoding: a record is a row of the schema or has a reason, and nothing else ever happens."""

from __future__ import annotations

import json
import math
from datetime import date

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.stream.decode import Decoder, SchemaRefused
from assets.stream.log import Record
from assets.stream.predictions import PREDICTION_SCHEMA

WIDE = pa.schema(
    [
        pa.field("event_id", pa.string()),
        pa.field("flag", pa.bool_(), nullable=False),
        pa.field("small", pa.int8(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
        pa.field("size", pa.uint64(), nullable=False),
        pa.field("x", pa.float64(), nullable=False),
        pa.field("narrow", pa.float32()),
        pa.field("note", pa.string()),
        pa.field("at", pa.timestamp("us", tz="UTC")),
        pa.field("near", pa.list_(pa.float32(), 2)),
        pa.field("path", pa.list_(pa.float64())),
    ]
)
GOOD = {
    "event_id": "a",
    "flag": True,
    "small": -128,
    "count": 2**63 - 1,
    "size": 2**64 - 1,
    "x": 0.1,
    "narrow": 3,
    "note": "naïve ✈",
    "at": "2013-06-03T08:00:00.000001Z",
    "near": [1, -2.5],
    "path": [],
}
DECODER = Decoder(WIDE, required=("event_id",))


def records(*values):
    return [Record(3, 10 + n, 1000 + n, b"k", value) for n, value in enumerate(values)]


def reason(value, decoder=DECODER):
    decoded = decoder.decode(records(value))
    assert decoded.table.num_rows == 0
    return decoded.rejects[0].error


def body(**changes):
    return json.dumps({**GOOD, **changes}).encode()


def test_a_good_record_becomes_a_row_of_the_schema_behind_its_envelope():
    decoded = DECODER.decode(records(body(), body(narrow=None, note=None, at=None, near=None, path=[1, 2])))
    first, second = decoded.table.to_pylist()
    assert decoded.rejects == []
    assert (first["_partition"], first["_offset"], first["_key"]) == (3, 10, b"k")
    assert first["_timestamp"].timestamp() == 1.0
    assert {name: first[name] for name in GOOD if name != "at"} == {k: v for k, v in GOOD.items() if k != "at"}
    assert first["at"].isoformat() == "2013-06-03T08:00:00.000001+00:00"
    assert [second[name] for name in ("narrow", "note", "at", "near", "path")] == [None, None, None, None, [1.0, 2.0]]
    assert not decoded.table.schema.field("event_id").nullable


def test_no_records_are_an_empty_table_of_the_same_schema():
    assert DECODER.decode([]).table.schema == DECODER.decode(records(body())).table.schema


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "tombstone"),
        (b"", "empty value"),
        (b"  ", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff{}", "not UTF-8: byte 0"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (body() + b"\n" + body(), "two documents"),
        (b"[1]", "not an object: found a list"),
        (b"null", "not an object: found null"),
        (b"7", "not an object: found an integer"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"x": ' + b"9" * 5000 + b"}", "integer overflow"),
        (body()[:-1] + b', "x": 1}', "duplicate key 'x'"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "note"}).encode(), "missing field 'note'"),
        (body(extra=1), "unknown field 'extra'"),
        (body(event_id=None), "field 'event_id': wrong type: found null, wanted a string"),
        (body(event_id=7), "field 'event_id': wrong type: found an integer, wanted a string"),
        (body(flag=1), "field 'flag': wrong type"),
        (body(count=True), "field 'count': wrong type: found a boolean"),
        (body(count=1.0), "field 'count': wrong type: found a number"),
        (body(count=2**63), "field 'count': integer overflow: outside int64"),
        (body(small=-129), "field 'small': integer overflow: outside int8, -128 to 127"),
        (body(size=-1), "field 'size': integer overflow"),
        (body(x="1"), "field 'x': wrong type: found a string, wanted a number"),
        (body(x=math.nan), "NaN is no JSON number"),
        (body(x=-math.inf), "-Infinity is no JSON number"),
        (body().replace(b"0.1", b"1e999"), "field 'x': number overflow"),
        (body(narrow=1e39), "field 'narrow': number overflow"),
        (body(x=None), "field 'x': wrong type: found null"),
        (body(note="\ud800"), "field 'note': lone surrogate"),
        (body(at="yesterday"), "field 'at': not a time"),
        (body(at="2013-06-03T08:00:00"), "field 'at': time without a time zone"),
        (body(near=[1]), "field 'near': wrong length: found a list of 1, wanted 2"),
        (body(near=[1, True]), "field 'near': wrong type: found a boolean"),
        (body(near=[1, 10**400]), "field 'near': number overflow"),
        (body(path=[None]), "field 'path': wrong type: found null"),
        (body(path={}), "field 'path': wrong type: found an object"),
    ],
)
def test_what_does_not_fit_has_a_reason(value, why):
    assert why in reason(value)


def test_a_reason_names_fields_and_types_and_no_values():
    assert "secret" not in reason(body(count="secret")) + reason(b'{"event_id": secret}') + reason(body(at="secret"))
    assert len(reason(body(**{"k" * 5000: 1}))) < 200


def test_one_poison_record_costs_no_other_one():
    decoded = DECODER.decode(records(body(event_id="a"), b"poison", body(event_id="b")))
    assert decoded.table["event_id"].to_pylist() == ["a", "b"]
    assert decoded.table["_offset"].to_pylist() == [10, 12]
    assert [rejected.record.offset for rejected in decoded.rejects] == [11]


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(list(GOOD.values()))
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(GOOD)), ANYTHING, max_size=3), st.binary(max_size=30))
def test_whatever_comes_in_each_record_is_a_row_or_has_a_reason(changes, garbage):
    values = [json.dumps({**GOOD, **changes}).encode(), garbage, body()]
    decoded = DECODER.decode(records(*values))
    decoded.table.validate(full=True)
    assert decoded.table.num_rows + len(decoded.rejects) == 3
    assert decoded.table["_offset"].to_pylist()[-1] == 12
    assert np.isfinite(decoded.table["x"].to_numpy()).all()


def test_a_negative_zero_is_a_zero_however_it_is_spelled():
    spelled = body(near=[-0.0, -1e-60], path=[-0.0], narrow=-1e-60).replace(b'"x": 0.1', b'"x": -0')
    row = DECODER.decode(records(spelled)).table.to_pylist()[0]
    zeros = [row["x"], row["narrow"], *row["near"], *row["path"]]
    assert zeros == [0.0] * 5
    assert [math.copysign(1, zero) for zero in zeros] == [1.0] * 5


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_time_is_cut_to_the_unit_of_its_column_also_before_1970(unit):
    schema = pa.schema([("at", pa.timestamp(unit, "UTC"))])
    texts = ["1969-12-31T23:59:58.1234567+00:00", "2013-06-03T10:00:00.987654321+02:00"]
    table = Decoder(schema).decode(records(*(json.dumps({"at": text}).encode() for text in texts))).table
    micros = [-1_876_544, 1_370_246_400_987_654]
    size = {"s": 1_000_000, "ms": 1000, "us": 1, "ns": 1}[unit]
    due = [number // size * (1000 if unit == "ns" else 1) for number in micros]
    assert table["at"].cast(pa.int64()).to_pylist() == due


def test_a_date_is_a_day_and_no_time():
    decoder = Decoder(pa.schema([("day", pa.date32())]))
    decoded = decoder.decode(records(b'{"day": "2013-06-03"}', b'{"day": null}'))
    assert decoded.table["day"].to_pylist() == [date(2013, 6, 3), None]
    assert reason(b'{"day": "2013-06-03T00:00:00Z"}', decoder) == "field 'day': not a date in ISO 8601"
    assert "wrong type: found an integer" in reason(b'{"day": 3}', decoder)


def test_a_schema_that_json_cannot_carry_is_refused_with_the_field():
    with pytest.raises(SchemaRefused, match=r"'none' has type fixed_size_list<item: float>\[0\]"):
        Decoder(pa.schema([("none", pa.list_(pa.float32(), 0))]))
    with pytest.raises(SchemaRefused, match=r"'blob' has type binary"):
        Decoder(pa.schema([("blob", pa.binary())]))
    with pytest.raises(SchemaRefused, match="'_offset': names with a leading underscore"):
        Decoder(pa.schema([("_offset", pa.int64())]))
    with pytest.raises(SchemaRefused, match="no field 'event_id'"):
        Decoder(pa.schema([("x", pa.int64())]), required=("event_id",))
    with pytest.raises(SchemaRefused, match="twice"):
        Decoder(pa.schema([("x", pa.int64()), ("x", pa.int64())]))


def test_a_prediction_of_a_failed_request_has_no_score():
    sent = {
        "prediction_id": "p1",
        "event_id": "a",
        "unit": "a",
        "epoch": 3,
        "arm": "canary",
        "propensity": 0.1,
        "version": "v000001-1a2b3c4d",
        "score": None,
        "shadow_version": None,
        "shadow_score": None,
        "latency_ms": 1.5,
        "at": "2013-06-03T08:00:00.000000Z",
    }
    decoded = Decoder(PREDICTION_SCHEMA, required=("event_id",)).decode(records(json.dumps(sent).encode()))
    assert decoded.rejects == []
    assert decoded.table["score"].to_pylist() == [None]
