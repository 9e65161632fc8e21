"""Alarms: raised once, however many processes see the fault; open until somebody says why not."""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from monitoring import alarms
from monitoring.alarms import KINDS, AlarmError, acknowledge, open_alarms, raise_alarm
from security.journal import Journal

NOW = datetime(2026, 1, 1, tzinfo=UTC)
W1, W2 = "2026-01-01T00:00Z", "2026-01-02T00:00Z"


def _raise(journal, kind="gradient_norm", window=W1, at=NOW, **more):
    given = {"message": f"{kind} in {window}", "figure": 14.2, "limit": 10.0, "actor": "pipeline"} | more
    return raise_alarm(journal, "flights", kind=kind, window=window, at=at, **given)


def test_an_alarm_carries_window_figure_limit_cure_and_page(journal):
    entry = _raise(journal)
    assert entry.stream == "alarm/flights" and entry.kind == "alarm.raised"
    (alarm,) = open_alarms(journal, "flights")
    assert (alarm.window, alarm.figure, alarm.limit, alarm.severity) == (W1, 14.2, 10.0, "critical")
    assert alarm.docs == "docs/alarms.md#gradient-norm" and "max_gradient_norm" in alarm.cure
    assert alarms.as_json(alarm)["at"] == "2026-01-01T00:00:00.000000Z"


def test_the_same_fault_in_the_same_window_is_one_alarm(journal):
    first = _raise(journal)
    assert _raise(journal, at=NOW + timedelta(hours=1), figure=99.0) == first
    assert _raise(journal, window=W2).seq != first.seq
    assert journal.length("alarm/flights") == 2


def test_an_acknowledged_alarm_does_not_come_back_for_its_window(journal):
    first = _raise(journal)
    acknowledge(journal, "flights", kind="gradient_norm", window=W1, reason="bad sensor", at=NOW, actor="oncall")
    assert _raise(journal) == first and open_alarms(journal, "flights") == ()
    (seen,) = alarms.all_alarms(journal, "flights")
    assert (seen.acknowledged, seen.acknowledged_by, seen.reason) == (NOW, "oncall", "bad sensor")


def test_a_standing_alarm_stands_for_the_windows_after_it_until_it_is_acknowledged(journal):
    first = _raise(journal, kind="drift")
    assert _raise(journal, kind="drift", window=W2) == first and alarms.is_open(journal, "flights", "drift")
    acknowledge(journal, "flights", kind="drift", window=None, reason="season", at=NOW, actor="oncall")
    assert not alarms.is_open(journal, "flights", "drift")
    assert _raise(journal, kind="drift", window=W2).body["window"] == W2


def test_two_processes_that_race_leave_one_alarm(tmp_path):
    url = f"sqlite:///{tmp_path}/journal.db"
    journals = [Journal(url) for _ in range(6)]
    start = threading.Barrier(len(journals))
    seen: list[int] = []

    def run(journal):
        start.wait()
        seen.append(_raise(journal).seq)

    threads = [threading.Thread(target=run, args=(journal,)) for journal in journals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 6 and len(set(seen)) == 1 and journals[0].length("alarm/flights") == 1


def test_the_worst_come_first_and_then_the_newest(journal):
    for kind, window in (("drift", W1), ("security", W1), ("loss_change", W2), ("security", W2)):
        _raise(journal, kind=kind, window=window)
    assert [(a.kind, a.window) for a in open_alarms(journal, "flights")] == [
        ("security", W2), ("security", W1), ("loss_change", W2), ("drift", W1),
    ]  # fmt: skip
    assert open_alarms(journal, "another task") == ()


def test_a_figure_that_is_no_number_is_left_to_the_message(journal):
    assert _raise(journal, kind="non_finite", figure=float("nan"), limit=None).body["figure"] is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda j: _raise(j, kind="gradient"), "alarm kind 'gradient' is none of gradient_norm, "),
        (lambda j: _raise(j, severity="fatal"), "severity 'fatal' is none of critical, warning, info"),
        (
            lambda j: acknowledge(j, "flights", kind="drift", window=W1, reason="x", at=NOW, actor="a"),
            f"no drift alarm in window {W1} of alarm/flights",
        ),
        (
            lambda j: acknowledge(j, "flights", kind="drift", window=W1, reason=" ", at=NOW, actor="a"),
            "acknowledging drift needs a reason",
        ),
    ],
)
def test_a_mistake_is_refused_and_nothing_is_written(tmp_path, call, message):
    journal = Journal(f"sqlite:///{tmp_path}/journal.db")
    with pytest.raises(AlarmError, match=re.escape(message)):
        call(journal)
    assert journal.head() == 0


def test_every_kind_has_its_section_in_the_runbook_with_all_four_answers():
    page = (Path(alarms.__file__).parents[1] / "docs" / "alarms.md").read_text()
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == [kind.docs.partition("#")[2] for kind in KINDS.values()]
    for name, text in sections.items():
        for answer in ("**Means:**", "**Figure and limit:**", "**What the pipeline did:**", "**What to do:**"):
            assert answer in text, f"{name} lacks {answer}"
    rows = re.findall(r"^\| \[(\w+)\]\(#\S+\) \| (\w+) \| (yes|) ?\|", page, re.MULTILINE)
    assert rows == [(kind.name, kind.severity, "yes" if kind.standing else "") for kind in KINDS.values()]
