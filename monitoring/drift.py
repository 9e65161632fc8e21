"""Drift: do a window's inputs still look like the reference? Our own decision, in numpy.

Each feature gets a two-sample test (Kolmogorov-Smirnov or chi-square) and an effect size. Rows of a real stream hang
together (storms, campaigns), so any day differs from any season by every such test: a feature must also differ by more
than blocks of the reference usually do. Benjamini-Hochberg corrects for the number of features, a window counts when
more of them drift than in 95 % of the reference's blocks, and an alarm needs two such windows of the last three, or
one feature that drifts in all three.

It does not know alarms, files or reports. It does not see a changed relation between features whose own distributions
stay the same (a multivariate test is a later step), nor concept drift, which needs labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monitoring.drift_config import DriftConfig
from monitoring.reference import (
    Calibration,
    Categorical,
    DriftError,
    FeatureKind,
    Numeric,
    Reference,
    Usual,
    columns_of,
    counted,
    feature_of,
    finite,
    infer_kinds,
    sample_of,
)
from monitoring.two_sample import (
    aligned,
    benjamini_hochberg,
    cramers_v,
    homogeneity_p,
    kolmogorov_p,
    ks_distance,
    wasserstein,
)

__all__ = [
    "Calibration",
    "DriftConfig",
    "DriftError",
    "DriftResult",
    "Reference",
    "build_reference",
    "calibrate",
    "decide",
    "reason",
    "test_window",
]

State = Literal["DRIFT", "STEADY", "TOO_FEW", "ERROR"]
MAD_TO_SD = 1.4826  # of a normal
MOST_REGULAR = 10.0  # the largest gamma shape believed: a handful of blocks can look more alike than they are
BLOCK_ALPHA = 0.05
FLAG = " missing"
WINDOWS, NEEDED = 3, 2


@dataclass(frozen=True, slots=True)
class FeatureDrift:
    """One feature. `effect`: W1 distance in standard deviations of the reference (`w1_sd`, numeric), or Cramer's V of
    two samples of equal size (`cramers_v`, categorical, 0 to 1); `usual` is the effect a block of the reference has at
    the median (None: not calibrated). `p` is the larger of the row test's and the block test's, `adjusted` its
    Benjamini-Hochberg value."""

    name: str
    kind: FeatureKind
    p: float
    adjusted: float
    effect: float
    usual: float | None
    drifted: bool

    @property
    def effect_name(self) -> str:
        """The unit of `effect` and `usual`."""
        return "w1_sd" if self.kind == "numeric" else "cramers_v"

    def as_json(self) -> dict[str, Any]:
        """All figures, for the journal and the store."""
        return asdict(self) | {"effect_name": self.effect_name}


@dataclass(frozen=True, slots=True)
class DriftResult:
    """What the tests say about one window. `state` DRIFT: the share of drifted features passed the threshold (a
    candidate for an alarm, see `decide`); STEADY: it did not; TOO_FEW, ERROR: nothing is known, `message` says why."""

    state: State
    rows: int
    message: str
    features: tuple[FeatureDrift, ...] = ()
    share: float | None = None
    threshold: float | None = None
    untested: tuple[str, ...] = ()
    config: DriftConfig = field(default_factory=DriftConfig)

    @property
    def drifted(self) -> tuple[FeatureDrift, ...]:
        """The drifted features, biggest effect first."""
        return tuple(sorted((f for f in self.features if f.drifted), key=lambda f: -f.effect))

    def body(self, top: int = 10) -> dict[str, Any]:
        """For the journal: the figures, and the `top` features by p. `details` has all of them."""
        first = sorted(self.features, key=lambda f: (f.adjusted, -f.effect))[:top]
        return {
            "state": self.state,
            "rows": self.rows,
            "message": self.message,
            "tested": len(self.features),
            "drifted": [feature.name for feature in self.drifted],
            "share": self.share,
            "threshold": self.threshold,
            "q": self.config.q,
            "min_rows": self.config.min_rows,
            "top": [feature.as_json() for feature in first],
        }

    def details(self) -> dict[str, Any]:
        """For the store: the body with every feature, and the columns that were not in the reference."""
        every = [feature.as_json() for feature in self.features]
        return self.body() | {"features": every, "untested": list(self.untested)}


def build_reference(
    columns: Mapping[str, ArrayLike],
    config: DriftConfig,
    *,
    blocks: ArrayLike | None = None,
    kinds: Mapping[str, FeatureKind] | None = None,
) -> Reference:
    """The reference of public history: columns of shape (n,) or (n, k), and a block id (n,) for each row.

    Give as blocks what a live window will be (the day of each row when windows are days): the threshold is what blocks
    of that length vary by. Without blocks rows are taken as independent. Raises DriftError below `config.min_rows`.
    """
    flat, given = _prepared(columns, kinds)
    rows = len(next(iter(flat.values())))
    if rows < config.min_rows:
        raise DriftError(f"the reference has {rows} rows < min_rows {config.min_rows}: supply more history")
    features = {name: feature_of(column, given[name], name) for name, column in flat.items()}
    sample = {name: sample_of(column, given[name]) for name, column in flat.items()}
    plain = Reference(features, rows, sample)
    return plain if blocks is None else replace(plain, calibration=calibrate(columns, blocks, config, kinds=given))


def test_window(reference: Reference, columns: Mapping[str, ArrayLike], config: DriftConfig) -> DriftResult:
    """Test one window against the reference. Never raises: a detector that fails says ERROR, not "no drift"."""
    try:
        return _tested(reference, columns_of(columns), config)
    except Exception as error:  # noqa: BLE001 - whatever went wrong, the window was not tested, and that is the result
        cause = str(error) if isinstance(error, DriftError) else f"{type(error).__name__}: {error}"
        return DriftResult("ERROR", 0, f"drift detector failed: {cause}", config=config)


test_window.__test__ = False  # type: ignore[attr-defined]  # its name is the domain's; pytest must not collect it


def decide(bodies: Sequence[Mapping[str, Any]]) -> bool:
    """Alarm? See `reason`."""
    return bool(reason(bodies))


def reason(bodies: Sequence[Mapping[str, Any]]) -> str:
    """Why to alarm, in one sentence; "" for no alarm. `bodies` are the `drift.tested` entries of consecutive windows
    (`DriftResult.body`), the newest last.

    Two of the last three windows were DRIFT, or one feature drifted in all three: a shift of few features that stays is
    drift, a storm that moves many for a day is weather. A window without a result (TOO_FEW, ERROR) is no evidence of
    rest and none of drift.
    """
    last = bodies[-WINDOWS:]
    hits = [body for body in last if body["state"] == "DRIFT"]
    if len(hits) >= NEEDED:
        newest = hits[-1]
        return (
            f"{len(hits)} of the last {len(last)} windows drifted, the newest with share {newest['share']:.3f} > "
            f"{newest['threshold']:.3f}, most in {', '.join(newest['drifted'][:3])}"
        )
    lasting = [name for name in last[-1]["drifted"] if all(name in body["drifted"] for body in last)] if last else []
    if len(last) == WINDOWS and lasting:
        return f"{', '.join(lasting[:3])} drifted in each of the last {WINDOWS} windows"
    return ""


def _prepared(
    columns: Mapping[str, ArrayLike], kinds: Mapping[str, FeatureKind] | None
) -> tuple[dict[str, NDArray[Any]], dict[str, FeatureKind]]:
    """Columns and kinds, with a flag `<name> missing` for every numeric column that has missing values in history."""
    flat = columns_of(columns)
    given: dict[str, FeatureKind] = dict(kinds or infer_kinds(columns))
    if unknown := flat.keys() - given.keys():
        raise DriftError(f"no kind given for {', '.join(sorted(unknown))}: say numeric or categorical")
    for name in [name for name in flat if given[name] == "numeric"]:
        absent = ~np.isfinite(flat[name].astype(np.float64))
        if absent.any():
            flat[name + FLAG], given[name + FLAG] = absent, "categorical"
    return flat, given


def _tested(reference: Reference, columns: dict[str, NDArray[Any]], config: DriftConfig) -> DriftResult:
    rows = len(next(iter(columns.values())))
    if rows < config.min_rows:
        cure = "not tested; make windows longer or lower [drift] min_rows"
        return DriftResult("TOO_FEW", rows, f"{rows} rows < min_rows {config.min_rows}: {cure}", config=config)
    if missing := sorted(reference.features.keys() - columns.keys() - _flags(reference.features)):
        raise DriftError(f"the window lacks {', '.join(missing[:5])} of the reference: build the reference again")
    known = _with_flags(reference, columns)
    usual = reference.calibration.usual
    found = {name: _feature(feature, columns[name]) for name, feature in known.items()}
    p = {name: max(row_p, _block_p(effect, usual.get(name))) for name, (row_p, effect) in found.items()}
    adjusted = benjamini_hochberg(np.array(list(p.values()))).tolist()
    features = tuple(
        FeatureDrift(name, feature.kind, p[name], q, found[name][1], reference.usual(name), q <= config.q)
        for (name, feature), q in zip(known.items(), adjusted, strict=True)
    )
    share, threshold = sum(f.drifted for f in features) / len(features), reference.calibration.threshold
    state: State = "DRIFT" if share > threshold else "STEADY"
    message = f"drifted share {share:.3f} {'>' if share > threshold else '<='} threshold {threshold:.3f} in {rows} rows"
    untested = tuple(sorted(columns.keys() - known.keys()))
    return DriftResult(state, rows, message, features, share, threshold, untested, config)


def _flags(names: Iterable[str]) -> set[str]:
    return {name for name in names if name.endswith(FLAG)}


def _with_flags(reference: Reference, columns: dict[str, NDArray[Any]]) -> dict[str, Numeric | Categorical]:
    """The reference's features, and a flag for each column whose values are missing now but never were; `columns` gains
    every flag's own column."""
    known: dict[str, Numeric | Categorical] = dict(reference.features)
    for name, feature in reference.features.items():
        if isinstance(feature, Numeric):
            absent = ~np.isfinite(columns[name].astype(np.float64))
            if absent.any() or name + FLAG in known:
                columns[name + FLAG] = absent
                known.setdefault(name + FLAG, Categorical({"0": reference.rows}))
    return known


