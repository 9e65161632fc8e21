"""Error rates and speed of decision of the release gate, simulated with the product's own tests; goal: 5.65 % at alpha 5 %.

Three levels, each looked at after every observation: records (right-or-wrong pairs that differ in a tenth of the records,
margin .01, 20,000 of them), day blocks (28 and 365, the whole rule of a step up and of harm), and errors of requests. The
peer is the fixed-horizon z-test, peeked at after every record. `figure`: how often a version that is worse by the margin is
promoted on records; `samples_better`: records at the median when it is better by it. `cases` has every row, false promotions
of equal versions by the whole gate among them.

    python -m tests.benchmarks.gate --rollouts 10000        # 8 minutes; 1,000 in one
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from monitoring.sequential import path
from tests.benchmarks import result, show
from tests.simulation.release_runs import gate, normal
from tests.simulation.test_gate_error_rates import (
    NULLS,
    POLICY,
    clustered_rates,
    false_rates,
    guard_rates,
    paired,
    peeked_z,
    poisoned_story,
)

RECORDS, CHUNK, MARGIN = 20_000, 50, 0.01
LIMIT = np.log(20)  # alpha 5 %


def first_looks(runs: int, seed: int, drawn: Callable[[np.random.Generator], np.ndarray]) -> np.ndarray:
    """The record at which each run decides, (runs,); infinity for never. `drawn`: CHUNK runs of observations."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(max(1, runs // CHUNK)):
        hits = path(drawn(rng)) >= LIMIT
        found.append(np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf))
    return np.concatenate(found)


def records(runs: int) -> dict[str, Any]:
    """Promotion by versions of each worth, rollback of equal and worse ones, and the peeked z-test on the null."""
    found: dict[str, Any] = {}
    for number, better in enumerate((-MARGIN, 0.0, MARGIN, 2 * MARGIN)):
        looks = first_looks(runs, 40 + number, lambda rng, better=better: paired(rng, CHUNK, RECORDS, better))
        found[f"promoted, better by {better:+.2f}"] = _row(looks)
    for number, worse in enumerate((0.0, 0.02, 0.03, 0.05)):
        # what harm is bet on is the difference without margin, turned round
        looks = first_looks(runs, 50 + number, lambda rng, worse=worse: MARGIN - 1.01 * paired(rng, CHUNK, RECORDS, -worse))
        found[f"rolled back, worse by {worse:.2f}"] = _row(looks)
    rng = np.random.default_rng(40)
    peeked = [peeked_z(paired(rng, CHUNK, RECORDS, -MARGIN)).mean() for _ in range(max(1, runs // CHUNK))]
    return found | {f"promoted by peeked z, better by {-MARGIN:+.2f}": {"share": round(float(np.mean(peeked)), 4)}}


def _row(looks: np.ndarray) -> dict[str, float | None]:
    middle = float(np.median(looks))
    return {"share": round(float(np.isfinite(looks).mean()), 4), "median_records": middle if np.isfinite(middle) else None}


def blocks(runs: int) -> dict[str, Any]:
    """The whole gate on day blocks: equal versions of three kinds, and versions of each worth."""
    found: dict[str, Any] = {}
    for days in (28, 365):
        for name in NULLS:
            sliced, single, rejected = false_rates(name, runs, days, seed=7)
            found[f"equal, {name}, {days} days"] = {"promoted": sliced, "promoted_one_slot": single, "rejected": rejected}
    rng = np.random.default_rng(8)
    for gain in (0.02, 0.03, 0.04, 0.05, -0.02, -0.04, -0.10):
        ends = gate(normal(rng, runs, 28, gain), POLICY)
        middle = ends.median("promoted" if gain > 0 else "harmed")
        found[f"gain {gain:+.2f} nats a day, 28 days"] = {
            "promoted": ends.share("promoted"), "rejected": ends.share("harmed"),
            "median_days": middle if np.isfinite(middle) else None,
        }  # fmt: skip
    return found


def others(runs: int) -> dict[str, Any]:
    """Losses that hang together, errors of requests, and a poisoned version after a good one."""
    by_event, by_block = clustered_rates(max(50, runs // 5))
    found: dict[str, Any] = {"clustered losses, equal": {"promoted_by_event": by_event, "promoted_by_block": by_block}}
    for risk in (1.0, 1.2, 2.0, 3.0, 5.0, 20.0):
        share, errors = guard_rates(runs, risk)
        found[f"errors, relative risk {risk:g}"] = {"stopped": share, "median_canary_errors": errors if share > 0.5 else None}
    honest, stopped, clean = np.mean([poisoned_story(seed) for seed in range(max(5, runs // 50))], axis=0).tolist()
    return found | {"a poisoned version after good ones": {
        "honest_promoted": honest, "poisoned_stopped": stopped, "poisoned_never_stable": clean}}


def observations_a_second() -> float:
    """Of the e-process, by CPU time."""
    x = paired(np.random.default_rng(1), CHUNK, RECORDS, 0.0)
    path(x)
    began = time.process_time()
    for _ in range(5):
        path(x)
    return 5 * x.size / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=10_000)
    asked = parser.parse_args()
    if asked.rollouts < CHUNK:
        sys.exit(f"--rollouts {asked.rollouts} < {CHUNK}: rates of fewer say nothing; give at least {CHUNK}")
    cases = records(asked.rollouts) | blocks(asked.rollouts) | others(asked.rollouts)
    null, peeked = (cases[f"promoted{how}, better by {-MARGIN:+.2f}"]["share"] for how in ("", " by peeked z"))
    unit = "false promotions at alpha 5 %, a look after every record"
    found = result("gate", unit, [null], "the z-test, peeked at as often", [peeked], ("numpy",))
    better = cases[f"promoted, better by {MARGIN:+.2f}"]["median_records"]
    show(found | {"samples_better": better, "samples": asked.rollouts, "cases": cases,
                  "observations_a_cpu_second": round(observations_a_second())})


if __name__ == "__main__":
    main()
