"""One update under privacy: what it does, what it may never do, and what stops an update of either kind.

Private tests use fresh randomness at every run; each statistical one states its chance of failing by accident.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from models import base
from models.adapters import lora
from models.config import GuardConfig, TrainingConfig, UpdateConfig
from models.guard import UpdateInterrupted
from models.private import clipping
from models.training import TrainingRefused, train
from tests.tasks import TwoBlobs, columns
from tests.updates import ADAPTER, PLAIN, PRIVATE, TASK, WINDOW, W, law, trained_base

NEVER = 1e-7


@pytest.fixture(scope="module")
def trained() -> bytes:
    return trained_base()


def flat(tensors: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([value.ravel() for value in tensors.values()])


# ---- private updates


def test_a_private_update_moves_every_tensor_and_leaves_the_base_alone(trained):
    update = train(TASK, trained, None, WINDOW, law(800), PRIVATE, W)
    module = base.build(TASK, trained)
    lora.attach(module, ADAPTER, lora.first_draw(trained))
    start = lora.extract(module)
    assert update.tensors.keys() == start.keys()
    assert all((update.tensors[key] != start[key]).all() for key in start)
    assert update.report.base_digest == base.digest(trained)


def test_the_noise_has_the_accounted_deviation_in_every_coordinate(trained):
    """No examples, so the change is noise alone: 60 updates of 8 steps against chi-square; fails below 1e-6.

    A deviation 7 % too small would lie ten standard errors off.
    """
    config, total, count = UpdateConfig(ADAPTER, TrainingConfig(learning_rate=1.0)), 0.0, 0
    deviation = 2.0 * 3.0 / 100 * math.sqrt(8)
    sums = []
    parent = train(TASK, trained, None, columns(0), law(800), config, W).tensors
    for _ in range(60):
        child = train(TASK, trained, parent, columns(0), law(800), config, W).tensors
        z = (flat(child) - flat(parent)).astype(np.float64) / deviation
        total, count = total + (z**2).sum(), count + z.size
        sums.append(z)
        parent = child
    assert NEVER < stats.chi2.cdf(total, count) < 1 - NEVER
    per_coordinate = (np.array(sums) ** 2).sum(axis=0)
    assert stats.chi2.sf(per_coordinate.max(), 60) > NEVER / 1000
    assert stats.chi2.cdf(per_coordinate.min(), 60) > NEVER / 1000


def test_an_empty_window_still_takes_every_noisy_step(trained):
    report = train(TASK, trained, None, columns(0), law(800), PRIVATE, W).report
    assert (report.steps, report.rows, report.losses, report.loss_before) == (8, 0, (None,) * 8, None)
    assert report.weight_delta > 0


def test_a_window_of_one_record_takes_every_noisy_step_too(trained):
    report = train(TASK, trained, None, columns(1), law(1, expected_batch=0.125), PRIVATE, W).report
    assert (report.steps, report.rows) == (8, 1) and math.isfinite(report.loss_before)


def test_a_window_of_nothing_but_nan_is_nothing_but_noise(trained):
    broken = {name: np.full_like(column, np.nan) if name.startswith("x") else column for name, column in WINDOW.items()}
    update = train(TASK, trained, None, broken, law(800, sampling_rate=1.0, expected_batch=800.0), PRIVATE, W)
    assert np.isfinite(flat(update.tensors)).all() and update.report.weight_delta > 0
    assert (update.report.steps, update.report.not_finite, update.report.loss_before) == (8, 8 * 800, None)


def test_a_poisoned_record_does_not_reach_the_weights(trained):
    broken = {name: column.copy() for name, column in WINDOW.items()}
    broken["x1"][:5] = np.nan
    update = train(TASK, trained, None, broken, law(800, sampling_rate=1.0, expected_batch=800.0), PRIVATE, W)
    assert np.isfinite(flat(update.tensors)).all()
    assert update.report.not_finite == 5 * 8 and math.isfinite(update.report.loss_before)


def test_without_a_rate_of_its_own_an_update_puts_one_hundredth_of_noise_into_each_weight(trained):
    """Whatever its size; a large one stops at the largest rate. The spread of 354 weights is within 20 % but once in 1e7."""
    config, start = UpdateConfig(ADAPTER, guard=GuardConfig(1e9)), None
    for count in (400, 40_000_000):
        update = train(TASK, trained, None, columns(0), law(count, expected_batch=count / 8), config, W)
        module = base.build(TASK, trained)
        lora.attach(module, ADAPTER, lora.first_draw(trained))
        start = flat(lora.extract(module))
        noise = law(count, expected_batch=count / 8).noise_multiplier * 3.0 / (count / 8) * math.sqrt(8)
        rate = min(0.01 / noise, 0.05)
        assert update.report.learning_rate == pytest.approx(rate)
        assert np.std(flat(update.tensors) - start) == pytest.approx(rate * noise, rel=0.2)
    assert rate == 0.05 and replace(config.training, lr_decay=0.5).rate(1, noise=1.0) == 0.005


def test_an_update_of_noise_at_its_own_rate_is_no_larger_than_the_noise_may_be(trained):
    """However small the updates before: what noise adds follows from the rate that was taken (1e-10)."""
    small = [{"weight_delta": 1e-6, "update_cosine": None}] * 5
    report = train(TASK, trained, None, columns(0), law(800), UpdateConfig(ADAPTER), W, earlier=small).report
    assert report.findings == () and report.weight_delta > 0.1


def test_a_private_rate_decays_by_twenty_at_least_whatever_the_floor(trained):
    setting = UpdateConfig().training
    assert setting.rate(10_000, noise=200.0) == pytest.approx(0.01 / 200 / 20)
    assert setting.rate(10_000) == setting.min_learning_rate
    with pytest.raises(ValueError, match=r"lr_decay = 1.5 > 1"):
        TrainingConfig(lr_decay=1.5)


def test_a_loss_that_is_lost_blocks_the_release(trained):
    """An update that throws the weights far away leaves losses that are no number."""
    far = UpdateConfig(ADAPTER, TrainingConfig(learning_rate=1e30), GuardConfig(1e30, 1e30, 1e30, 1e30))
    report = train(TASK, trained, None, WINDOW, law(800), far, W).report
    assert report.blocked == "non_finite" and "no finite loss any more" in report.finding


def test_the_divisor_is_the_public_count_not_the_realised_batch(trained):
    """Twice the declared count, half the step: noise cancels to a thousandth because it is made tiny."""
    quiet = {"noise_multiplier": 1e-3, "sampling_rate": 1.0, "steps": 1}
    moves = []
    for count in (800, 1600):
        update = train(TASK, trained, None, WINDOW, law(800, expected_batch=float(count), **quiet), PRIVATE, W)
        module = base.build(TASK, trained)
        lora.attach(module, ADAPTER, lora.first_draw(trained))
        moves.append(np.linalg.norm(flat(update.tensors) - flat(lora.extract(module))))
    assert moves[0] / moves[1] == pytest.approx(2.0, rel=1e-3)


def test_examples_are_drawn_at_the_reserved_rate(trained, monkeypatch):
    """Rows seen over 8 steps are Binomial(6400, 1/8); fails by accident below 1e-6."""
    seen = []
    once = clipping.Clipping.clipped_sum

    def count(self, parts, truth, clip):
        seen.append(len(truth))
        return once(self, parts, truth, clip)

    monkeypatch.setattr(clipping.Clipping, "clipped_sum", count)
    train(TASK, trained, None, WINDOW, law(800), PRIVATE, W)
    assert len(seen) == 8 and len(set(seen)) > 1
    assert NEVER < stats.binom.cdf(sum(seen), 6400, 0.125) < 1 - NEVER


def test_two_private_updates_on_the_same_data_differ(trained):
    one, other = (train(TASK, trained, None, WINDOW, law(800), PRIVATE, W) for _ in range(2))
    assert one.report.adapter_digest != other.report.adapter_digest


def test_a_private_update_learns_a_drift(trained):
    """Epsilon 0.5 on 4,000 examples (sigma 5.27): the loss falls to 0.49 of what it was, s.d. 0.01; 0.6 is 11 away."""
    window = columns(4_000, seed=6, drift=0.8)
    lawful = law(4_000, noise_multiplier=5.27, steps=32)
    for _ in range(5):
        report = train(TASK, trained, None, window, lawful, PRIVATE, W).report
        assert report.loss_after < 0.6 * report.loss_before


def test_a_seed_with_privacy_on_is_refused(trained):
    with pytest.raises(TrainingRefused, match="seed 7 given with privacy on"):
        train(TASK, trained, None, WINDOW, law(800), PRIVATE, W, seed=7)


@pytest.mark.parametrize("field", ["noise_multiplier", "max_grad_norm", "expected_batch", "steps"])
def test_a_reservation_under_which_no_privacy_holds_is_refused(trained, field):
    with pytest.raises(TrainingRefused, match=f"{field} = 0 is not > 0"):
        train(TASK, trained, None, WINDOW, law(800, **{field: 0}), PRIVATE, W)


def test_a_sampling_rate_beyond_one_is_refused(trained):
    with pytest.raises(ValueError, match=r"sampling_rate 1\.5 is not in \(0, 1\]"):
        train(TASK, trained, None, WINDOW, law(800, sampling_rate=1.5), PRIVATE, W)


# ---- what stops an update


def test_a_gradient_beyond_the_limit_interrupts(trained):
    strict = replace(PLAIN, guard=GuardConfig(max_gradient_norm=1e-3))
    with pytest.raises(UpdateInterrupted, match=r"> max_gradient_norm 0\.001, largest in layer .*#gradient-norm") as caught:
        train(TASK, trained, None, WINDOW, None, strict, W)
    assert caught.value.kind == "gradient_norm" and caught.value.figure > caught.value.limit == 1e-3


def test_under_privacy_the_noise_alone_does_not_interrupt_but_a_gradient_does(trained):
    """Noise of norm 8 beside a limit of 0.5 never stops an update; wrong labels give a norm of 1.8."""
    strict = replace(PRIVATE, guard=GuardConfig(max_gradient_norm=0.5))
    train(TASK, trained, None, columns(0), law(800, noise_multiplier=20.0, steps=20), strict, W)
    wrong = columns(800, seed=5)
    wrong["y"] = 1 - wrong["y"]
    with pytest.raises(UpdateInterrupted, match="with what noise may add"):
        train(TASK, trained, None, wrong, law(800, noise_multiplier=0.1), strict, W)


def test_a_value_that_is_not_finite_interrupts_without_privacy(trained):
    broken = {name: column.copy() for name, column in WINDOW.items()}
    broken["x0"][3] = np.nan
    with pytest.raises(UpdateInterrupted, match=r"3 non-finite values .* in the gradient norms of layers fc1, fc2") as caught:
        train(TASK, trained, None, broken, None, PLAIN, W)
    assert caught.value.kind == "non_finite"


@pytest.mark.parametrize("private", [False, True])
def test_training_that_changes_nothing_is_an_error(trained, private):
    still = UpdateConfig(ADAPTER, TrainingConfig(learning_rate=0.0, min_learning_rate=0.0))
    with pytest.raises(UpdateInterrupted, match=r"docs/alarms\.md#no-weight-change") as caught:
        train(TASK, trained, None, WINDOW, law(800) if private else None, still, W)
    assert caught.value.kind == "no_weight_change"


def test_a_large_change_of_loss_is_reported_and_blocks_release_only(trained):
    wrong = columns(800, seed=5)
    wrong["y"] = 1 - wrong["y"]
    config = UpdateConfig(ADAPTER, TrainingConfig(max_epochs=3, batch_size=32, learning_rate=2e-2))
    report = train(TASK, trained, None, wrong, None, config, W, seed=1).report
    assert report.blocked == "loss_change" and report.loss_change < -0.5
    assert "max_loss_change 0.5" in report.finding
    assert train(TASK, trained, None, WINDOW, None, PLAIN, W, seed=1).report.blocked is None


def test_a_base_that_changes_during_an_update_is_an_error(trained):
    class Counting(TwoBlobs):
        def build(self):
            module = super().build()
            module.register_buffer("calls", torch.zeros(()))
            inner = module.forward

            def forward(x):
                module.calls += 1
                return inner(x)

            module.forward = forward
            return module

    task = Counting()
    with pytest.raises(base.BaseChanged, match="changed during the update"):
        train(task, base.train_base(task, WINDOW, epochs=1), None, WINDOW, None, PLAIN, W)


# ---- the report and the surroundings


def test_the_report_is_plain_json_with_the_figures_of_the_reservation(trained):
    report = train(TASK, trained, None, WINDOW, law(800), PRIVATE, W).report
    read = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert (read["window"], read["rows"], read["steps"]) == (W, 800, 8)
    assert (read["epsilon"], read["max_grad_norm"], read["learning_rate"]) == (0.5, 3.0, 0.3)
    assert len(read["losses"]) == len(read["gradient_norms"]) == 8 and 0 <= read["clipped_share"] <= 1
    assert read["seconds"] > 0


def test_the_number_of_threads_is_as_it_was(trained):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(TASK, trained, None, WINDOW, law(800), PRIVATE, W)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