def _feature(feature: Numeric | Categorical, column: NDArray[Any]) -> tuple[float, float]:
    """(p of the row test, effect) of one feature; (1, 0) without a value to compare: its flag sees that."""
    if isinstance(feature, Categorical):
        ours, theirs = aligned(feature.counts, counted(column))
        return homogeneity_p(ours, theirs), cramers_v(ours, theirs)
    values = np.sort(finite(column))
    if len(values) == 0:
        return 1.0, 0.0
    p = kolmogorov_p(ks_distance(feature.values, values), feature.finite, len(values))
    return p, wasserstein(feature.values, values) / (feature.sd or 1.0)


def _block_p(effect: float, usual: Usual | None) -> float:
    """How likely a block differs this much: effects of blocks are read as gamma-distributed, by median and shape.

    0 when nothing is known: then the row test decides alone.
    """
    from scipy.special import gammaincc, gammainccinv

    if usual is None or usual.effect == 0:
        return 0.0
    return float(gammaincc(usual.shape, effect / usual.effect * gammainccinv(usual.shape, 0.5)))


def _usual(effects: Sequence[float]) -> Usual:
    """The median effect of blocks, and the gamma shape (median / spread)^2, the spread by median deviation.

    Independent rows have shapes of 5 to 10, days of weather 1 to 3: the longer the tail, the more a window must differ.
    """
    median = float(np.median(effects))
    spread = float(np.median(np.abs(np.array(effects) - median))) * MAD_TO_SD
    return Usual(median, min((median / spread) ** 2, MOST_REGULAR) if spread else MOST_REGULAR)


