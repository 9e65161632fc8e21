"""Entries a second into the journal on SQLite, against bare inserts by sqlite3 with the same durability.

One entry a transaction on both sides, WAL and synchronous=FULL, in the same folder, taking turns. The journal does more
for it: hash chain, compare-and-set on the stream, the append-only triggers, and SQLAlchemy in between.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from security.journal import Draft, Journal
from tests.benchmarks import result, show

ENTRIES, SAMPLES = 1000, 7
BODY = {"window": "2026-01-01T00:00Z", "rows": {"events": 24000, "labels": 23900}, "rejects": 3, "sha256": "0" * 64}


def through_the_journal(folder: Path, sample: int) -> float:
    journal, now = Journal(f"sqlite:///{folder}/journal-{sample}.db"), datetime.now(UTC)
    began = time.perf_counter()
    for length in range(ENTRIES):
        journal.append(Draft("window/bench", "window.sealed", BODY, expected=length), actor="bench", at=now)
    seconds = time.perf_counter() - began
    if journal.head() != ENTRIES:
        sys.exit(f"{journal.head()} of {ENTRIES} entries were written")
    journal.close()
    return ENTRIES / seconds


def bare(folder: Path, sample: int) -> float:
    db = sqlite3.connect(folder / f"bare-{sample}.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE journal (seq INTEGER PRIMARY KEY, stream TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL)")
    began = time.perf_counter()
    for seq in range(1, ENTRIES + 1):
        db.execute("INSERT INTO journal VALUES (?, ?, ?, ?)", (seq, "window/bench", "window.sealed", json.dumps(BODY)))
    seconds = time.perf_counter() - began
    db.close()
    return ENTRIES / seconds


def main() -> None:
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for sample in range(SAMPLES):
            ours.append(through_the_journal(folder, sample))
            theirs.append(bare(folder, sample))
            print(f"journal {ours[-1]:.0f}, sqlite3 {theirs[-1]:.0f} entries/s", file=sys.stderr)
    found = result("journal", "entries a second", ours, "bare sqlite3 inserts", theirs, ["sqlalchemy"])
    found["versions"]["sqlite"] = sqlite3.sqlite_version
    show(found)


if __name__ == "__main__":
    main()
