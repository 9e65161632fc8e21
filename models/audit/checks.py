"""Tier 0 of the audit: each rule of the private step checked by itself, in seconds.

Every check returns one figure and the bounds it has to lie in. Bounds of statistics are such that a correct step is blamed
with a probability below 1e-6; the others are exact up to rounding. A check sees a step only through its answers, so that a
planted defect is looked for in the same way as a real one.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Protocol

import numpy as np
import torch
from scipy.stats import binom, chi2

from models import compute
from models.audit.subject import NO_CLIP, Neighbours, Subject, one_by_one
from models.memory import Rung
from models.private.clipping import ClippedSum
from models.private.private_sgd import Gradients, Noised, Parts
from security.privacy import Reservation

NEVER = 1e-7  # chance that one side of one statistic blames a correct step
FAR_OUT = 5.33  # the same for a standard normal, both sides
DRAWS = 400
BATCHES, ROWS, RATE = 4000, 40, 0.125
LINEAR = 50.0  # noise multipliers are checked from that of tier 1 to this one
ROUNDING = 1e-3  # of the clip: float32 sums in another order differ by less


class Step(Protocol):
    """One private step, as `private_sgd.PrivateStep` or a defect around it."""

    def __call__(self, parts: Parts, truth: torch.Tensor) -> Noised: ...


Maker = Callable[[Gradients, Reservation], Step]


@dataclass(frozen=True, slots=True)
class Bench:
    """What a check works on: open `gradients` of the subject, the neighbours, a law to vary, and how steps are made."""

    subject: Subject
    gradients: Gradients
    pair: Neighbours
    law: Reservation
    make: Maker

    def noise(self, law: Reservation, rows: tuple[Parts, torch.Tensor], draws: int = DRAWS) -> np.ndarray:
        """`draws` steps less their noiseless value, in units of the deviation the law promises: (draws, d)."""
        step, quiet = self.make(self.gradients, law), self.make(self.gradients, replace(law, noise_multiplier=0.0))
        sums = np.array([step(*rows).gradient for _ in range(draws)]) - quiet(*rows).gradient
        return np.asarray(sums * (law.expected_batch / (law.noise_multiplier * law.max_grad_norm)))

    @property
    def nobody(self) -> tuple[Parts, torch.Tensor]:
        """No example."""
        return compute.take(self.subject.parts, slice(0, 0)), self.subject.truth[:0]


@dataclass(frozen=True, slots=True)
class Check:
    """`false_alarm` is the probability that a correct step fails; 0 where nothing is drawn."""

    name: str
    figure: float
    low: float
    high: float
    false_alarm: float

    @property
    def passed(self) -> bool:
        """False as well for a figure that is no number."""
        return self.low <= self.figure <= self.high


def variance(bench: Bench) -> Check:
    """Noise has the promised deviation. Of several multipliers, clips and divisors the worst p-value decides: the
    variance is linear in the promise over the whole range, so what is audited at one of them holds for all.
    """
    laws = [bench.law, replace(bench.law, noise_multiplier=LINEAR), replace(bench.law, max_grad_norm=3 * bench.pair.clip),
            replace(bench.law, expected_batch=7.0)]  # fmt: skip
    chances = []
    for law in laws:
        z = bench.noise(law, bench.pair.without, DRAWS // 2)
        chances.append(_two_sided(float((z**2).sum()), z.size))
    return Check("noise has the promised variance", min(chances), NEVER, 1.0, 4 * NEVER)


def coordinates(bench: Bench) -> Check:
    """The least likely coordinate: every weight has its own full share of noise."""
    z = bench.noise(bench.law, bench.nobody)
    chances = [_two_sided(float(value), DRAWS) for value in (z**2).sum(axis=0)]
    return Check("every weight is noised", min(chances) * z.shape[1], NEVER, math.inf, NEVER)


def memory(bench: Bench) -> Check:
    """Correlation with the step before, and with the weight beside it, in standard deviations."""
    z = bench.noise(bench.law, bench.nobody)
    pairs = ((z[1:], z[:-1]), (z[:, 1:], z[:, :-1]))
    worst = max(abs(float((a * b).sum())) / math.sqrt(a.size) for a, b in pairs)
    return Check("noise has no memory", worst, 0.0, FAR_OUT, 2 * NEVER)


def empty(bench: Bench) -> Check:
    """A step without examples is taken, and noised like any other."""
    z = bench.noise(bench.law, bench.nobody, DRAWS // 2)
    return Check("an empty batch is noised", _two_sided(float((z**2).sum()), z.size), NEVER, 1.0, NEVER)


def per_example(bench: Bench) -> Check:
    """Gradients against plain autograd, one example at a time; largest relative difference of some."""
    wanted = bench.subject.plain_gradients(16)
    found = np.array([one_by_one(bench.subject, bench.gradients, row, NO_CLIP).total for row in range(len(wanted))])
    apart = np.linalg.norm(found - wanted, axis=1) / np.maximum(np.linalg.norm(wanted, axis=1), 1e-12)
    return Check("gradients are those of one example", float(apart.max()), 0.0, 1e-4, 0.0)


def clipped(bench: Bench) -> Check:
    """The largest share of any one example, over the clip."""
    clip = bench.pair.clip
    rows = range(len(bench.subject.truth))
    shares = [np.linalg.norm(one_by_one(bench.subject, bench.gradients, row, clip).total) / clip for row in rows]
    return Check("no example exceeds the clip", float(np.max(shares)), 0.0, 1.0, 0.0)


def company(bench: Bench) -> Check:
    """A batch's sum less the sums of its examples alone, over clip and rows: nobody's share depends on who else is in.

    Half of the examples, since the small task has every input twice, and the two would cancel.
    """
    clip, rows = bench.pair.clip, len(bench.subject.truth) // 2
    alone = sum(one_by_one(bench.subject, bench.gradients, row, clip).total for row in range(rows))
    parts, truth = compute.take(bench.subject.parts, slice(0, rows)), bench.subject.truth[:rows]
    together = bench.gradients.clipped_sum(parts, truth, clip).total
    return Check("no share depends on the batch", float(np.linalg.norm(together - alone)) / clip / rows, 0.0, ROUNDING, 0.0)


def twice(bench: Bench) -> Check:
    """An example that is in twice counts twice, and no more: |difference from twice its share| over the clip."""
    (parts, truth), clip = bench.pair.joined, bench.pair.clip
    once = bench.gradients.clipped_sum(compute.take(parts, slice(0, 1)), truth[:1], clip).total
    both = bench.gradients.clipped_sum(tuple(torch.cat((p[:1], p[:1])) for p in parts), truth[[0, 0]], clip).total
    return Check("a record counts once", float(np.linalg.norm(both - 2 * once)) / clip, 0.0, ROUNDING, 0.0)


def poison(bench: Bench) -> Check | None:
    """What a NaN example adds to a sum, over the clip: nothing. None when no input can be NaN."""
    clip, (parts, truth) = bench.pair.clip, bench.pair.joined
    broken = [value.clone() for value in (*parts, truth)]
    place = next((value for value in broken if value.is_floating_point()), None)
    if place is None:
        return None
    place[0] = math.nan
    rest = bench.gradients.clipped_sum(*bench.pair.without, clip).total
    apart = np.linalg.norm(bench.gradients.clipped_sum(tuple(broken[:-1]), broken[-1], clip).total - rest)
    return Check("a poisoned record counts as absent", float(apart) / clip, 0.0, ROUNDING, 0.0)


def divisor(bench: Bench) -> Check:
    """Without noise, an example joined by as many copies of itself as there are in the batch moves the answer as far."""
    quiet = bench.make(bench.gradients, replace(bench.law, noise_multiplier=0.0))
    (parts, truth) = bench.pair.without
    one = quiet(compute.take(parts, slice(0, 1)), truth[:1]).gradient
    all_of_them = quiet(parts, truth).gradient
    ratio = float(np.linalg.norm(all_of_them)) / max(float(np.linalg.norm(one)), 1e-300)
    return Check("the divisor is public", ratio / len(truth), 1 - ROUNDING, 1 + ROUNDING, 0.0)


def inclusion(bench: Bench) -> Check:
    """Who is in a batch: binomial in all, by row and by batch; the least likely of the three decides."""
    seen = _Recorder(1)
    step = bench.make(seen, replace(bench.law, sampling_rate=RATE))
    table, everybody = np.zeros((BATCHES, ROWS)), torch.arange(ROWS)
    for batch in table:
        seen.given = []
        step((everybody,), everybody)
        np.add.at(batch, seen.given, 1)
    chances = [2 * min(float(binom.cdf(table.sum(), table.size, RATE)), float(binom.sf(table.sum() - 1, table.size, RATE)))]
    for counts, trials in ((table.sum(axis=1), ROWS), (table.sum(axis=0), BATCHES)):
        spread = ((counts - trials * RATE) ** 2).sum() / (trials * RATE * (1 - RATE))
        chances.append(_two_sided(float(spread), counts.size))
    return Check("batches are Poisson samples", min(chances), NEVER, 1.0, 4 * NEVER)


def fresh(bench: Bench) -> Check:
    """How many of three noises are one and the same: of two steps made alike, and of a process forked off the first."""
    source, nothing = _Recorder(8), (torch.empty(0),)
    one, other = (bench.make(source, bench.law) for _ in range(2))
    first, second = (step(nothing, torch.empty(0)).gradient for step in (one, other))
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_draw, args=(one, there))
    child.start()
    there.close()
    third = np.frombuffer(here.recv_bytes())
    child.join()
    after = one(nothing, torch.empty(0)).gradient
    same = sum(np.array_equal(a, b) for a, b in ((first, second), (third, after), (third, first), (first, after)))
    return Check("noise is never drawn twice", float(same), 0.0, 0.0, 0.0)


CHECKS: tuple[Callable[[Bench], Check | None], ...] = (
    variance, coordinates, memory, empty, per_example, clipped, company, twice, poison, divisor, inclusion, fresh,
)  # fmt: skip


def checked(bench: Bench) -> list[Check]:
    """Every check that applies."""
    return [found for check in CHECKS if (found := check(bench)) is not None]


class _Recorder:
    """In the place of gradients: notes which rows it was given."""

    rung = Rung(1)

    def __init__(self, size: int) -> None:
        self.size, self.given = size, list[int]()

    def clipped_sum(self, parts: Parts, truth: torch.Tensor, clip: float) -> ClippedSum:
        self.given += truth.long().tolist()
        return ClippedSum(np.zeros(self.size), np.zeros(len(truth), np.float32), 0, 0)


def _draw(step: Step, out: Connection) -> None:
    out.send_bytes(step((torch.empty(0),), torch.empty(0)).gradient.tobytes())


def _two_sided(value: float, count: int) -> float:
    """p-value of a chi-square statistic with `count` degrees."""
    return 2 * min(float(chi2.cdf(value, count)), float(chi2.sf(value, count)))
