"""A privacy ledger for tests: windows are days of 2026, reservations follow the default policy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from security.journal import Journal
from security.privacy import Ledger, PrivacyPolicy

POLICY = PrivacyPolicy()
NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
STREAM = "privacy/cluster/topic"


@pytest.fixture
def sqlite_journal(tmp_path):
    opened = Journal(f"sqlite:///{tmp_path}/journal.db")
    yield opened
    opened.close()


@pytest.fixture
def ledger(sqlite_journal):
    return Ledger(sqlite_journal, "cluster", "topic", POLICY)


def window(day):
    return (NOW + day * DAY).strftime("%Y-%m-%dT%H:%MZ")


def reserve(ledger, day=0, *, update=None, task="flights", count=5000, days=1, late=timedelta(0)):
    return ledger.reserve(
        task=task,
        update=update or f"{task}-{day}",
        windows=[window(day + i) for i in range(days)],
        arrived=(NOW + day * DAY + late, NOW + (day + days) * DAY + late),
        count=count,
        max_grad_norm=12.0,
        actor="trainer",
        at=NOW,
    )


def settle(ledger, reservation, steps=32, artefact="v000001-1a2b3c4d"):
    ledger.settle(reservation, steps=steps, artefact=artefact, actor="trainer", at=NOW)


def kinds(ledger):
    return [entry.kind for entry in ledger._journal.read(STREAM)]
