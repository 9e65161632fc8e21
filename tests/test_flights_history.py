"""What of the demo's flights is public, and the dates of its story."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.demo.flights import FlightDelay
from pipelines.demo.story import Story


@pytest.fixture(scope="module")
def task():
    return FlightDelay()


def test_history_is_january_to_march_known_by_its_end(task):
    history, story = task.history(), Story()
    assert len(history["event_id"]) == 77_606
    assert set(history) == {*task.event.names, *task.label.names}
    assert max(history["arrived"]) < story.history_end.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert min(history["scheduled_departure"]) >= story.history_start.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert story.history_end < story.start
    with pytest.raises(ValueError, match="read-only"):
        history["arr_delay"][0] = 0


def test_the_golden_sample_is_fixed_and_public_inputs_carry_no_label(task):
    golden = task.golden(1000)
    assert np.array_equal(golden["event_id"], FlightDelay().golden(1000)["event_id"])
    assert len(set(golden["event_id"])) == 1000
    assert {day[:7] for day in golden["event_id"]} == {"2013-01", "2013-02", "2013-03"}
    assert set(task.public_inputs(10)) == set(task.event.names)


def test_the_story_has_84_daily_windows_and_a_wrong_week_inside():
    story = Story()
    assert len(story.windows) == 84 and story.windows[-1] + story.window == story.end
    assert story.start < story.wrong_labels[0] < story.wrong_labels[1] < story.end
