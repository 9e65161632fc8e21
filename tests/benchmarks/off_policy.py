"""What a policy earns, estimated from another's log, beside what it did earn.

Two arms met visitors at random, 10,000 impressions each, and both were logged with propensities: `random` (each of 34 items
alike) and `bts` (Bernoulli Thompson sampling), so each arm's estimate from the other's log can be held against its own clicks.
Two sources: the Open Bandit Dataset, small, campaign "men" (a file that is no part of the checkout: `--data PATH`, by default
beside it; without it it is left out, and said to be), and one made up, whose click rates are known.

What bts would do is how often it showed each item at each position; its own recorded propensity is used where it is the one
that logged. The reward model of the doubly robust figure is click rates of items, shrunk to the mean of all, learnt on the
other half of the rows. `figure` is IPS of bts from the random log of the first source in percent, its peer what bts did earn.

    python -m tests.benchmarks.off_policy
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from monitoring.off_policy import CLIP, Estimate, Refused, Sums, probability_of, weigh
from tests.benchmarks import ROOT, result, show

DATA = ROOT.parent / "shared" / "data" / "obd_men.parquet"
ITEMS, POSITIONS = 34, 3
DRAWS = 20_000  # with 1,000 the upper end varies by .01 to .02 from seed to seed
SHRINK = 1000  # impressions: what an item's click rate counts for beside the mean of all
Log = Mapping[str, np.ndarray]


def read(path: Path) -> dict[str, Log]:
    """The logs of both arms: item, position (from 0), click and propensity, (n,) each."""
    table = pq.read_table(path, columns=["policy", "item_id", "position", "click", "propensity_score"])
    arm = table.column("policy").to_numpy()
    columns = {
        "item": table.column("item_id").to_numpy().astype(np.int64),
        "position": table.column("position").to_numpy().astype(np.int64) - 1,
        "click": table.column("click").to_numpy().astype(np.float64),
        "propensity": table.column("propensity_score").to_numpy(),
    }
    return {name: {key: values[arm == name] for key, values in columns.items()} for name in ("random", "bts")}


def behaviour(log: Log) -> np.ndarray:
    """How often a log shows each item at each position, (POSITIONS, ITEMS), rows sum to 1."""
    shown = np.zeros((POSITIONS, ITEMS))
    np.add.at(shown, (log["position"], log["item"]), 1.0)
    return shown / shown.sum(axis=1, keepdims=True)


def expected(log: Log, policy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the reward model: clicks expected of the logged items and of the policy (n, ITEMS); each half by the other's rates."""
    logged, wanted = np.empty(len(log["item"])), np.empty(len(log["item"]))
    half = np.arange(len(log["item"])) % 2 == 0
    for mine in (half, ~half):
        items, clicks = log["item"][~mine], log["click"][~mine]
        counts = np.bincount(items, minlength=ITEMS)
        rates = (np.bincount(items, clicks, minlength=ITEMS) + SHRINK * clicks.mean()) / (counts + SHRINK)
        logged[mine], wanted[mine] = rates[log["item"][mine]], policy[mine] @ rates
    return logged, wanted


def bootstrap(values: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of values (n,), of which few are distinct: drawn as counts of each."""
    distinct, counts = np.unique(values, return_counts=True)
    n = len(values)
    low, high = np.percentile(np.random.default_rng(seed).multinomial(n, counts / n, draws) @ distinct / n, (2.5, 97.5))
    return float(low), float(high)


def case(name: str, log: Log, policy: np.ndarray, own: np.ndarray) -> dict[str, Any]:
    """All estimates of one policy, (POSITIONS, ITEMS), from a log, in percent, beside the clicks `own` it did earn."""
    chances = policy[log["position"]]
    target = probability_of(log["item"], chances)
    model = expected(log, chances)
    whole, clipped = (weigh(log["click"], target, log["propensity"], model=model, clip=clip) for clip in (np.inf, CLIP))
    earned = own.mean()
    error = 1.96 * np.sqrt(earned * (1 - earned) / len(own))
    return {
        "case": name, "own": _percent(earned, earned - error, earned + error), "rows": whole.n,
        "effective": round(clipped.effective), "effective_unclipped": round(whole.effective),
        "largest_weight": round(float(np.max(target / log["propensity"])), 1),
        "ips": _figure(whole, Sums.ips),
        "ips_bootstrap": [round(100 * end, 3) for end in bootstrap(target / log["propensity"] * log["click"])],
        "snips": _figure(clipped, Sums.snips), "doubly_robust": _figure(clipped, Sums.doubly_robust),
        "lost_to_clipping": round(1 - clipped.w / clipped.raw, 4),
    }  # fmt: skip


def _figure(sums: Sums, estimate: Callable[[Sums], Estimate]) -> dict[str, float] | str:
    try:
        found = estimate(sums)
    except Refused as refused:
        return f"refused: {refused}"
    return _percent(found.value, found.low, found.high)


def _percent(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": round(100 * value, 3), "low": round(100 * low, 3), "high": round(100 * high, 3)}


def made_up(rows: int = 10_000, seed: int = 7) -> tuple[dict[str, Log], np.ndarray]:
    """Logs as `read` gives them, where bts shows an item as often as its click rate is high; and those rates, (ITEMS,)."""
    rng, rates = np.random.default_rng(seed), np.linspace(0.02, 0.2, ITEMS)
    logs = {}
    for name, chances in (("random", np.full(ITEMS, 1 / ITEMS)), ("bts", rates / rates.sum())):
        item = rng.choice(ITEMS, rows, p=chances)
        clicks = (rng.random(rows) < rates[item]).astype(np.float64)
        position = rng.integers(0, POSITIONS, rows)
        logs[name] = {"item": item, "position": position, "click": clicks, "propensity": chances[item]}
    return logs, rates


def cases_of(source: str, logs: Mapping[str, Log]) -> list[dict[str, Any]]:
    """Each arm from the other's log."""
    random, bts = logs["random"], logs["bts"]
    alike = np.full((POSITIONS, ITEMS), 1 / ITEMS)
    return [
        case(f"{source}: bts from the log of random", random, behaviour(bts), bts["click"]),
        case(f"{source}: random from the log of bts", bts, alike, random["click"]),
    ]


def measured(data: Path) -> dict[str, Any]:
    """The result: of the file, where it is there, and of the made-up logs."""
    there, left_out = {"made up": made_up()[0]}, {}
    if data.is_file():
        there = {"Open Bandit": read(data), **there}
    else:
        left_out["Open Bandit"] = f"no file {data}: name one with --data"
        print(f"Open Bandit is left out: {left_out['Open Bandit']}", file=sys.stderr)
    cases = [each for source, logs in there.items() for each in cases_of(source, logs)]
    figure, own = cases[0]["ips"]["value"], cases[0]["own"]["value"]
    unit = f"% clicks by IPS, {cases[0]['case']}"
    found = result("off_policy", unit, [figure], "its own clicks", [own], ("numpy",))
    more = {"cases": cases, "left_out": left_out, "cpu_seconds": round(time.process_time(), 1)}
    return found | {"samples": cases[0]["rows"]} | more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="obd_men.parquet")
    show(measured(parser.parse_args().data))


if __name__ == "__main__":
    main()
