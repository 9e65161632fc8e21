"""Golden rows: a fixed share of a window's examples, told by their event ids, from which no update ever learns.

They are marked when the window is joined, in a column of its file, and the share is in the entry: another share later marks
other windows' rows, never these. The place of an id is public in the sense of the accounting, for it follows from the
envelope alone; its salt, the digest of the first cut, is not known to those who send events, so that nobody can aim an
event at a golden set. Without a share there is no column. It does not know regimes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from assets.stream.formats import EVENT_ID
from models.split import bucket

GOLDEN = "_golden"


def marked(table: pa.Table, salt: str, share: float) -> tuple[pa.Table, int]:
    """The table with its golden rows marked, and how many they are; as it is when the share is 0."""
    if not share:
        return table, 0
    golden = [bucket(f"golden {salt} ", str(name)) < share for name in table.column(EVENT_ID).to_pylist()]
    return table.append_column(pa.field(GOLDEN, pa.bool_(), nullable=False), pa.array(golden, pa.bool_())), sum(golden)


def golden_rows(table: pa.Table) -> pa.Table:
    """The rows nobody has learnt from."""
    if GOLDEN not in table.column_names:
        return table.slice(0, 0)
    return table.filter(table.column(GOLDEN)).drop_columns([GOLDEN])


def learnable(table: pa.Table) -> pa.Table:
    """The rows an update may learn from."""
    if GOLDEN not in table.column_names:
        return table
    return table.filter(pc.invert(table.column(GOLDEN))).drop_columns([GOLDEN])


def learnable_count(joined: Mapping[str, Any]) -> int:
    """How many these are, from the body of `examples.joined`: the public count."""
    return int(joined["examples"]) - int(joined.get("golden", 0))
