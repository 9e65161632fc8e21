"""Evidently's look at a window: pinned column tests for every window, the full HTML page on demand.

The one place that imports Evidently, and only inside functions (4 to 5 CPU seconds). Its figures are shown and kept
beside our own and decide nothing: its dataset flag (half of the columns) saw none of three real drifts in trials, and
its default tests change with the size of the reference, so methods and thresholds are pinned here. It does not know
windows or files.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monitoring.reference import DriftError, FeatureKind, columns_of, labels, sample_of
from monitoring.two_sample import SMALLEST_EXPECTED

if TYPE_CHECKING:
    from evidently import Dataset

NUMERIC_METHOD, CATEGORICAL_METHOD = "ks", "chisquare"
FAMILY_ALPHA = 0.05  # divided by the number of columns: at most one quiet window in twenty shows a drifted column
RARE = "(rare or new)"
REFERENCE_ROWS = 2000  # of 5,000 kept: the tests see a shift of .15 sd, at 60 % of the time
C = TypeVar("C", bound=Callable[..., Any])


def _quietly(call: C) -> C:
    """Without numpy's "invalid value" warnings: Evidently correlates columns that are constant in a window."""

    @functools.wraps(call)
    def quiet(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return call(*args, **kwargs)

    return cast(C, quiet)


@dataclass(frozen=True, slots=True)
class ColumnTests:
    """How many of `tested` columns Evidently calls drifted, their names, the p below which it does, its JSON text."""

    drifted: int
    tested: int
    columns: tuple[str, ...]
    threshold: float
    text: str


@_quietly
def column_tests(
    reference: Mapping[str, ArrayLike], columns: Mapping[str, ArrayLike], kinds: Mapping[str, FeatureKind]
) -> ColumnTests:
    """Run the column tests of a window against rows of the reference (at most 2,000, evenly spaced).

    The light path: a count for each column and no figures, a third of a CPU second for 20 columns. Both hold columns of
    shape (n,) or (n, k) with the same names. Raises DriftError for columns that cannot be compared; what Evidently
    raises goes through.
    """
    from evidently import Report
    from evidently.metrics import DriftedColumnsCount

    current, history, names = _datasets({name: _thinned(column) for name, column in reference.items()}, columns, kinds)
    pinned = _pinned(len(names))
    metrics = [DriftedColumnsCount(columns=[name], **pinned) for name in names]
    found = Report(metrics, include_tests=False).run(current, history)
    counts = [metric["value"]["count"] for metric in found.dict()["metrics"]]
    drifted = tuple(name for name, count in zip(names, counts, strict=True) if count)
    return ColumnTests(len(drifted), len(names), drifted, pinned["num_threshold"], found.json())


def _thinned(column: ArrayLike) -> NDArray[Any]:
    rows = np.asarray(column)
    return rows[:: -(-len(rows) // REFERENCE_ROWS)] if len(rows) > REFERENCE_ROWS else rows


@_quietly
def html_report(
    reference: Mapping[str, ArrayLike], columns: Mapping[str, ArrayLike], kinds: Mapping[str, FeatureKind]
) -> bytes:
    """Evidently's whole drift page, one self-contained HTML file (4 MB and 60 kB a column, 3 to 4 CPU seconds).

    It holds inline scripts: show it in a sandboxed frame, never inside another page.
    """
    from evidently import Report
    from evidently.presets import DataDriftPreset

    current, history, names = _datasets(reference, columns, kinds)
    snapshot = Report([DataDriftPreset(**_pinned(len(names)))], include_tests=False).run(current, history)
    return str(snapshot.get_html_str(as_iframe=False)).encode()


def _pinned(columns: int) -> dict[str, Any]:
    threshold = FAMILY_ALPHA / columns
    return {
        "num_method": NUMERIC_METHOD,
        "cat_method": CATEGORICAL_METHOD,
        "num_threshold": threshold,
        "cat_threshold": threshold,
    }


def _datasets(
    reference: Mapping[str, ArrayLike], columns: Mapping[str, ArrayLike], kinds: Mapping[str, FeatureKind]
) -> tuple[Dataset, Dataset, list[str]]:
    """(window, reference) as Evidently's data sets, and the columns both have."""
    import pandas as pd
    from evidently import DataDefinition, Dataset
    from evidently.telemetry import event_logger

    event_logger.enabled = False
    ours, theirs = columns_of(reference), columns_of(columns)
    names = [name for name in kinds if name in ours and name in theirs]
    if not names:
        raise DriftError(f"reference and window share none of {sorted(kinds)[:5]}: build the reference again")
    pairs = {name: _pair(sample_of(ours[name], kinds[name]), theirs[name], kinds[name]) for name in names}
    definition = DataDefinition(
        numerical_columns=[name for name in names if kinds[name] == "numeric"],
        categorical_columns=[name for name in names if kinds[name] == "categorical"],
    )
    frames = [pd.DataFrame({name: pair[side] for name, pair in pairs.items()}) for side in (0, 1)]
    history, current = (Dataset.from_pandas(frame, data_definition=definition) for frame in frames)
    return current, history, names


def _pair(ours: NDArray[Any], theirs: NDArray[Any], kind: FeatureKind) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both sides in a form Evidently's tests accept. Its chi-square divides by the reference's counts, so categories
    that expect fewer than 5 rows in this window are pooled, together with those the reference never had."""
    if kind == "numeric":
        return ours.astype(np.float64), theirs.astype(np.float64)
    before, now = labels(ours), labels(theirs)
    names, counts = np.unique(before, return_counts=True)
    rows = zip(names.tolist(), (counts * (len(now) / len(before))).tolist(), strict=True)
    expected = dict(sorted(rows, key=lambda row: -row[1]))
    kept = [name for name, count in expected.items() if count >= SMALLEST_EXPECTED]
    if set(kept) != expected.keys() | set(now.tolist()):
        while len(kept) > 1 and sum(expected.values()) - sum(expected[name] for name in kept) < SMALLEST_EXPECTED:
            kept.pop()
    return np.where(np.isin(before, kept), before, RARE), np.where(np.isin(now, kept), now, RARE)
