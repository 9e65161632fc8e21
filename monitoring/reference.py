"""The reference of the drift tests: what the inputs looked like in public history, small enough to keep in memory.

A numeric feature is its sorted values (as quantiles when there are many), a categorical one its counts; a sample of
whole rows is kept beside them for reports. Built once for each base, one .npz without pickle. It carries the
calibration that was made with it, and does not know the tests.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from security import disk

FeatureKind = Literal["numeric", "categorical"]
Floats = NDArray[np.float64]

# So many quantiles stand for any number of rows: the distribution function is off by at most 1/16,384, a tenth of a
# standard error for windows of 600,000 rows.
MAX_QUANTILES = 8_192
SAMPLE_ROWS = 5_000
FEW_VALUES = 10  # a number with at most so many distinct values (a flag, a level) is a category
MISSING = "(missing)"


class DriftError(ValueError):
    """A reference or window the tests cannot be run on; the message says what and the cure."""


@dataclass(frozen=True, slots=True)
class Numeric:
    """Finite values in ascending order (at most MAX_QUANTILES of them) and the standard deviation of all; of `rows`
    rows `missing` had no finite value."""

    values: Floats
    sd: float
    rows: int
    missing: int

    @property
    def finite(self) -> int:
        """How many values `values` stands for."""
        return self.rows - self.missing

    @property
    def kind(self) -> FeatureKind:
        """The name of this kind."""
        return "numeric"


@dataclass(frozen=True, slots=True)
class Categorical:
    """Rows by category; a missing value is a category of its own."""

    counts: Mapping[str, int]

    @property
    def rows(self) -> int:
        """All rows, the missing ones included."""
        return sum(self.counts.values())

    @property
    def kind(self) -> FeatureKind:
        """The name of this kind."""
        return "categorical"


@dataclass(frozen=True, slots=True)
class Usual:
    """Effect sizes of a feature's blocks in the reference: their median, and how regular they are (gamma shape)."""

    effect: float
    shape: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How much blocks of the reference differ from the rest of it.

    `usual`: by feature, the effect sizes of blocks against the rest.
    `threshold`: the drifted share that a new block like these exceeds with probability `rate`. `blocks` were used, of
    `block_rows` rows at the median; 0 blocks: nothing was measured, rows are taken as independent.
    """

    threshold: float = 0.0
    rate: float = 0.05
    blocks: int = 0
    block_rows: int = 0
    usual: Mapping[str, Usual] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reference:
    """All features of the history by name, a `sample` of at most SAMPLE_ROWS whole rows, evenly spaced, and what blocks
    of the history vary by."""

    features: Mapping[str, Numeric | Categorical]
    rows: int
    sample: Mapping[str, NDArray[Any]]
    calibration: Calibration = field(default_factory=Calibration)

    @property
    def kinds(self) -> dict[str, FeatureKind]:
        """The kind of each feature."""
        return {name: feature.kind for name, feature in self.features.items()}

    def usual(self, name: str) -> float | None:
        """The effect a block of the reference has at the median; None without a calibration."""
        row = self.calibration.usual.get(name)
        return None if row is None else row.effect

    def save(self, path: Path) -> None:
        """Write one .npz: to a temporary name, flushed to the disk, then renamed."""
        numeric = [(i, f) for i, f in enumerate(self.features.values()) if isinstance(f, Numeric)]
        arrays: dict[str, Any] = {f"n{i}": feature.values for i, feature in numeric}
        arrays |= {f"s{i}": self.sample[name] for i, name in enumerate(self.features)}
        meta = {
            "format": 1,
            "rows": self.rows,
            "calibration": asdict(self.calibration),
            "features": [_described(name, feature) for name, feature in self.features.items()],
        }
        packed = io.BytesIO()
        np.savez_compressed(packed, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays)
        disk.put(path, packed.getvalue())

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what `save` wrote. Raises DriftError when the file is missing or not one of ours."""
        try:
            with np.load(path, allow_pickle=False) as packed:
                meta = json.loads(packed["meta"].tobytes())
                features = {
                    row["name"]: Categorical(row["counts"])
                    if "counts" in row
                    else Numeric(packed[f"n{i}"], row["sd"], row["rows"], row["missing"])
                    for i, row in enumerate(meta["features"])
                }
                sample = {name: packed[f"s{i}"] for i, name in enumerate(features)}
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DriftError(f"drift reference {path} cannot be read ({error}): build it again from history") from error
        stored = meta["calibration"]
        usual = {name: Usual(**row) for name, row in stored.pop("usual").items()}
        return cls(features, meta["rows"], sample, Calibration(usual=usual, **stored))


