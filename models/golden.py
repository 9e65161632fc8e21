"""Golden sets: public rows by which one sees whether a regime is still known, as a task supplies them.

`golden()` gives one set, {column: values}, or one a regime, {regime: {column: values}}. It knows their form and which answers
to them are right. It does not know windows (golden rows of production are found in assets/regimes.py), anchors or floors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from models.retention import HISTORY, correct
from models.task import NAME, Columns, Task

if TYPE_CHECKING:
    from models.predictor import Predictor


class GoldenRefused(ValueError):
    """What `golden()` gives is no golden set; the message says what was found and the form that is wanted."""


def golden_sets(task: Task) -> dict[str, Columns]:
    """{regime: labelled public columns}; one set is the regime "history", {} for a task without. Raises GoldenRefused."""
    golden = getattr(task, "golden", None)
    if golden is None:
        return {}
    found: Any = golden()
    if not isinstance(found, Mapping) or not found:
        raise _refused(task, f"gave {type(found).__name__}, empty or no mapping")
    nested = [isinstance(value, Mapping) for value in found.values()]
    if any(nested) and not all(nested):
        raise _refused(task, "mixes regimes and columns")
    sets: dict[str, Columns] = dict(found) if all(nested) else {HISTORY: found}
    for regime, columns in sets.items():
        if not NAME.fullmatch(regime):
            raise _refused(task, f"names a regime {regime!r}, which must match {NAME.pattern}")
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1 or not all(lengths.values()):
            raise _refused(task, f"gave columns of lengths {lengths} for regime {regime!r}, wanted one length above 0")
    return sets


def _refused(task: Task, found: str) -> GoldenRefused:
    wanted = "{column: array} or {regime: {column: array}}"
    return GoldenRefused(f"task {task.name}: golden() {found}; return {wanted} of public rows with labels (docs/retention.md)")


def right_answers(predictor: Predictor, columns: Columns) -> np.ndarray:
    """Which rows this version answers rightly, bool (n,). Raises ValueError where right and wrong are not defined."""
    return correct(predictor.answers(columns), np.asarray(predictor.task.target(columns)))
