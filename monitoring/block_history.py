"""What past windows say of the noise a release has to decide in: block means by pair, their spread, how they hang together.

It reads the fold of the evidence and gives arrays. It knows no policy but the length of a block, and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from monitoring.evidence import BlockSum, Evidence

Series = NDArray[np.float64]
LEAST_BLOCKS = 5  # of a pair: the mean of fewer says nothing of their spread
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class BlockHistory:
    """Closed blocks of every pair that has enough. `residuals`: by pair, block means less the pair's own mean, oldest
    first, each (blocks,), widened by sqrt(n / (n - 1)) for the mean that was taken off."""

    means: tuple[float, ...] = ()  # of each pair: > 0, candidate better
    residuals: tuple[Series, ...] = ()
    examples: float = 0.0  # a block, at the median
    within: float = 0.0  # variance of single examples inside their block
    design_effect: float | None = None
    requests: float = 0.0  # a window, both arms
    windows: int = 0
    outcomes: float = 0.0  # units a window whose outcome is known, answered by stable
    cost: float | None = None  # their mean outcome, in [0, 1]

    @property
    def blocks(self) -> int:
        return sum(len(series) for series in self.residuals)

    @property
    def sd(self) -> float | None:
        """Standard deviation of a block mean, in units of the gate loss."""
        if not self.blocks:
            return None
        return float(np.sqrt(np.mean(np.concatenate(self.residuals) ** 2)))

    @property
    def gain(self) -> float | None:
        """Mean gain of the pair in the middle."""
        return float(np.median(self.means)) if self.means else None

    @property
    def lag_correlation(self) -> float | None:
        """Correlation of a block's mean with the one before, over all pairs."""
        pairs = [(series[:-1] @ series[1:], series @ series) for series in self.residuals]
        spread = sum(float(square) for _, square in pairs)
        return sum(float(product) for product, _ in pairs) / spread if spread > 0.0 else None


def block_history(evidence: Evidence, block: timedelta) -> BlockHistory:
    """The history in `evidence`; empty where no pair has LEAST_BLOCKS closed blocks."""
    pairs = []
    for pair in sorted(evidence.pairs):
        sums = [b for b in evidence.closed(pair, EPOCH, block) if b.n and np.isfinite([b.total, b.squares]).all()]
        if len(sums) >= LEAST_BLOCKS:
            pairs.append(sums)
    series = [np.array([b.mean for b in sums]) for sums in pairs]
    everything = [b for sums in pairs for b in sums]
    requests = sum(arm.requests for arm in evidence.served.values())
    return BlockHistory(
        means=tuple(float(s.mean()) for s in series),
        residuals=tuple((s - s.mean()) * np.sqrt(len(s) / (len(s) - 1)) for s in series),
        examples=float(np.median([b.n for b in everything])) if everything else 0.0,
        within=_within(everything),
        design_effect=_design_effect(pairs),
        requests=requests / len(evidence.windows) if evidence.windows else 0.0,
        windows=len(evidence.windows),
        outcomes=evidence.stable_outcome[0] / len(evidence.windows) if evidence.windows else 0.0,
        cost=evidence.forecast,
    )


def _within(sums: list[BlockSum]) -> float:
    """Pooled variance of single examples around the mean of their block."""
    spare = sum(b.n - 1 for b in sums)
    return max(0.0, sum(b.squares - b.n * b.mean**2 for b in sums)) / spare if spare else 0.0


def _design_effect(pairs: list[list[BlockSum]]) -> float | None:
    """How many times wider the mean of a block spreads than if its examples were independent: the F ratio of the
    variance between blocks to that within, at the median of the pairs. None without at least two examples a block."""
    ratios = []
    for sums in pairs:
        within = _within(sums)
        n = np.array([b.n for b in sums], dtype=np.float64)
        means = np.array([b.mean for b in sums])
        between = float(n @ (means - np.average(means, weights=n)) ** 2) / (len(sums) - 1)
        if within > 0.0:
            ratios.append(between / within)
    return float(np.median(ratios)) if ratios else None
