"""What one event and one label of the demo look like: fields, units, who knows them when, and their JSON.

An event is one scheduled departure, written at that time by a (simulated) system upstream of Kafka. It knows the names
and the shapes; it does not know how a value is computed (upstream.py) or what the model makes of it (flights.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from pipelines.demo.source import MEASURES

# Sums over labels that had arrived: (by, hours before the event). One hour of one destination or route is too thin.
ARRIVAL_SLOTS = tuple(
    (by, hours)
    for by in ("all", "origin", "carrier", "dest", "route", "origin_carrier")
    for hours in (1, 3, 24)
    if not (by in ("dest", "route") and hours == 1)
)
# Departures that were scheduled.
LOAD_SLOTS = tuple((by, hours) for by in ("all", "origin", "origin_carrier", "route") for hours in (1, 3))
# Flights that should have arrived and have not.
OVERDUE_SLOTS = tuple((by, hours) for by in ("all", "origin", "carrier", "dest") for hours in (3, 6))
# Each family is a column for each slot by "all", a reader's view, and one list column `<family>_by` for the others.
FAMILIES = {
    "late_share": ARRIVAL_SLOTS,
    "mean_delay": ARRIVAL_SLOTS,
    "arrivals": ARRIVAL_SLOTS,
    "overdue": OVERDUE_SLOTS,
    "overdue_share": OVERDUE_SLOTS,
    "flights": LOAD_SLOTS,
}
LAST_LEG_STATES = ("unknown", "arrived", "flying", "overdue")
LAST_LEG = ("last_leg_delay", "last_leg_hours_ago", "last_leg_spare_hours")

TEXT = ("event_id", "carrier", "origin", "dest", "scheduled_departure", "last_leg")
PLAN = ("local_hour", "weekday", "distance", "block_minutes", "dest_latitude", "dest_longitude")
WEATHER = (*MEASURES, "pressure_change_3h")


def slot_columns(family: str) -> tuple[str, ...]:
    """The scalar columns of a family, e.g. late_share_1h, in the order of its slots by "all" (they come first)."""
    return tuple(f"{family}_{hours}h" for by, hours in FAMILIES[family] if by == "all")


def list_column(family: str) -> str:
    """The list column of a family: one value for each slot that is not by "all"."""
    return f"{family}_by"


def slot_values(columns: Mapping[str, np.ndarray], family: str) -> np.ndarray:
    """All slots of a family side by side: (n, slots), float64, in the order of FAMILIES."""
    scalars = np.column_stack([np.asarray(columns[name], float) for name in slot_columns(family)])
    return np.hstack([scalars, np.asarray(columns[list_column(family)], float)])


def family_columns(family: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """The inverse of `slot_values`: (n, slots) -> the columns of the event."""
    scalars = slot_columns(family)
    columns = {name: values[:, k] for k, name in enumerate(scalars)}
    return columns | {list_column(family): values[:, len(scalars) :]}


def _family_fields(family: str) -> list[pa.Field]:
    others = len(FAMILIES[family]) - len(slot_columns(family))
    scalars = [pa.field(name, pa.float64()) for name in slot_columns(family)]
    return [*scalars, pa.field(list_column(family), pa.list_(pa.float32(), others))]


EVENT = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in TEXT),
        *(pa.field(name, pa.float64()) for name in (*PLAN, *WEATHER, *LAST_LEG)),
        *(field for family in FAMILIES for field in _family_fields(family)),
    ]
)
LABEL = pa.schema([("event_id", pa.string()), ("arr_delay", pa.int32()), ("arrived", pa.string())])


def iso(seconds: int) -> str:
    """Seconds since 1970 -> 2013-06-03T09:15:00Z."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Texts(dict[object, str]):
    """JSON texts by value, each made once: of 7.3 million numbers of the demo's stream 43,000 are different, which
    makes an event cost 20 microseconds instead of 60."""

    def __missing__(self, value: object) -> str:
        short = int(value) if isinstance(value, float) and value.is_integer() else value
        text = self[value] = json.dumps(short, allow_nan=False)
        return text


def documents(columns: Mapping[str, np.ndarray], schema: pa.Schema) -> Iterator[bytes]:
    """One JSON document a row, in row order; a missing number (NaN) becomes null. Raises ValueError for an infinity."""
    template = "{" + ",".join(f"{json.dumps(name)}:%s" for name in schema.names) + "}"
    texts = _Texts()
    values = [_texts_of(np.asarray(columns[name]), texts) for name in schema.names]
    for row in zip(*values, strict=True):
        yield (template % row).encode()


def _texts_of(column: np.ndarray, texts: _Texts) -> list[str]:
    if column.ndim == 2:
        parts = zip(*(_texts_of(part, texts) for part in column.T), strict=True)
        return [f"[{','.join(row)}]" for row in parts]
    missing = np.isnan(column) if column.dtype.kind == "f" else np.zeros(len(column), bool)
    plain = column.astype(object)
    plain[missing] = None
    return [texts[value] for value in plain.tolist()]
