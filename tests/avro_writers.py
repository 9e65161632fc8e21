"""Random Avro writers with their records, good and damaged, and what each record must become: by fastavro and a plain law."""

from __future__ import annotations

import io
import json
import math
import random
import struct

import fastavro
import numpy as np
import pyarrow as pa

FLOAT32 = float(np.finfo(np.float32).max)
FLOATS = [0.0, -0.0, 0.1, -1e-50, 1e38, FLOAT32, 1e39, 1.7e308, math.nan, math.inf, -math.inf]
WHOLE = [0, 1, -1, 63, 64, -65, 127, 128, 300, -8192, 2**31 - 1, -(2**31), 2**40, -(2**62), 2**63 - 1, -(2**63)]
TEXTS = ["", "a", "naïve ✈", "x" * 70, "\U0001f6eb" * 3]
LISTS = [pa.list_(pa.float32()), pa.list_(pa.float64()), pa.list_(pa.float32(), 2), pa.list_(pa.float64(), 2)]
NUMBERS = [pa.float32(), pa.float64()]
INTEGERS = [pa.int64(), pa.int32(), pa.int8(), pa.uint64(), pa.uint8(), *NUMBERS]
STAMPS = [pa.timestamp(unit, "UTC") for unit in ("s", "ms", "us", "ns")]
CARRIES = {
    "null": [pa.string(), pa.float64(), pa.list_(pa.float32(), 2)],
    "boolean": [pa.bool_()],
    "int": INTEGERS,
    "long": INTEGERS,
    "float": NUMBERS,
    "double": NUMBERS,
    "string": [pa.string(), pa.binary()],
    "bytes": [pa.string(), pa.binary()],
    "enum": [pa.string()],
    "timestamp-millis": STAMPS,
    "timestamp-micros": STAMPS,
    "date": [pa.date32()],
}
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


class Refused(Exception):
    """The plain law's word for a reject."""


# -- a world of random writers ----------------------------------------------------------------------------------------


def a_type(rng: random.Random, deep: int = 2) -> object:
    """Some Avro type, as JSON."""
    simple = rng.choice(
        ["null", "boolean", "int", "long", "float", "double", "string", "bytes", "enum", "fixed", "moment", "date"]
    )
    name = f"n{rng.getrandbits(64):x}"
    if deep and rng.random() < 0.45:
        shape = rng.choice(["optional", "optional", "array", "array", "map", "record", "union"])
        if shape == "optional":
            inner = a_type(rng, deep - 1)
            return inner if inner == "null" or isinstance(inner, list) else rng.sample(["null", inner], 2)
        if shape in ("array", "map"):
            inner = a_type(rng, deep - 1) if rng.random() < 0.3 else rng.choice(["float", "double", "int", "long", "string"])
            return {"type": shape, "items" if shape == "array" else "values": "int" if inner == "null" else inner}
        if shape == "union":
            return rng.sample(["null", "long", "double", "string"], 3)
        fields = [{"name": f"f{n}", "type": a_type(rng, deep - 1)} for n in range(rng.randint(1, 3))]
        return {"type": "record", "name": name, "fields": [*fields, {"name": "last", "type": "int"}]}
    return {
        "enum": {"type": "enum", "name": name, "symbols": ["A", "B", "C"]},
        "fixed": {"type": "fixed", "name": name, "size": rng.randint(1, 20)},
        "moment": {"type": "long", "logicalType": rng.choice(["timestamp-millis", "timestamp-micros"])},
        "date": {"type": "int", "logicalType": "date"},
    }.get(simple, simple)


def kind_of(node: object) -> str:
    return "union" if isinstance(node, list) else node if isinstance(node, str) else node["type"]


def column_for(node: object, rng: random.Random) -> pa.DataType | None:
    """A column that can take the type, or None."""
    if isinstance(node, list):
        inner = [branch for branch in node if branch != "null"]
        return column_for(inner[0], rng) if len(inner) == 1 and len(node) == 2 else None
    if kind_of(node) == "array":
        return rng.choice(LISTS) if kind_of(node["items"]) in ("int", "long", "float", "double") else None
    found = CARRIES.get(node.get("logicalType", node["type"]) if isinstance(node, dict) else node)
    return rng.choice(found) if found else None


