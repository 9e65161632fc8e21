"""Subject accounts: records of one subject are capped in an update, and left out once its budget is full."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

import models.training
from assets.steps.adapter import ledger_of
from monitoring.alarms import open_alarms
from pipelines.run_window import run_window
from security.accounting import epsilon
from security.keys import secret
from security.privacy import PrivacyPolicy
from security.subjects import (
    Accounts,
    AccountsLost,
    SubjectBudget,
    Table,
    admit,
    admitted,
    best_order,
    divergence,
    dominating,
    limit,
)
from tests.worlds import Blobs, World, make_world

LAW = PrivacyPolicy().law()
ORDER = best_order(LAW, 4.0, 1e-5)
POLICY = {"most": 1, "epsilon": 4.0, "delta": 1e-5}


def test_the_first_records_of_each_subject_stay_and_are_charged_once():
    keep, charged = admit(["a", "b", "a", "a", "b"], {}, [1.0, 2.5], budget=4.0)
    assert keep == [True, True, True, False, True] and charged == {"a": 2.5, "b": 2.5}


def test_a_subject_keeps_as_many_records_as_its_account_has_room_for():
    keep, charged = admit(["a", "a", "b", "c"], {"a": 3.0, "b": 3.5}, [1.0, 2.5], budget=4.0)
    assert keep == [True, False, False, True] and charged == {"a": 1.0, "c": 1.0}


def test_no_walk_of_updates_gives_a_subject_more_than_its_budget_or_its_cap():
    dice, spent, costs = random.Random(7), Counter[str](), [0.3, 0.7, 1.6]
    for _ in range(300):
        subjects = [str(dice.randrange(20)) for _ in range(dice.randrange(60))]
        keep, charged = admit(subjects, spent, costs, budget=4.0)
        used = Counter(subject for subject, kept in zip(subjects, keep, strict=True) if kept)
        assert all(count <= 3 and charged[subject] == costs[count - 1] for subject, count in used.items())
        assert used.keys() == charged.keys()
        spent.update(charged)
        assert max(spent.values(), default=0) <= 4.0 + 1e-9
    assert min(spent.values()) > 3.7 - 1e-9 and not any(keep), "nobody has room for the cheapest by now"


def test_the_filter_never_allows_more_than_the_accountant_would():
    """39 updates of the default law fit into 4; asked all together, PLD says less than the budget."""
    updates = int(limit(ORDER, 4.0, 1e-5) / divergence(LAW, ORDER))
    assert updates == 39 and epsilon((LAW._replace(steps=36 * updates),), 1e-5) <= 4.0


def test_several_records_of_a_subject_cost_no_less_than_the_exact_mixture():
    """Three records: Binomial(3, q) of them are in a step. The mixture's own accountant must say less than ours."""
    from dp_accounting import NeighboringRelation, dp_event
    from dp_accounting.pld import PLDAccountant
    from scipy.stats import binom

    exact = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, value_discretization_interval=1e-3)
    mixture = dp_event.MixtureOfGaussiansDpEvent(LAW.noise_multiplier, [0, 1, 2, 3], list(binom.pmf(range(4), 3, 0.125)))
    exact.compose(dp_event.SelfComposedDpEvent(mixture, LAW.steps))
    assert exact.get_epsilon(1e-5) <= epsilon((dominating(LAW, 3),), 1e-5)
    assert dominating(LAW, 3)[:2] == (pytest.approx(1 - 0.875**3), LAW.noise_multiplier / 3)
    assert divergence(LAW, ORDER, 3) == divergence(dominating(LAW, 3), ORDER) > 3 * divergence(LAW, ORDER)


def test_a_budget_without_room_for_one_update_is_refused_with_the_cure():
    with pytest.raises(SubjectBudget, match=r"raise \[privacy\] subject_epsilon"):
        best_order(LAW, 0.5, 1e-5)
    with pytest.raises(ValueError, match="max_per_subject 0"):
        PrivacyPolicy(max_per_subject=0)
    with pytest.raises(ValueError, match="subject_epsilon nan"):
        PrivacyPolicy(subject_epsilon=float("nan"))


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.fixture
def accounts(tmp_path):
    return Accounts(tmp_path / "accounts" / "one.bin", b"k" * 32)


def spend(accounts, reserved, known, update, *subjects):
    with accounts.locked():
        table = accounts.load(reserved, known)
        keep, table = admitted(table, update, [accounts.name(subject) for subject in subjects], LAW, **POLICY)
        return keep, accounts.save(table)


def test_the_table_is_unreadable_to_others_and_holds_no_subject(accounts):
    spend(accounts, None, set(), "u1", "4711-0815")
    payload = accounts.path.read_bytes()
    assert accounts.path.stat().st_mode & 0o777 == 0o600
    assert b"4711" not in payload and accounts.name("4711-0815").encode() not in payload and b"spent" not in payload
    assert accounts.name("a") != Accounts(accounts.path, b"j" * 32).name("a")
    assert accounts.name(None) != accounts.name("None")


def test_what_was_reserved_is_spent_and_what_never_was_is_not(accounts):
    one = divergence(LAW, ORDER)
    _, aborted = spend(accounts, None, set(), "u1", "a")
    _, digest = spend(accounts, None, set(), "u1", "a", "b")  # the first was refused, or the process died before RESERVE
    table = accounts.load(digest, {"u1"})  # a crash after RESERVE: spent
    assert table.spent == {accounts.name("a"): one, accounts.name("b"): one} and digest != aborted
    _, digest2 = spend(accounts, digest, {"u1"}, "u2", "a")
    assert accounts.load(digest2, {"u1", "u2"}).spent[accounts.name("a")] == 2 * one
    assert accounts.load(digest, {"u1"}).spent[accounts.name("a")] == one, "u2 was not reserved"


