"""The rules of a task's schemas: its rows as records of the stream, read back as every window reads them; and rows of it.

Knows the JSON reader and the columns it leads to; no broker. Values of another format are not tried here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from assets.stream.batch import pack
from assets.stream.decode import Decoded
from assets.stream.formats import EVENT_ID
from assets.stream.json_columns import JsonColumns
from assets.stream.log import Record
from assets.windows.columns import columns_of
from models.conformance import FEW, Broken, Case, Rule, arrays, first_difference
from models.golden import golden_sets
from models.task import Task

ROWS = 64


def rows_of(task: Task) -> tuple[dict[str, np.ndarray], str]:
    """Rows to try a task on, evenly from its history, its golden set, or made from its schemas; and where they are from.

    What the task's own methods do wrong is for their rules to say: here the next source is taken.
    """
    wanted = {*task.event.names, *task.label.names}
    user: Any = task
    sources: dict[str, Callable[[], Any]] = {
        "history": lambda: user.history(),
        "golden": lambda: next(iter(golden_sets(task).values())),
    }
    for source, give in sources.items():
        try:
            found = dict(give())
            count = min(len(found[name]) for name in wanted)
        except Exception:  # noqa: BLE001, S112
            continue
        if count:
            chosen = np.linspace(0, count - 1, ROWS).astype(np.int64)
            return {name: np.asarray(column)[chosen] for name, column in found.items()}, f"{source}()"
    return {field.name: _made(field.type) for field in [*task.event, *task.label]}, "rows made from the schemas"


def _made(kind: pa.DataType) -> np.ndarray:
    draw = np.random.default_rng(7)
    if pa.types.is_fixed_size_list(kind):
        return draw.normal(size=(ROWS, kind.list_size)).astype(np.float32)
    if pa.types.is_floating(kind):
        return draw.normal(size=ROWS)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return draw.integers(0, 2, ROWS).astype(kind.to_pandas_dtype())
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return np.datetime64("2026-01-01T00:00", "s") + np.arange(ROWS).astype("timedelta64[m]")
    if pa.types.is_list(kind):
        return _objects([draw.normal(size=3).tolist() for _ in range(ROWS)])
    return _objects([f"e{number}" for number in range(ROWS)])


def _objects(values: list[Any]) -> np.ndarray:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def round_trip(case: Case) -> str:
    """Rows written as JSON records come back, each of them, and are encoded as before."""
    task = case.task
    if both := (set(task.event.names) & set(task.label.names)) - {EVENT_ID}:
        raise Broken(f"field {min(both)!r} is in the event and in the label schema: rename one of them")
    if not case.streamed:
        return "not tried: the records are not JSON"
    columns = case.few()
    for side in case.streamed:
        schema = getattr(task, side)
        read = _read(schema, [_document(schema, columns, row) for row in range(FEW)])
        if read.rejects:
            where = f"{side} made of {case.source}"
            raise Broken(f"{where} is rejected, {read.rejects[0].error}: correct the schema or the row")
        columns |= columns_of(read.table.drop_columns([name for name in read.table.column_names if name.startswith("_")]))
    one, other = (arrays(task.encode(found)) for found in (case.few(), columns))
    if (row := first_difference(one, other)) is not None:
        raise Broken(f"row {row} is encoded differently after it came through the stream: history has other types than `event`")
    return f"{len(task.event.names)} fields of an event, {len(task.label.names)} of a label"


def nulls(case: Case) -> str:
    """Nulls where the schema allows them, and NaN where a float can be one: encoded, without an effect on other rows."""
    known = arrays(case.task.encode(case.few()))
    tried = [f for f in case.task.event if f.name != EVENT_ID and (f.nullable or pa.types.is_floating(f.type))]
    for fields in [*([field] for field in tried), *([tried] * bool(tried))]:
        named = f"field {fields[0].name!r}" if len(fields) == 1 else f"all {len(fields)} fields that can be null"
        for rows in ([0], list(range(FEW))):
            columns = case.few()
            columns |= {field.name: _without(field.type, columns[field.name], rows) for field in fields}
            found = arrays(_encoded(case, columns, named))
            others, before = (tuple(part[len(rows) :] for part in parts) for parts in (found, known))
            if first_difference(before, others) is not None:
                raise Broken(f"a null in {named} of row 0 changes how other rows are encoded: each row by itself")
            if all(f.nullable for f in fields) and not all(np.isfinite(part).all() for part in found if part.dtype.kind == "f"):
                raise Broken(
                    f"a null in {named} becomes an input that is not finite: fill it in encode, or set nullable=False in the "
                    "event schema, and such a record is set aside"
                )
    return f"{len(tried)} fields, each and together, in one row and in all" if tried else "no field can be null"


def _encoded(case: Case, columns: Mapping[str, np.ndarray], named: str) -> Any:
    try:
        return case.task.encode(columns)
    except Exception as error:
        raise Broken(
            f"encode fails on a null in {named} with {type(error).__name__}: {error}; fill it there, or set nullable=False in "
            "the event schema"
        ) from error


def _without(kind: pa.DataType, column: np.ndarray, rows: list[int]) -> np.ndarray:
    """The column with nulls in these rows, in the type the stream gives."""
    values = [None if row in rows else _plain(value) for row, value in enumerate(column)]
    return columns_of(pa.table({"field": pa.array(values, kind)}))["field"]


def _document(schema: pa.Schema, columns: Mapping[str, np.ndarray], row: int) -> dict[str, Any]:
    """One row as JSON carries it; NaN is null."""
    document = {}
    for field in schema:
        value = _plain(columns[field.name][row])
        if pa.types.is_timestamp(field.type) or pa.types.is_date(field.type):
            value = pa.scalar(value, field.type).as_py().isoformat() if value is not None else None
        document[field.name] = None if isinstance(value, float) and value != value else value
    return document


def _plain(value: Any) -> Any:
    """A numpy value as Python has it."""
    if isinstance(value, np.datetime64):
        return value.astype("datetime64[us]").item()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _read(schema: pa.Schema, documents: list[dict[str, Any]]) -> Decoded:
    """The records as the sealing of a window reads them."""
    values = [json.dumps(document, allow_nan=False).encode() for document in documents]
    records = [Record(0, offset, 0, None, value) for offset, value in enumerate(values)]
    return JsonColumns(schema, (EVENT_ID,)).decode(pack(0, 0, len(records), records))


RULES = (
    Rule("schema round trip", round_trip, ("encode repeats",)),
    Rule("nulls", nulls, ("encode row-wise", "schema round trip")),
)
