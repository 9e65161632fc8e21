"""Metered windows, retired windows, releases, and what an outsider can check."""

from __future__ import annotations

import json
import re
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest

from security import accounting
from security.journal import Draft
from security.privacy import BudgetExhausted, Ledger, LedgerError, PrivacyPolicy
from tests.ledgers import DAY, NOW, POLICY, STREAM, kinds, reserve, settle, window

ROOT = Path(__file__).parents[1]


# -- metered windows --------------------------------------------------------------------------------------------------


def meter(ledger, day=0, *, noise, update, task="flights", windows=None, late=timedelta(0), **more):
    return ledger.meter(
        task=task,
        update=update,
        windows=windows or [window(day)],
        arrived=(NOW + day * DAY + late, NOW + (day + 1) * DAY + late),
        count=5000,
        max_grad_norm=1.0,
        noise_multiplier=noise,
        actor="analyst",
        at=NOW,
        **more,
    )


def test_the_gaussian_filter_has_the_published_budget():
    assert accounting.mu_squared_budget(0.5, 1e-5) == pytest.approx(0.020224, abs=1e-6)
    assert accounting.epsilon_of_mu_squared(accounting.mu_squared_budget(0.5, 1e-5), 1e-5) <= 0.5


def test_a_metered_window_takes_mechanisms_until_the_filter_is_full(ledger):
    reservation = meter(ledger, noise=10.0, update="a")
    assert (reservation.steps, reservation.reserved, reservation.sampling_rate, reservation.expected_batch) == (1, 1, 1.0, 5000)
    settle(ledger, reservation, steps=1)
    meter(ledger, noise=20.0, update="b", steps=2)
    assert ledger.epsilon_per_event() == pytest.approx(accounting.epsilon_of_mu_squared(0.015, 1e-5))
    with pytest.raises(BudgetExhausted) as caught:
        meter(ledger, noise=10.0, update="c")
    for part in ("mu^2 0.015000 spent + 0.010000 asked > 0.020224", "a noise_multiplier of 13.9 would fit", window(0)):
        assert part in str(caught.value)
    meter(ledger, noise=13.9, update="c")
    assert 0.49 < ledger.epsilon_per_event() <= 0.5
    assert ledger.summary()["windows"] == [
        {"task": "flights", "window": window(0), "kind": "metered", "updates": ["a", "b", "c"],
         "spent": ledger.epsilon_per_event(), "retired": True}
    ]  # fmt: skip


def test_a_mechanism_that_alone_exceeds_the_filter_is_refused(ledger):
    with pytest.raises(BudgetExhausted, match=r"mu.2 0\.000000 spent"):
        meter(ledger, noise=7.0, update="a")
    with pytest.raises(BudgetExhausted, match=r"0\.040000 asked"):
        meter(ledger, noise=10.0, update="a", m_max=2)  # an event in a batch twice costs four times as much


def test_a_window_is_sealed_or_metered_by_its_first_reservation(ledger):
    reserve(ledger, 0)
    with pytest.raises(BudgetExhausted, match="already trained on it"):
        meter(ledger, 0, noise=50.0, update="a")
    meter(ledger, 1, noise=50.0, update="a")
    with pytest.raises(BudgetExhausted, match="metered since update a, and a window that was read before cannot be sealed"):
        reserve(ledger, 1)


def test_two_tasks_share_the_filter_of_the_events_they_share(sqlite_journal, ledger):
    meter(ledger, noise=8.0, update="a")
    other = Ledger(sqlite_journal, "cluster", "topic", POLICY)
    late = timedelta(hours=23)
    with pytest.raises(BudgetExhausted, match="Gaussian filter's budget"):
        meter(other, noise=8.0, update="b", task="delays", windows=["other"], late=late)
    meter(other, noise=16.0, update="b", task="delays", windows=["other"], late=late)
    assert 0.49 < other.epsilon_per_event() <= 0.5
    meter(other, noise=8.0, update="c", task="delays", windows=["later"], late=DAY)


def test_metered_windows_count_their_events_once_for_delta(ledger):
    for number in range(30):
        meter(ledger, noise=100.0, update=str(number))
    assert ledger.summary()["units"] == 5000


def test_a_metered_window_with_nothing_left_is_retired_by_its_last_charge(ledger):
    meter(ledger, noise=7.04, update="a")
    assert kinds(ledger) == ["POLICY", "RESERVE", "RETIRE"] and ledger.retired("flights") == {window(0)}
    with pytest.raises(BudgetExhausted, match="the window is retired: no budget left"):
        meter(ledger, noise=1000.0, update="b")


@pytest.mark.parametrize("wrong", [{"noise": 0.1}, {"noise": float("nan")}, {"steps": 0}, {"m_max": 0}])
def test_a_mechanism_without_sense_is_refused(ledger, wrong):
    with pytest.raises(ValueError, match="noise_multiplier" if "noise" in wrong else next(iter(wrong))):
        meter(ledger, **{"noise": 10.0, "update": "a", **wrong})


# -- windows, releases, what an outsider sees -------------------------------------------------------------------------


def test_a_person_retires_a_window_once_and_for_all(ledger):
    about = {"task": "flights", "window": window(0), "reason": "erased on request", "actor": "ops", "at": NOW}
    assert ledger.retire(**about) and not ledger.retire(**about)
    with pytest.raises(BudgetExhausted, match="the window is retired: erased on request"):
        reserve(ledger, 0, days=2)
    assert reserve(ledger, 1) and reserve(ledger, 0, task="delays", late=5 * DAY)
    with pytest.raises(ValueError, match="reason"):
        ledger.retire(**{**about, "reason": " "})


