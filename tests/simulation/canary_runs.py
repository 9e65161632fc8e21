"""The randomised canary by simulation: outcomes, ramps with a drift, users with many requests, and the sample ratio.

Every bet is the product's own (`bets`, `SampleRatio`); the rivals it is held against, a z-test looked at always, a
pooled mSPRT and a test of requests where users were drawn, are written out here because they must fail.
It knows no versions: a unit is an arm and an outcome of 0 or 1, 1 being the bad one.
"""

from __future__ import annotations

from collections.abc import Callable
from math import lgamma

import numpy as np
from numpy.typing import NDArray

from monitoring.outcome import bets, score_form
from monitoring.sample_ratio import ALPHA, CONCENTRATION, SampleRatio
from monitoring.sequential import path
from tests.simulation.looks import LIMIT, Table, first_looks, kinds

UNITS, WEIGHT, LEVEL, MARGIN = 60_000, 0.1, 0.2, 0.02
KINDS = ((1, 1), (1, 0), (0, 1), (0, 0))  # arm, outcome
RAMP = ((0, 0.05), (5_000, 0.10), (10_000, 0.25), (20_000, 0.50))  # from this unit on, this weight


def table(pi: float, forecast: float = LEVEL) -> Table:
    """What a unit of each of KINDS adds to the logs of promote and of harm."""
    states = [bets([arm], pi, [y], forecast, MARGIN) for arm, y in KINDS]
    return np.array([[s.promote.logs for s in states], [s.harm.logs for s in states]])


def units(pi: float, stable: float | NDArray, canary: float | NDArray) -> tuple[float | NDArray, ...]:
    """Edges of `kinds` for units drawn with `pi` whose outcome is bad at these rates."""
    return pi * canary, pi, pi + (1 - pi) * stable


def outcome_looks(runs: int, effect: float, seed: int, n: int = UNITS, harm_limits: tuple[float, ...] = (LIMIT,)) -> NDArray:
    """First looks of promote and of harm (one row a limit) for a canary at WEIGHT that is worse by `effect`."""
    edges, logs = units(WEIGHT, LEVEL, LEVEL + effect), table(WEIGHT)
    repeated = np.concatenate([logs, *[logs[1:]] * (len(harm_limits) - 1)])

    def draw(rng: np.random.Generator, rows: int, begin: int, end: int) -> NDArray[np.uint8]:
        return kinds(rng.random((rows, end - begin), dtype=np.float32), *edges)

    return first_looks(runs, n, draw, lambda begin: repeated, seed, limits=(LIMIT, *harm_limits))


