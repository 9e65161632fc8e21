"""`headgate check`: a sound task keeps every rule, and each broken one fails the rule it breaks and no other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from assets import schema_rules
from models import adapter_rules, task_rules
from models.config import AdapterConfig, RetentionConfig
from models.conformance import Broken, Case, Rule, run
from models.release_policy import RolloutPolicy
from models.task import check
from tests import tasks
from tests.tasks import FEATURES, TwoBlobs
from tests.worlds import Blobs

RULES = (*task_rules.RULES, *schema_rules.RULES, *adapter_rules.RULES)


class Sound(Blobs):
    def public_inputs(self, n):
        rows = tasks.columns(n, seed=3)
        return {name: rows[name] for name in self.event.names}


class Without(TwoBlobs):
    golden = Sound.golden


class Derived(Sound):
    label_derived = ("x0",)


class Misnamed(Sound):
    monitored = ("x9",)


class Leaps(Sound):
    """The last tenth of its history lies elsewhere in x3."""

    def history(self):
        rows = super().history()
        return rows | {"x3": rows["x3"] + 50.0 * (np.arange(2000) >= 1800)}


class Grows(Sound):
    def history(self):
        rows = super().history()
        return rows | {"x3": rows["x3"] + np.arange(2000) / 50}


class Draws(Sound):
    def encode(self, columns):
        x = super().encode(columns)
        return x + np.random.default_rng().normal(size=x.shape).astype(np.float32)


class Centred(Sound):
    def encode(self, columns):
        x = super().encode(columns)
        return x - x.mean(axis=0) if len(x) else x


class Peeks(Sound):
    def encode(self, columns):
        x = super().encode(columns)
        return x + columns["y"][:, None].astype(np.float32) if "y" in columns else x


class Tall(Sound):
    def answer(self, output):
        return super().answer(output)[:, None]


class NeverEmpty(Sound):
    def encode(self, columns):
        return np.stack([np.array([columns[name][i] for name in FEATURES], np.float32) for i in range(len(columns["x0"]))])


class NoNegative(Sound):
    negative_if_absent = True


class Mean(Sound):
    def loss(self, output, target):
        return super().loss(output, target).mean()


class InBatch(Sound):
    def loss(self, output, target):
        return super().loss(output, target) - F.log_softmax(output, dim=0)


class Unbounded(Sound):
    def gate_loss(self, output, target):
        return self.loss(output, target)


class Numbers(Sound):
    def golden(self):
        return {"day": tasks.columns(10, seed=2), "night": {"x0": np.zeros(3)}}


class Bare(Sound):
    def public_inputs(self, n):
        return {"x0": np.zeros(n)}


class Whole(Sound):
    event = pa.schema([("event_id", pa.string()), ("x0", pa.int64()), *((name, pa.float64()) for name in FEATURES[1:])])

    def encode(self, columns):
        return np.nan_to_num(super().encode(columns))


class Nullable(Sound):
    event = pa.schema([("event_id", pa.string()), *((name, pa.float64()) for name in FEATURES)])


class Net(nn.Module):
    """As that of the blobs, with a head to be replaced."""

    def __init__(self, head):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(4, 16), nn.Linear(16, 8), head

    def forward(self, x):
        return self.head(torch.relu(self.fc2(torch.relu(self.fc1(x))))).squeeze(-1)


class Tied(Sound):
    def build(self):
        net = Net(nn.Linear(8, 1))
        net.fc2 = nn.Linear(16, 16)
        net.other, net.head = nn.Linear(16, 16), nn.Linear(16, 1)
        net.other.weight = net.fc2.weight
        return net


class HalvedOnce(nn.Linear):
    """Does something to its weights at its first use, once they are trained."""

    ready = False

    def forward(self, x):
        if self.weight.requires_grad and not self.ready:
            self.weight.data.mul_(0.5)
            self.ready = True
        return super().forward(x)


class Halving(Sound):
    def build(self):
        return Net(HalvedOnce(8, 1))


class Counting(Net):
    def __init__(self):
        super().__init__(nn.Linear(8, 1))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.seen += len(x)
        return super().forward(x)


class Counted(Sound):
    def build(self):
        return Counting()


class Normed(Sound):
    def build(self):
        return Net(nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 1)))


class Halves(Net):
    """Its first layer sees each record as two."""

    def __init__(self):
        super().__init__(nn.Linear(8, 1))
        self.fc1, self.fc2 = nn.Linear(2, 16), nn.Linear(32, 8)

    def forward(self, x):
        seen = torch.relu(self.fc1(x.reshape(-1, 2))).reshape(len(x), 32)
        return self.head(torch.relu(self.fc2(seen))).squeeze(-1)


class Folded(Sound):
    def build(self):
        return Halves()


class Scale(nn.Module):
    """A layer of somebody's own."""

    def __init__(self):
        super().__init__()
        self.factors = nn.Parameter(torch.ones(8, 1))

    def forward(self, x):
        return x @ self.factors


