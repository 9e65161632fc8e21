"""Header columns: the last header of a name, as text, whatever its bytes; nothing is rejected for a header."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pytest

from assets.stream.batch import pack
from assets.stream.document import SchemaRefused
from assets.stream.formats import ValueFormat
from assets.stream.header_columns import HeaderColumns
from assets.stream.log import Outgoing, Record

WINDOW = pa.schema([("event_id", pa.string())])


def body(name: str) -> bytes:
    return json.dumps({"event_id": name}).encode()


def decode(names, *headers):
    records = [Record(0, n, 1000, None if n % 2 else b"k", body("a"), found) for n, found in enumerate(headers)]
    return HeaderColumns(ValueFormat(WINDOW).columns(), names).decode(pack(0, 0, len(records), records))


def test_headers_stand_behind_the_envelope_and_the_last_of_a_name_counts():
    decoded = decode(
        ["traceparent", "user"],
        (("traceparent", b"00-ab"), ("other", b"x"), ("user", b"ann")),
        (("user", b"ann"), ("user", b"bob"), ("traceparent", None)),
        (),
        (("traceparent", b""), ("traceparen", b"no"), ("user\0", b"no"), ("", b"no")),
    )
    assert decoded.table.schema.names == [
        "_partition", "_offset", "_timestamp", "_key", "_header_traceparent", "_header_user", "event_id",
    ]  # fmt: skip
    assert decoded.table["_header_traceparent"].to_pylist() == ["00-ab", None, None, ""]
    assert decoded.table["_header_user"].to_pylist() == ["ann", "bob", None, None]
    assert decoded.table["_key"].to_pylist() == [b"k", None, b"k", None]


def test_bytes_that_are_no_text_are_shown_with_backslashes():
    decoded = decode(["naïve"], (("naïve", b"\xff\xfe ok"),), (("naïve", "plain ✈".encode()),))
    assert decoded.table["_header_naïve"].to_pylist() == ["\\xff\\xfe ok", "plain ✈"]
    assert decoded.rejects == []


def test_a_record_the_inner_format_rejects_takes_its_headers_with_it():
    records = [Record(0, n, 1, None, b"poison" if n == 1 else body(f"e{n}"), (("h", b"%d" % n),)) for n in range(3)]
    decoded = HeaderColumns(ValueFormat(WINDOW).columns(), ["h"]).decode(pack(0, 0, 3, records))
    assert decoded.table["_header_h"].to_pylist() == ["0", "2"]
    assert [bad.record for bad in decoded.rejects] == [records[1]]


def test_the_schema_is_the_same_without_records():
    columns = HeaderColumns(ValueFormat(WINDOW).columns(), ["h"])
    assert decode(["h"]).table.schema == decode(["h"], ()).table.schema == columns.schema


@pytest.mark.parametrize("names", [["a", "a"], [""]])
def test_a_header_is_named_once_and_has_a_name(names):
    with pytest.raises(SchemaRefused, match="named once"):
        decode(names)


def test_any_headers_are_read_as_the_records_have_them(event_log, topic):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng, names = random.Random(seed), ["a", "bb", "traceparent", "ä"]
    outgoing = []
    for n in range(300):
        count = rng.choice([0, 1, 3, 6, 200 if n % 60 == 0 else 2])
        pool = [*names, "b", "other", "x" * 70]
        found = [(rng.choice(pool), rng.choice([b"", b"v", b"\xff", rng.randbytes(90)])) for _ in range(count)]
        outgoing.append(Outgoing(b"k", body(f"e{n}"), 1000 + n, 0, tuple(found)))
    event_log.create_topic(topic, 1)
    event_log.append(topic, outgoing)
    columns = HeaderColumns(ValueFormat(WINDOW).columns(), names)
    table = pa.concat_tables(columns.decode(batch).table for batch in event_log.read(topic, 0, 0, 300))
    for name in names:
        raw = [dict(record.headers).get(name) for record in outgoing]
        due = [None if value is None else value.decode(errors="backslashreplace") for value in raw]
        assert table[f"_header_{name}"].to_pylist() == due
