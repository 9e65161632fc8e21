"""Seconds for the fold of a privacy ledger of a year of hourly windows, 8,760 updates, by CPU time. Goal: 1 s.

Ours is what a process does before its first reservation: read the stream, check every entry's hash, index the charges,
and derive epsilon for each labelled event. The peer is the same entries read and decoded, nothing else. Beside it stand
the calibration of the noise (0.7 s once, then remembered) and the next reservation. Both sides take turns.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from statistics import median

from security import accounting
from security.accounting import Law
from security.charges import Charge
from security.journal import Draft, Journal, stamp
from security.ledger_entries import reserve_body
from security.privacy import Ledger, PrivacyPolicy
from tests.benchmarks import result, show

WINDOWS, SAMPLES = 8760, 5
POLICY = PrivacyPolicy(target_delta=1e-8)  # 8,760 windows of 5,000 events are more than 1e5
NOW, HOUR = datetime(2026, 1, 1, tzinfo=UTC), timedelta(hours=1)
STREAM = "privacy/cluster/topic"


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def written(journal: Journal) -> None:
    """A RESERVE and a COMMIT for each window."""
    law = POLICY.law()
    drafts = []
    for hour in range(WINDOWS):
        start = NOW + hour * HOUR
        name, update = f"{start:%Y-%m-%dT%H:%MZ}", f"flights/{hour:06d}"
        charge = Charge("flights", update, (name,), (start - 36 * HOUR, start + HOUR), 5000, law, 1.0, start, spare=4)
        drafts.append(Draft(STREAM, "RESERVE", reserve_body(charge, POLICY)))
        drafts.append(Draft(STREAM, "COMMIT", {"update": update, "steps": 32, "artefact": "0" * 64}))
    journal.append_all(drafts, actor="bench", at=NOW)


def folded(journal: Journal) -> None:
    ledger = Ledger(journal, "cluster", "topic", POLICY)
    if len(ledger.charges()) != WINDOWS or not 0 < ledger.epsilon_per_event() <= POLICY.target_epsilon:
        sys.exit(f"{len(ledger.charges())} of {WINDOWS} charges, epsilon {ledger.epsilon_per_event()}")


def reserved(journal: Journal, number: int) -> None:
    start = NOW + (WINDOWS + number) * HOUR
    ledger = Ledger(journal, "cluster", "topic", POLICY)
    ledger.reserve(
        task="flights", update=stamp(start), windows=[stamp(start)], arrived=(start, start + HOUR), count=5000,
        max_grad_norm=1.0, actor="bench", at=start,
    )  # fmt: skip


def main() -> None:
    accounting.epsilon((Law(0.1, 1.0, 1),), 1e-5)  # the import of the accountant is paid once a process
    ours, theirs, calibrations = [], [], []
    for sample in range(SAMPLES):
        target = 0.5 + 0.001 * sample  # a new question each time: the answer is remembered
        calibrations.append(seconds(lambda target=target: accounting.noise_multiplier(target, 1e-5, 0.125, 36)))
    again = seconds(lambda: accounting.noise_multiplier(0.5, 1e-5, 0.125, 36))
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(f"sqlite:///{folder}/journal.db")
        written(journal)
        for _ in range(SAMPLES):
            ours.append(seconds(lambda: folded(journal)))
            theirs.append(seconds(lambda: journal.read(STREAM)))
            print(f"fold {ours[-1]:.2f} s, read alone {theirs[-1]:.2f} s", file=sys.stderr)
        next_one = seconds(lambda: reserved(journal, 0))
        journal.close()
    found = result("dp", f"CPU seconds to fold {WINDOWS} windows", ours, "entries read alone", theirs, ["dp-accounting"])
    show(found | {
        "calibration_seconds": round(median(calibrations), 4), "calibration_again_seconds": round(again, 6),
        "reserve_seconds": round(next_one, 4),
    })  # fmt: skip


if __name__ == "__main__":
    main()
