"""The guard beside the noise of privacy: silent for noise, whatever the limit, and awake for what is more than noise.

The steps are those of training (`PrivateStep`), with fresh noise at every run; each test states its chance of failing by
accident.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from models import guard
from models.config import GuardConfig, TrainingConfig
from models.gradient_flow import NoisedFlow
from models.memory import Rung
from models.private.clipping import ClippedSum
from models.private.private_sgd import PrivateStep
from models.training import train
from tests.tasks import columns
from tests.updates import PRIVATE, TASK, WINDOW, W, batch, law, trained_base

STEPS = 10_000
LAWS = [(25, 0.3), (25, 20.0), (300, 2.0), (3201, 5.56)]  # weights, noise multiplier


class Constant:
    """A source of gradients whose clipped sum is always the same."""

    rung = Rung(1024, checkpointed=True)

    def __init__(self, total: np.ndarray) -> None:
        self.total, self.size = total, len(total)

    def clipped_sum(self, parts, truth, clip):
        return ClippedSum(self.total, np.zeros(len(truth)), 0, 0)


def stops(weights: int, sigma: float, norm: float, limit: float, steps: int) -> int:
    """How many of `steps` private steps the guard stops when the true mean gradient has this norm."""
    reserved = law(800, noise_multiplier=sigma)
    total = np.full(weights, norm * reserved.expected_batch / math.sqrt(weights))
    step, (parts, truth) = PrivateStep(Constant(total), reserved), batch(2)
    norms = (float(np.linalg.norm(step(parts, truth).gradient)) for _ in range(steps))
    return sum(guard.check_gradient_norm(one, limit, W, dimensions=weights, deviation=step.deviation) is not None
               for one in norms)


@pytest.mark.parametrize(("weights", "sigma"), LAWS)
@pytest.mark.parametrize(("norm", "limit"), [(0.0, 1e-9), (0.0, 10.0), (1.0, 1.0)])
def test_the_guard_is_never_stopped_by_noise_in_ten_thousand_steps(weights, sigma, norm, limit):
    """No gradient beside no limit, no gradient, and one at its very limit; by accident below 1e-6."""
    assert stops(weights, sigma, norm, limit, STEPS) == 0


@pytest.mark.parametrize(("weights", "sigma"), LAWS)
def test_an_explosion_is_stopped_at_every_step(weights, sigma):
    """Ten times what noise may make of the limit: missed in none of 200 steps; by accident below 1e-9."""
    deviation = sigma * 3.0 / 100
    assert stops(weights, sigma, 10 * guard.noisy_limit(1.0, weights, deviation), 1.0, 200) == 200


def test_an_update_without_examples_passes_whatever_the_limit():
    """Real steps of a real module: 2,000 with no example, beside a limit far below the noise of 10 in each."""
    strict = replace(PRIVATE, training=TrainingConfig(learning_rate=1e-6), guard=GuardConfig(max_gradient_norm=1e-6))
    report = train(TASK, trained_base(), None, columns(0), law(800, noise_multiplier=20.0, steps=2_000), strict, W).report
    assert report.steps == 2_000


def test_the_layers_of_a_private_update_have_norms_without_the_noise():
    """With little noise the layers together are the whole. Without examples, and noise of norm 4 in each step, what is left
    of it is under 3.5 and often none; by accident below 1e-8."""
    quiet = train(TASK, trained_base(), None, WINDOW, law(800, noise_multiplier=1e-6), PRIVATE, W).report
    assert list(quiet.layer_norms) == ["fc1", "fc2", "head"] and len(quiet.layer_norms["fc1"]) == quiet.steps == 8
    together = [math.hypot(*norms) for norms in zip(*quiet.layer_norms.values(), strict=True)]
    assert together == pytest.approx(quiet.gradient_norms, rel=1e-6) and max(together) > 0.01
    noisy = train(TASK, trained_base(), None, columns(0), law(800, noise_multiplier=10.0), PRIVATE, W).report
    assert all(max(norms) < 4.0 for norms in noisy.layer_norms.values())
    assert min(norm for norms in noisy.layer_norms.values() for norm in norms) < 1.0


def test_a_layer_has_its_own_share_of_the_noise_removed():
    """A gradient of norm 5 in one layer of two, of 4 and 400 weights; what is left of the noise is under 3 and 9."""
    parameters = {"base_model.model.fc1.lora_A.weight": nn.Parameter(torch.zeros(4)),
                  "base_model.model.fc2.weight": nn.Parameter(torch.zeros(398)),
                  "base_model.model.fc2.bias": nn.Parameter(torch.zeros(2))}
    flow, draw = NoisedFlow(parameters, 1.0), np.random.default_rng(1)
    found = [flow.norms(np.r_[2.5 * np.ones(4), np.zeros(400)] * 20 + draw.normal(size=404)) for _ in range(50)]
    assert set(found[0]) == {"fc1", "fc2"}
    assert np.mean([one["fc1"] for one in found]) == pytest.approx(100.0, abs=1.0)
    assert max(one["fc2"] for one in found) < 13.0, "the raw norm is 20"
    assert np.mean([one["fc2"] ** 2 for one in found]) < 100.0


def test_the_largest_layer_is_named_under_privacy():
    strict = replace(PRIVATE, guard=GuardConfig(max_gradient_norm=0.05))
    with pytest.raises(guard.UpdateInterrupted, match=r"with what noise may add\), largest in layer 'fc1' \("):
        train(TASK, trained_base(), None, WINDOW, law(800, noise_multiplier=1e-3), strict, W)


# ---- a year of hourly updates that are nothing but noise


def year(weights: int, decay: float = 1.0) -> tuple[int, int]:
    """Findings of size and of direction in 8,760 updates of 32 noisy steps, each on 50 to 20,000 examples."""
    draw = np.random.default_rng(11)
    learnt, sizes, turns, large, turned = np.zeros(weights), [], [], 0, 0
    for number in range(8_760):
        rate = max(1e-4, 2e-3 * decay**number)
        deviation = rate * math.sqrt(32) * 5.56 * 12 / (0.125 * math.exp(draw.uniform(math.log(50), math.log(20_000))))
        update = deviation * draw.normal(size=weights)
        norm, past = float(np.linalg.norm(update)), float(np.linalg.norm(learnt))
        cosine = float(update @ learnt) / (norm * past) if past else None
        recent, turning = sizes[-20:], [one for one in turns[-20:] if one is not None]
        large += guard.check_update_norm(norm, recent, 5.0, W, dimensions=weights, deviation=deviation) is not None
        turned += guard.check_update_direction(cosine, turning, 6.0, W, dimensions=weights) is not None
        sizes.append(norm)
        turns.append(cosine)
        learnt += update
    return large, turned


@pytest.mark.parametrize(("weights", "decay"), [(25, 1.0), (25, 0.95), (400, 1.0), (3201, 0.95)])
def test_a_year_of_updates_of_noise_raises_no_alarm(weights, decay):
    """Sizes: 1e-10 each. Turns: 5.5 deviations, 3e-8 each and 2e-4 a year (the draws are the same at every run)."""
    assert year(weights, decay) == (0, 0)


def test_turns_of_noise_are_not_told_by_their_spread_alone():
    """20,000 turns of random directions in 100 dimensions, after eight such ones whose spread may be small by accident."""
    draw = np.random.default_rng(4).normal(0.0, 0.1, size=(20_000, 9))
    found = [sum(guard.check_update_direction(row[8], row[:8].tolist(), 6.0, W, dimensions=d) is not None for row in draw)
             for d in (0, 100)]
    assert found[0] > 10 and found[1] == 0
