"""Planted records: those that count as null by themselves, and windows that wait for a person. What is caught, and what not.

Held back means: nothing reserved, charged or learnt, an alarm, and a way back in.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from assets.screening import NotHeldBack, admit
from assets.steps.adapter import ledger_of
from models import poisoning
from models.config import PoisoningConfig, TrainingConfig
from models.guard import UpdateInterrupted
from models.label_fit import label_fit
from models.poisoning import Figures, judge
from models.predictor import Predictor
from models.training import train
from monitoring.alarms import all_alarms, open_alarms
from pipelines.cli.window import window as window_command
from pipelines.run_window import run_window
from tests import tasks, worlds
from tests.updates import ADAPTER, PLAIN, PRIVATE, TASK, WINDOW, W, law, trained_base
from tests.worlds import make_world

LIMITS = PoisoningConfig()
USUAL = Figures(500, 0, None, 0.4, 0.2, {"0": 0.8, "1": 0.2}, {"x": 0.004}, 0.02)


class Taught(worlds.Blobs):
    """A base that knows the blobs: its loss is 0.31, so that wrong labels show."""

    subject = None

    def history(self) -> dict[str, np.ndarray]:
        return tasks.columns(20_000, seed=1)


def turned(share: float, seed: int = 0):
    """Turns so many of a day's labels."""

    def change(rows: dict[str, np.ndarray]) -> None:
        wrong = np.random.default_rng(seed).random(len(rows["y"])) < share
        rows["y"] = np.where(wrong, 1 - rows["y"], rows["y"])

    return change


def far_out(rows: dict[str, np.ndarray]) -> None:
    """Ten records of the day have a value no history has."""
    rows["x1"][5:15] = 1e6


def taught_world(folder, **sections):
    return make_world(folder, task="tests.test_poisoning:Taught", **sections)


def run_days(world, first: int, last: int):
    return [run_window(world.window(day), world.workspace) for day in range(first, last + 1)]


# ---- a record by itself


def test_a_record_is_null_by_its_own_values_and_public_ranges():
    history = {"x": np.array([1.0, 3.0, np.nan]), "v": np.array([[0, 4], [2, 8], [1, 1]]), "id": np.array(["a", "b", "c"])}
    taken = poisoning.public_ranges(history, ["id", "x", "v", "absent"])
    assert taken == {"x": [1.0, 3.0], "v": [0.0, 8.0]}
    allowed = poisoning.widened(taken, 0.5)
    assert allowed == {"x": (0.0, 4.0), "v": (-4.0, 12.0)}
    columns = {"x": np.array([0.0, 4.1, np.nan, np.inf, 2.0]), "v": np.array([[0, 0], [0, 0], [12, 0], [0, 0], [0, 13]])}
    assert poisoning.null_records(columns, allowed).tolist() == [False, True, False, True, True]
    assert poisoning.null_records({name: column[:0] for name, column in columns.items()}, allowed).tolist() == []


def test_a_null_record_changes_no_other_records_weight():
    """The whole step with the attacker's record and without it: one sum, to the noise, which is made tiny; slot, count and
    divisor stay. As an example that counts, the same record moves the step by its clip."""
    columns = {name: column.copy() for name, column in WINDOW.items()}
    columns["x0"][7] = 1e4
    null = poisoning.null_records(columns, {"x0": (-100.0, 100.0)})
    assert null.nonzero()[0].tolist() == [7]
    quiet = law(800, sampling_rate=1.0, expected_batch=800.0, noise_multiplier=1e-3, steps=1)
    without = {name: np.delete(column, 7, axis=0) for name, column in columns.items()}

    def weights(given, **more):
        update = train(TASK, trained_base(), None, given, quiet, PRIVATE, W, **more)
        return np.concatenate([value.ravel() for value in update.tensors.values()]), update.report

    (kept, report), (alone, _), (counted, _) = weights(columns, null=null), weights(without), weights(columns)
    assert np.abs(kept - alone).max() < 2e-5 < 1e-4 < np.abs(counted - alone).max()
    assert (report.rows, report.null_rows) == (800, 1)


