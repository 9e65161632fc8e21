"""The parts of the benchmarks on a tiny size: the events, the sides that read them, and what becomes of a side that fails."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import datetime

import pytest

from tests.benchmarks import ingest
from tests.benchmarks._ingest_data import as_avro, as_json, events
from tests.benchmarks.peers import AVRO_SCHEMA, FIELDS, Job
from tests.registries import serving

ROWS = 2000


@pytest.fixture(scope="module")
def job(kafka, tmp_path_factory) -> Job:
    return ingest.fill(kafka, tmp_path_factory.mktemp("ingest"), "json", ROWS)


def side(name: str) -> ingest.Side:
    return next(one for one in ingest.SIDES if one.name == name)


def test_an_event_is_twenty_fields_of_json_that_vary_and_come_back():
    rows = list(events(ROWS))
    texts = [as_json(row) for row in rows]
    for row, text in zip(rows, texts, strict=True):
        read = json.loads(text)
        moment = datetime.fromisoformat(read["at"])
        assert list({**read, "at": round(moment.timestamp() * 1000)}.items()) == list(zip(FIELDS, row, strict=True))
    assert len(FIELDS) == 20 and 300 < sum(map(len, texts)) / ROWS < 360
    assert all(len(set(column)) > 1 for column in zip(*rows, strict=True))
    assert [row[list(FIELDS).index("number")] for row in rows] == list(range(ROWS))
    assert list(events(ROWS)) == rows, "the same seed gives the same events"


def test_the_avro_of_an_event_is_read_back_by_another_implementation():
    fastavro = pytest.importorskip("fastavro")
    schema = fastavro.parse_schema(AVRO_SCHEMA)
    for row in events(200):
        encoded = as_avro(row)
        read = fastavro.schemaless_reader(io.BytesIO(encoded[5:]), schema)
        assert encoded[:5] == b"\0\0\0\0\1"
        assert list({**read, "at": round(read["at"].timestamp() * 1000)}.values()) == list(row)


def test_our_side_and_the_naive_one_give_every_row_once(job):
    for name in ("ours", "ours: read", "ours: table", "naive"):
        found = ingest.measured(side(name), job)
        assert not isinstance(found, str), found
        assert found["rows"] == ROWS and found["cpu"] > 0 and 20 < found["peak_mb"] < 1000


def test_our_side_reads_the_same_rows_from_avro_by_a_registry(kafka, tmp_path):
    job = ingest.fill(kafka, tmp_path, "avro", ROWS)
    with serving() as registry:
        ingest.registered(registry)
        found = ingest.measured(side("ours: avro"), replace(job, registry=registry.url))
    assert not isinstance(found, str), found
    assert found["rows"] == ROWS


def test_a_side_that_does_not_give_every_row_has_a_reason_instead_of_a_figure(job):
    part, (start, end) = next(iter(job.partitions.items()))
    short = replace(job, partitions={**job.partitions, part: (start + 1, end)})
    assert "wrong rows" in ingest.measured(side("naive"), short)
    why: dict[str, str] = {}
    absent = ingest.Side("gone", "no_such_peer", "json", "nothing")
    found = dict(ingest.rounds([absent, side("ours: read")], {"json": job}, 1, why))
    assert list(found) == ["ours: read"]
    assert "no_such_peer" in why["gone"]


def test_the_result_names_a_peer_without_a_figure_and_says_why():
    rates = {"ours": [300.0, 100.0, 200.0], "ours: read": [900.0], "naive": [50.0], "quix": []}
    found = ingest.report(10, rates, {"quix": "not installed: no network"}, 99.6)
    assert (found["figure"], found["ratio"], found["samples"]) == (200.0, 4.0, 3)
    assert found["peers"] == {"naive": 50.0, "quix": None}
    assert found["failed"] == {"quix": "not installed: no network"}
    assert found["stages"] == {"read": 900.0, "parquet": 200.0} and found["peak_rss_mb"] == 100
    alone = ingest.report(10, {"ours": [1.0]}, {}, 1.0)
    assert alone["peers"] == {} and alone["ratio"] is None