def _described(name: str, feature: Numeric | Categorical) -> dict[str, Any]:
    if isinstance(feature, Categorical):
        return {"name": name, "counts": dict(feature.counts)}
    return {"name": name, "sd": feature.sd, "rows": feature.rows, "missing": feature.missing}


def columns_of(columns: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
    """Columns as (n,) arrays: a column of shape (n, k) becomes `name[0]` ... `name[k-1]`.

    Raises DriftError when there are none, when lengths differ, or when a column has another shape.
    """
    flat: dict[str, NDArray[Any]] = {}
    for name, given in columns.items():
        column = np.asarray(given)
        if column.ndim == 1:
            flat[name] = column
        elif column.ndim == 2:
            flat |= {f"{name}[{k}]": column[:, k] for k in range(column.shape[1])}
        else:
            raise DriftError(f"column {name} has shape {column.shape}: wanted (n,) or (n, k)")
    lengths = {len(column) for column in flat.values()}
    if len(lengths) != 1:
        raise DriftError(f"columns have {sorted(lengths) or 'no'} rows: all must have the same number")
    return flat


def infer_kinds(columns: Mapping[str, ArrayLike]) -> dict[str, FeatureKind]:
    """Numbers with more than FEW_VALUES distinct finite values are numeric, the rest (text, flags) categorical."""
    return {name: _kind(name, column) for name, column in columns_of(columns).items()}


def _kind(name: str, column: NDArray[Any]) -> FeatureKind:
    if column.dtype.kind in "mM":
        raise DriftError(f"column {name} is a time ({column.dtype}): leave it out, every window would differ")
    if column.dtype.kind not in "iuf":
        return "categorical"
    return "numeric" if len(np.unique(finite(column))) > FEW_VALUES else "categorical"


def finite(column: NDArray[Any]) -> Floats:
    """The finite values as float64; NaN and infinity are missing."""
    values = column.astype(np.float64)
    return values[np.isfinite(values)]


def labels(column: NDArray[Any]) -> NDArray[np.str_]:
    """Category labels, shape (n,). Numbers are written so that 1, 1.0 and True are the same category."""
    if column.dtype.kind in "biuf":
        values, place = np.unique(column.astype(np.float64), return_inverse=True)
        names = [f"{value:.12g}" if math.isfinite(value) else MISSING for value in values]
        return np.array(names, dtype=np.str_)[place]
    return np.array([MISSING if value is None or value != value else str(value) for value in column], dtype=np.str_)


def counted(column: NDArray[Any]) -> dict[str, int]:
    """Rows by category label."""
    names, counts = np.unique(labels(column), return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def feature_of(column: NDArray[Any], kind: FeatureKind, name: str = "") -> Numeric | Categorical:
    """The reference form of one (n,) column."""
    if kind == "categorical":
        return Categorical(counted(column))
    values = np.sort(finite(column))
    if len(values) == 0:
        raise DriftError(f"feature {name} has no finite value in {len(column)} rows of history: leave it out")
    return Numeric(_thinned(values, MAX_QUANTILES), float(values.std()), len(column), len(column) - len(values))


def sample_of(column: NDArray[Any], kind: FeatureKind) -> NDArray[Any]:
    """At most SAMPLE_ROWS values of an (n,) column, evenly spaced: the same rows for every column of one history."""
    rows = _thinned(column, SAMPLE_ROWS)
    return rows.astype(np.float64) if kind == "numeric" else labels(rows)


def _thinned(column: NDArray[Any], most: int) -> NDArray[Any]:
    if len(column) <= most:
        return column
    return column[((np.arange(most) + 0.5) * len(column) / most).astype(int)]