def test_facts_of_a_window_are_written_once(ledger):
    for name in ("a", "b"):
        meter(ledger, noise=50.0, update=name, facts={window(0): {"count": 5000, "cut": "ab"}})
    assert kinds(ledger) == ["POLICY", "WINDOW", "RESERVE", "RESERVE"]
    assert ledger._journal.read(STREAM)[1].body == {"task": "flights", "window": window(0), "count": 5000, "cut": "ab"}


def release(ledger, updates, parent=None, version=None):
    return ledger.release(
        version=version or f"v-{updates[-1]}", artefact="d1" * 32, updates=updates, parent=parent, actor="p", at=NOW
    )


def test_a_release_says_what_its_lineage_has_spent_and_what_nobody_charged(ledger):
    settle(ledger, reserve(ledger, 0))
    settle(ledger, reserve(ledger, 1))
    first = release(ledger, ["flights-0"])
    assert release(ledger, ["flights-0"]) == first and kinds(ledger).count("RELEASE") == 1
    second = release(ledger, ["plain", "flights-0", "flights-1"], parent="v-flights-0")
    assert (second["updates"], second["not_charged"], second["parent"]) == (3, ["plain"], "v-flights-0")
    assert second["epsilon"] == ledger.epsilon_per_event() and len(second["spent"]) == 1
    assert [row["version"] for row in ledger.summary()["releases"]] == ["v-flights-0", "v-flights-1"]


def test_a_release_counts_what_others_have_charged_on_its_events_since(sqlite_journal, ledger):
    settle(ledger, meter(ledger, noise=20.0, update="a"), steps=1)
    meter(ledger, noise=20.0, update="b")
    meter(Ledger(sqlite_journal, "cluster", "topic", POLICY), noise=20.0, update="c", task="delays", windows=["other"])
    assert release(ledger, ["a"])["epsilon"] == ledger.epsilon_per_event() == accounting.epsilon_of_mu_squared(3 / 400, 1e-5)


@pytest.mark.parametrize("fate", ["open", "crashed", "overrun", "absent"])
def test_nothing_is_released_that_was_not_settled_within_its_reservation(ledger, fate):
    if fate != "absent":
        reservation = reserve(ledger, 0)
    if fate == "crashed":
        ledger.crashed("flights-0", reason="killed", actor="trainer", at=NOW)
    if fate == "overrun":
        with pytest.raises(LedgerError):
            settle(ledger, reservation, steps=37)
    with pytest.raises(LedgerError, match="must not be released: update flights-0 is"):
        release(ledger, ["flights-0"])


def test_an_overrun_that_is_told_after_the_release_stops_its_repetition(ledger):
    reservation = reserve(ledger, 0)
    settle(ledger, reservation)
    release(ledger, ["flights-0"])
    with pytest.raises(LedgerError, match="took 50 noisy steps"):
        settle(ledger, reservation, steps=50)
    with pytest.raises(LedgerError, match="must not be released"):
        release(ledger, ["flights-0"])


def test_what_a_release_recorded_is_shown_and_never_decided_upon(sqlite_journal, ledger):
    settle(ledger, reserve(ledger, 0))
    body = {**release(ledger, ["flights-0"]), "version": "forged"}
    body["spent"] = [{**part, "epsilon": 0.1} for part in body["spent"]]
    sqlite_journal.append(Draft(STREAM, "RELEASE", body), actor="somebody", at=NOW)
    again = Ledger(sqlite_journal, "cluster", "topic", POLICY)
    assert again.shown_epsilon() == 0.1
    smaller = Ledger(sqlite_journal, "cluster", "topic", PrivacyPolicy(target_delta=1e-6))
    assert smaller.shown_epsilon() == smaller.epsilon_per_event() > 0.5, "it was recorded for another delta"
    assert again.epsilon_per_event() > 0.499 and release(again, ["flights-0"], version="v2")["epsilon"] > 0.499


@pytest.mark.parametrize(
    "harm", ["UPDATE journal SET body = replace(body, '36', '35') WHERE seq = 2", "DELETE FROM journal WHERE seq = 1"]
)
def test_an_edited_or_missing_entry_stops_the_ledger(sqlite_journal, ledger, tmp_path, harm):
    reserve(ledger)
    with sqlite3.connect(tmp_path / "journal.db") as db:
        db.execute("DROP TRIGGER journal_no_update")
        db.execute("DROP TRIGGER journal_no_delete")
        db.execute(harm)
    with pytest.raises(LedgerError, match="headgate journal verify"):
        reserve(Ledger(sqlite_journal, "cluster", "topic", POLICY), 1)


def test_an_outsider_recomputes_epsilon_from_the_export_with_the_documented_code(sqlite_journal, ledger):
    settle(ledger, reserve(ledger, 0))
    before = ledger.position()
    meter(ledger, 1, noise=10.0, update="a")
    meter(ledger, 1, noise=20.0, update="b")
    meter(ledger, 1, noise=20.0, update="c", task="delays", windows=["other"])
    with pytest.raises(LedgerError):
        settle(ledger, reserve(ledger, 3), steps=60)
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/privacy.md").read_text(), re.DOTALL)
    said: dict = {}
    exec(block, said)
    lines = [json.dumps(row) for row in ledger.export()]
    epsilon, chain = said["check"](lines)
    assert epsilon == pytest.approx(ledger.epsilon_per_event(), abs=1e-3) and epsilon > 0.6
    assert chain == ledger.position()["chain"] and said["check"](lines[: before["entries"]])[1] == before["chain"]
    for wrong in ([*lines[:3], *lines[4:]], [line.replace('"steps": 36', '"steps": 30') for line in lines]):
        with pytest.raises(AssertionError):
            said["check"](wrong)
