"""The utility benchmark on a small stream: nothing is learnt before it is known, choices see history alone, lines are whole."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.task import check
from tests.benchmarks import _elec2, utility
from tests.benchmarks._prequential import Arm, Stream, base_of, replay
from tests.benchmarks.utility import Row
from tests.tasks import TwoBlobs, columns

MINUTE, DAY = 60, 86_400
PUBLIC, DAYS = 12_000, 4


@pytest.fixture(scope="module")
def stream() -> Stream:
    """An event a minute: two blobs, whose line turns when history ends. Labels come an hour late."""
    task = TwoBlobs()
    parts = [columns(PUBLIC, seed=1), columns(DAYS * DAY // MINUTE, seed=2, drift=0.5)]
    inputs, truth = (np.concatenate([get(part) for part in parts]) for get in (task.encode, task.target))
    begins = PUBLIC * MINUTE
    seen = MINUTE * np.arange(len(truth))
    return Stream(task, inputs, truth, seen, begins + 3600, begins, begins + DAYS * DAY)


@pytest.fixture(scope="module")
def base(stream):
    return base_of(stream, 0)


def test_learning_pays_after_the_turn_with_and_without_privacy(stream, base):
    frozen, plain, private = (replay(stream, base, arm) for arm in
                              (Arm(1000), Arm(1000, rate=2e-4), Arm(1000, 8.0, 0.03)))  # fmt: skip
    losses = [utility.figures(run.output, run.truth)["log_loss"] for run in (frozen, plain, private)]
    assert losses[1] < losses[0] - 0.05 and losses[2] < losses[0] - 0.05
    assert (frozen.examples, frozen.spent, plain.spent) == ([], None, None)
    assert len(private.examples) == len(plain.examples) == DAYS - 1, "the last window would train for nobody"
    assert private.spent == pytest.approx(8.0, abs=0.01), "each event is charged once, whatever the number of updates"


def test_an_update_uses_labels_that_are_mature_and_no_event_is_answered_by_its_own(stream, base):
    arm = Arm(1000, rate=2e-4)
    found = replay(stream, base, arm)
    assert found.examples == [(DAY - 3600) // MINUTE + 1, DAY // MINUTE, DAY // MINUTE]
    later = stream.begins + 2 * DAY - 3600  # labels from here on are not mature when the second update is made
    turned = replace(stream, truth=np.where(stream.seen > later, 1 - stream.truth, stream.truth))
    other = replay(turned, base, arm).output
    assert base_of(turned, 0) == base, "the base is made of history"
    known = 2 * DAY // MINUTE  # the events of the first two windows, and those the second update answers
    assert np.array_equal(found.output[: known + DAY // MINUTE], other[: known + DAY // MINUTE])
    assert not np.array_equal(found.output[-DAY // MINUTE :], other[-DAY // MINUTE :])


def test_an_update_that_the_guard_blocks_answers_nothing(stream, base):
    frozen, blocked, interrupted = (replay(stream, base, arm) for arm in (Arm(1000), Arm(1000, 8.0, 30.0), Arm(1000, rate=0.3)))
    assert (blocked.refused, len(blocked.examples)) == (DAYS - 1, DAYS - 1)
    assert (interrupted.refused, len(interrupted.examples)) == (DAYS - 1, 0)
    assert np.array_equal(blocked.output, frozen.output) and np.array_equal(interrupted.output, frozen.output)


def test_a_rate_is_chosen_on_history_alone(stream, monkeypatch):
    monkeypatch.setattr(utility, "PRIVATE_RATES", (0.001, 0.03, 30.0))
    rehearsal = stream.rehearsal()
    assert rehearsal.public_until == rehearsal.begins and rehearsal.ends == stream.public_until <= stream.ends
    halves = [base_of(rehearsal, 0)]
    rate = utility.chosen_rate(stream, halves, Arm(500, 0.5))
    blank = replace(stream, truth=np.where(stream.mature > stream.public_until, np.nan, stream.truth).astype(np.float32))
    assert rate < 30.0, "noise at that rate drowns the base"
    assert utility.chosen_rate(blank, halves, Arm(500, 0.5)) < 30.0, "labels after history are not looked at"


def test_a_line_has_its_gains_its_updates_and_what_the_ledger_says(stream):
    rows = [Row("no privacy", Arm(1000, rate=2e-4), chosen=False), Row("epsilon 2", Arm(1000, 2.0, 0.03), chosen=False)]
    found = utility.measured(stream, rows, seeds=2)
    frozen, plain, private = found["lines"].values()
    assert found["events"] == DAYS * DAY // MINUTE
    for line in (plain, private):
        assert len(line["gains"]) == 2 and line["updates"] == DAYS - 1 and line["cpu_seconds"] > 0
        assert np.mean(line["gains"]) == pytest.approx(frozen["log_loss"] - line["log_loss"], abs=2e-4)
    assert "epsilon_by_ledger" not in plain and private["epsilon_by_ledger"] == pytest.approx(2.0, abs=0.01)


def test_the_figures_are_those_of_a_small_case_by_hand():
    found = utility.figures(np.array([2.0, -1.0, 0.5, -2.0]), np.array([1.0, 1.0, 0.0, 0.0]))
    assert (found["accuracy"], found["balanced_accuracy"], found["auc"]) == (0.5, 0.5, 0.75)
    assert found["log_loss"] == pytest.approx(np.mean(np.log1p(np.exp([-2.0, 1.0, 0.5, -2.0]))))


@pytest.fixture
def elec2_file(tmp_path):
    """Ten days after the history, made up: demand has a daily wave, the label is whether it is above its mean."""
    rows = _elec2.HISTORY_ROWS + 480
    demand = 0.4 + 0.1 * np.sin(2 * np.pi * (np.arange(rows) + 0.5) / 48)
    table = {
        "day": np.arange(rows) // 48 % 7 + 1, "period": np.arange(rows) % 48 / 47, "nswdemand": demand,
        "vicprice": np.full(rows, 0.003), "vicdemand": np.full(rows, 0.42), "transfer": np.full(rows, 0.41),
        "y": (demand > 0.4).astype(np.int8),
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "elec2.parquet")
    return tmp_path / "elec2.parquet"


def test_elec2_is_a_task_whose_rows_are_made_of_demand_and_time_alone(elec2_file):
    task, made = check(_elec2.Elec2(), "elec2"), _elec2.read(elec2_file)
    assert set(made) == {*task.event.names, *task.label.names}
    assert task.encode(made).shape == (len(made["up"]), 63) and np.isfinite(task.encode(made)).all()
    demand = made["demand"]
    assert made["demand_change_48"][100] == pytest.approx(demand[100] - demand[52])
    assert made["demand_less_mean"][100] == pytest.approx(demand[100] - demand[53:101].mean())
    assert made["demand_less_mean"][3] == pytest.approx(demand[3] - demand[:4].mean())
    assert made["half_hour"][100] == 4 and timedelta(days=1) == task.label_horizon


def test_no_change_is_counted_with_labels_at_once_and_a_day_late(elec2_file):
    stream = utility.elec2(elec2_file)
    found = utility.persistence(stream)
    assert found["no change, labels 48 rows late"]["accuracy"] == 1.0, "the made-up days are all alike"
    assert found["no change, labels at once"]["accuracy"] == pytest.approx(1 - 2 / 48, abs=0.01)
    assert found["majority of history"]["accuracy"] == pytest.approx(0.5, abs=0.05)


def test_a_stream_whose_file_is_absent_is_left_out_and_said_to_be(tmp_path, capsys):
    there, left_out = utility.streams(["elec2"], tmp_path / "elec2.parquet")
    assert there == [] and "--data" in left_out["elec2"]
    assert "elec2 is left out" in capsys.readouterr().err
