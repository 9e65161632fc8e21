"""Evidence with what the gateways have counted since the newest window: what a controller, a person and a page look at alike.

It knows which counts are news, and no gate. A decision that used them writes them into the journal before itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.release_board import Board
from monitoring.evidence import COUNTED, Evidence, Served, fold_entry
from security.served import Count, LiveCounts


def with_news(known: Evidence, counted: Mapping[str, Any] | None) -> Evidence:
    """The evidence, and these counts with it."""
    return known if counted is None else fold_entry(known, COUNTED, counted)


def news(live: LiveCounts, task: str, board: Board, known: Evidence) -> dict[str, Any] | None:
    """Live counts of the steps under test that the journal does not have, as `served.counted` holds them; None without any."""
    wanted = {taken.epoch for one in board.rollouts.values() if one.live for taken in one.taken}
    if not wanted:
        return None
    total: dict[int, list[Count]] = {}
    for row in live.total(task):
        total.setdefault(row[0], []).append(row)
    found = [row for epoch in sorted(wanted & set(total)) if _grown(total[epoch], known) for row in total[epoch]]
    return {"served": found} if found else None


def _grown(rows: Sequence[Count], known: Evidence) -> bool:
    """Whether an epoch's counts go beyond the journal's. Fewer requests than there: rows were forgotten, which is no news."""
    before = [known.live.get((epoch, arm), Served(epoch, arm)) for epoch, arm, *_ in rows]
    same = [Served(*row) for row in rows] == before
    return not same and all(row[2] >= old.requests for row, old in zip(rows, before, strict=True))