def test_an_example_that_is_not_finite_is_null_where_records_are_looked_at():
    columns = {name: column.copy() for name, column in WINDOW.items()}
    columns["x0"][3] = np.nan
    report = train(TASK, trained_base(), None, columns, None, PLAIN, W, seed=1, null=np.zeros(800, bool)).report
    assert (report.rows, report.null_rows, report.not_finite) == (800, 1, 0)


@pytest.mark.parametrize("all_of", ["outside", "not finite"])
def test_an_update_of_null_records_only_ends_without_privacy_and_is_noise_with_it(all_of):
    columns = {name: column.copy() for name, column in WINDOW.items()}
    null = np.full(800, all_of == "outside")
    columns["x0"][:] = np.nan
    with pytest.raises(UpdateInterrupted, match=r"all 800 examples count as null .*#poisoning") as caught:
        train(TASK, trained_base(), None, columns, None, PLAIN, W, null=null)
    assert caught.value.kind == "poisoning"
    report = train(TASK, trained_base(), None, columns, law(800), PRIVATE, W, null=null).report
    assert (report.steps, report.null_rows, report.losses) == (8, 800, (None,) * 8)


def test_null_records_keep_their_slot_in_the_ledger(tmp_path):
    """Ten far-out values in two windows: public count, noise and charge are those of a stream without them."""
    charged = []
    for name, change in (("a", lambda rows: None), ("b", far_out)):
        world = make_world(tmp_path / name)
        world.publish(1)
        world.publish(1, change=change)
        result = run_days(world, 0, 1)[-1]
        charge, = ledger_of(world.workspace, world.window(1)).charges()
        charged.append((charge.count, charge.law, result.steps["adapter"]["report"]["rows"]))
    assert charged[0] == charged[1] and charged[0][0] == charged[0][2]
    assert result.steps["adapter"]["report"]["null_rows"] == 10
    assert not open_alarms(world.journal, "blobs"), "10 of 240 is under max_null_share"


def test_a_task_may_declare_its_ranges(tmp_path, monkeypatch):
    monkeypatch.setattr(Taught, "ranges", {"x1": (-2e6, 2e6)}, raising=False)
    world = taught_world(tmp_path)
    world.publish(2, change=far_out)
    assert run_days(world, 0, 1)[-1].steps["adapter"]["report"]["null_rows"] == 0


# ---- a window as a whole


def found(now: Figures, earlier=(USUAL,) * 8, limits: PoisoningConfig = LIMITS) -> list[str]:
    return [one.message.split(" in window")[0] for one in judge(now, earlier, limits, W)]


def test_an_usual_window_and_one_without_a_past_are_not_held_back():
    assert found(USUAL) == []
    strange = replace(USUAL, loss=4.0, fit=-1.0, classes={"0": 0.2, "1": 0.8}, values={"x": 0.5})
    assert found(strange, (USUAL,) * 7) == [] and len(found(strange)) == 3
    assert found(replace(strange, records=99)) == [], "too few records to compare"
    small = (replace(USUAL, records=99),) * 20
    assert found(strange, small) == [], "and to compare with"


def test_too_many_null_records_and_too_much_of_one_subject_need_no_past():
    assert found(replace(USUAL, null=29, worst="x"), ()) == []  # 5 % and four
    assert found(replace(USUAL, null=30, worst="x"), ()) == [
        "30 of 500 records (6.0%) lie outside the range of public history, most often in 'x', beyond max_null_share 0.05"]
    assert found(replace(USUAL, records=4, null=3, worst="x"), ()) == found(replace(USUAL, records=0), ()) == []
    assert len(found(replace(USUAL, records=4, null=4, worst="x"), ())) == 1, "all of them, however few"
    assert found(replace(USUAL, subject=0.51), ()) == [
        "51.0% of 500 records are of one subject, beyond max_subject_share 0.5"]