def calibrate(
    columns: Mapping[str, ArrayLike],
    blocks: ArrayLike,
    config: DriftConfig,
    *,
    kinds: Mapping[str, FeatureKind] | None = None,
) -> Calibration:
    """How much blocks of the reference differ from the rest of it: each block with `min_rows` rows is tested against
    all others.

    The threshold is the k-th smallest drifted share, k = ceil(0.95 (blocks + 1)): a new block of the same process
    exceeds it with probability <= 5 %. Below 19 blocks that is the largest share, and `rate` is 1 / (blocks + 1).
    """
    flat, given = _prepared(columns, kinds)
    ids, place = np.unique(np.asarray(blocks), return_inverse=True)
    rows = len(next(iter(flat.values())))
    if len(place) != rows:
        raise DriftError(f"{len(place)} block ids for {rows} rows: one each is needed")
    sizes = np.bincount(place, minlength=len(ids))
    chosen = np.flatnonzero((sizes >= config.min_rows) & (sizes < rows))
    if len(chosen) == 0:
        return Calibration(rate=config.q)
    members = np.split(np.argsort(place, kind="stable"), np.cumsum(sizes)[:-1])
    found = [_block_effects(flat[name], given[name], [members[block] for block in chosen]) for name in flat]
    usual = {name: _usual(effects) for name, (_, effects) in zip(flat, found, strict=True)}
    shares = [
        np.mean(benjamini_hochberg(np.array([
            max(p[block], _block_p(effects[block], usual[name])) for name, (p, effects) in zip(flat, found, strict=True)
        ])) <= config.q)
        for block in range(len(chosen))
    ]  # fmt: skip
    rank = min(math.ceil((1 - BLOCK_ALPHA) * (len(chosen) + 1)), len(chosen))
    return Calibration(
        threshold=float(np.sort(shares)[rank - 1]),
        rate=(len(chosen) + 1 - rank) / (len(chosen) + 1),
        blocks=len(chosen),
        block_rows=int(np.median(sizes[chosen])),
        usual=usual,
    )


def _block_effects(
    column: NDArray[Any], kind: FeatureKind, members: Sequence[NDArray[np.intp]]
) -> tuple[list[float], list[float]]:
    """(p, effect) of each block of one feature against the rest of it."""
    whole = feature_of(column, kind)
    found = [_block_effect(whole, column[rows]) for rows in members]
    return [p for p, _ in found], [effect for _, effect in found]


def _block_effect(whole: Numeric | Categorical, block: NDArray[Any]) -> tuple[float, float]:
    if isinstance(whole, Categorical):
        everything, inside = aligned(whole.counts, counted(block))
        return homogeneity_p(everything - inside, inside), cramers_v(everything - inside, inside)
    values = np.sort(finite(block))
    rest = whole.finite - len(values)
    if len(values) == 0 or rest == 0:
        return 1.0, 0.0  # the flag `<name> missing` sees such a block
    # The whole is a mixture of block and rest: any gap to the rest is the gap to the whole, times whole / rest.
    apart = whole.finite / rest
    p = kolmogorov_p(ks_distance(whole.values, values) * apart, rest, len(values))
    return p, wasserstein(whole.values, values) * apart / (whole.sd or 1.0)
