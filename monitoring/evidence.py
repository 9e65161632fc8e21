"""Evidence: what the windows say about a pair of versions, as sums that merge in any order.

Three sources. *Shadow*: stable and candidate scored on the same matured examples, before anything is trained on them;
the difference of their losses is summed by block of maturity time, and once more for each protected slice. *Served*:
requests, errors and slow requests by routing epoch and arm, from the sealed predictions; between windows the controller
adds what the replicas have counted so far (`served.counted`). *Outcomes*: what users of each arm brought about, by
routing epoch, where that depends on what was answered. One journal entry `evidence.scored` a window holds them; folding
a window a second time changes nothing.

A block (a day) is one observation because outcomes hang together: delays come in storms, and on flights a test that
took each event for an observation promoted 47 % of near-null pairs. A block may span windows and a window may span
blocks.

It knows arrays and sums. It does not know models, thresholds or rollouts, and never sees an event's content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from monitoring.outcome import Outcome
from monitoring.sample_ratio import SampleRatio
from security.journal import Entry, Journal, Projection, stamp, unstamp

SCORED, COUNTED = "evidence.scored", "served.counted"
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
    if prediction_ids is not None:
        first: dict[str, int] = {}
        for place, name in enumerate(prediction_ids):
            first.setdefault(name, place)
        kept = np.fromiter(first.values(), dtype=np.int64, count=len(first))
        epoch, arms, fail, slow = epoch[kept], [arms[place] for place in kept], fail[kept], slow[kept]
    names, arm = np.unique(np.asarray(arms, dtype=str), return_inverse=True)
    keys, group = np.unique(np.stack([epoch, arm.ravel()]), axis=1, return_inverse=True)
    group = group.ravel()
    counts = [np.bincount(group, weights, minlength=keys.shape[1]).astype(int) for weights in (None, fail, slow)]
    found = [
        Served(int(e), str(names[a]), int(n), int(errors), int(late))
        for e, a, n, errors, late in zip(*keys, *counts, strict=True)
    ]
    return sorted(found, key=lambda one: (one.epoch, one.arm))


@dataclass(frozen=True, slots=True)
class Exposed:
    """What one window says of the units that were randomised in one routing epoch of a candidate: the tests on their
    mature outcomes, and how many of each arm were drawn, mature or not."""

    candidate: str
    epoch: int
    outcome: Outcome
    assigned: SampleRatio

    def to_row(self) -> list[Any]:
        drawn = self.assigned
        return [self.candidate, self.epoch, drawn.weight, drawn.canary, drawn.stable, self.outcome.to_row()]

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Exposed:
        candidate, epoch, weight, canary, stable, sums = row
        return cls(candidate, epoch, Outcome.from_row(sums), SampleRatio(weight, canary, stable))

    def __add__(self, other: Exposed) -> Exposed:
        return replace(self, outcome=self.outcome + other.outcome, assigned=self.assigned + other.assigned)


def entry(
    window: str,
    end: datetime,
    pairs: Mapping[Pair, Sequence[BlockSum]],
    served: Sequence[Served] = (),
    coverage: float | None = None,
    *,
    slices: Mapping[Pair, Mapping[str, Sequence[BlockSum]]] | None = None,
    exposed: Sequence[Exposed] = (),
    stable_outcome: tuple[int, float] = (0, 0.0),
    arm_coverage: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The body of `evidence.scored` for one window: pairs with their partial blocks, requests by arm, label
    coverage. `stable_outcome`: units that stable answered and the sum of their outcomes."""
    return {
        "window": window,
        "end": stamp(end),
        "coverage": coverage,
        "pairs": [
            {
                "candidate": pair[0], "stable": pair[1], "blocks": _rows(blocks),
                "slices": {name: _rows(sums) for name, sums in (slices or {}).get(pair, {}).items()},
            }
            for pair, blocks in sorted(pairs.items())
        ],
        "served": [[s.epoch, s.arm, s.requests, s.errors, s.slow] for s in served],
        "exposed": [one.to_row() for one in exposed],
        "stable_outcome": list(stable_outcome),
        "arm_coverage": dict(arm_coverage or {}),
    }


def _rows(blocks: Sequence[BlockSum]) -> list[list[float]]:
    return [[b.block, b.n, b.total, b.squares, b.bad] for b in blocks]


class Names(Set[str]):
    """A set that grows by one name at a time and shares its parts with the set before, so that a year of windows is folded
    in n log n: copying all names at each took a second of 8,760 windows."""

    def __init__(self, parts: tuple[frozenset[str], ...] = ()) -> None:
        self._parts = parts

    def also(self, name: str) -> Names:
        parts = [*self._parts, frozenset((name,))]
        while len(parts) > 1 and len(parts[-1]) >= len(parts[-2]):
            parts[-2:] = [parts[-2] | parts[-1]]
        return Names(tuple(parts))

    def __contains__(self, name: object) -> bool:
        return any(name in part for part in self._parts)

    def __iter__(self) -> Iterator[str]:
        return (name for part in self._parts for name in part)

    def __len__(self) -> int:
        return sum(map(len, self._parts))