def a_value(node: object, rng: random.Random) -> object:
    """What fastavro would give back for it; a branch of a union is a pair (number, value)."""
    kind = kind_of(node)
    if kind == "union":
        number = rng.randrange(len(node))
        return number, a_value(node[number], rng)
    if kind == "record":
        return {field["name"]: a_value(field["type"], rng) for field in node["fields"]}
    if kind == "array":
        size = 2 if rng.random() < 0.6 else rng.choice([0, 1, 3, 9])
        return [a_value(node["items"], rng) for _ in range(size)]
    if kind == "map":
        return {text: a_value(node["values"], rng) for text in rng.sample(TEXTS, rng.randint(0, 3))}
    if isinstance(node, dict) and "logicalType" in node:
        whole = {"date": 20_000, "timestamp-millis": 1_755_000_000_123, "timestamp-micros": 1_755_000_000_123_456}
        return rng.choice([whole[node["logicalType"]], -5, 0, -1_999] + ([] if kind == "int" else [2**62, -(2**61)]))
    return {
        "null": lambda: None,
        "boolean": lambda: rng.random() < 0.5,
        "int": lambda: rng.choice(WHOLE[:12]) if rng.random() < 0.3 else rng.randrange(100),
        "long": lambda: rng.choice(WHOLE) if rng.random() < 0.3 else rng.randrange(100),
        "float": lambda: struct.unpack("<f", struct.pack("<f", rng.gauss(0, 9)))[0],
        "double": lambda: rng.choice(FLOATS) if rng.random() < 0.2 else rng.gauss(0, 9),
        "string": lambda: rng.choice(TEXTS),
        "bytes": lambda: rng.choice([b"", b"plain", b"\xff\x00", "naïve".encode()]),
        "enum": lambda: rng.randrange(3),
        "fixed": lambda: rng.randbytes(node["size"] if kind == "fixed" else 0),
    }[kind]()


def varint(number: int) -> bytes:
    rest, out = (number << 1) ^ (number >> 63), bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*out, rest])


def encoded(node: object, value: object, rng: random.Random) -> bytes:
    """The value in bytes, arrays and maps in blocks of either form."""
    kind = kind_of(node)
    if kind == "union":
        return varint(value[0]) + encoded(node[value[0]], value[1], rng)
    if kind == "record":
        return b"".join(encoded(field["type"], value[field["name"]], rng) for field in node["fields"])
    if kind == "array":
        return in_blocks([encoded(node["items"], item, rng) for item in value], rng)
    if kind == "map":
        return in_blocks([encoded("string", k, rng) + encoded(node["values"], v, rng) for k, v in value.items()], rng)
    if kind in ("string", "bytes"):
        raw = value.encode() if isinstance(value, str) else value
        return varint(len(raw)) + raw
    simple = {"null": "", "boolean": "<?", "float": "<f", "double": "<d"}
    if kind in simple:
        return struct.pack(simple[kind], value) if simple[kind] else b""
    return value if kind == "fixed" else varint(value)


def in_blocks(items: list[bytes], rng: random.Random) -> bytes:
    out = b""
    while items:
        size = rng.randint(1, len(items)) if rng.random() < 0.3 else len(items)
        block = b"".join(items[:size])
        out += varint(-size) + varint(len(block)) + block if rng.random() < 0.3 else varint(size) + block
        items = items[size:]
    return out + b"\0"


def damaged(body: bytes, rng: random.Random) -> bytes:
    """Cut off, flipped or with something behind it."""
    way = rng.randrange(3)
    if way == 0:
        return body[: rng.randrange(len(body))]
    if way == 1:
        at = rng.randrange(len(body))
        return body[:at] + bytes([body[at] ^ 1 << rng.randrange(8)]) + body[at + 1 :]
    return body + rng.randbytes(rng.randint(1, 9))


