"""JSON values for the tests of the decoders: every edge case by its name, times in every spelling, and random records."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa

KINDS = [
    pa.string(), pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(),
    pa.uint64(), pa.float32(), pa.float64(), pa.list_(pa.float32(), 3), pa.list_(pa.float64(), 1), pa.list_(pa.float32()),
    pa.list_(pa.float64()), *(pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC")),
    pa.timestamp("us", "Europe/Vienna"), pa.date32(),
]  # fmt: skip
SCHEMA = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
        pa.field("small", pa.int8()),
        pa.field("size", pa.uint64()),
        pa.field("x", pa.float64(), nullable=False),
        pa.field("narrow", pa.float32()),
        pa.field("note", pa.string()),
        pa.field("flag", pa.bool_(), nullable=False),
        pa.field("at", pa.timestamp("us", "UTC")),
        pa.field("near", pa.list_(pa.float32(), 2)),
        pa.field("path", pa.list_(pa.float64())),
    ]
)
GOOD = {
    "event_id": "e", "count": 5, "small": -7, "size": 2**64 - 1, "x": 0.1, "narrow": 2.5, "note": "naïve ✈ \U0001f600",
    "flag": True, "at": "2013-06-03T08:00:00.000001Z", "near": [1, -2.5], "path": [0.5],
}  # fmt: skip


def body(**changes):
    """A good record of SCHEMA, with some fields changed or more."""
    return json.dumps({**GOOD, **changes}).encode()


def raw(**texts):
    """The same with some fields in another spelling, text or bytes; None = without the field."""
    spelled = {name: json.dumps(value) for name, value in GOOD.items()} | texts
    pairs = [(name, text.encode() if isinstance(text, str) else text) for name, text in spelled.items()]
    return b"{%s}" % b", ".join(b'"%s": %s' % (name.encode(), text) for name, text in pairs if text is not None)


ABSENT = dict.fromkeys(("small", "size", "narrow", "note", "at", "near", "path"))
DBL_MAX, FLT_MAX = 1.7976931348623157e308, float(np.finfo(np.float32).max)

# Good records that must be read with the others of their batch, in whatever spellings those are.
FAST = {
    "pretty": json.dumps(GOOD, indent=2).encode(),
    "pretty CRLF": json.dumps(GOOD, indent=1).replace("\n", "\r\n").encode(),
    "blanks around": b" \t" + body() + b"\r\n",
    "null": body(small=None),
    "null for most": body(**ABSENT),
    "null with blanks": raw(small=None)[:-1] + b',"small" : \nnull }',
    "null of an escaped name": raw(small=None)[:-1] + b',"\\u0073mall":null}',
    "null of a name that ends escaped": raw(small=None)[:-1] + b',"smal\\u006c":null}',
    "null list": body(near=None, path=None),
    "escaped name": body().replace(b'"event_id"', b'"event\\u005fid"'),
    "integer for float": body(x=3),
    "large integer for float": body(x=2**63 + 1),
    "very large integer for float": raw(x="1" * 300),
    "very many digits": raw(x="0." + "1234567890" * 600),
    "int64": raw(count=str(-(2**63))),
    "-0": raw(x="-0", count="-0", small="-0"),
    "-0.0": raw(x="-0.0", narrow="-0.0", near="[-0.0, -0]", path="[-0e9]"),
    "underflow": raw(x="-1e-999", narrow="-1e-60", near="[-1e-60, 1e-46]"),
    "subnormal": raw(x="5e-324", narrow="1e-45"),
    "exponents": raw(x="1E+5", narrow="1e-05", path="[1e5, 1E5, 1.0e0]"),
    "empty path": body(path=[]),
    "long path": body(path=list(range(999))),
    "a pair": raw(note='"\\ud83d\\ude00 \\uD83D\\uDE00"'),
    "escapes": raw(note='"\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\u20AC"'),
    "escaped NUL": raw(note='"a\\u0000b"'),
    "separators of lines": raw(note='"\u2028\u2029\x7f\x85"'),
    "text like JSON": raw(note='"\\"small\\":null}{\\n:null"'),
}
# What the Decoder must be asked about: most are bad, some are good in a spelling that is not sure.
ALONE = {
    "tombstone": None,
    "empty": b"",
    "blank": b" ",
    "line": b"\n",
    "NUL": b"\0",
    "brace": b"{",
    "braces": b"{}",
    "closing brace": b"}",
    "blank brace": b" {",
    "array": b"[]",
    "scalar": b"7",
    "null document": b"null",
    "string": b'"x"',
    "garbage": b"\xff\xfe",
    "array of objects": b"[" + body() + b"]",
    "two documents": body() + body(),
    "two documents on two lines": body() + b"\n" + body(),
    "NUL and a document": body() + b"\0" + body(),
    "NUL behind": body() + b"\0",
    "NUL in a string": raw(note=b'"a\0b"'),
    "BOM": b"\xef\xbb\xbf" + body(),
    "UTF-16": body().decode().encode("utf-16"),
    "truncated": body()[:-9],
    "truncated at a brace": b'{"x": {}',
    "open string with a brace": b'{"x": "}',
    "string to the next line": b'{"note": "}',
    "single quotes": b"{'a': 1}",
    "comment": raw(count="1/*x*/"),
    "many blanks": b" " * 9 + body() + b"\n" * 9,
    "vertical tab": raw(count=b"\x0b1"),
    "no-break space": raw(count="\u00a01"),
    "trailing comma": body()[:-1] + b",}",
    "no comma": body().replace(b",", b"", 1),
    "missing": raw(count=None),
    "missing and nullable": raw(small=None),
    "missing, but in a string": raw(small=None, note=json.dumps('"small": null')),
    "missing, a string begins like it": raw(small=None, note='":null"'),
    "missing, a string ends like it": raw(small=None, note='"small\\":null"'),
    "null with many blanks": raw(small=None)[:-1] + b',"small"   :    null}',
    "null where it must not be": body(count=None),
    "null in a list": body(path=[None]),
    "Null": raw(small="Null"),
    "unknown": body(extra=1),
    "unknown null": body(extra=None),
    "unknown object": body(extra={"small": None}),
    "twice": body()[:-1] + b', "x": 1}',
    "twice, once null": body(small=None)[:-1] + b', "small": 1}',
    "twice, once escaped": body()[:-1] + b', "\\u0078": 1}',
    "null twice": body(small=None)[:-1] + b', "small": null}',
    "twice in place of another": raw(small=None)[:-1] + b', "x": 1}',
    "text for integer": body(count="5"),
    "float for integer": body(count=5.0),
    "exponent for integer": raw(count="5e0"),
    "true for integer": body(count=True),
    "list for integer": body(count=[5]),
    "object for text": body(note={}),
    "number for text": body(note=5),
    "integer for boolean": body(flag=1),
    "True": raw(flag="True"),
    "text for float": body(x="1"),
    "too large integer for float": raw(x="1" * 400),
    "just beyond float64": raw(x=str(int(DBL_MAX) + 1)),
    "the largest float64": raw(x=repr(DBL_MAX)),
    "just beyond float32": raw(narrow=str(int(FLT_MAX) + 1)),
    "the largest float32": raw(narrow=repr(FLT_MAX)),
    "beyond float32": raw(narrow="3.5e38"),
    "rounded into float32": raw(narrow="3.4028235e38"),
    "more digits than an integer has": raw(x="9" * 5000),
    "int64 overflow": raw(count=str(2**63)),
    "int8 overflow": body(small=128),
    "uint64 overflow": raw(size=str(2**64)),
    "negative size": body(size=-1),
    "-0 without a sign": raw(size="-0"),
    "1e999": raw(x="1e999"),
    "-1e999": raw(x="-1e999"),
    "NaN": raw(x="NaN"),
    "Infinity": raw(narrow="Infinity"),
    "-Infinity": raw(x="-Infinity"),
    "Inf": raw(x="Inf"),
    "NaN in a list": raw(path="[NaN]"),
    "NaN for integer": raw(count="NaN"),
    "leading zero": raw(x="01"),
    "leading plus": raw(x="+1"),
    "no digit before": raw(x=".5"),
    "no digit after": raw(x="5."),
    "hexadecimal": raw(x="0x1"),
    "underscore": raw(x="1_0"),
    "short list": body(near=[1]),
    "long list": body(near=[1, 2, 3]),
    "empty list": body(near=[]),
    "true in a list": body(near=[1, True]),
    "text in a list": body(path=["1"]),
    "list in a list": body(path=[[1]]),
    "overflow in a list": raw(near="[1, 3.5e38]"),
    "high surrogate": raw(note='"\\ud800"'),
    "low surrogate": raw(note='"\\udc00x"'),
    "two high ones": raw(note='"\\ud83d\\ud83d\\ude00"'),
    "bad escape": raw(note='"\\x41"'),
    "short escape": raw(note='"\\u12"'),
    "not UTF-8": raw(note=b'"\xff"'),
    "overlong": raw(note=b'"\xc0\xaf"'),
    "raw surrogate": raw(note=b'"\xed\xa0\x80"'),
    "beyond Unicode": raw(note=b'"\xf4\x90\x80\x80"'),
    "half a character": raw(note=b'"\xe2\x82"'),
    "half a character and an escape": raw(note=b'"\xc3\\u00a9"'),
    "not UTF-8 in a name": raw()[:-1] + b',"\xff":1}',
    "not UTF-8 in a time": raw(at=b'"2013-06-03T08:00:00\xff"'),
    "no time": body(at="yesterday"),
    "no such day": body(at="2013-02-29T08:00:00Z"),
    "time without a zone": body(at="2013-06-03T08:00:00"),
    "comma between documents": body() + b"," + body(),
    "name in another case": body().replace(b'"x"', b'"X"'),
    "deep": raw(x="[" * 100_000),
    "deep and closed": raw(path="[" * 5000 + "]" * 5000),
    "deep unknown": raw()[:-1] + b',"z":' + b'{"z":' * 3000 + b"1" + b"}" * 3001,
}
EDGES = {**FAST, **ALONE}
# Those of them that are read at once among values of one shape, that of `body()`.
SHAPED = FAST.keys() - {
    "pretty", "pretty CRLF", "blanks around", "null with blanks", "null of an escaped name", "empty path", "escaped name",
    "null of a name that ends escaped", "text like JSON",
}  # fmt: skip

TIMES = [
    "2013-06-03T08:00:00Z", "2013-06-03 08:00:00.1+02:00", "2013-06-03T08:00:00.123456-23:59", "2013-06-03T08:00Z",
    "2013-06-03T08:00:00.123456789Z", "2013-06-03", "2013-06-03T08", "2013-06-03T08:00", "2013-06-03T08:00:00",
    "2013-06-03t08:00:00", "2013-06-03_08:00:00", "20130603T080000Z", "2013-W23-1T08:00:00Z", "2013-154",
    "2013-06-03T08:00:00,5Z", "2013-06-03T08:00:00.Z", "2013-06-03T08:00:00z", "2013-06-03T08:00:00+0200",
    "2013-06-03T08:00:00+02", "2013-06-03T08:00:00+02:00:30", "2013-06-03T08:00:00-00:00", "2013-06-03T08:00:00+24:00",
    "2013-06-03T08:00:00+02:60", "2013-06-03T24:00:00Z", "2013-06-03T08:60:00Z", "2013-06-03T08:00:60Z",
    "2013-02-29T00:00:00Z", "2012-02-29T00:00:00Z", "1900-02-29T00:00:00Z", "2000-02-29T00:00:00Z", "0000-02-29T00:00:00Z",
    "0004-02-29T00:00:00Z", "2013-04-31T00:00:00Z", "2013-13-01T00:00:00Z", "2013-00-01T00:00:00Z", "2013-01-00T00:00:00Z",
    "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+00:01", "0001-01-01T00:00:00-00:01", "0000-12-31T23:59:59-23:59",
    "9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.9999999Z", "9999-12-31T23:59:00-00:01", "10000-01-01T00:00:00Z",
    "-2013-06-03T08:00:00Z", "1969-12-31T23:59:59.999999Z", "1582-10-10T00:00:00Z", "1677-12-31T23:59:59.999999Z",
    "1678-01-01T00:00:00Z", "2261-12-31T23:59:59.999999999Z", "2262-01-01T00:00:00Z", "2261-12-31T23:59:59-00:01",
    "2013-06-03T08:00:00Z ", " 2013-06-03T08:00:00Z", "2013-06-03T08:00:00Z\n", "２013-06-03T08:00:00Z", "", "now",
    "1370246400",
]  # fmt: skip

_NUMBERS = [
    "0", "-0", "-0.0", "1", "3", "1.0", "-2.5e3", "1E+2", "1e-7", "0.1", "5e-324", "1e-46", "123456789012345678901234567890",
    "9007199254740993", "3.4028234663852886e38", "3.4028235677973366e38", "1.7976931348623157e308", "1.7976931348623159e308",
    "1e400", "-1e400", "0.30000000000000004441", "1e-99999999999999999999", "0e99999999999999999999", "1e+00005", "-0e-5",
    "1" + "0" * 400 + "e-400", "0." + "0" * 400 + "1e400", "2.2250738585072011e-308", "179769313486231580793e289",
    "0.500000000000000166533453693773481063544750213623046875", "1e22", "1e23", "8.41e21", "9.5e-46", "16777217",
]  # fmt: skip
_STRINGS = [
    "", "a", "naïve", "✈", "\U0001f600", '":null', 'a":null', "null", "}\n{", "\\", '"', "\x00", "\x7f", "}{", "é" * 50,
    ": null", "NaN",
]  # fmt: skip
_INSERTS = [
    b"\x00", b"\n", b" ", b"\t", b",", b":", b'"', b"{", b"}", b"[", b"]", b"\\", b"null", b"NaN", b"-", b"0", b"e", b"\xff",
    b"\xc3", b"\xed\xa0\x80", b"\\ud800", b"true", b"1", b'":null',
]  # fmt: skip
_TEXTS = ["null", "NaN", "1e999", "{}", '{"a":null}', "[]", "[null]", "true", '"x"', "1.5", '"\\ud800"', *_NUMBERS]
STYLES = [
    (",", ":", ""), (", ", ": ", ""), (",\n  ", ": ", "\n"), (", ", ":", " "), (",\n  ", " : ", "\n"), ("\r\n,", "\t:\n", " "),
]  # fmt: skip


def _text(kind, draw, between=(",",)):
    """A value of the type as JSON text, now and then at its limits or beyond."""
    if pa.types.is_string(kind):
        few = [chr(draw.choice([9, 34, 92, 127, 233, 8364, 0x1F600])) for _ in range(3)]
        return json.dumps(draw.choice([*_STRINGS, "".join(few)]), ensure_ascii=draw.random() < 0.5)
    if pa.types.is_boolean(kind):
        return draw.choice(["true", "false"])
    if pa.types.is_integer(kind):
        info = np.iinfo(kind.to_pandas_dtype())
        low, high = int(info.min), int(info.max)
        beyond = draw.random() < 0.002
        return str(draw.choice([low - 1, high + 1] if beyond else [0, 1, low, high, draw.randint(low, high)]))
    if pa.types.is_temporal(kind):
        return json.dumps(draw.choice(TIMES) if draw.random() < 0.005 else _time(kind, draw))
    if pa.types.is_floating(kind):
        return draw.choice(_NUMBERS) if draw.random() < 0.05 else repr(draw.gauss(0, 10.0 ** draw.randint(-9, 9)))
    size = kind.list_size if pa.types.is_fixed_size_list(kind) and draw.random() < 0.99 else draw.randint(0, 4)
    return "[" + draw.choice(between).join(_text(kind.value_type, draw) for _ in range(size)) + "]"


def _time(kind, draw):
    days = draw.randrange(3_652_000) if "[ns" not in str(kind) and draw.random() < 0.3 else 700_000 + draw.randrange(99_000)
    moment = datetime(1, 1, 2) + timedelta(days=days, microseconds=draw.randrange(86_400 * 10**6))
    if pa.types.is_date(kind):
        return moment.date().isoformat()
    text = moment.isoformat(draw.choice("T "), draw.choice(["auto", "milliseconds", "minutes"]))
    return text + (draw.choice(["Z", "+00:00", "-05:30", "+14:00"]) if kind.tz else "")


def record(schema, draw, style=None):
    """A random record: its bytes, in a style or in one of many spellings, and its (name, text) pairs."""
    between = (",", ", ", "\n,\t") if style is None else (", ",) if style[0] == ", " else (",",)
    pairs = []
    for field in schema:
        escaped = "".join(f"\\u{ord(char):04x}" for char in field.name)
        null = field.nullable and draw.random() < 0.3
        name = json.dumps(field.name) if style or draw.random() < 0.98 else f'"{escaped}"'
        pairs.append((name, "null" if null else _text(field.type, draw, between)))
    if not style and draw.random() < 0.3:
        draw.shuffle(pairs)
    comma, colon, edge = style or draw.choice(STYLES)
    return ("{" + edge + comma.join(name + colon + text for name, text in pairs) + edge + "}").encode(), pairs


def damaged(value, pairs, draw):
    """The record with one thing changed, which may leave it good."""
    at, way = draw.randrange(len(value) + 1), draw.randrange(12)
    if way == 0:
        return value[:at] + draw.choice(_INSERTS) + value[at:]
    if way == 1:
        return value[:at] + bytes([draw.randrange(256)]) + value[at + 1 :]
    if way == 2:
        return value[:at] + value[at + draw.randint(1, 9) :]
    if way == 3:
        whole = [value + value, b"[" + value + b"]", b" " + value + b"\n", b"\xef\xbb\xbf" + value, value + b"\0"]
        return draw.choice([None, b"", b"null", value[:at], *whole])
    if way == 4:
        return value[:at] + value[draw.randrange(len(value)) :]
    return _changed(list(pairs), way, draw)


def _changed(pairs, way, draw):
    number = draw.randrange(len(pairs))
    name, text = pairs[number]
    if way == 5:
        del pairs[number]
    elif way == 6:
        pairs.append(draw.choice([(name, text), ('"zz"', "null"), ('"zz"', "1"), (name, "null")]))
    elif way == 7:
        pairs[number] = (draw.choice(['"zz"', name.upper(), pairs[0][0]]), text)
    else:
        pairs[number] = (name, draw.choice([*_TEXTS, _text(draw.choice(KINDS), draw)]))
    return ("{" + ",".join(f"{name}:{text}" for name, text in pairs) + "}").encode()