def test_a_full_account_is_left_out_from_then_on(accounts):
    digest, known, kept = None, set[str](), []
    for number in range(50):
        update = f"u{number}"
        keep, digest = spend(accounts, digest, known, update, "often", f"new{number}")
        known.add(update)
        kept.append(keep)
    allowed = int(limit(ORDER, 4.0, 1e-5) / divergence(LAW, ORDER) + 1e-9)
    assert [keep[0] for keep in kept] == [True] * allowed + [False] * (50 - allowed) and all(keep[1] for keep in kept)


@pytest.mark.parametrize("harm", ["older", "missing", "damaged", "other key"])
def test_a_table_that_is_not_the_reserved_one_stops_reservations(accounts, harm):
    _, first = spend(accounts, None, set(), "u1", "a")
    older = accounts.path.read_bytes()
    _, second = spend(accounts, first, {"u1"}, "u2", "a")
    if harm == "older":
        accounts.path.write_bytes(older)
    elif harm == "missing":
        accounts.path.unlink()
    elif harm == "damaged":
        accounts.path.write_bytes(b"x" + accounts.path.read_bytes()[1:])
    else:
        accounts = Accounts(accounts.path, b"j" * 32)
    with pytest.raises(AccountsLost, match="bring the file"):
        accounts.load(second, {"u1", "u2"})


def test_an_empty_start_is_an_empty_table(accounts):
    assert accounts.load(None, set()) == Table()


# -- in the pipeline --------------------------------------------------------------------------------------------------


class Carded(Blobs):
    """Blobs whose events belong to one of 200 cards; a day has 240 events."""

    subject = "card"
    event = Blobs.event.append(pa.field("card", pa.string()))

    def history(self):
        columns = super().history()
        return columns | {"card": np.array([f"card-{k % 200}" for k in range(len(columns["y"]))])}


class CardedWorld(World):
    def _send(self, topic, document, at):
        if topic == self.settings.stream.events:
            document = {**document, "card": f"card-{int(document['event_id'].rsplit('-', 1)[1]) % 200}"}
        super()._send(topic, document, at)


def carded(folder, **sections):
    world = make_world(folder, task="tests.test_subjects:Carded", **sections)
    return CardedWorld(world.folder, world.settings, world.log, world.journal, world.workspace)


def test_an_update_uses_the_first_record_of_each_subject_and_reserves_for_these_alone(tmp_path):
    world = carded(tmp_path)
    world.publish(4)
    found = [run_window(world.window(day), world.workspace).steps for day in range(4)]
    assert [found[day]["adapter"]["report"]["rows"] for day in (1, 3)] == [200, 200]  # of 480
    ledger = ledger_of(world.workspace, world.window(0))
    assert [charge.count for charge in ledger.charges()] == [200, 200]
    accounts = Accounts(*world.workspace.store.glob("accounts/*.bin"), secret(world.workspace.keys, "vault"))
    table = accounts.load(ledger.accounts(), {charge.update for charge in ledger.charges()})
    law = ledger.charges()[0].law
    assert len(table.spent) == 200 and set(table.spent.values()) == {2 * divergence(law, table.order)}
    assert not any("card" in str(entry["body"]) for entry in ledger.export())


def test_a_trainer_that_dies_has_spent_its_subjects_budget_too_and_the_next_learns_from_the_same_records(tmp_path, monkeypatch):
    world = carded(tmp_path)
    world.publish(2)
    run_window(world.window(0), world.workspace)

    def die(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(models.training, "train", die)
        with pytest.raises(KeyboardInterrupt):
            run_window(world.window(1), world.workspace)
    ledger = ledger_of(world.again(), world.window(1))
    accounts = Accounts(*world.workspace.store.glob("accounts/*.bin"), secret(world.workspace.keys, "vault"))
    spent = accounts.load(ledger.accounts(), {"blobs/000001"})
    assert len(spent.spent) == 200
    report = run_window(world.window(1), world.workspace).steps["adapter"]["report"]
    assert (report["rows"], report["attempts"]) == (200, 2)
    assert accounts.load(ledger.accounts(), {"blobs/000001"}) == spent


def test_when_no_subject_has_budget_left_nothing_is_reserved(tmp_path):
    world = carded(tmp_path, privacy={"subject_epsilon": 0.7})  # room for one update
    world.publish(4)
    found = [run_window(world.window(day), world.workspace).steps for day in range(4)]
    assert "version" in found[1]["version"] and "accounts of all its subjects are full" in found[3]["adapter"]["reason"]
    assert len(ledger_of(world.workspace, world.window(0)).charges()) == 1
    assert [alarm.kind for alarm in open_alarms(world.journal, "blobs")].count("budget") == 1


def test_more_records_of_a_subject_may_be_allowed(tmp_path):
    world = carded(tmp_path, privacy={"max_per_subject": 2, "subject_epsilon": 8.0})
    world.publish(2)
    run_window(world.window(0), world.workspace)
    assert run_window(world.window(1), world.workspace).steps["adapter"]["report"]["rows"] == 400
    assert replace(world.workspace.policies.privacy, max_per_subject=1) != world.workspace.policies.privacy
