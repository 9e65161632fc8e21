"""What private learning is worth: log loss gained over the frozen base, without privacy and at epsilon 8, 2, 0.5 (delta 1e-5).

Two recorded streams, each event answered before its label is learnt: flights (the demo's Task; history January to March,
stream 3 June to 26 August) and Elec2 with labels a day late (history until Victoria joins the market, price left out; a file
that is not part of the checkout: `--data PATH`, by default beside it; without it Elec2 is left out, and said to be).

A learning rate is chosen on history alone. A base of its first half meets its second half, where there is little to learn, so
that what shows is what noise costs: the largest rate that costs at most half a percent of the frozen base's loss, on the mean
of the seeds, and at which the guard refuses no update. The seed is the base's; what privacy draws has none, so that figures
differ from run to run. `figure` is the median gain in nats at epsilon 0.5 on flights, its peer the same without privacy.

    python -m tests.benchmarks.utility --seeds 3
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from tests.benchmarks import ROOT, _elec2, result, show
from tests.benchmarks._prequential import Arm, Base, Replay, Stream, base_of, replay

ELEC2 = ROOT.parent / "shared" / "data" / "elec2.parquet"
CACHE = ROOT / "var" / "demo-cache"
EPSILONS = (8.0, 2.0, 0.5)
PRIVATE_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
PLAIN_RATES = (2e-5, 6e-5, 2e-4, 6e-4, 2e-3)
ELEC2_EPOCHS = 4  # of 2, 4, 8 and 16 the best on the second half of history
COST = 0.005  # of the frozen base's loss on history
ROWS = {"flights": (5000, (800, 20_000)), "elec2": (1344, (336, 5000))}  # an update of the table, and others beside it


@dataclass(frozen=True)
class Row:
    """A line of the table: which arm, and whether its rate is chosen on history."""

    name: str
    arm: Arm
    chosen: bool = True


def flights() -> Stream:
    """The demo's stream with its true labels."""
    from pipelines.demo.flights import LATE_MINUTES, FlightDelay
    from pipelines.demo.prepared import prepare
    from pipelines.demo.story import Story

    story, task = Story(), FlightDelay(CACHE)
    both = [prepare(story.history_start, story.history_end, CACHE), prepare(story.start, story.end + timedelta(days=1), CACHE)]
    labelled = [~np.isnan(part.arr_delay) for part in both]
    inputs = [task.encode(part.columns)[known] for part, known in zip(both, labelled, strict=True)]
    late = [part.arr_delay[known] >= LATE_MINUTES for part, known in zip(both, labelled, strict=True)]
    seen = [part.scheduled[known] for part, known in zip(both, labelled, strict=True)]
    times = (int(each.timestamp()) for each in (story.history_end, story.start, story.end))
    return Stream(task, np.concatenate(inputs), np.concatenate(late).astype(np.float32), np.concatenate(seen), *times)


def elec2(path: Path) -> Stream:
    """Row n at n half hours; only differences of time matter."""
    task, columns = _elec2.Elec2(), _elec2.read(path)
    seen = np.arange(len(columns["up"])) * _elec2.SECONDS_A_ROW
    begins = _elec2.HISTORY_ROWS * _elec2.SECONDS_A_ROW
    ends = len(seen) * _elec2.SECONDS_A_ROW
    return Stream(task, task.encode(columns), task.target(columns), seen, begins, begins, ends, ELEC2_EPOCHS)


def table(rows: int, others: Sequence[int]) -> list[Row]:
    """The lines for updates of `rows` examples, and at epsilon 0.5 of `others`."""
    strict = EPSILONS[-1]
    return [
        Row("no privacy, default rate", Arm(rows, rate="auto"), chosen=False),
        Row("no privacy", Arm(rows)),
        *(Row(f"epsilon {epsilon:g}", Arm(rows, epsilon)) for epsilon in EPSILONS),
        Row(f"epsilon {strict:g}, default rate", Arm(rows, strict, "auto"), chosen=False),
        *(Row(f"epsilon {strict:g}, updates of {other}", Arm(other, strict)) for other in others),
        *(Row(f"epsilon {strict:g}, updates of {other}, default rate", Arm(other, strict, "auto"), chosen=False)
          for other in others),
    ]


