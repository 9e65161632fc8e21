"""One update, privately and plainly: what it does, what it may never do, and what stops it.

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
from torch import nn
from torch.func import functional_call, grad, vmap

from models import base, clipping, compute, lora
from models.config import AdapterConfig, GuardConfig, TrainingConfig, UpdateConfig
from models.guard import UpdateInterrupted
from models.plain_adamw import warm_cosine
from models.training import TrainingRefused, train
from security.privacy import Reservation
from tests.tasks import TwoBlobs, columns

NEVER = 1e-7
W = "2013-03-04T08:00Z"
TASK = TwoBlobs()
ADAPTER = AdapterConfig(r=4, lora_alpha=8)
PLAIN = UpdateConfig(ADAPTER, TrainingConfig(max_epochs=2, batch_size=32, learning_rate=1e-2))
PRIVATE = UpdateConfig(ADAPTER, TrainingConfig(learning_rate=0.3))
WINDOW = columns(800, seed=5, drift=0.8)


@pytest.fixture(scope="module")
def trained() -> bytes:
    return base.train_base(TASK, columns(2_000, seed=1), epochs=4, batch_size=64, learning_rate=1e-2)


def law(rows: int, **changes) -> Reservation:
    made = Reservation("u1", (W,), noise_multiplier=2.0, sampling_rate=0.125, steps=8, max_grad_norm=3.0, epsilon=0.5,
                       delta=1e-5, expected_batch=0.125 * rows)
    return replace(made, **changes)


def attached(trained: bytes) -> nn.Module:
    """A module whose adapter is no longer at its start, so that every matrix has a gradient."""
    module = base.build(TASK, trained)
    lora.attach(module, ADAPTER, lora.first_draw(trained))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in lora.trainable(module).values():
            value += 0.2 * torch.randn(value.shape, generator=draw)
    return module


def batch(rows: int, seed: int = 5) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    some = columns(rows, seed=seed, drift=0.8)
    return compute.inputs(TASK, some), compute.targets(TASK, some)


def flat(tensors: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([value.ravel() for value in tensors.values()])


# ---- gradients and clipping


def reference(module: nn.Module, parts: tuple[torch.Tensor, ...], truth: torch.Tensor) -> torch.Tensor:
    """Per-example gradients by vmap(grad), independent of hooks."""
    everything = {name: p.detach() for name, p in module.named_parameters()}
    free = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}

    def loss(weights, x, y):
        return TASK.loss(functional_call(module, {**everything, **weights}, (x[None],)), y[None])[0]

    grads = vmap(grad(loss), (None, 0, 0))(free, parts[0], truth)
    by_id = {id(p): grads[name] for name, p in module.named_parameters() if p.requires_grad}
    return torch.cat([by_id[id(p)].flatten(1) for p in lora.trainable(module).values()], dim=1)


def test_per_example_gradients_equal_those_of_vmap(trained):
    module, (parts, truth) = attached(trained), batch(64)
    wanted = reference(module, parts, truth)
    with clipping.PerExampleGradients(TASK, module) as gradients:
        losses, found = gradients(parts, truth)
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert torch.allclose(losses, TASK.loss(module(*parts), truth))


def test_a_clipped_sum_is_the_sum_of_clipped_gradients_also_over_chunks(trained, monkeypatch):
    monkeypatch.setattr(clipping, "ROWS", 50)
    module, (parts, truth) = attached(trained), batch(120)
    wanted = reference(module, parts, truth).double()
    norms = wanted.norm(dim=1)
    clip = float(norms.quantile(0.503))
    total = (wanted * (clip / norms).clamp(max=1.0)[:, None]).sum(dim=0).numpy()
    with clipping.PerExampleGradients(TASK, module) as gradients:
        found = gradients.clipped_sum(parts, truth, clip)
    assert np.linalg.norm(found.total - total) < 3e-5 * np.linalg.norm(total)
    assert found.clipped == int((norms > clip).sum()) and found.not_finite == 0 and len(found.losses) == 120


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e18])
def test_no_single_example_contributes_more_than_the_clip(trained, scale):
    module, (parts, truth) = attached(trained), batch(40)
    with clipping.PerExampleGradients(TASK, module) as gradients:
        for row in range(40):
            one = gradients.clipped_sum((parts[0][row : row + 1] * scale,), truth[row : row + 1], 0.01)
            assert np.linalg.norm(one.total) <= 0.01


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 3e38])
def test_a_row_that_is_not_finite_counts_as_absent(trained, poison):
    module, (parts, truth) = attached(trained), batch(30)
    keep = torch.arange(30) != 7
    broken = parts[0].clone()
    broken[7] = poison
    with clipping.PerExampleGradients(TASK, module) as gradients:
        found = gradients.clipped_sum((broken,), truth, 1.0)
        without = gradients.clipped_sum((parts[0][keep],), truth[keep], 1.0)
    assert np.allclose(found.total, without.total, rtol=1e-6, atol=1e-7) and found.not_finite == 1


def test_a_trainable_parameter_without_gradient_is_refused(trained):
    class Idle(TwoBlobs):
        def build(self):
            module = super().build()
            module.head = nn.ModuleDict({"used": module.head, "idle": nn.Linear(8, 1)})
            module.forward = lambda x: module.head["used"](
                torch.relu(module.fc2(torch.relu(module.fc1(x))))).squeeze(-1)
            return module

    task = Idle()
    module = task.build().requires_grad_(False)
    for part in module.head.values():
        part.requires_grad_(True)
    lora.attach(module, AdapterConfig(r=2, modules_to_save=("used", "idle")))
    with clipping.PerExampleGradients(task, module) as gradients, pytest.raises(
            clipping.GradientsRefused, match=r"head\.idle\.weight got no gradient"):
        gradients(*batch(5))


class Headed(TwoBlobs):
    """The same net with something more in its head."""

    def __init__(self, *extra: nn.Module) -> None:
        self.extra = extra

    def build(self):
        module = super().build()
        module.head = nn.Sequential(*self.extra, module.head)
        return module


def test_batch_norm_that_would_be_trained_is_refused_and_layer_norm_is_not():
    task = Headed(nn.BatchNorm1d(8))
    state = base.train_base(task, WINDOW, epochs=1)
    with pytest.raises(clipping.GradientsRefused, match=r"head\.copy\.0 is a BatchNorm1d .* mixes the records"):
        train(task, state, None, WINDOW, law(800), PRIVATE, W)
    task = Headed(nn.LayerNorm(8))
    assert train(task, base.train_base(task, WINDOW, epochs=1), None, WINDOW, law(800), PRIVATE, W).report.steps == 8


def test_a_loss_that_is_a_mean_is_refused(trained):
    class Mean(TwoBlobs):
        def loss(self, output, target):
            return super().loss(output, target).mean()

    with pytest.raises(ValueError, match=r"loss gave shape \(\) for 800 examples"):
        train(Mean(), trained, None, WINDOW, law(800), PRIVATE, W)


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


def test_a_poisoned_record_does_not_reach_the_weights(trained):
    broken = {name: column.copy() for name, column in WINDOW.items()}
    broken["x1"][:5] = np.nan
    update = train(TASK, trained, None, broken, law(800, sampling_rate=1.0, expected_batch=800.0), PRIVATE, W)
    assert np.isfinite(flat(update.tensors)).all()
    assert update.report.not_finite == 5 * 8 and math.isfinite(update.report.loss_before)


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
    once = clipping.PerExampleGradients.clipped_sum

    def count(self, parts, truth, clip):
        seen.append(len(truth))
        return once(self, parts, truth, clip)

    monkeypatch.setattr(clipping.PerExampleGradients, "clipped_sum", count)
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


# ---- plain updates


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


def test_no_examples_without_privacy_is_refused(trained):
    with pytest.raises(TrainingRefused, match="0 examples < 1"):
        train(TASK, trained, None, columns(0), None, PLAIN, W)


# ---- what stops an update


def test_a_gradient_beyond_the_limit_interrupts(trained):
    strict = replace(PLAIN, guard=GuardConfig(max_gradient_norm=1e-3))
    with pytest.raises(UpdateInterrupted, match=r"> max_gradient_norm 0.001 in window .*#gradient-norm") as caught:
        train(TASK, trained, None, WINDOW, None, strict, W)
    assert caught.value.kind == "gradient_norm" and caught.value.figure > caught.value.limit == 1e-3


def test_under_privacy_the_noise_alone_does_not_interrupt_but_a_gradient_does(trained):
    """Noise of norm 8 beside a limit of 0.5 gets through in 99.9 % of 20 single steps; wrong labels give a norm of 1.8.

    Three or more stops of 20 happen by accident below 2e-6.
    """
    strict, stopped = replace(PRIVATE, guard=GuardConfig(max_gradient_norm=0.5)), 0
    for _ in range(20):
        try:
            train(TASK, trained, None, columns(0), law(800, noise_multiplier=20.0, steps=1), strict, W)
        except UpdateInterrupted:
            stopped += 1
    assert stopped <= 2
    wrong = columns(800, seed=5)
    wrong["y"] = 1 - wrong["y"]
    with pytest.raises(UpdateInterrupted, match=r"99\.9 % quantile of the noise"):
        train(TASK, trained, None, wrong, law(800, noise_multiplier=0.1), strict, W)


def test_a_value_that_is_not_finite_interrupts_without_privacy(trained):
    broken = {name: column.copy() for name, column in WINDOW.items()}
    broken["x0"][3] = np.nan
    with pytest.raises(UpdateInterrupted, match="non-finite") as caught:
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
