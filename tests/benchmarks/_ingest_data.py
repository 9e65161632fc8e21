"""The events of the ingest benchmark: twenty fields, about 330 bytes of JSON, or the same as Avro, into a topic.

Run as a module it fills a topic, in a process of its own so that its CPU seconds are nobody's. The same seed gives the
same events. It does not know who reads them; the fields are in `peers/__init__.py`, which every reader can import.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from assets.stream.batch import varint
from assets.stream.kafka import KafkaLog
from assets.stream.log import Outgoing
from tests.benchmarks.peers import FIELDS, SCHEMA_ID

SEED = 20
CHUNK = 10_000
BEGIN_MS = 1_748_736_000_000  # 2025-06-01: in the past, a broker refuses time stamps from its future
SHOPS = ("Bakery North", "City Books", "Fuel 24", "Harbour Cafe", "Hotel Linden", "Night Shop", "Rail Tickets", "Sun Pharmacy")
COUNTRIES, CHANNELS = ("AT", "BE", "DE", "ES", "FR", "IT", "NL", "PL", "PT"), ("chip", "contactless", "online", "stripe")


def events(rows: int) -> Iterator[tuple[Any, ...]]:
    """Rows with the values of FIELDS, in that order; `number` counts from 0, the time is in ms since 1970."""
    for first in range(0, rows, CHUNK):
        yield from zip(*_chunk(first, min(CHUNK, rows - first)), strict=True)


def _chunk(first: int, size: int) -> list[list[Any]]:
    draw = np.random.default_rng((SEED, first))
    amount = np.round(draw.lognormal(3.2, 1.1, size), 2)
    columns: dict[str, Any] = {
        "event_id": [f"{high:08x}{low:08x}" for high, low in draw.integers(0, 1 << 32, (size, 2)).tolist()],
        "at": BEGIN_MS + (first + np.arange(size)) * 7,
        "card": [f"c-{number:07d}" for number in draw.integers(0, 2_000_000, size).tolist()],
        "shop": [f"{SHOPS[kind]} {number}" for kind, number in draw.integers((0, 10), (8, 900), (size, 2)).tolist()],
        "country": [COUNTRIES[index] for index in draw.integers(0, len(COUNTRIES), size).tolist()],
        "via": [CHANNELS[index] for index in draw.integers(0, len(CHANNELS), size).tolist()],
        "is_new": draw.random(size) < 0.12,
        "number": first + np.arange(size),
        "items": 1 + draw.poisson(1.8, size),
        "age": draw.integers(0, 4000, size),
        "visits": draw.geometric(0.05, size),
        "till": draw.integers(1000, 99_999, size),
        "amount": amount,
        "balance": np.round(draw.normal(1800, 900, size), 2),
        "lat": np.round(draw.uniform(36, 55, size), 5),
        "lon": np.round(draw.uniform(-9, 24, size), 5),
        "km": np.round(draw.exponential(14, size), 3),
        "rate": np.round(amount / (1 + draw.exponential(40, size)), 4),
        "mean": np.round(amount * draw.uniform(0.3, 3, size), 2),
        "risk": np.round(draw.beta(1.2, 9, size), 6),
    }
    return [values if isinstance(values, list) else values.tolist() for values in (columns[name] for name in FIELDS)]


# -- one row as bytes -------------------------------------------------------------------------------------------------

_QUOTED = {"string": '"%s"', "time": '"%s"'}
_TEMPLATE = "{" + ",".join(f'"{name}":{_QUOTED.get(kind, "%s")}' for name, kind in FIELDS.items()) + "}"
_AT, _IS_NEW, _CARD = (list(FIELDS).index(name) for name in ("at", "is_new", "card"))


def as_json(row: tuple[Any, ...]) -> bytes:
    """Compact JSON. No text above needs an escape."""
    parts = list(row)
    parts[_AT] = f"{np.datetime64(row[_AT], 'ms')}Z"
    parts[_IS_NEW] = "true" if row[_IS_NEW] else "false"
    return (_TEMPLATE % tuple(parts)).encode()


def as_avro(row: tuple[Any, ...]) -> bytes:
    """Avro binary encoding behind Confluent's header: a zero byte and the schema's id."""
    out = bytearray(struct.pack(">bI", 0, SCHEMA_ID))
    for value, kind in zip(row, FIELDS.values(), strict=True):
        if kind == "float":
            out += struct.pack("<d", value)
        elif kind == "bool":
            out.append(value)
        elif kind == "string":
            text = value.encode()
            out += varint(len(text)) + text
        else:
            out += varint(value)
    return bytes(out)


def main() -> None:
    bootstrap, topic, encoding, rows = sys.argv[1:]
    encode = {"json": as_json, "avro": as_avro}[encoding]
    log = KafkaLog(bootstrap, timeout=60.0)
    written = log.append(topic, (Outgoing(row[_CARD].encode(), encode(row), row[_AT]) for row in events(int(rows))))
    log.close()
    if written != int(rows):
        sys.exit(f"{written} of {rows} events were written to {topic}")


if __name__ == "__main__":
    main()