def peeked_difference(runs: int, effect: float, seed: int, n: int = UNITS, every: int = 100) -> tuple[float, float]:
    """False promotion at an effect of the margin, or rollback at none, by a z-test on the arms looked at every 100
    units from the 200th on."""
    rng, promoted, harmed = np.random.default_rng(seed), 0, 0
    for _ in range(max(1, runs // 50)):
        difference, spread = pooled(rng, 50, n, every, lambda begin: units(WEIGHT, LEVEL, LEVEL + effect))
        late = slice(200 // every, None)
        promoted += int((((MARGIN - difference) / spread)[:, late] > 1.645).any(axis=1).sum())
        harmed += int(((difference / spread)[:, late] > 1.645).any(axis=1).sum())
    return promoted / (50 * max(1, runs // 50)), harmed / (50 * max(1, runs // 50))


def pooled(rng: np.random.Generator, rows: int, n: int, every: int, edges: Callable) -> tuple[NDArray, NDArray]:
    """Difference of the arms' rates and its standard error at each look, all units so far in one pot."""
    counts = np.zeros((len(KINDS), rows, n // every))
    for look in range(n // every):
        drawn = kinds(rng.random((rows, every), dtype=np.float32), *edges(look * every))
        for kind in range(len(KINDS)):
            counts[kind, :, look] = (drawn == kind).sum(axis=1)
    bad_c, good_c, bad_s, good_s = counts.cumsum(axis=2)
    n_c, n_s = np.maximum(bad_c + good_c, 1), np.maximum(bad_s + good_s, 1)
    p_c, p_s = bad_c / n_c, bad_s / n_s
    variance = np.maximum(p_c * (1 - p_c), 1e-3) / n_c + np.maximum(p_s * (1 - p_s), 1e-3) / n_s
    return p_c - p_s, np.sqrt(variance)


def step(begin: int) -> float:
    return next(weight for start, weight in reversed(RAMP) if begin >= start)


def drifting(drift: float) -> Callable[[int, int], NDArray]:
    """The rate of bad outcomes of both arms from unit to unit: LEVEL, rising by the share `drift` over the rollout."""
    return lambda begin, end: LEVEL * (1 + drift * np.arange(begin, end) / UNITS)


def ramp_looks(runs: int, drift: float, seed: int, n: int = UNITS, effect: float = 0.0) -> NDArray:
    """First looks of promote and harm on the ramp, for a canary that is worse by `effect`; the forecast stays LEVEL."""
    level, tables = drifting(drift), {weight: table(weight) for _, weight in RAMP}

    def draw(rng: np.random.Generator, rows: int, begin: int, end: int) -> NDArray[np.uint8]:
        rate = level(begin, end)
        return kinds(rng.random((rows, end - begin), dtype=np.float32), *units(step(begin), rate, rate + effect))

    return first_looks(runs, n, draw, lambda begin: tables[step(begin)], seed, limits=(LIMIT, LIMIT))


def pooled_msprt(runs: int, drift: float, seed: int, n: int = UNITS) -> float:
    """Share of identical versions on the ramp that a two-sided mSPRT on the pooled arms (prior sd: the margin) rolls
    back; always valid without a drift."""
    rng, level, stopped = np.random.default_rng(seed), drifting(drift), 0
    rows = min(runs, 100)

    def edges(begin: int) -> tuple:
        rate = level(begin, begin + 100)
        return units(step(begin), rate, rate)

    for _ in range(runs // rows):
        difference, spread = pooled(rng, rows, n, 100, edges)
        v, prior = spread**2, MARGIN**2
        figure = 0.5 * np.log(v / (v + prior)) + difference**2 * prior / (2 * v * (v + prior))
        stopped += int(((figure >= LIMIT) & (difference > 0))[:, 2:].any(axis=1).sum())
    return stopped / (runs // rows * rows)


def incident_looks(runs: int, seed: int, n: int = 20_000) -> NDArray:
    """Identical versions, 2 % bad outcomes, in 2 % of the hundreds x20 for both arms; promote and harm at an effect of
    none (promote: the share that is found good enough)."""
    def draw(rng: np.random.Generator, rows: int, begin: int, end: int) -> NDArray[np.uint8]:
        burst = np.repeat(rng.random((rows, (end - begin) // 100)) < 0.02, 100, axis=1)
        rate = 0.02 * np.where(burst, 20.0, 1.0)
        return kinds(rng.random((rows, end - begin), dtype=np.float32), *units(WEIGHT, rate, rate))

    logs = table(WEIGHT, 0.02)
    return first_looks(runs, n, draw, lambda begin: logs, seed, limits=(LIMIT, LIMIT))


def user_rates(runs: int, seed: int, requests: int = 20_000, users: int = 600) -> tuple[float, float, float]:
    """False rollbacks of identical versions when users differ (rate of bad outcomes Beta(.4, 1.6)) and few of them make
    most requests: users drawn but requests tested; users drawn, one observation a user; requests drawn and tested."""
    rng, wrong = np.random.default_rng(seed), np.zeros(3)
    for _ in range(runs):
        activity = rng.gamma(0.5, size=users)
        who = rng.choice(users, size=requests, p=activity / activity.sum())
        bad = rng.random(requests) < rng.beta(0.4, 1.6, size=users)[who]
        arm = rng.random(users) < WEIGHT
        made = np.bincount(who, minlength=users)
        mean = np.bincount(who, bad, minlength=users)[made > 0] / made[made > 0]
        drawn = rng.random(requests) < WEIGHT
        for k, (a, y) in enumerate(((arm[who], bad), (arm[made > 0], mean), (drawn, bad))):
            wrong[k] += float(path(score_form(a, WEIGHT, y, LEVEL)).max()) >= LIMIT
    return tuple((wrong / runs).tolist())


def returning_rates(runs: int, seed: int, users: int = 1000, days: int = 14) -> tuple[float, float]:
    """False rollbacks of identical versions on the ramp when the same users (Beta(.4, 1.6)) come every day: a day an
    observation at the weight of the step; and one a step, at the chance to be drawn then, 1 for who was drawn before."""
    rng, wrong = np.random.default_rng(seed), np.zeros(2)
    for _ in range(runs):
        rate, bucket = rng.beta(0.4, 1.6, size=users), rng.random(users)
        daily, by_step, before = [], [], 0.0
        for _, weight in RAMP:
            arm = bucket < weight
            bad = rng.random((days, users)) < rate
            daily.append(score_form(np.tile(arm, days), weight, bad.ravel(), LEVEL))
            chance = np.where(bucket < before, 1.0, (weight - before) / (1.0 - before))
            by_step.append(score_form(arm, chance, bad.mean(axis=0), LEVEL))
            before = weight
        wrong += [float(path(np.concatenate(x)).max()) >= LIMIT for x in (daily, by_step)]
    return tuple((wrong / runs).tolist())


def ratio_looks(runs: int, real: float, seed: int, n: int = UNITS, weight: float = WEIGHT) -> NDArray[np.float64]:
    """The unit at which a share `real` for the planned `weight` is called a mismatch, (runs,); infinity for never."""
    counts = range(n + 1)
    whole = np.array([_normaliser(k) for k in counts])
    canary = np.array([SampleRatio(weight, k, 0).log_e for k in counts]) + whole
    stable = np.array([SampleRatio(weight, 0, k).log_e for k in counts]) + whole
    rng, found, looks = np.random.default_rng(seed), [], np.arange(1, n + 1)
    for begin in range(0, runs, 50):
        drawn = np.cumsum(rng.random((min(50, runs - begin), n), dtype=np.float32) < real, axis=1, dtype=np.int32)
        hits = canary[drawn] + stable[looks - drawn] - whole[looks] >= -np.log(ALPHA)
        found.append(np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf))
    return np.concatenate(found)


def _normaliser(n: int) -> float:
    """The part of log E that depends on all units alone: log E(c, s) + _normaliser(c + s) is a sum over the arms."""
    return lgamma(CONCENTRATION + n) - lgamma(CONCENTRATION)