def figures(output: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Of logits: log loss (nats), accuracy, balanced accuracy, area under the ROC curve (Hanley and McNeil 1982)."""
    output, positive = output.astype(np.float64), truth > 0.5
    right, n = (output > 0) == positive, int(positive.sum())
    area = (rankdata(output)[positive].sum() - n * (n + 1) / 2) / (n * (len(truth) - n))
    return {
        "log_loss": float(np.mean(np.logaddexp(0, output) - truth * output)),
        "accuracy": float(right.mean()),
        "balanced_accuracy": float((right[positive].mean() + right[~positive].mean()) / 2),
        "auc": float(area),
    }


def persistence(stream: Stream) -> dict[str, dict[str, float]]:
    """What needs no model on a stream of equal steps: the last label there was, at once or when mature, and the majority."""
    late = int(stream.task.label_horizon.total_seconds() // (stream.seen[1] - stream.seen[0]))
    rows = np.flatnonzero((stream.seen >= stream.begins) & (stream.seen < stream.ends))
    majority = np.full(len(rows), stream.truth[: rows[0]].mean() > 0.5)
    answers = {
        "no change, labels at once": stream.truth[rows - 1], f"no change, labels {late} rows late": stream.truth[rows - late],
        "majority of history": majority,
    }  # fmt: skip
    return {name: {"accuracy": round(float(np.mean(said == stream.truth[rows])), 4)} for name, said in answers.items()}


def chosen_rate(stream: Stream, bases: Iterable[Base], arm: Arm) -> float:
    """The largest rate within the cost on history that the guard never refused, else the least costly; on bases of its first
    half.
    """
    rehearsal, bases = stream.rehearsal(), list(bases)
    frozen = fmean(_loss(replay(rehearsal, base, Arm(arm.rows))) for base in bases)
    costs = {}
    for rate in PLAIN_RATES if arm.epsilon is None else PRIVATE_RATES:
        runs = [replay(rehearsal, base, replace(arm, rate=rate)) for base in bases]
        costs[rate] = math.inf if any(run.refused for run in runs) else fmean(_loss(run) for run in runs) - frozen
        if costs[rate] > 10 * COST * frozen:
            break  # the next one is larger still
    within = [rate for rate, cost in costs.items() if cost <= COST * frozen]
    return max(within) if within else min(costs, key=lambda rate: costs[rate])


def measured(stream: Stream, rows: Iterable[Row], seeds: int) -> dict[str, Any]:
    """The table of one stream: figures of each line, means over the seeds, and the gain of each seed."""
    public = [base_of(stream, seed) for seed in range(seeds)]
    halves = [base_of(stream.rehearsal(), seed) for seed in range(seeds)]
    still = [replay(stream, base, Arm(1)) for base in public]
    frozen = [figures(each.output, each.truth) for each in still]
    lines: dict[str, Any] = {"frozen base": _means(frozen)}
    for row in rows:
        arm = replace(row.arm, rate=chosen_rate(stream, halves, row.arm)) if row.chosen else row.arm
        runs = [replay(stream, base, arm) for base in public]
        lines[row.name] = {"rate": arm.rate, "rows": arm.rows, **_line(runs, frozen)}
        print(stream.task.name, row.name, json.dumps(lines[row.name]), file=sys.stderr)
    return {"stream": stream.task.name, "events": len(still[0].truth), "lines": lines}


def _line(runs: Sequence[Replay], frozen: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    found = [figures(run.output, run.truth) for run in runs]
    spent = [run.spent for run in runs if run.spent is not None]
    gains = [round(before["log_loss"] - now["log_loss"], 4) for before, now in zip(frozen, found, strict=True)]
    return {
        **_means(found), "gain": round(fmean(gains), 4), "gains": gains,
        "updates": round(fmean(len(run.examples) for run in runs), 1), "refused": round(fmean(run.refused for run in runs), 1),
        "examples": round(fmean(n for run in runs for n in run.examples or [0])),
        "clipped": round(fmean(share for run in runs for share in run.clipped or [0.0]), 4),
        "cpu_seconds": round(fmean(run.seconds for run in runs), 2),
    } | ({"epsilon_by_ledger": round(max(spent), 4)} if spent else {})  # fmt: skip


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(fmean(each[name] for each in found), 4) for name in found[0]}


def _loss(run: Replay) -> float:
    return figures(run.output, run.truth)["log_loss"]


def streams(asked: Sequence[str], data: Path) -> tuple[list[Stream], dict[str, str]]:
    """What there is of the streams asked for, and why one is left out."""
    there, left_out = [], {}
    if "flights" in asked:
        there.append(flights())
    if "elec2" in asked and data.is_file():
        there.append(elec2(data))
    elif "elec2" in asked:
        left_out["elec2"] = f"no file {data}: name one with --data"
        print(f"elec2 is left out: {left_out['elec2']}", file=sys.stderr)
    return there, left_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="bases, each with its own replay")
    parser.add_argument("--streams", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--data", type=Path, default=ELEC2, help="elec2.parquet")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    there, left_out = streams(asked.streams, asked.data)
    if not there:
        sys.exit("no stream is left to measure")
    cases = [measured(stream, table(*ROWS[stream.task.name]), asked.seeds) for stream in there]
    for case, stream in zip(cases, there, strict=True):
        case["lines"] |= persistence(stream) if case["stream"] == "elec2" else {}
    first = cases[0]["lines"]
    gains = first["epsilon 0.5"]["gains"], first["no privacy"]["gains"]
    unit = f"nats gained over the frozen base on {cases[0]['stream']} at epsilon 0.5"
    found = result("utility", unit, gains[0], "no privacy, rate chosen alike", gains[1], ("torch", "dp-accounting"))
    show(found | {"cases": cases, "left_out": left_out, "cpu_seconds": round(time.process_time())})


if __name__ == "__main__":
    main()