@dataclass(frozen=True)
class Evidence:
    """The fold of all `evidence.scored` entries. `processed` is the end of the newest window scored. `void`: starts of
    blocks that touch an accepted gap of the stream; they do not count, also what was scored before the gap was known."""

    windows: Names = field(default_factory=lambda: Names())
    processed: datetime | None = None
    coverage: float | None = None
    pairs: Mapping[Pair, Mapping[int, BlockSum]] = field(default_factory=dict)
    served: Mapping[tuple[int, str], Served] = field(default_factory=dict)
    void: frozenset[int] = frozenset()
    slices: Mapping[tuple[Pair, str], Mapping[int, BlockSum]] = field(default_factory=dict)
    exposed: Mapping[tuple[str, int], Exposed] = field(default_factory=dict)  # candidate, epoch
    stable_outcome: tuple[int, float] = (0, 0.0)
    arm_coverage: Mapping[str, float] = field(default_factory=dict)  # of the newest window that has any
    live: Mapping[tuple[int, str], Served] = field(default_factory=dict)  # counted by the replicas so far

    def closed(self, pair: Pair, since: datetime, block: timedelta, part: str | None = None) -> list[BlockSum]:
        """The pair's whole blocks that start at `since` or later and lie before the processed time, oldest first;
        with `part` of that slice."""
        if self.processed is None:
            return []
        length, first, last = _milliseconds(block), milliseconds(since), milliseconds(self.processed)
        sums = self.pairs.get(pair, {}) if part is None else self.slices.get((pair, part), {})
        return [sums[k] for k in sorted(sums) if k >= first and k + length <= last and k not in self.void]

    def arm(self, epoch: int, arm: str) -> Served:
        """From the sealed predictions, or from the replicas where they know of more requests in that epoch."""
        sealed = {name: self.served.get((epoch, name), Served(epoch, name)) for name in ("stable", "canary")}
        live = {name: self.live.get((epoch, name), Served(epoch, name)) for name in ("stable", "canary")}
        newer = sum(s.requests for s in live.values()) > sum(s.requests for s in sealed.values())
        return (live if newer else sealed)[arm]

    def exposures(self, candidate: str, epochs: Iterable[int]) -> list[Exposed]:
        """What was seen of the candidate's units in these routing epochs, where anything was."""
        return [self.exposed[candidate, epoch] for epoch in epochs if (candidate, epoch) in self.exposed]

    @property
    def forecast(self) -> float | None:
        """Mean outcome of the units that stable answered, in [0, 1]."""
        n, total = self.stable_outcome
        return total / n if n else None


def fold_entry(evidence: Evidence, kind: str, body: Mapping[str, Any]) -> Evidence:
    """Evidence after one entry of the window stream; other kinds change nothing."""
    if kind == COUNTED:
        counted = [Served(*row) for row in body["served"]]
        return replace(evidence, live={**evidence.live, **{(one.epoch, one.arm): one for one in counted}})
    return fold(evidence, body) if kind == SCORED else evidence


def projection(journal: Journal, task: str, length: int = 0) -> Projection[Evidence]:
    """An incremental fold of a task's evidence; entries of its window stream up to `length` are not read."""

    def apply(known: Evidence, entry: Entry) -> Evidence:
        return fold_entry(known, entry.kind, entry.body)

    return Projection(journal, f"window/{task}", Evidence(), apply, length=length, kinds=(SCORED, COUNTED))


def fold(evidence: Evidence, body: Mapping[str, Any]) -> Evidence:
    """Evidence after one `evidence.scored`; a window that was folded before changes nothing."""
    if body["window"] in evidence.windows:
        return evidence
    end = unstamp(body["end"])
    newest = evidence.processed is None or end > evidence.processed
    pairs, slices = dict(evidence.pairs), dict(evidence.slices)
    for item in body["pairs"]:
        key = (item["candidate"], item["stable"])
        pairs[key] = _added(pairs.get(key, {}), item["blocks"])
        for name, rows in item.get("slices", {}).items():
            slices[key, name] = _added(slices.get((key, name), {}), rows)
    exposed = dict(evidence.exposed)
    for row in body.get("exposed", ()):
        one = Exposed.from_row(row)
        where = (one.candidate, one.epoch)
        exposed[where] = exposed[where] + one if where in exposed else one
    n, total = body.get("stable_outcome", (0, 0.0))
    served = dict(evidence.served)
    for row in body["served"]:
        counts = Served(*row)
        known = evidence.served.get((counts.epoch, counts.arm), Served(counts.epoch, counts.arm))
        served[counts.epoch, counts.arm] = known + counts
    return replace(
        evidence,
        windows=evidence.windows.also(body["window"]),
        processed=end if newest else evidence.processed,
        coverage=body.get("coverage") if newest else evidence.coverage,
        pairs=pairs,
        served=served,
        void=evidence.void | set((body.get("void") or {}).get("blocks", ())),
        slices=slices,
        exposed=exposed,
        stable_outcome=(evidence.stable_outcome[0] + n, evidence.stable_outcome[1] + total),
        arm_coverage=body.get("arm_coverage", {}) if newest else evidence.arm_coverage,
    )


def _added(sums: Mapping[int, BlockSum], rows: Sequence[Sequence[Any]]) -> dict[int, BlockSum]:
    found = dict(sums)
    for row in rows:
        part = BlockSum(*row)
        found[part.block] = found[part.block] + part if part.block in found else part
    return found


def milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _milliseconds(length: timedelta) -> int:
    result = round(length.total_seconds() * 1000)
    if result <= 0:
        raise ValueError(f"block length {length} is not positive: use for example 1h or 1d")
    return result
