"""A Task is found by name, and every wrong name says what is wrong and what to do."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from models.task import Task, TaskError, load_task
from tests.tasks import TwoBlobs

BODY = """
from datetime import timedelta
import pyarrow as pa
from tests.tasks import TwoBlobs
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"user_task_{abs(hash(request.node.name))}"

    def write(text: str) -> str:
        (tmp_path / f"{name}.py").write_text(BODY + text)
        return name

    yield write
    sys.modules.pop(name, None)


def refused(spec: str) -> str:
    with pytest.raises(TaskError) as caught:
        load_task(spec)
    assert spec in str(caught.value)
    return str(caught.value)


def test_a_task_loads_by_name_and_gets_the_defaults_it_leaves_out():
    task = load_task("tests.tasks:TwoBlobs")
    assert isinstance(task, Task)
    assert (task.label_seen, task.negative_if_absent, task.label_derived) == ("always", False, ())


def test_a_name_without_a_class_says_the_form():
    assert "package.module:Class" in refused("tests.tasks")
    assert "package.module:Class" in refused("tests.tasks:")


def test_a_missing_module_is_named_with_the_cure():
    message = refused("acme.fraud:Fraud")
    assert "no module 'acme'" in message and "start from the folder" in message


def test_a_module_the_users_module_needs_is_not_taken_for_the_users_own(module):
    name = module("import wheel_that_is_not_there\n")
    assert "needs module 'wheel_that_is_not_there'" in refused(f"{name}:Fraud")


def test_an_error_while_importing_is_passed_on(module):
    name = module("1 / 0\n")
    assert "ZeroDivisionError" in refused(f"{name}:Fraud")


def test_a_missing_class_lists_those_that_are_there(module):
    name = module("class Delay: pass\n")
    assert "has no class 'Fraud'; its classes: Delay" in refused(f"{name}:Fraud")


def test_missing_members_are_all_listed(module):
    name = module("class Fraud:\n    name = 'fraud'\n    def build(self): ...\n")
    message = refused(f"{name}:Fraud")
    assert "lacks event, label, label_horizon, encode, target, loss, gate_loss, score, answer" in message


def test_a_constructor_that_fails_is_named(module):
    name = module("class Fraud:\n    def __init__(self): raise RuntimeError('no licence')\n")
    assert "Fraud() failed with RuntimeError: no licence" in refused(f"{name}:Fraud")


@pytest.mark.parametrize(
    ("member", "value", "said"),
    [
        ("name", "Fraud/1", "name 'Fraud/1' must match"),
        ("label_horizon", 36, "label_horizon 36 must be a timedelta"),
        ("label_horizon", timedelta(-1), "must be a timedelta of at least 0"),
        ("label_seen", "sometimes", "'always' or 'if_allowed'"),
        ("event", pa.schema([("id", pa.string())]), "event has no field 'event_id'"),
        ("label", {"event_id": str}, "label must be a pyarrow schema"),
        ("subject", "account_id", "names account_id, not a field of event"),
        ("label_derived", ("late_share",), "names late_share, not a field of event"),
        ("loss", None, "loss is not a method"),
        ("outcome", 5, "outcome is not a method"),
        ("slices", {"left": ()}, "slices is not a method"),
        ("ranges", [("x0", 0, 1)], "must be {field: (lowest, highest)}"),
        ("ranges", {"x_0": (0, 1)}, "ranges names 'x_0', no field of event or label: name a field of numbers"),
        ("ranges", {"event_id": (0, 1)}, "ranges names 'event_id', a field of string"),
        ("ranges", {"x0": (5, 0)}, "ranges['x0'] = (5, 0) must be two finite numbers"),
        ("ranges", {"x0": (0, float("inf"))}, "must be two finite numbers"),
        ("ranges", {"y": 5}, "ranges['y'] = 5 must be two finite numbers"),
    ],
)
def test_a_member_of_the_wrong_kind_is_refused_with_what_it_is(monkeypatch, member, value, said):
    monkeypatch.setattr(TwoBlobs, member, value, raising=False)
    assert said in refused("tests.tasks:TwoBlobs")


def test_an_unseen_label_of_what_was_refused_is_no_negative(module):
    name = module("class Fraud(TwoBlobs):\n    label_seen, negative_if_absent = 'if_allowed', True\n")
    assert "send a label for each event that was allowed" in refused(f"{name}:Fraud")