class OwnLayer(Sound):
    def build(self):
        return Net(Scale())


def outcomes(task, **settings):
    task = check(task, "a task")
    columns, source = schema_rules.rows_of(task)
    return run(Case(task, columns, source, AdapterConfig(r=4, lora_alpha=8), **settings), RULES)


def broken(found):
    return {outcome.rule: outcome.text for outcome in found if outcome.state == "FAIL"}


class Costly(Sound):
    def outcome(self, columns, answers):
        return 100.0 * (columns["y"] == 0)


class BlockedOnly(Sound):
    """Wrong only where an answer is high, which the base's own never are."""

    def outcome(self, columns, answers):
        return np.where(answers >= 0.9, 2.0, 0.0)


class BesideOthers(Sound):
    def outcome(self, columns, answers):
        return (columns["x0"] > columns["x0"].mean()).astype(float)


class Sliced(Sound):
    def slices(self, columns):
        return {"left": (columns["x0"] < 0).astype(int)}


class Unseen(Sound):
    label_seen = "if_allowed"


PROTECTED = {"retention": RetentionConfig(protected=("history",))}
CASES = [
    (Without, {}, "history", "add history()"),
    (Derived, {}, "label-derived columns", "label_derived_public"),
    (Misnamed, {}, "watched columns", "'x9'"),
    (Leaps, {}, "fields in range", "x3: 100% of the last tenth .* declare it in `ranges`, or leave it out"),
    (Draws, {}, "encode repeats", "no random draw"),
    (Centred, {}, "encode row-wise", "alone is encoded differently"),
    (Peeks, {}, "encode reads events only", "without the label columns"),
    (Tall, {}, "shapes", r"answer gave shape \(8, 1\)"),
    (NeverEmpty, {}, "no rows", "need at least one array"),
    (NoNegative, {}, "absent labels", "_label_absent"),
    (Mean, {}, "loss of each example", "one value each"),
    (InBatch, {}, "loss of each example", "depends on those beside it"),
    (Unbounded, {}, "gate loss bounded", "grows with the output"),
    (Costly, {}, "outcome", "outcome of row 0 is 100.0, outside .* divide the cost by its largest value and clip it"),
    (BlockedOnly, {}, "outcome", "2.0, outside"),
    (BesideOthers, {}, "outcome", "row i from row i alone"),
    (Sliced, {}, "slices", r"slice 'left' is int64 \(64,\) for 64 rows; bool, one each"),
    (Sound, {"rollout": RolloutPolicy(protected_slices=("night",))}, "release policy", "blobs has: none. Correct the name"),
    (Sound, {"rollout": RolloutPolicy(strategy="ab")}, "release policy", "has no outcome"),
    (Unseen, {}, "release policy", "what was refused has no label.*a first step of 1 or more"),
    (Sound, PROTECTED, "golden sets", "the floor 0.995 needs about 13,528 rows; every update would be refused"),
    (Sound, {"retention": RetentionConfig(protected=("histroy",))}, "golden sets", "regimes are: history"),
    (Numbers, {}, "golden sets", "golden set 'night' lacks event_id"),
    (Bare, {}, "public inputs", "lacks event_id, x1"),
    (Whole, {}, "schema round trip", "field 'x0': wrong type: found a number, wanted an integer"),
    (Nullable, {}, "nulls", "a null in field 'x0' becomes an input that is not finite"),
    (Tied, {}, "adapter layers", "untie them"),
    (Halving, {}, "adapter comes back", "answers differently after it was put on again"),
    (Counted, {}, "base unchanged", "wrote to a buffer"),
    (Normed, {}, "records apart", "head.copy.0 is a BatchNorm1d"),
    (Folded, {}, "gradients of each example", "first dimension is not the example"),
]


