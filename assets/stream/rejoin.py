"""A batch that was decoded in parts, each by the format that reads it: rows and rejects back in offset order.

This file does not know formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from assets.stream.batch import Batch
from assets.stream.decode import Decoded, Rejected


def rejoined(batch: Batch, schema: pa.Schema, parts: Sequence[Decoded], poison: Mapping[int, str]) -> Decoded:
    """parts: of some records each, all of this schema. poison: index in the batch -> reason, of records in no part.

    A rejected record is the batch's own, whatever was cut off or put in before its part was decoded.
    """
    poison = dict(poison)
    for part in parts:
        rows = np.searchsorted(batch.offsets, [rejected.record.offset for rejected in part.rejects]).tolist()
        poison |= {row: rejected.error for row, rejected in zip(rows, part.rejects, strict=True)}
    table = pa.concat_tables([schema.empty_table(), *(part.table for part in parts)]) if len(parts) != 1 else parts[0].table
    if len(parts) > 1:
        table = table.take(pa.array(np.argsort(table["_offset"].to_numpy())))
    return Decoded(table, [Rejected(batch.record(row), poison[row]) for row in sorted(poison)])
