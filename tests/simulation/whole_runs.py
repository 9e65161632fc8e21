"""Whole rollouts and whole years by simulation: three gates in a row, and many attempts one after the other.

It puts together what the other simulations draw; a year is attempts that know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log

import numpy as np
from numpy.typing import NDArray

from models.release_policy import RolloutPolicy
from monitoring.sequential import path
from tests.simulation.canary_runs import outcome_looks
from tests.simulation.guard_runs import guarded
from tests.simulation.record_runs import harm_looks, paired, promote_looks
from tests.simulation.release_runs import gate, normal

HALF = log(40.0)  # two tests may roll back at alpha 5 %: each has half of it
Ends = tuple[NDArray[np.bool_], NDArray[np.bool_]]  # promoted, stopped


def gates(runs: int) -> dict[str, dict[float, Ends]]:
    """What each gate says of `runs` versions: shadow by how much better they are, outcome by how much worse, errors by
    their relative risk. A gate passes a version if promote comes before harm."""
    found: dict[str, dict[float, Ends]] = {"shadow": {}, "outcome": {}, "errors": {}}
    for number, better in enumerate((-0.01, 0.0, 0.01)):
        harm = harm_looks(runs, -better, 70 + number, limit=HALF)
        found["shadow"][better] = first(promote_looks(runs, better, 60 + number), harm)
    for number, worse in enumerate((0.02, 0.0, -0.02)):
        found["outcome"][worse] = first(*outcome_looks(runs, worse, 80 + number, harm_limits=(HALF,)))
    for risk in (1.0, 5.0):
        stopped = np.isfinite(guarded(runs, risk, incidents=True, seed=90 + int(risk)).errors)
        found["errors"][risk] = ~stopped, stopped
    return found


def first(promote: NDArray[np.float64], harm: NDArray[np.float64]) -> Ends:
    return promote < harm, np.isfinite(harm) & (harm <= promote)


def rollouts(found: Mapping[str, Mapping[float, Ends]], shadow: float, outcome: float, errors: float) -> tuple[float, float]:
    """Share of versions of this worth that pass all three gates, and that any gate stops."""
    ends = (found["shadow"][shadow], found["outcome"][outcome], found["errors"][errors])
    passed = np.all([promoted for promoted, _ in ends], axis=0)
    return float(passed.mean()), float(np.any([stopped for _, stopped in ends], axis=0).mean())


def year_rates(years: int, attempts: int, policy: RolloutPolicy, records: int, seed: int) -> tuple[float, float, float]:
    """Share of years with at least one false promotion: on day blocks of equal versions by the policy's whole rule, on
    records of versions worse by the margin at alpha / slots each, and at one alpha for the year."""
    rng = np.random.default_rng(seed)
    blocks = gate(normal(rng, years * attempts, 28, 0.0), policy).promoted.reshape(years, attempts) > 0
    best = np.empty((years, attempts))
    for year in range(years):
        best[year] = path(paired(rng, attempts, records, -0.01)).max(axis=1)
    over_year = RolloutPolicy(steps=policy.steps, alpha_per="year")
    falling = np.log([over_year.promote_limit(attempt) for attempt in range(1, attempts + 1)])
    wrong = (blocks, best >= log(policy.promote_threshold), best >= falling)
    return tuple(float(one.any(axis=1).mean()) for one in wrong)  # type: ignore[return-value]