@pytest.mark.parametrize(("task", "settings", "rule", "cure"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_task_fails_the_rule_it_breaks_and_no_other(task, settings, rule, cure):
    found = broken(outcomes(task(), **settings))
    assert list(found) == [rule], found
    with pytest.raises(AssertionError, match=cure):
        raise AssertionError(found[rule])


def test_a_field_that_grows_is_named_until_its_range_is_declared():
    grows, leaps = Grows(), Leaps()
    case = Case(check(grows, "g"), *schema_rules.rows_of(grows))
    assert task_rules.in_range(case).startswith("x3: the last tenth of history lies beyond the first nine")
    grows.ranges = leaps.ranges = {"x3": (-10, 1e6)}
    assert task_rules.in_range(case) == task_rules.in_range(replace(case, task=leaps)) == "3 fields stay where history has them"


def test_every_rule_can_fail():
    assert {rule for *_, rule, _ in CASES} == {rule.name for rule in RULES}


def test_the_source_of_the_gradients_is_named():
    one, other = (next(o.text for o in outcomes(task()) if o.rule.startswith("gradients")) for task in (Sound, OwnLayer))
    assert one.startswith("one backward pass, off by") and other.startswith("Opacus' hooks")


@pytest.mark.parametrize("private", [True, False])
def test_a_sound_task_keeps_every_rule(private):
    found = outcomes(Sound(), private=private)
    assert {outcome.state for outcome in found} == {"ok"}, broken(found)


def test_what_only_privacy_needs_is_not_asked_without_it():
    assert not broken(outcomes(Derived(), private=False)) and not broken(outcomes(Normed(), private=False))


def test_a_task_without_public_rows_is_tried_on_rows_made_from_its_schemas():
    columns, source = schema_rules.rows_of(check(TwoBlobs(), "blobs"))
    assert source == "rows made from the schemas" and set(columns) == {"event_id", *FEATURES, "y"}
    assert list(broken(outcomes(TwoBlobs()))) == ["history"]


def test_rows_of_every_kind_can_be_made_and_come_back_from_the_stream():
    class Kinds(TwoBlobs):
        event = pa.schema([
            ("event_id", pa.string()), ("n", pa.int32()), ("sure", pa.bool_()), ("at", pa.timestamp("ms", "UTC")),
            ("day", pa.date32()), ("near", pa.list_(pa.float32(), 3)), ("far", pa.list_(pa.float64())),
        ])  # fmt: skip

        def encode(self, columns):
            return np.column_stack([columns["n"], columns["sure"], *columns["near"].T[:2]]).astype(np.float32)

    columns, source = schema_rules.rows_of(check(Kinds(), "kinds"))
    case = Case(Kinds(), columns, source)
    assert schema_rules.round_trip(case) == "7 fields of an event, 2 of a label"
    with pytest.raises(Broken, match="a null in field 'n'"):
        schema_rules.nulls(case)


def test_a_rule_that_crashes_has_failed_and_the_others_still_run():
    def crash(case):
        raise KeyError("x7")

    found = run(Case(check(Sound(), "s"), tasks.columns(8), "rows"), [Rule("a", crash), Rule("b", crash, ("a",)), *RULES[:1]])
    assert [outcome.state for outcome in found] == ["FAIL", "-", "ok"]
    assert "KeyError: 'x7' (raised in crash, test_conformance.py:" in found[0].text and found[1].text.endswith("needs: a")


def test_golden_sets_are_judged_by_what_the_newest_version_flipped():
    task = check(Sound(), "s")
    columns, source = schema_rules.rows_of(task)
    case = Case(task, columns, source, measured={"history": {"rows": 1000, "lost": 1, "gained": 0, "accuracy_at_birth": 0.9}})
    assert "1,000 rows can show a retention of 0.9968 where 0.1% of answers flip (measured)" in task_rules.golden(case)
    assert "0.995" not in task_rules.golden(case) and "assumed" in task_rules.golden(replace(case, measured={}))


def test_a_regime_of_production_is_judged_once_a_version_was_measured_on_it():
    task = check(Sound(), "s")
    columns, source = schema_rules.rows_of(task)
    summer = RetentionConfig(protected=("summer",), regimes=("summer 2026-06-01T00:00Z 2026-06-28T00:00Z",))
    case = Case(task, columns, source, retention=summer)
    assert "regime 'summer' has not been measured yet" in task_rules.golden(case)
    figures = {"rows": 300, "lost": 10, "gained": 11, "accuracy_at_birth": 0.9}
    with pytest.raises(Broken, match=r"'summer': 300 rows .* every update would be refused"):
        task_rules.golden(replace(case, measured={"summer": figures}))
