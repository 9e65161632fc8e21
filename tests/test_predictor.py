"""A version answers: with its adapter, without one, in any number of rows, always alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import base, compute
from models.adapters import lora
from models.config import AdapterConfig, TrainingConfig, UpdateConfig
from models.predictor import Predictor
from models.training import train
from tests.tasks import TwoBlobs, columns

TASK, ADAPTER = TwoBlobs(), AdapterConfig(r=4, lora_alpha=8)
CONFIG = UpdateConfig(ADAPTER, TrainingConfig(max_epochs=4, batch_size=32, learning_rate=1e-2))
DRIFTED = columns(600, seed=8, drift=1.0)


@pytest.fixture(scope="module")
def trained() -> bytes:
    return base.train_base(TASK, columns(2_000, seed=1), epochs=4, batch_size=64, learning_rate=1e-2)


@pytest.fixture(scope="module")
def tensors(trained) -> dict[str, np.ndarray]:
    window = columns(2_000, seed=9, drift=1.0)
    return train(TASK, trained, None, window, None, CONFIG, "2013-03-04T08:00Z", seed=1).tensors


def test_an_adapted_version_is_better_on_the_drift_it_learnt(trained, tensors):
    frozen, adapted = Predictor(TASK, trained, None, ADAPTER), Predictor(TASK, trained, tensors, ADAPTER)
    assert adapted.losses(DRIFTED).mean() < 0.9 * frozen.losses(DRIFTED).mean()
    assert adapted.scores(DRIFTED)["accuracy"] > frozen.scores(DRIFTED)["accuracy"]


def test_the_frozen_base_names_itself_and_a_version_is_named_by_its_caller(trained, tensors):
    assert Predictor(TASK, trained, None, ADAPTER).version == f"base-{base.digest(trained)[:8]}"
    assert Predictor(TASK, trained, tensors, ADAPTER, "v000001-0badcafe").version == "v000001-0badcafe"


def test_answers_are_equal_bits_at_every_call_and_in_a_second_copy(trained, tensors):
    one, other = (Predictor(TASK, trained, tensors, ADAPTER) for _ in range(2))
    first = one.answers(DRIFTED)
    assert np.array_equal(first, one.answers(DRIFTED)) and np.array_equal(first, other.answers(DRIFTED))
    assert first.shape == (600,) and ((first > 0) & (first < 1)).all()


def test_more_rows_than_one_pass_holds_are_answered_in_order(trained, tensors, monkeypatch):
    predictor = Predictor(TASK, trained, tensors, ADAPTER)
    whole = predictor.answers(DRIFTED)
    monkeypatch.setattr(compute, "CHUNK", 70)
    assert np.allclose(predictor.answers(DRIFTED), whole, atol=1e-6)


def test_no_rows_give_no_answers(trained, tensors):
    predictor = Predictor(TASK, trained, tensors, ADAPTER)
    assert predictor.answers(columns(0)).shape == predictor.losses(columns(0)).shape == (0,)


def test_gate_losses_are_bounded_and_training_losses_are_the_tasks_own(trained, tensors):
    predictor = Predictor(TASK, trained, tensors, ADAPTER)
    gate, plain = predictor.losses(DRIFTED), predictor.train_losses(DRIFTED)
    assert gate.shape == plain.shape == (600,) and gate.max() <= -np.log(0.05) + 1e-6
    truth = torch.from_numpy(TASK.target(DRIFTED))
    assert np.allclose(plain, TASK.loss(predictor.outputs(DRIFTED), truth).numpy())


def test_nothing_in_a_predictor_can_be_trained(trained, tensors):
    predictor = Predictor(TASK, trained, tensors, ADAPTER)
    assert not any(p.requires_grad for p in predictor.module.parameters())
    assert not any(part.training for part in predictor.module.modules())
    assert predictor.outputs(DRIFTED).is_inference()


def test_an_adapter_of_other_settings_is_refused(trained, tensors):
    with pytest.raises(lora.AdapterRefused, match="another r or base"):
        Predictor(TASK, trained, tensors, AdapterConfig(r=8))


def test_columns_of_different_lengths_are_refused(trained):
    torn = DRIFTED | {"x1": DRIFTED["x1"][:-1]}
    with pytest.raises(ValueError, match="columns differ in length"):
        Predictor(TASK, trained, None, ADAPTER).answers(torn)


def test_an_answer_of_another_shape_is_refused(trained):
    class Two(TwoBlobs):
        def answer(self, output):
            return np.column_stack([output, output])

    with pytest.raises(ValueError, match=r"answer gave shape \(600, 2\) for 600 rows"):
        Predictor(Two(), trained, None, ADAPTER).answers(DRIFTED)