def test_labels_are_wrong_when_the_loss_is_high_and_they_no_longer_go_with_the_answers():
    assert found(replace(USUAL, loss=1.1, fit=0.16)) == [], "a hard day"
    assert found(replace(USUAL, fit=0.05)) == [], "a dull day"
    assert found(replace(USUAL, loss=1.1, fit=0.09)) == [
        "the base's loss 1.1 lies 35 deviations over the usual 0.4, beyond max_loss_shift 5, and labels go with its answers "
        "0.45 times as well as usual, under min_label_fit 0.75,"]
    useless = replace(USUAL, fit=-0.01)
    assert found(replace(USUAL, loss=4.0, fit=-2.0), (useless,) * 8) == [], "a base that knows nothing"


def test_a_class_and_a_value_are_compared_with_how_they_vary():
    shifted = replace(USUAL, classes={"0": 0.55, "1": 0.45})
    assert found(shifted) == [
        "class 0 has 55.0% of the labels, 14 deviations from the usual 80.0%, beyond max_class_shift 12"]
    varied = tuple(replace(USUAL, classes={"0": 1 - p, "1": p}) for p in np.linspace(0.05, 0.4, 12))
    assert found(shifted, varied) == []
    assert found(replace(USUAL, values={"x": 0.024})) == []  # 4 x 2 + 4 records
    assert found(replace(USUAL, values={"new": 0.9})) == []
    assert found(replace(USUAL, values={"x": 0.9}), (replace(USUAL, values={"x": 0.0}),) * 8) == [], "it was missing so far"
    assert found(replace(USUAL, values={"x": 0.026})) == [
        "2.6% of 500 records have one and the same value in 'x', 6.5 times the most of 8 earlier windows (0.40%), beyond "
        "max_value_ratio 4"]


def test_one_is_compared_with_the_newest_windows_only():
    old = replace(USUAL, loss=0.1)
    now = replace(USUAL, loss=0.49, fit=0.0)
    assert found(now, (old,) * 40) and not found(now, (*(old,) * 40, *(USUAL,) * 28))


def test_the_message_says_how_to_go_on():
    finding, = judge(replace(USUAL, subject=0.9), (), LIMITS, W)
    assert (finding.kind, finding.figure, finding.limit) == ("poisoning", 0.9, 0.5)
    assert finding.message.endswith(f"in window {W}: no update learns from it until somebody has looked and `headgate window "
                                    f"admit {W} --reason ...`; see docs/alarms.md#poisoning")


# ---- figures of real examples


def predictor() -> Predictor:
    return Predictor(TASK, trained_base(), None, ADAPTER)


def window_of(rows: int, seed: int) -> dict[str, np.ndarray]:
    return tasks.columns(rows, seed=seed)


def figures(columns: dict[str, np.ndarray]) -> Figures:
    loss, fit = label_fit(predictor(), columns)
    return Figures(len(columns["y"]), 0, None, loss, fit, poisoning.class_shares(columns["y"]),
                   poisoning.value_shares(columns, TASK.event.names), None)


def test_turned_labels_take_as_much_from_the_fit_as_was_turned():
    """The gain over shuffled labels times 1 - 2 f, within 4 standard errors of 20,000 rows."""
    columns, gains = window_of(20_000, 7), []
    for share in (0.0, 0.05, 0.2, 0.4, 0.5):
        changed = dict(columns)
        turned(share)(changed)
        loss, fit = label_fit(predictor(), changed)
        gains.append(loss / (1 - fit) - loss)
    assert [gain / gains[0] for gain in gains[1:]] == pytest.approx([0.9, 0.6, 0.2, 0.0], abs=0.03)


def test_examples_without_a_finite_loss_have_no_fit():
    broken = {name: column.copy() for name, column in window_of(10, 1).items()}
    broken["x0"][:] = np.nan
    assert label_fit(predictor(), broken) == (None, None)
    broken["x0"][:5] = 0.0
    assert np.isfinite(label_fit(predictor(), broken)).all()


