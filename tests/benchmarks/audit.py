"""What a whole privacy audit costs (tiers 0 to 2, planted defects included). Goal: tiers 0 and 1 within 60 CPU s.

The peer is the same audit with Opacus' hooks as the source of gradients, in turns; nearly all of it is the 22,000 steps of
tier 1, each taken for itself. Beside the figures stands what the audit found: a fast audit that misses something is none.
`figure` is in CPU seconds.

    python -m tests.benchmarks.audit --rounds 3
"""

from __future__ import annotations

import argparse
import sys
import time

from models.audit import job as audit_job
from models.audit.subject import Source, small_subject
from models.audit.tiers import Audit, audit
from models.private.clipping import PerExampleGradients
from tests.benchmarks import result, show

SIDES: dict[str, Source | None] = {"ours": None, "opacus": PerExampleGradients}


def timed(source: Source | None) -> tuple[float, Audit]:
    started = time.process_time()
    found = audit(small_subject(source))
    return time.process_time() - started, found


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--rounds", type=int, default=1, help="audits of each side")
    rounds = words.parse_args().rounds
    audit_job.POLICY.law()  # the accountant is loaded once, before the clock runs
    spent: dict[str, list[float]] = {name: [] for name in SIDES}
    found: list[Audit] = []
    for _ in range(rounds):
        for name, source in SIDES.items():
            seconds, report = timed(source)
            spent[name].append(seconds)
            found.append(report)
            print(f"{name:<8} {seconds:.1f} CPU s, mu > {report.lower_bound:.3f}", file=sys.stderr)
    faults = [fault for report in found for fault in report.faults]
    if faults:
        sys.exit("the audit failed: " + "; ".join(faults))
    last = found[-2].as_dict()
    shown = result("audit", "CPU s an audit", spent["ours"], "the same audit with Opacus' hooks", spent["opacus"],
                   ["torch", "opacus", "scipy"])
    show({**shown, **{key: last[key] for key in ("claim", "lower_bound", "mutants", "mutants_missed")}})


if __name__ == "__main__":
    main()
