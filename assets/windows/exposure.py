"""Exposures: of a window's predictions, which was a unit's first in a canary step, drawn as planned; and where to find each.

A rule for each row, from the record and the routing alone, so that a replay finds the same:

* Of several predictions for one event the first counts (by the gateway's clock, then in the order of the sealed rows).
* Drawn as planned: the recorded propensity is the weight of its epoch. A replica without a lease records 0.
* With a subject a unit is met once a step. Who was in the canary by an earlier step has nothing left to draw (its hash says
  so, no memory does); the others are drawn with (w - before) / (1 - before). Without a subject each unit is met once in a
  rollout, and drawn with the weight of that step.
* A unit that is in both arms of one epoch was not split by its hash: it is left out, and counted.

Two files a window: the exposures by ascending hash of the event, for the window in which the label is mature; and the sorted
hashes of the units that were met, for the windows after it. Both are a function of the sealed predictions, the routing
and the files before. It does not know examples, outcomes or the journal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from assets.windows import store
from assets.windows.idhash import Hashes, IdHash
from assets.windows.lookup import Lookup
from assets.windows.match import ranked
from models.split import bucket

COLUMNS = ["event_id", "unit", "epoch", "arm", "propensity", "score", "at"]
EXPOSURES, UNITS = "exposures.arrow", "units.u64"
FIRST, BOTH = 1, 2  # `use`: counts in the tests; shows that its unit is in both arms

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_MILLISECONDS = pa.timestamp("ms", tz="UTC")
_ARM = np.uint64(1)  # the lowest bit of a unit's hash is its arm


@dataclass(frozen=True, slots=True)
class Step:
    """A routing epoch with a canary. `before`: its largest weight in the epochs before; `first`: the first of them."""

    epoch: int
    candidate: str
    salt: str
    weight: float
    before: float
    first: int

    @property
    def share(self) -> float:
        """The probability of canary for a unit that was not in it before."""
        return (self.weight - self.before) / (1.0 - self.before) if self.weight > self.before else 0.0


def steps(routings: Iterable[Mapping[str, Any]], by_subject: bool) -> dict[int, Step]:
    """By epoch, from the bodies of `routing.set`, oldest first."""
    found: dict[int, Step] = {}
    for body in routings:
        if body["canary"] is None or not body["weight"] > 0.0:
            continue
        past = [step for step in found.values() if step.salt == body["salt"]]
        before = max((step.weight for step in past), default=0.0) if by_subject else 0.0
        first = min((step.first for step in past), default=body["epoch"])
        found[body["epoch"]] = Step(body["epoch"], body["canary"], body["salt"], body["weight"], before, first)
    return found


@dataclass(frozen=True, slots=True)
class Exposures:
    """n events, (n,) each, by ascending `event`. unit: hash of who asked, in this step. at: ms since 1970. score: the answer,
    NaN where there was none. use: FIRST, BOTH or 0."""

    event: Hashes
    unit: Hashes
    at: Ints
    epoch: Ints
    canary: Bools
    score: npt.NDArray[np.float64]
    use: npt.NDArray[np.uint8]

    def drawn(self, epoch: int) -> tuple[int, int]:
        """(canary, stable) units that were met first here in this epoch."""
        mine = (self.epoch == epoch) & (self.use == FIRST)
        return int((mine & self.canary).sum()), int((mine & ~self.canary).sum())


@dataclass(frozen=True, slots=True)
class Counts:
    """Of a window's predictions: `repeats` of an event; `unplanned`: another propensity than the epoch's weight; units
    `in_both` arms; units that were in the canary `before`. Only the first two are predictions, all four are left out."""

    predictions: int
    repeats: int
    unplanned: int
    in_both: int
    before: int


def expose(
    table: pa.Table, ids: IdHash, planned: Mapping[int, Step], by_subject: bool, met: Iterable[Hashes]
) -> tuple[Exposures, Hashes, Counts]:
    """The exposures of a window's predictions (COLUMNS); the units met here, for `met` of later windows; what was left out.

    met: of the windows before, in any order; those of other steps do no harm."""
    events, at = ids(table["event_id"]), table["at"].cast(_MILLISECONDS, safe=False).cast(pa.int64()).to_numpy()
    rows = first_of(events, at)
    epoch = table["epoch"].to_numpy()[rows]
    canary = pc.equal(table["arm"], "canary").to_numpy()[rows]
    known, place = np.unique(epoch, return_inverse=True)
    weight, tag, once = (np.array(column)[place] for column in _planned(known.tolist(), planned, by_subject))
    fair = (weight > 0.0) & (np.abs(table["propensity"].to_numpy()[rows] - weight) < 1e-9)
    asking = ids(table["unit"])[rows]
    unit = (asking ^ tag) & ~_ARM | canary.astype(np.uint64)
    use, units, both = _use(unit, (asking ^ once) & ~_ARM, at[rows], np.flatnonzero(fair), met, across=by_subject)
    before = _in_before(table["unit"], rows, epoch, canary & (use == FIRST), planned)
    use[before] = 0
    unplanned = int(((weight > 0.0) & ~fair).sum())
    found = Exposures(events[rows], unit, at[rows], epoch, canary, _scores(table)[rows], use)
    return found, units, Counts(table.num_rows, table.num_rows - len(rows), unplanned, both, len(before))


def first_of(keys: Hashes, at: Ints) -> Ints:
    """Rows of the first of each key, by ascending key; of equal times the one that comes first."""
    order, _, again = ranked(keys, lambda group: np.lexsort((group, at[group], keys[group])))
    return order[~again]


def _planned(epochs: list[int], planned: Mapping[int, Step], by_subject: bool) -> tuple[list[float], Hashes, Hashes]:
    """Of each epoch its weight, 0 without a canary; what tells units of steps apart, and units that are met again."""
    weights, by_step, once = list[float](), list[int](), list[int]()
    for epoch in epochs:
        step = planned.get(epoch)
        weights.append(step.weight if step else 0.0)
        by_step.append(_tag(f"{step.salt} {step.epoch}") if step else 0)
        once.append(_tag(f"{step.salt} from {step.first}") if step and not by_subject else by_step[-1])
    return weights, np.array(by_step, dtype=np.uint64), np.array(once, dtype=np.uint64)


def _tag(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _use(
    unit: Hashes, once: Hashes, at: Ints, fair: Ints, met: Iterable[Hashes], *, across: bool
) -> tuple[npt.NDArray[np.uint8], Hashes, int]:
    """`use` of each row, the sorted hashes of the units that were met, and how many units are in both arms of a step.

    across: also of a step that began in a window before; without a subject such a unit is merely met again."""
    use = np.zeros(len(unit), dtype=np.uint8)
    first = fair[first_of(once[fair], at[fair])]
    again = np.zeros(len(first), dtype=np.bool_)
    keys = unit[fair] & ~_ARM
    order, _, more = ranked(keys, lambda group: np.lexsort((group, at[fair][group], keys[group])))
    order, begins = fair[order], np.flatnonzero(~more)
    if not len(begins):
        return use, unit[:0], 0
    arm = (unit[order] & _ARM).astype(np.bool_)
    in_canary, in_stable = np.logical_or.reduceat(arm, begins), np.logical_or.reduceat(~arm, begins)
    both = in_canary & in_stable
    table, by_step = Lookup(once[first]), Lookup(unit[order[begins]] & ~_ARM)
    for earlier in met:
        again[table.find(earlier & ~_ARM)[1]] = True
        if across:
            which, mine = by_step.find(earlier & ~_ARM)
            was = (earlier[which] & _ARM).astype(np.bool_)
            both[mine] |= np.where(was, in_stable[mine], in_canary[mine])
    use[first[~again]] = FIRST
    use[order[begins[both]]] = BOTH
    return use, np.sort(unit[first] if across else once[first]), int(both.sum())


def _in_before(
    units: pa.ChunkedArray, rows: Ints, epoch: Ints, canary: Bools, planned: Mapping[int, Step]
) -> Ints:
    """Rows of canary units that an earlier step had put there; those in the stable arm were in no step before."""
    late = [step.epoch for step in planned.values() if step.before > 0.0]
    asked = np.flatnonzero(canary & np.isin(epoch, late))
    names = units.take(pa.array(rows[asked])).to_pylist()
    were = [bucket(planned[e].salt, name) < planned[e].before for e, name in zip(epoch[asked].tolist(), names, strict=True)]
    return asked[np.array(were, dtype=np.bool_)]


def _scores(table: pa.Table) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = table["score"].fill_null(np.nan).to_numpy()
    return found


# -- the files ---------------------------------------------------------------------------------------------------------


def write(root: Path, folder: str, exposures: Exposures, units: Hashes) -> dict[str, str]:
    """Put both files into the window's folder; path -> sha256. The same exposures are the same bytes."""
    columns = {name: getattr(exposures, name) for name in Exposures.__slots__}
    table = pa.table(columns | {"canary": exposures.canary.astype(np.uint8)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    files = {EXPOSURES: sink.getvalue().to_pybytes(), UNITS: units.astype("<u8").tobytes()}
    return {f"{folder}/{name}": store.put(root, f"{folder}/{name}", payload) for name, payload in files.items()}


def read(root: Path, path: str, digest: str) -> Exposures:
    """The exposures in this file. Raises StoreDamaged."""
    table = pa.ipc.open_file(pa.BufferReader(store.get(root, path, digest))).read_all()
    columns = {name: table[name].to_numpy() for name in table.column_names}
    return Exposures(**columns | {"canary": columns["canary"].astype(np.bool_)})


def read_units(root: Path, path: str, digest: str) -> Hashes:
    """The hashes of the units in this file, ascending. Raises StoreDamaged."""
    return np.frombuffer(store.get(root, path, digest), dtype="<u8")
