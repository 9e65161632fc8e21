"""Evidence: what the windows say about a pair of versions, as sums that merge in any order.

Two sources. *Shadow*: stable and candidate scored on the same matured examples, before anything is trained on them;
the difference of their losses is summed by block of maturity time. *Served*: requests, errors and slow requests by
routing epoch and arm, from the sealed predictions. One journal entry `evidence.scored` a window holds both; folding a
window a second time changes nothing.

A block (a day) is one observation because outcomes hang together: delays come in storms, and on flights a test that
took each event for an observation promoted 47 % of near-null pairs. A block may span windows and a window may span
blocks.

It knows arrays and sums. It does not know models, thresholds or rollouts, and never sees an event's content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from security.journal import stamp, unstamp

Pair = tuple[str, str]  # candidate, stable


@dataclass(frozen=True, slots=True)
class BlockSum:
    """Part of a block: `n` differences stable loss - candidate loss (> 0: candidate better), their sum and sum of
    squares.

    `bad` counts examples whose loss is not a finite number in either version; they are in no sum, and a pair with any
    of them gets the verdict ERROR."""

    block: int  # start, milliseconds UTC
    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    bad: int = 0

    def __add__(self, other: BlockSum) -> BlockSum:
        if other.block != self.block:
            raise ValueError(
                f"block {self.block} and block {other.block} are different blocks: only parts of one add up"
            )
        return BlockSum(
            self.block, self.n + other.n, self.total + other.total, self.squares + other.squares, self.bad + other.bad
        )

    @property
    def mean(self) -> float:
        return self.total / self.n if self.n else 0.0


@dataclass(frozen=True, slots=True)
class Served:
    """What one arm answered under one routing epoch. `slow` counts answered requests over the limit; errors are not
    slow."""

    epoch: int
    arm: str
    requests: int = 0
    errors: int = 0
    slow: int = 0

    def __add__(self, other: Served) -> Served:
        if (other.epoch, other.arm) != (self.epoch, self.arm):
            raise ValueError(f"{self.arm} of epoch {self.epoch} and {other.arm} of epoch {other.epoch} do not add up")
        return Served(
            self.epoch, self.arm, self.requests + other.requests, self.errors + other.errors, self.slow + other.slow
        )


def score(
    stable_losses: ArrayLike, candidate_losses: ArrayLike, matured_ms: ArrayLike, block: timedelta, origin_ms: int = 0
) -> list[BlockSum]:
    """Sums by block of maturity time. Three arrays of shape (n,): losses in nats, maturity in milliseconds UTC.

    Blocks start at `origin_ms + k * block`; pass the start of the stream's first window, so that day blocks and day
    windows have the same edges and no block is cut when a rollout starts."""
    stable = np.asarray(stable_losses, dtype=np.float64)
    candidate = np.asarray(candidate_losses, dtype=np.float64)
    matured = np.asarray(matured_ms, dtype=np.int64)
    if stable.ndim != 1 or not stable.shape == candidate.shape == matured.shape:
        shapes = f"{stable.shape}, {candidate.shape} and {matured.shape}"
        raise ValueError(
            f"losses and maturity times have shapes {shapes}: one value an example wanted, in the same order"
        )
    if stable.size == 0:
        return []
    length = _milliseconds(block)
    starts, index = np.unique((matured - origin_ms) // length, return_inverse=True)
    with np.errstate(invalid="ignore"):
        difference = stable - candidate
    good = np.isfinite(difference)
    kept, where = difference[good], index[good]
    n = np.bincount(where, minlength=starts.size)
    total = np.bincount(where, kept, minlength=starts.size)
    squares = np.bincount(where, kept * kept, minlength=starts.size)
    bad = np.bincount(index[~good], minlength=starts.size)
    return [
        BlockSum(int(starts[k]) * length + origin_ms, int(n[k]), float(total[k]), float(squares[k]), int(bad[k]))
        for k in range(starts.size)
    ]


def count_served(
    epochs: ArrayLike,
    arms: Sequence[str],
    failed: ArrayLike,
    latency_ms: ArrayLike,
    slow_ms: float,
    prediction_ids: Sequence[str] | None = None,
) -> list[Served]:
    """Requests by (epoch, arm) from a window's predictions; `failed` is true where the score is null.

    The recorder may repeat a prediction after a crash: with `prediction_ids` each id counts once."""
    epoch, fail = np.asarray(epochs, dtype=np.int64), np.asarray(failed, dtype=bool)
    slow = (np.asarray(latency_ms, dtype=np.float64) > slow_ms) & ~fail
    if not epoch.size == len(arms) == fail.size == slow.size:
        raise ValueError(
            f"columns of {epoch.size}, {len(arms)}, {fail.size} and {slow.size} predictions: equal lengths wanted"
        )
    seen: set[str] = set()
    counts: dict[tuple[int, str], Served] = {}
    for k in range(epoch.size):
        if prediction_ids is not None:
            if prediction_ids[k] in seen:
                continue
            seen.add(prediction_ids[k])
        key = (int(epoch[k]), arms[k])
        counts[key] = counts.get(key, Served(*key)) + Served(*key, 1, int(fail[k]), int(slow[k]))
    return [counts[key] for key in sorted(counts)]


def entry(
    window: str,
    end: datetime,
    pairs: Mapping[Pair, Sequence[BlockSum]],
    served: Sequence[Served] = (),
    coverage: float | None = None,
) -> dict[str, Any]:
    """The body of `evidence.scored` for one window: pairs with their partial blocks, requests by arm, label
    coverage."""
    return {
        "window": window,
        "end": stamp(end),
        "coverage": coverage,
        "pairs": [
            {"candidate": c, "stable": s, "blocks": [[b.block, b.n, b.total, b.squares, b.bad] for b in blocks]}
            for (c, s), blocks in sorted(pairs.items())
        ],
        "served": [[s.epoch, s.arm, s.requests, s.errors, s.slow] for s in served],
    }


@dataclass(frozen=True)
class Evidence:
    """The fold of all `evidence.scored` entries. `processed` is the end of the newest window scored. `void`: starts of
    blocks that touch an accepted gap of the stream; they do not count, also what was scored before the gap was known."""

    windows: frozenset[str] = frozenset()
    processed: datetime | None = None
    coverage: float | None = None
    pairs: Mapping[Pair, Mapping[int, BlockSum]] = field(default_factory=dict)
    served: Mapping[tuple[int, str], Served] = field(default_factory=dict)
    void: frozenset[int] = frozenset()

    def closed(self, pair: Pair, since: datetime, block: timedelta) -> list[BlockSum]:
        """The pair's whole blocks that start at `since` or later and lie before the processed time, oldest first."""
        if self.processed is None:
            return []
        length, first, last = _milliseconds(block), milliseconds(since), milliseconds(self.processed)
        sums = self.pairs.get(pair, {})
        return [sums[k] for k in sorted(sums) if k >= first and k + length <= last and k not in self.void]

    def arm(self, epoch: int, arm: str) -> Served:
        return self.served.get((epoch, arm), Served(epoch, arm))


