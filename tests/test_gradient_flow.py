"""Norms by layer: a layer's matrices count together, and each epoch keeps its largest step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import gradient_flow
from models.gradient_flow import GradientFlow


def test_the_matrices_of_a_layer_count_together_and_epochs_keep_their_largest():
    names = ("deep.fc1.lora_A.weight", "deep.fc1.lora_B.weight", "head.weight", "head.bias")
    keys = [f"base_model.model.{name}" for name in names]
    parameters = {key: nn.Parameter(torch.zeros(2)) for key in keys}
    flow = GradientFlow(parameters)
    for a, b in ((3.0, 4.0), (0.3, 0.4)):
        parameters[keys[0]].grad, parameters[keys[1]].grad = torch.tensor([a, 0.0]), torch.tensor([0.0, b])
        parameters[keys[2]].grad = torch.tensor([b, 0.0])  # the bias has none
        norms = flow.norms()
        flow.note(norms)
        assert norms == pytest.approx({"deep.fc1": (a * a + b * b) ** 0.5, "head": b})
        assert gradient_flow.total(norms) == pytest.approx((a * a + 2 * b * b) ** 0.5)
    flow.end_epoch()
    flow.end_epoch()
    assert flow.epochs == {"deep.fc1": [5.0, 0.0], "head": [4.0, 0.0]}


@pytest.mark.parametrize(
    ("key", "layer"),
    [
        ("base_model.model.fc1.lora_A.weight", "fc1"), ("base_model.model.blocks.0.q.lora_B.weight", "blocks.0.q"),
        ("base_model.model.head.weight", "head"), ("base_model.model.head.0.bias", "head.0"),
        ("base_model.model.words.lora_embedding_A", "words"),
    ],
)  # fmt: skip
def test_a_key_names_its_layer(key, layer):
    assert gradient_flow.layer_of(key) == layer
