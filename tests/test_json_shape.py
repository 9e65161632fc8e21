"""What a shape accepts, the Decoder accepts too, with the same values; and plain values of one style it does accept."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pytest

from assets.stream.decode import Decoder
from assets.stream.json_lines import Lines
from assets.stream.json_shape import ROWS_AT_ONCE, shape_of
from assets.stream.log import Record

RAW = pa.schema(
    [
        ("id", pa.string()), ("n", pa.int64()), ("size", pa.uint64()), ("a long name of a field", pa.float64()),
        ("x", pa.float64()), ("ok", pa.bool_()), ("path", pa.list_(pa.float64())), ("é", pa.string()),
    ]
)  # fmt: skip
NAMES = ["x", "id", "a long name of a field", "ok", "é", "n", "path", "size"]  # in another order than the schema's
STYLES = [(",", ":", ""), (", ", ": ", ""), (",\n ", ":\t", "\n"), (", ", ":   ", " ")]
GOOD = {
    pa.string(): ['"e"', '""', '"naïve"', '"\\u00e9\\n\\"\\ud83d\\ude00"', '" : , } {"', "null"],
    pa.int64(): ["0", "-5", "9223372036854775807", "-9223372036854775808", "-0", "null"],
    pa.uint64(): ["0", "7", "18446744073709551615", "10", "100", "null"],
    pa.float64(): ["0", "-1.25", "1e5", "-2.5E-07", "123456789012345678901234567890", "null"],
    pa.bool_(): ["true", "false", "null", "true", "false", "true"],
    pa.list_(pa.float64()): ["[1]", "[-0.5]", "[1e3]", "[-0.5, 1e3, 0]", "[1.5, 2]", "null"],
}
ODD = [
    "01", "-01", "+1", ".5", "5.", "-", "-.5", "1.2.3", "1e", "1e+", "0x1", "NaN", "inf", "Infinity", "1_0", "1 ", " 1", "1,",
    "9223372036854775808", "-9223372036854775809", "18446744073709551616", "1.0", "", "nul", "True", "truefalse", '"', '"a',
    '"a"b"', '"\\x"', '"\\ud800"', '"a\n"', "'a'", "[]", "[1", "[1, ]", "[, 1]", "[null]", "[[1]]", '["1"]', "{}", "1--2",
    "--1", "1.-2", "1e5e5", "１", "-0", "[1,2]", '"\x7f"', '"\ud7ff"', "1e400", '"a":"b"', 'null,"b":null', '"\\": "',
]  # fmt: skip


def spelled(texts, style):
    comma, colon, edge = style
    between = ", " if comma == ", " else ","
    texts = [text.replace(", ", between) if text.startswith("[") else text for text in texts]
    pairs = (json.dumps(name, ensure_ascii=False) + colon + text for name, text in zip(NAMES, texts, strict=True))
    return ("{" + edge + comma.join(pairs) + edge + "}").encode()


def good(number):
    return [GOOD[RAW.field(name).type][(number + place) % 6] for place, name in enumerate(NAMES)]


def read(shape, values):
    """Row -> fields, of the rows that are accepted; but for infinity, which is for json_fields.py to refuse."""
    lines = Lines(pa.array(values, pa.binary()))
    rows, table = shape.read(lines.text, lines.edges)
    found = dict(zip(rows.tolist(), table.to_pylist(), strict=True))
    return {row: fields for row, fields in found.items() if "inf" not in repr(list(fields.values()))}


def due(values):
    """The same by the Decoder."""
    table = Decoder(RAW).decode(Record(0, row, 0, None, value) for row, value in enumerate(values)).table
    return dict(zip(table["_offset"].to_pylist(), table.select(RAW.names).to_pylist(), strict=True))


@pytest.mark.parametrize("style", STYLES)
def test_the_style_of_one_value_is_the_shape_of_all_that_have_it(style):
    values = [spelled(good(number), style) for number in range(6)]
    others = [spelled(good(0), other) for other in STYLES if other != style]
    others += [b"", None, b"{}", values[0][:-1], values[0] * 2, values[0] + b" ", b" " + values[0]]
    others += [values[0].replace(b"id", b"ie"), values[0].replace(b"long", b"lung")]
    found = read(shape_of(values[0], RAW), values + others + values)
    after = len(values) + len(others)
    assert list(found) == [*range(6), *range(after, after + 6)]
    assert found == {row: fields for row, fields in due(values + others + values).items() if row in found}


@pytest.mark.parametrize("name", NAMES)
def test_no_value_is_accepted_that_the_decoder_refuses_or_reads_otherwise(name):
    texts = []
    for odd in ODD:
        text = good(0)
        text[NAMES.index(name)] = odd
        texts.append(text)
    values = [spelled(text, STYLES[1]) for text in texts]
    found, wanted = read(shape_of(spelled(good(0), STYLES[1]), RAW), values), due(values)
    assert found == {row: wanted[row] for row in found}
    assert {ODD[row] for row in wanted.keys() - found.keys()} <= {"[]", "[1,2]", "-0", " 1", "1 ", '"\\": "'}


def test_whatever_is_changed_what_is_accepted_is_what_the_decoder_reads():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    shape = shape_of(spelled(good(0), STYLES[1]), RAW)
    values = []
    for number in range(5000):
        value = bytearray(spelled(good(number), STYLES[1]))
        for _ in range(draw.choice([1, 1, 2])):
            at = draw.randrange(len(value))
            value[at : at + draw.choice([0, 1, 1, 2])] = bytes([draw.choice(b'0123456789.-+eE",:{}[] \\\n\x00ntra')])
        if value.decode(errors="ignore").encode() == value:  # other text is for json_fields.py to find
            values.append(bytes(value))
    found, wanted = read(shape, values), due(values)
    assert found == {row: wanted[row] for row in found}
    assert len(found) > 0.5 * len(wanted) > 200


def test_more_values_than_are_read_at_once_keep_their_rows():
    values = [spelled(good(number), STYLES[0]) for number in range(6)] * (ROWS_AT_ONCE // 3)
    values[ROWS_AT_ONCE + 1] = b"poison"
    found = read(shape_of(values[0], RAW), values)
    assert list(found) == [row for row in range(len(values)) if row != ROWS_AT_ONCE + 1]
    assert found[len(values) - 1] == due(values[5:6])[0]


def test_names_that_are_short_or_at_the_begin_of_the_text_are_found():
    for name in ("", "a", "abcdef", "abcdefg", "abcdefgh", "x" * 40):
        schema = pa.schema([(name, pa.int64()), ("b", pa.int64())])
        values = [b'{"%s":%d,"b":2}' % (name.encode(), number) for number in range(3)] + [b'{"%s":1,"c":2}' % name.encode()]
        assert list(read(shape_of(values[0], schema), values)) == [0, 1, 2]
        assert list(read(shape_of(values[0], schema), [b"[" + values[0][1:], *values])) == [1, 2, 3]
        assert list(read(shape_of(values[0], schema), [b'[7x":1}', *values])) == [1, 2, 3]


def test_what_only_looks_like_the_fixed_texts_at_an_end_of_the_text_is_no_shape():
    nameless = pa.schema([("", pa.string()), ("b", pa.int64())])
    good = b'{"":"e","b":2}'
    assert list(read(shape_of(good, nameless), [b'[7":"a{","b":2}', good])) == [1]
    alone = pa.schema([("a", pa.int64())])
    assert list(read(shape_of(b'{"a":1}', alone), [b'{"a":12', b"}", b'{"a":1}'])) == [2]
    assert list(read(shape_of(b'{"a":   1 }', alone), [b'{"a":   }', b'{"a":    }', b'{"a":   1 }', b'{"a":   }'])) == [2]
    assert read(shape_of(b'{"a":1}', alone), [b"", b"{}"]) == {}


@pytest.mark.parametrize(
    "value",
    [
        b"", b"[]", b"null", b"\xff", b'{"a":1}', b'{"a":1,"b":2,"c":3}', b'{"a" :1,"b":2}', b'{"\\u0061":1,"b":2}',
        b'{"a":":","b":2}', b'{"a":"x\\":","b":2}', b'{"a":1,"a":1}', b'{"a":1,"b":2}' + b" " * 9,
        b'{"a":"' + b"x" * 70_000 + b'","b":2}',
    ],
    ids=range(13),
)  # fmt: skip
def test_a_value_that_is_another_or_not_so_simple_has_no_shape(value):
    assert shape_of(b'{"a":1,"b":2}', pa.schema([("a", pa.string()), ("b", pa.int64())])) is not None
    found = shape_of(value, pa.schema([("a", pa.string()), ("b", pa.int64())]))
    assert found is None
