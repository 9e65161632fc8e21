"""Error rates and speed of decision of the release gate, simulated with the product's own tests; goal: 5.65 % at alpha 5 %.

Looked at after every observation: records (right-or-wrong pairs that differ in a tenth of the records, margin .01, 20,000 of
them), the randomised canary (60,000 units, weight .1, a fifth bad outcomes, margin .02) with ramps, users and the sample
ratio, day blocks (28 and 365, the whole rule of a step up and of harm), errors of requests, labels, whole rollouts, years.
The peer is the fixed-horizon z-test, peeked at after every record. `figure`: how often a version that is worse by the
margin is promoted on records; `samples_better`: records at the median when it is better by it. `cases` has every row; where
a row says `rollouts`, it had fewer than the others. What is named peeked, pooled, on arrival, every delivery, by request
and rule of thumb is there to be wrong.

    python -m tests.benchmarks.gate --rollouts 10000        # 12 CPU minutes; 1,000 in one
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np

from monitoring.sequential import path
from tests.benchmarks import result, show
from tests.simulation.canary_runs import (
    MARGIN,
    WEIGHT,
    incident_looks,
    outcome_looks,
    peeked_difference,
    pooled_msprt,
    ramp_looks,
    ratio_looks,
    returning_rates,
    user_rates,
)
from tests.simulation.guard_runs import guarded, thresholded
from tests.simulation.label_runs import delayed_rates, repeated_rates
from tests.simulation.looks import median, share
from tests.simulation.record_runs import MARGIN as POINT
from tests.simulation.record_runs import RECORDS, harm_looks, paired, peeked_rate, promote_looks
from tests.simulation.release_runs import gate, normal
from tests.simulation.test_gate_error_rates import NULLS, POLICY, clustered_rates, false_rates, poisoned_story
from tests.simulation.whole_runs import gates, rollouts, year_rates

LEAST = 50
Cases = dict[str, dict[str, Any]]


def records(runs: int) -> Cases:
    """Promotion by versions of each worth, rollback of equal and worse ones, and the peeked z-test on the null."""
    found: Cases = {}
    for number, better in enumerate((-POINT, 0.0, POINT, 2 * POINT)):
        found[f"promoted, better by {better:+.2f}"] = _row(promote_looks(runs, better, 40 + number))
    for number, worse in enumerate((0.0, 0.02, 0.03, 0.05)):
        found[f"rolled back, worse by {worse:.2f}"] = _row(harm_looks(runs, worse, 50 + number))
    found["promoted, 97 % ties, better by -0.01"] = _row(promote_looks(runs, -POINT, 44, differ=0.03))
    return found | {f"promoted by peeked z, better by {-POINT:+.2f}": {"share": round(peeked_rate(runs, -POINT, 40), 4)}}


def _row(looks: np.ndarray) -> dict[str, float | None]:
    return {"share": round(share(looks), 4), "median_records": median(looks)}


def canary(runs: int) -> Cases:
    """Outcomes that depend on the decision, at one weight and on ramps, and who is drawn."""
    found: Cases = {}
    for number, (worse, units) in enumerate(((0.02, 60_000), (0.0, 60_000), (-0.02, 60_000), (0.04, 60_000), (0.10, 20_000))):
        promoted, harmed = outcome_looks(runs, worse, 10 + number, units)
        stopped = median(harmed)
        found[f"canary, worse by {worse:+.2f}"] = {
            "promoted": share(promoted), "median_units": median(promoted), "rolled_back": share(harmed),
            "median_canary_units": stopped if stopped is None else round(stopped * WEIGHT),
        }  # fmt: skip
    (wrong, _), (_, back) = peeked_difference(runs, MARGIN, 15), peeked_difference(runs, 0.0, 16)
    found["canary, peeked z"] = {"promoted, worse by +0.02": wrong, "rolled_back, equal": back}
    for number, drift in enumerate((0.0, 0.25, 0.5, 1.0)):
        found[f"ramp, drift {drift:.0%}"] = {
            "rolled_back": share(ramp_looks(runs, drift, 20 + number)[1]),
            "promoted, worse by +0.02": share(ramp_looks(runs, drift, 25 + number, effect=MARGIN)[0]),
            "rolled_back_by_pooled_msprt": pooled_msprt(runs, drift, 30 + number),
        }
    found["canary, equal, incidents of x20"] = {"rolled_back": share(incident_looks(runs, 35)[1])}
    fewer = max(LEAST, runs // 5)
    by_request, by_user, drawn = user_rates(fewer, 36)
    found["users, equal"] = {"rolled_back_by_request": by_request, "rolled_back_by_user": by_user,
                             "rolled_back_requests_drawn": drawn, "rollouts": fewer}  # fmt: skip
    by_day, by_step = returning_rates(fewer, 41)
    found["users who come every day of a ramp, equal"] = {"rolled_back_by_day": by_day, "rolled_back_by_step": by_step,
                                                          "rollouts": fewer}  # fmt: skip
    for number, (real, units) in enumerate(((0.10, 60_000), (0.11, 60_000), (0.12, 20_000), (0.15, 5_000))):
        looks = ratio_looks(runs, real, 37 + number, units)
        found[f"sample ratio, {real:.0%} for 10 %"] = {"mismatch": share(looks), "median_units": median(looks)}
    return found


def blocks(runs: int) -> Cases:
    """The whole gate on day blocks: equal versions of three kinds, and versions of each worth."""
    found: Cases = {}
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


def errors(runs: int) -> Cases:
    """The guardrail on errors as the policy has it, without tolerance, and the rule of thumb, with incidents and without."""
    found: Cases = {}
    for risk in (1.0, 1.2, 2.0, 3.0, 5.0, 20.0):
        for incidents in (False, True):
            row: dict[str, Any] = {}
            tests = {"": guarded(runs, risk, incidents), "_r0_1_alpha_5": guarded(runs, risk, incidents, 1.0, 0.05),
                     "_rule_of_thumb": thresholded(runs, risk, incidents)}  # fmt: skip
            for name, stops in tests.items():
                row |= {f"stopped{name}": stops.share, f"median_canary_errors{name}": stops.median("errors"),
                        f"median_requests{name}": stops.median("requests")}  # fmt: skip
            found[f"errors, relative risk {risk:g}{', incidents' if incidents else ''}"] = row
    return found


def others(runs: int) -> Cases:
    """Losses that hang together, labels, a poisoned version after a good one, whole rollouts and years."""
    fewer, few = max(LEAST, runs // 5), max(5, runs // 50)
    by_event, by_block = clustered_rates(fewer)
    found: Cases = {}
    found["clustered losses, equal"] = {"promoted_by_event": by_event, "promoted_by_block": by_block, "rollouts": fewer}
    arrived, labels, matured = delayed_rates(fewer, 10_000, 60)
    every, once = repeated_rates(fewer, 10_000, 61)
    found["labels, delayed by their value"] = {"promoted_on_arrival": arrived, "median_labels_on_arrival": labels,
                                               "promoted_at_maturity": matured, "rollouts": fewer}  # fmt: skip
    found["labels, five times and out of order"] = {"promoted_every_delivery": every, "promoted_first_only": once,
                                                    "rollouts": fewer}  # fmt: skip
    honest, stopped, clean = np.mean([poisoned_story(seed) for seed in range(few)], axis=0).tolist()
    found["a poisoned version after good ones"] = {
        "honest_promoted": honest, "poisoned_stopped": stopped, "poisoned_never_stable": clean, "rollouts": few}  # fmt: skip
    drawn = gates(runs)
    for name, worth in (("fails all three gates", (-POINT, MARGIN, 5.0)), ("fails in shadow", (-POINT, -MARGIN, 1.0)),
                        ("fails in outcome", (POINT, MARGIN, 1.0)), ("fails in errors", (POINT, -MARGIN, 5.0)),
                        ("equal", (0.0, 0.0, 1.0)), ("better", (POINT, -MARGIN, 1.0))):  # fmt: skip
        promoted, stopped = rollouts(drawn, *worth)
        found[f"whole rollout, {name}"] = {"promoted": promoted, "stopped": stopped}
    for attempts in (13, 52):
        years = max(20, runs * 26 // 10 // attempts)
        by_block, by_record, shared = year_rates(years, attempts, POLICY, 5000, 62)
        found[f"a year of {attempts} attempts"] = {
            "years_with_false_promotion_on_blocks": by_block, "on_records": by_record, "one_alpha_a_year": shared,
            "attempts_x_alpha_by_slots": round(min(1.0, attempts * POLICY.alpha / POLICY.shadow_slots), 4), "rollouts": years,
        }  # fmt: skip
    return found


def observations_a_second() -> float:
    """Of the e-process, by CPU time."""
    x = paired(np.random.default_rng(1), 50, RECORDS, 0.0)
    path(x)
    began = time.process_time()
    for _ in range(5):
        path(x)
    return 5 * x.size / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=10_000)
    runs = parser.parse_args().rollouts
    if runs < LEAST:
        sys.exit(f"--rollouts {runs} < {LEAST}: rates of fewer say nothing; give at least {LEAST}")
    cases = records(runs) | canary(runs) | blocks(runs) | errors(runs) | others(runs)
    null, peeked = (cases[f"promoted{how}, better by {-POINT:+.2f}"]["share"] for how in ("", " by peeked z"))
    unit = "false promotions at alpha 5 %, a look after every record"
    found = result("gate", unit, [null], "the z-test, peeked at as often", [peeked], ("numpy",))
    better = cases[f"promoted, better by {POINT:+.2f}"]["median_records"]
    show(found | {"samples_better": better, "samples": runs, "cases": cases,
                  "observations_a_cpu_second": round(observations_a_second())})


if __name__ == "__main__":
    main()
