"""Protected slices and the members a policy asks of a task: refused where they are missing, summed where they are there."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from assets.steps import STEPS
from models.release_policy import RolloutPolicy
from models.task import TaskError, misfits, outcomes, slices
from pipelines.settings import SettingsError
from tests import tasks
from tests.test_exposure import body_of, first, new_world

ROWS = tasks.columns(20)
PAIRED = {"strategy": "grey", "steps": ["shadow", 50, 100], "min_test": "0s"}


def task(**members: Any) -> Any:
    return SimpleNamespace(**{"name": "blobs", "label_seen": "always", **members})


def test_a_policy_that_asks_for_what_the_task_has_not_says_so_with_the_cure():
    ab, protected = RolloutPolicy(strategy="ab"), RolloutPolicy(protected_slices=("night",))
    (text,) = misfits(task(), ab, ROWS)
    assert 'strategy "ab"' in text and "task blobs has no outcome(columns, answers): write one" in text
    (text,) = misfits(task(slices=lambda rows: {"left": rows["x0"] < 0}), protected, ROWS)
    assert "protected_slices names 'night'; slices(columns) of task blobs has: left. Correct the name" in text
    whole = task(outcome=lambda rows, answers: answers, slices=lambda rows: {"night": rows["x0"] < 0})
    assert misfits(whole, ab, ROWS) == misfits(whole, protected, ROWS) == []


def test_what_was_refused_is_never_compared_by_its_labels():
    seen = task(label_seen="if_allowed", outcome=lambda rows, answers: answers)
    assert "comparison on labels says nothing" in misfits(seen, RolloutPolicy(), ROWS)[0]
    assert misfits(seen, RolloutPolicy(strategy="shadow"), ROWS) == [], "a policy that only reports promotes nothing"
    small = RolloutPolicy(evidence="outcome", steps=("shadow", 0.5, 50, 100))
    assert "the first step is 0.50% of the units" in misfits(seen, small, ROWS)[0]
    assert misfits(seen, replace(small, steps=("shadow", 1, 50, 100)), ROWS) == []


@pytest.mark.parametrize("values", [[0.5] * 19, [[0.5]] * 20, [1.01] * 20, [-0.1] * 20, [float("nan")] * 20])
def test_an_outcome_that_is_no_cost_is_refused(values):
    with pytest.raises(TaskError, match=r"one value each|outside \[0, 1\]: divide the cost"):
        outcomes(task(outcome=lambda rows, answers: np.array(values)), ROWS, np.full(20, 0.5))


def test_a_slice_that_marks_no_rows_one_by_one_is_refused():
    for marked in (np.array([1, 2]), np.zeros(20), np.zeros((20, 1), dtype=bool)):
        with pytest.raises(TaskError, match=r"slice 'left' is .* for 20 rows; bool, one each"):
            slices(task(slices=lambda rows, marked=marked: {"left": marked}), ROWS)


def test_a_window_sums_each_protected_slice_by_the_policy_its_rollout_was_started_under(tmp_path):
    world = new_world(tmp_path, **PAIRED, protected_slices=["left", "right"])
    for day in range(3):
        if day == 2:  # what is set by now is for versions to come
            world.workspace.policies = replace(world.workspace.policies, rollout=RolloutPolicy())
        world.publish(1)
        for _, step in STEPS[:4]:
            step(world.window(day), world.workspace)
        (pair,) = body_of(world, day)["pairs"] or [None]
        if day:
            (whole,), (left,), (right,) = pair["blocks"], pair["slices"]["left"], pair["slices"]["right"]
            assert whole[1:] == pytest.approx([a + b for a, b in zip(left, right, strict=True)][1:]) and 60 < left[1] < 180
    assert first(world).state == "SHADOW" and len(world.workspace.evidence().slices) == 2


def test_nothing_starts_under_a_policy_that_the_task_cannot_keep(tmp_path):
    with pytest.raises(SettingsError, match="protected_slices names 'left'"):
        new_world(tmp_path, "Plain", **PAIRED, protected_slices=["left"])
