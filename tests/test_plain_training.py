"""One update without privacy: repeatable to the bit, the same however it is cut up, and what its report holds."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models import base
from models.adapters import lora
from models.class_balance import class_shares
from models.compat import TrainingRefused
from models.config import AdapterConfig, GuardConfig, TrainingConfig, UpdateConfig
from models.early_stop import EarlyStop
from models.guard import UpdateInterrupted
from models.plain_adamw import warm_cosine
from models.training import Update, train
from tests.encoders import Counting, sentences
from tests.tasks import TwoBlobs, columns
from tests.updates import attached, batch

W = "2013-03-04T08:00Z"
TASK = TwoBlobs()
ADAPTER = AdapterConfig(r=4, lora_alpha=8)
PLAIN = UpdateConfig(ADAPTER, TrainingConfig(max_epochs=2, batch_size=32, learning_rate=1e-2))
WINDOW = columns(800, seed=5, drift=0.8)
SEQUENCES = UpdateConfig(AdapterConfig(r=4, target_modules=("up", "down")),
                         TrainingConfig(max_epochs=2, batch_size=8, learning_rate=1e-2))


@pytest.fixture(scope="module")
def trained() -> bytes:
    return base.train_base(TASK, columns(2_000, seed=1), epochs=4, batch_size=64, learning_rate=1e-2)


@pytest.fixture(scope="module")
def reader() -> bytes:
    return base.train_base(Counting(), sentences(400, seed=1), epochs=2)


def flat(tensors: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([value.ravel() for value in tensors.values()])


def updated(trained: bytes, parent=None, window=WINDOW, config=PLAIN, **more) -> Update:
    return train(TASK, trained, parent, window, None, config, W, **more)


def test_a_plain_update_is_repeatable_to_the_bit_under_a_seed(trained):
    one, same, other = (train(TASK, trained, None, WINDOW, None, PLAIN, W, seed=s) for s in (4, 4, 5))
    assert all(np.array_equal(one.tensors[key], same.tensors[key]) for key in one.tensors)
    assert one.report.adapter_digest == same.report.adapter_digest != other.report.adapter_digest


def test_a_plain_update_without_a_seed_draws_one(trained):
    one, other = (train(TASK, trained, None, WINDOW, None, PLAIN, W) for _ in range(2))
    assert one.report.adapter_digest != other.report.adapter_digest


def test_a_child_starts_where_its_parent_ended(trained):
    parent = train(TASK, trained, None, WINDOW, None, PLAIN, W, seed=1)
    child = train(TASK, trained, parent.tensors, WINDOW, None, PLAIN, W, seed=1)
    assert parent.report.loss_after < parent.report.loss_before
    assert child.report.loss_before == parent.report.loss_after


def test_accumulated_small_batches_equal_one_large_batch(trained):
    whole = replace(PLAIN, training=TrainingConfig(max_epochs=1, batch_size=64, learning_rate=1e-3))
    parts = replace(PLAIN, training=replace(whole.training, batch_size=16, gradient_accumulation_steps=4))
    one, other = (train(TASK, trained, None, WINDOW, None, c, W, seed=1) for c in (whole, parts))
    assert one.report.steps == other.report.steps == 13
    assert np.allclose(flat(one.tensors), flat(other.tensors), atol=1e-5)


def test_the_rate_warms_up_falls_as_a_cosine_and_decays_from_update_to_update():
    factors = [warm_cosine(step, 4, 20) for step in range(21)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and factors[12] == pytest.approx(0.5)
    assert factors[20] == pytest.approx(0.0) and factors[4:] == sorted(factors[4:], reverse=True)
    setting = TrainingConfig(learning_rate=1e-2, lr_decay=0.5, min_learning_rate=2e-3)
    assert [setting.rate(k) for k in range(4)] == [1e-2, 5e-3, 2.5e-3, 2e-3]


def test_training_stops_when_a_held_out_tenth_is_answered_no_better(trained):
    chance = WINDOW | {"y": np.random.default_rng(3).integers(0, 2, len(WINDOW["y"])).astype(WINDOW["y"].dtype)}
    patient = replace(PLAIN, training=TrainingConfig(max_epochs=12, batch_size=16, learning_rate=1e-2, early_stop_patience=1))
    one, two = (train(TASK, trained, None, chance, None, patient, W, seed=1).report for _ in range(2))
    assert 1 < len(one.losses) < 12 and one.adapter_digest == two.adapter_digest
    rows = len(chance["y"])
    assert one.steps == len(one.losses) * math.ceil((rows - rows // 10) / 16)


def test_the_weights_of_the_best_epoch_are_kept(trained):
    module, (parts, truth) = attached(trained), batch(200)
    stop = EarlyStop(TASK, module, parts, truth, 2, torch.Generator().manual_seed(1))
    weights, started = list(lora.trainable(module).values()), lora.extract(module)
    assert len(stop.rows) == 180 and not stop.epoch_ended()
    for worse, ended in ((5.0, False), (math.nan, True)):
        with torch.no_grad():
            weights[-1].add_(torch.tensor([worse] * weights[-1].numel()).view_as(weights[-1]))
            weights[-1].mul_(-1)
        assert stop.epoch_ended() == ended
    stop.restore()
    assert all(np.array_equal(value, started[name]) for name, value in lora.extract(module).items())


def test_no_examples_without_privacy_is_refused(trained):
    with pytest.raises(TrainingRefused, match="0 examples < 1"):
        train(TASK, trained, None, columns(0), None, PLAIN, W)


# ---- the same bits, or the same to rounding


@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient_accumulation_steps": 3}, {"gradient_checkpointing": True}, {"sort_by_length": True},
     {"precision": "bf16", "gradient_accumulation_steps": 2, "gradient_checkpointing": True, "warmup_steps": 3}],
    ids=lambda changes: "+".join(changes) or "plain",
)  # fmt: skip
def test_equal_seed_and_data_give_equal_bits_however_memory_is_saved(reader, changes):
    config = replace(SEQUENCES, training=replace(SEQUENCES.training, **changes))
    digests = []
    for seed in (4, 4, 5):
        torch.manual_seed(len(digests))  # what else the process has drawn does not matter
        digests.append(train(Counting(), reader, None, sentences(60), None, config, W, seed=seed).report.adapter_digest)
    assert digests[0] == digests[1] != digests[2]


def test_checkpointing_changes_no_bit(reader):
    saving = replace(SEQUENCES, training=replace(SEQUENCES.training, gradient_checkpointing=True))
    one, other = (train(Counting(), reader, None, sentences(60), None, c, W, seed=1) for c in (SEQUENCES, saving))
    assert one.report.adapter_digest == other.report.adapter_digest
    assert (one.report.rung, other.report.rung) == ("micro-batch 8", "micro-batch 8, checkpointed")


# ---- the report


def test_each_layer_has_a_curve_and_together_they_are_the_norm(trained):
    setting = replace(PLAIN.training, max_epochs=3, batch_size=800)  # one step an epoch
    report = updated(trained, config=replace(PLAIN, training=setting), seed=1).report
    assert list(report.layer_norms) == ["fc1", "fc2", "head"]
    for epoch in range(3):
        squares = sum(norms[epoch] ** 2 for norms in report.layer_norms.values())
        assert math.sqrt(squares) == pytest.approx(report.gradient_norms[epoch], rel=1e-6)


def test_a_layer_that_gets_no_gradient_is_seen_in_its_curve(trained):
    class Deaf(TwoBlobs):
        def build(self):
            module = super().build()
            module.forward = lambda x: module.head(torch.relu(module.fc2(torch.relu(module.fc1(x)).detach()))).squeeze(-1)
            return module

    report = train(Deaf(), trained, None, WINDOW, None, PLAIN, W, seed=1).report
    assert set(report.layer_norms["fc1"]) == {0.0} and min(report.layer_norms["fc2"]) > 0


def test_the_report_is_plain_json(trained):
    report = updated(trained, seed=1).report
    read = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert (read["precision"], read["rung"], read["rungs_down"], read["skipped_steps"]) == ("fp32", "micro-batch 32", 0, 0)
    assert (read["findings"], read["class_shares"], read["update_cosine"]) == ([], None, None)
    assert len(read["losses"]) == len(read["layer_norms"]["fc1"]) == 2


def test_integer_and_boolean_targets_are_counted_by_class(reader):
    window = sentences(60)
    shares = train(Counting(), reader, None, window, None, SEQUENCES, W, seed=1).report.class_shares
    assert shares == {"0": pytest.approx(1 - window["y"].mean()), "1": pytest.approx(window["y"].mean())}
    assert class_shares(torch.tensor([True, False, True, True])) == {"False": 0.25, "True": 0.75}


@pytest.mark.parametrize("truth", [torch.ones(3), torch.ones(3, 2, dtype=torch.int64), torch.arange(101), torch.ones(0)])
def test_a_target_without_classes_has_no_shares(truth):
    assert class_shares(truth) is None


# ---- the guard against history


def test_an_update_much_larger_than_those_before_is_noticed_and_not_stopped(trained):
    usual = updated(trained, seed=1).report.as_dict()
    assert updated(trained, seed=1, earlier=[usual] * 3).report.findings == ()
    small = usual | {"weight_delta": usual["weight_delta"] / 8}
    report = updated(trained, seed=1, earlier=[small] * 3).report
    [finding] = report.findings
    assert (finding["kind"], finding["limit"], report.blocked) == ("update_norm", 5.0, None)
    assert finding["figure"] == pytest.approx(8.0)


def test_an_update_that_turns_back_is_noticed_beside_steady_ones(trained):
    """A fresh adapter has learnt nothing that could be undone; the turned labels of its child give a negative cosine."""
    quiet = replace(PLAIN, guard=GuardConfig(max_loss_change=1e9))
    parent = updated(trained, config=quiet, seed=1)
    assert parent.report.update_cosine is None
    wrong = WINDOW | {"y": 1 - WINDOW["y"]}
    steady = [parent.report.as_dict() | {"update_cosine": 0.3, "weight_delta": None}] * 8
    report = updated(trained, parent.tensors, wrong, quiet, seed=1, earlier=steady).report
    [finding] = report.findings
    assert finding["kind"] == "update_direction" and report.update_cosine < 0 and report.blocked is None
    assert finding["figure"] == pytest.approx((0.3 - report.update_cosine) / 0.05)


def test_a_loss_change_is_among_the_findings_and_blocks(trained):
    strict = replace(PLAIN, guard=GuardConfig(max_loss_change=1e-6))
    report = updated(trained, config=strict, seed=1).report
    assert [finding["kind"] for finding in report.findings] == ["loss_change"] == [report.blocked]
    assert report.findings[0]["message"] == report.finding


def test_an_interruption_names_the_layer(trained):
    strict = replace(PLAIN, guard=GuardConfig(max_gradient_norm=1e-3))
    with pytest.raises(UpdateInterrupted, match=r"max_gradient_norm 0\.001, largest in layer 'fc1' \([\d.]+\), in window"):
        updated(trained, config=strict, seed=1)