def fold(evidence: Evidence, body: Mapping[str, Any]) -> Evidence:
    """Evidence after one entry; a window that was folded before changes nothing."""
    if body["window"] in evidence.windows:
        return evidence
    end = unstamp(body["end"])
    newest = evidence.processed is None or end > evidence.processed
    pairs = dict(evidence.pairs)
    for item in body["pairs"]:
        key = (item["candidate"], item["stable"])
        sums = dict(pairs.get(key, {}))
        for row in item["blocks"]:
            part = BlockSum(*row)
            sums[part.block] = sums[part.block] + part if part.block in sums else part
        pairs[key] = sums
    served = dict(evidence.served)
    for row in body["served"]:
        counts = Served(*row)
        served[counts.epoch, counts.arm] = evidence.arm(counts.epoch, counts.arm) + counts
    return replace(
        evidence,
        windows=evidence.windows | {body["window"]},
        processed=end if newest else evidence.processed,
        coverage=body.get("coverage") if newest else evidence.coverage,
        pairs=pairs,
        served=served,
        void=evidence.void | set((body.get("void") or {}).get("blocks", ())),
    )


def milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _milliseconds(length: timedelta) -> int:
    result = round(length.total_seconds() * 1000)
    if result <= 0:
        raise ValueError(f"block length {length} is not positive: use for example 1h or 1d")
    return result