FLIPS = [(240, 0.4, True), (240, 0.2, True), (1000, 0.2, True), (1000, 0.05, False)]


@pytest.mark.parametrize(("rows", "share", "caught"), FLIPS)
def test_label_flips_are_caught_from_a_fifth_on(rows, share, caught):
    """Ten windows each, all of them or none."""
    earlier = [figures(window_of(rows, 200 + k)) for k in range(28)]
    for k in range(10):
        columns = window_of(rows, 300 + k)
        turned(share, k)(columns)
        assert bool(judge(figures(columns), earlier, LIMITS, W)) == caught


@pytest.mark.parametrize(("rows", "share", "caught"), [(1000, 0.01, True), (5000, 0.01, True), (240, 0.01, False)])
def test_a_trigger_on_one_record_in_a_hundred_is_seen_where_values_do_not_repeat_by_themselves(rows, share, caught):
    earlier = [figures(window_of(rows, 200 + k)) for k in range(8)]
    columns = window_of(rows, 400)
    hit = np.arange(rows) < share * rows
    columns["x2"][hit], columns["y"][hit] = 2.5, 1
    messages = [one.message for one in judge(figures(columns), earlier, LIMITS, W)]
    assert bool(messages) == caught and all("same value in 'x2'" in message for message in messages)


def test_ten_thousand_honest_windows_are_not_held_back():
    """Of 240 records each: shares, values to two digits, losses as the blobs have them, all independent. The nearest limit is
    12 deviations of a share; by accident below 1e-6."""
    draw, rows, earlier = np.random.default_rng(5), 240, []
    losses, counts = draw.gamma(0.18 * rows / 2.0, 2.0 / rows, size=10_000), draw.binomial(rows, 0.5, size=10_000)
    for loss, count in zip(losses.tolist(), counts.tolist(), strict=True):
        x = np.round(draw.normal(size=rows), 2)
        now = Figures(rows, 0, None, loss, draw.normal(0.7, 0.05), {"0": 1 - count / rows, "1": count / rows},
                      poisoning.value_shares({"x": x}, ["x"]), None)
        assert judge(now, earlier[-28:], LIMITS, W) == ()
        earlier.append(now)


# ---- from the stream to the ledger


def test_a_window_of_turned_labels_is_neither_charged_nor_learnt_until_a_person_admits_it(tmp_path):
    """40 % of the ninth day's labels. Updates go on without it; once admitted, the next one learns from it."""
    world = taught_world(tmp_path)
    world.publish(9)
    world.publish(1, change=turned(0.4))
    world.publish(5)
    run_days(world, 0, 12)
    planted, = (alarm.window for alarm in open_alarms(world.journal, "blobs") if alarm.kind == "poisoning")
    assert planted == world.window(9)
    screened = world.workspace.body("window.screened", planted)
    assert screened["held_back"] and screened["fit"] < 0.3 and "deviations over the usual" in screened["findings"][0]["message"]
    ledger = ledger_of(world.workspace, planted)
    charged = [window for charge in ledger.charges() for window in charge.windows]
    assert planted not in charged and world.window(10) in charged and world.window(8) in charged
    assert planted not in world.workspace.lineage().settled

    head = world.journal.head()
    run_days(world, 8, 12)
    world.again()
    run_days(world, 8, 12)
    assert world.journal.head() == head, "a repeated step says nothing new"

    admit(world.workspace, planted, reason="the labels are right", actor="ann")
    alarm, = (one for one in all_alarms(world.journal, "blobs") if one.kind == "poisoning")
    assert (alarm.acknowledged_by, alarm.reason) == ("ann", "admitted: the labels are right")
    waits, body = (one.steps["adapter"] for one in run_days(world, 13, 14))
    assert "not due" in waits["reason"], "an old window does not make a small update due"
    assert body["windows"] == [planted, world.window(13), world.window(14)]
    assert ledger.charges()[-1].windows == tuple(body["windows"]) and ledger.epsilon_per_event() <= 0.5
    assert world.journal.verify().faults == ()


