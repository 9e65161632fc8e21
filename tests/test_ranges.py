"""Which columns have a range that records must keep, and what becomes of a label that history does not have."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from torch.nn import functional as F

from assets.base import _ranged
from models import poisoning
from monitoring.alarms import open_alarms
from pipelines.run_window import run_window
from tests import tasks, worlds
from tests.updates import TASK
from tests.worlds import make_world


class Chances(worlds.Blobs):
    """A loss that raises for a label beyond those it knows, as many do."""

    def loss(self, output, target):
        return F.binary_cross_entropy(output.sigmoid(), target, reduction="none")


@pytest.mark.parametrize("rows", [slice(7, 8), slice(None)], ids=["one", "all"])
def test_a_class_the_loss_does_not_know_is_null_and_stops_no_window(tmp_path, rows):
    def change(columns: dict[str, np.ndarray]) -> None:
        columns["y"][rows] = 2  # less than twice the width of its range from it

    world = make_world(tmp_path, task="tests.test_ranges:Chances", update={"every": "1d", "min_examples": 200})
    world.publish(1, change=change)
    steps = run_window(world.window(0), world.workspace).steps
    body = steps["evidence"]
    if rows == slice(None):
        assert body["losses"] == {} and len(open_alarms(world.journal, "blobs")) == 1
    else:
        assert steps["adapter"]["report"]["null_rows"] == 1 and next(iter(body["losses"].values())) < 2
    assert body["examples"] == 240, "the public count stays"


def test_whole_labels_of_few_values_are_classes_and_get_no_margin():
    columns = {"few": np.array([0.0, 2.0, np.nan]), "many": np.arange(51), "half": np.array([0.5, 1]), "text": np.array(["a"])}
    assert poisoning.class_columns(columns, [*columns, "absent"]) == ["few"]
    taken = poisoning.public_ranges(columns, columns)
    assert poisoning.widened(taken, 2.0, ["few"]) == {"few": (0.0, 2.0), "many": (-100.0, 150.0), "half": (-0.5, 2.0)}


def test_what_is_constant_in_history_or_no_number_has_no_range():
    assert poisoning.public_ranges({"x": np.ones(5), "y": np.array([np.nan, 2.0])}, "xy") == {}
    odd = {"x": np.array(["1", "7"], object), "t": np.array(["2026-01-01"], "datetime64[us]"), "b": np.array([True, False])}
    assert list(poisoning.outside(odd, dict.fromkeys(odd, (0.0, 0.5)))) == ["b"]


def test_ids_and_the_time_have_no_range(tmp_path, monkeypatch):
    monkeypatch.setattr(Chances, "subject", "x2")
    monkeypatch.setattr(Chances, "history", lambda _: tasks.columns(500, seed=1) | {"event_id": np.arange(500)})
    base = make_world(tmp_path, task="tests.test_ranges:Chances").workspace.lineage().registered_base()
    assert (sorted(base["ranges"]), base["classes"]) == (["x0", "x1", "x3", "y"], ["y"])
    assert _ranged(SimpleNamespace(event=TASK.event, label=TASK.label, subject=None, event_time="x0"))[:2] == ["x1", "x2"]