# -- the plain law ----------------------------------------------------------------------------------------------------


def plain(node: object) -> object:
    """The type without logical types: fastavro's answer for it is the number itself."""
    if isinstance(node, list):
        return [plain(branch) for branch in node]
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if key != "logicalType"}
    kept |= {key: plain(kept[key]) for key in ("items", "values") if key in kept}
    if "fields" in kept:
        kept["fields"] = [{"name": field["name"], "type": plain(field["type"])} for field in kept["fields"]]
    return kept


def by_law(node: object, value: object, field: pa.Field) -> object:
    """The column's value, or Refused."""
    kind = field.type
    if value is None:
        if not field.nullable:
            raise Refused
        return None
    if isinstance(node, list):
        node = next(branch for branch in node if branch != "null")
    if pa.types.is_integer(kind):
        info = np.iinfo(kind.to_pandas_dtype())
        return value if info.min <= value <= info.max else refuse()
    if kind in NUMBERS:
        return number_by_law(value, kind)
    if pa.types.is_timestamp(kind):
        return moment_by_law(value, PER_SECOND["ms" if node["logicalType"].endswith("millis") else "us"], kind.unit)
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        if pa.types.is_fixed_size_list(kind) and len(value) != kind.list_size:
            raise Refused
        return [number_by_law(item, kind.value_type) for item in value]
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    if pa.types.is_binary(kind):
        return raw
    if pa.types.is_string(kind):
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise Refused from None
    return value if kind != pa.date32() or -719_162 <= value <= 2_932_896 else refuse()


def number_by_law(value: float, kind: pa.DataType) -> float:
    if not abs(value) <= (FLOAT32 if kind == pa.float32() else 1.7976931348623157e308):
        raise Refused
    return float(kind.to_pandas_dtype()(float(value))) + 0.0


def moment_by_law(value: int, per_second: int, unit: str) -> int:
    first, last = (-9_214_560_000, 9_214_646_400) if unit == "ns" else (-62_135_596_800, 253_402_300_800)
    if not first * per_second <= value < last * per_second:
        raise Refused
    return value * PER_SECOND[unit] // per_second


def refuse() -> None:
    raise Refused


def by_fastavro(parsed: object, writer: dict, body: bytes, payload: list[pa.Field]) -> dict | None:
    """The row, or None for a reject."""
    stream = io.BytesIO(body)
    types = {field["name"]: field["type"] for field in writer["fields"]}
    try:
        found = fastavro.schemaless_reader(stream, parsed, None, handle_unicode_errors="surrogateescape")
        if stream.tell() != len(body):
            return None
        return {field.name: by_law(types.get(field.name), found.get(field.name), field) for field in payload}
    except Exception:  # noqa: BLE001 fastavro raises whatever comes up
        return None


# -- a case -----------------------------------------------------------------------------------------------------------


def writer_of(**types: object) -> str:
    fields = [{"name": name, "type": node} for name, node in types.items()]
    return json.dumps({"type": "record", "name": "Event", "fields": fields})


def a_case(rng: random.Random) -> tuple[dict, pa.Schema, list[bytes], list[bool]]:
    nodes = {f"c{n}": a_type(rng) for n in range(rng.randint(1, 8))}
    fields = [pa.field("not_there", pa.float64())] if rng.random() < 0.2 else []
    for name, node in nodes.items():
        column = column_for(node, rng)
        if column is not None and rng.random() < 0.8:
            fields.append(pa.field(name, column, nullable=rng.random() < 0.6))
    rng.shuffle(fields)
    writer = json.loads(writer_of(**nodes))
    bodies = [encoded(writer, a_value(writer, rng), rng) for _ in range(rng.randint(1, 12))]
    wrong = [bool(body) and rng.random() < 0.25 for body in bodies]
    return writer, pa.schema(fields), [damaged(b, rng) if w else b for b, w in zip(bodies, wrong, strict=True)], wrong