def test_what_a_person_admitted_is_usual_from_then_on(tmp_path):
    """A world that turned over: held back each day until somebody says so, and then learnt from as any other."""
    world = taught_world(tmp_path, privacy={"enabled": False})
    world.publish(8)
    world.publish(4, drift=3.1)
    run_days(world, 0, 9)
    assert [one.window for one in open_alarms(world.journal, "blobs") if one.kind == "poisoning"] == [
        world.window(9), world.window(8)]
    for day in (8, 9):
        admit(world.workspace, world.window(day), reason="a new season", actor="ann")
    learnt = run_days(world, 10, 11)
    assert not [one for one in open_alarms(world.journal, "blobs") if one.kind == "poisoning"]
    covered = [window for one in learnt for window in one.steps["adapter"].get("windows", ())]
    assert covered == [world.window(day) for day in (8, 9, 10)]


def test_an_alarm_only_installation_learns_from_the_window(tmp_path):
    world = taught_world(tmp_path, privacy={"enabled": False}, poisoning={"quarantine": False})
    world.publish(9)
    world.publish(1, change=turned(0.4))
    body = run_days(world, 0, 9)[-1].steps["adapter"]
    assert world.window(9) in body["windows"]
    assert [one.kind for one in open_alarms(world.journal, "blobs") if one.kind == "poisoning"] == ["poisoning"]
    with pytest.raises(NotHeldBack, match="is not held back, no update was kept from it"):
        admit(world.workspace, world.window(9), reason="why not", actor="ann")


def test_a_retired_window_stays_retired_when_it_is_admitted(tmp_path):
    """The first window of all: half of its records are far out."""

    def half(rows: dict[str, np.ndarray]) -> None:
        rows["x1"][::2] = 1e6

    world = make_world(tmp_path)
    world.publish(1, change=half)
    world.publish(3)
    first = run_days(world, 0, 2)
    assert first[0].steps["adapter"]["reason"].endswith("; the window is held back")
    assert first[2].steps["adapter"]["windows"] == [world.window(1), world.window(2)]
    ledger = ledger_of(world.workspace, world.window(0))
    ledger.retire(task="blobs", window=world.window(0), reason="planted", actor="ann", at=world.workspace.now())
    admit(world.workspace, world.window(0), reason="by mistake", actor="ann")
    world.publish(1)
    assert run_days(world, 3, 4)[-1].steps["adapter"]["windows"] == [world.window(3), world.window(4)]


def test_a_person_admits_a_window_at_the_command_line(tmp_path, monkeypatch):
    world = make_world(tmp_path, privacy={"enabled": False}, poisoning={"max_null_share": 0.0})
    world.publish(2, change=far_out)
    run_days(world, 0, 1)
    monkeypatch.chdir(tmp_path)
    words = ["admit", world.window(0), "--actor", "ann", "--reason"]

    def say(reason: str):
        return CliRunner().invoke(window_command, [*words, reason], obj=tmp_path / "headgate.toml")

    assert "reason '': say why" in say(" ").output
    assert say("a new sensor").output == f"window {world.window(0)} is admitted: the next update that is due learns from it\n"
    assert "is not held back, ann admitted it: a new sensor" in say("again").output
    assert [one.window for one in open_alarms(world.journal, "blobs")] == [world.window(1)]


def test_a_limit_that_holds_back_everything_is_refused():
    with pytest.raises(ValueError, match=r"\[poisoning\] max_loss_shift = 0 is not > 0"):
        PoisoningConfig(max_loss_shift=0)
    with pytest.raises(ValueError, match=r"\[poisoning\] range_margin = nan is not a number"):
        PoisoningConfig(range_margin=float("nan"))
    assert TrainingConfig()
