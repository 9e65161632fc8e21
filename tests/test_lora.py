"""Adapters: nothing at birth, exact to store and restore, refused where they would be ignored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from models import base
from models.adapters import lora
from models.adapters.lora import AdapterRefused
from models.config import AdapterConfig
from tests.tasks import TwoBlobs

SMALL = AdapterConfig(r=3, lora_alpha=6)
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def fresh() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return TwoBlobs().build().eval().requires_grad_(False)


def adapted(config: AdapterConfig = SMALL) -> nn.Module:
    """A module whose adapter says something."""
    module, draw = fresh(), torch.Generator().manual_seed(2)
    lora.attach(module, config, draw)
    with torch.no_grad():
        for value in lora.trainable(module).values():
            value += 0.3 * torch.randn(value.shape, generator=draw)
    return module


def test_an_adapter_changes_no_bit_of_any_answer_at_birth():
    module = fresh()
    before = module(X)
    lora.attach(module, SMALL)
    assert torch.equal(module(X), before)


def test_an_adapted_layer_is_base_plus_scaled_product_also_for_sequences():
    layer = lora.LoRALinear(nn.Linear(4, 6), 2, 1.5)
    nn.init.normal_(layer.lora_B.weight)
    x = torch.randn(3, 7, 4)
    wanted = layer.base(x) + 1.5 * x @ layer.lora_A.weight.T @ layer.lora_B.weight.T
    assert torch.allclose(layer(x), wanted, atol=1e-6)


def test_only_adapter_and_head_copy_are_trainable_and_named_as_peft_names_them():
    module = adapted()
    assert list(lora.trainable(module)) == [
        "base_model.model.fc1.lora_A.weight",
        "base_model.model.fc1.lora_B.weight",
        "base_model.model.fc2.lora_A.weight",
        "base_model.model.fc2.lora_B.weight",
        "base_model.model.head.weight",
        "base_model.model.head.bias",
    ]
    free = {id(p) for p in module.parameters() if p.requires_grad}
    assert free == {id(p) for p in lora.trainable(module).values()}


def test_an_extracted_adapter_loads_into_a_fresh_base_bit_for_bit():
    module, other = adapted(), fresh()
    lora.attach(other, SMALL)
    lora.load(other, lora.extract(module))
    assert torch.equal(other(X), module(X)) and not torch.equal(other(X), fresh()(X))


def test_an_extracted_adapter_does_not_change_when_training_goes_on():
    module = adapted()
    kept = lora.extract(module)
    before = {key: value.copy() for key, value in kept.items()}
    with torch.no_grad():
        for value in lora.trainable(module).values():
            value.zero_()
    assert all(np.array_equal(kept[key], before[key]) for key in kept)


def test_detaching_gives_back_the_very_base():
    module = fresh()
    digest, answers = base.module_digest(module), module(X)
    lora.attach(module, SMALL)
    assert base.module_digest(module) != digest
    lora.detach(module)
    assert base.module_digest(module) == digest and torch.equal(module(X), answers)


def test_a_merged_copy_answers_alike_and_leaves_the_adapter_alone():
    module = adapted()
    digest = base.module_digest(module)
    flat = lora.merged(module)
    assert torch.allclose(flat(X), module(X), atol=1e-5)
    assert {type(part) for part in flat.children()} == {nn.Linear} and base.module_digest(module) == digest


def test_a_suffix_that_matches_nothing_names_those_that_would():
    with pytest.raises(AdapterRefused, match=r"target_modules 'query' matches no layer .* suffixes: fc1, fc2, head"):
        lora.attach(fresh(), AdapterConfig(target_modules=("query",)))
    with pytest.raises(AdapterRefused, match="modules_to_save 'classifier' matches no module"):
        lora.attach(fresh(), AdapterConfig(modules_to_save=("classifier",)))


def test_a_suffix_is_a_whole_name_not_an_ending():
    with pytest.raises(AdapterRefused, match="'c1' matches no layer"):
        lora.attach(fresh(), AdapterConfig(target_modules=("c1",)))


def test_a_layer_both_adapted_and_copied_is_refused():
    with pytest.raises(AdapterRefused, match="name it in one of them"):
        lora.attach(fresh(), AdapterConfig(target_modules=("fc1", "head")))


@pytest.mark.parametrize("layer", [
    nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    nn.Sequential(nn.MultiheadAttention(8, 2)),
])
def test_a_layer_inside_a_fused_block_is_refused_because_it_would_be_ignored(layer):
    target = "linear1" if isinstance(layer, nn.TransformerEncoderLayer) else "out_proj"
    with pytest.raises(AdapterRefused, match="bypasses adapters"):
        lora.attach(nn.Sequential(layer), AdapterConfig(target_modules=(target,), modules_to_save=()))


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "type"])
def test_tensors_of_another_adapter_are_refused(change):
    module = adapted()
    tensors = lora.extract(module)
    key = next(iter(tensors))
    if change == "missing":
        del tensors[key]
    elif change == "extra":
        tensors["base_model.model.fc3.lora_A.weight"] = tensors[key]
    elif change == "shape":
        tensors[key] = tensors[key].T.copy()
    else:
        tensors[key] = tensors[key].astype(np.float64)
    with pytest.raises(AdapterRefused, match="was it trained with"):
        lora.load(module, tensors)


def test_a_second_adapter_without_a_name_is_refused():
    module = adapted()
    with pytest.raises(AdapterRefused, match="carries an adapter already"):
        lora.attach(module, SMALL)
    with pytest.raises(AdapterRefused, match="carries an adapter already"):
        lora.attach(module, SMALL, name="night")


def test_a_refused_attachment_changes_nothing():
    module = fresh()
    module.requires_grad_(True)
    digest, kinds = base.module_digest(module), [type(part) for part in module.modules()]
    with pytest.raises(AdapterRefused):
        lora.attach(module, AdapterConfig(target_modules=("fc1", "head")))
    assert base.module_digest(module) == digest and [type(part) for part in module.modules()] == kinds
    assert all(p.requires_grad for p in module.parameters())


def test_the_start_of_a_linear_adapter_is_drawn_layer_after_layer():
    module, draw = fresh(), torch.Generator().manual_seed(3)
    lora.attach(module, SMALL, torch.Generator().manual_seed(3))
    for layer, wide in ((module.fc1, 4), (module.fc2, 16)):
        assert torch.equal(layer.lora_A.weight, torch.empty(3, wide).normal_(std=wide**-0.5, generator=draw))


def test_a_layer_that_forward_never_calls_is_named():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.fc1(x))

    module = Tied()
    lora.attach(module, SMALL)
    with pytest.raises(AdapterRefused, match="fc2: forward never calls"):
        lora.check_used(module, X)
    lora.check_used(adapted(), X)


def test_the_first_draw_depends_on_the_base_alone():
    def draw(raw: bytes) -> torch.Tensor:
        return torch.randn(3, generator=lora.first_draw(raw))

    assert torch.equal(draw(b"a"), draw(b"a")) and not torch.equal(draw(b"a"), draw(b"b"))


def test_a_stamped_matrix_takes_the_place_of_b_only():
    tensors = lora.extract(adapted())
    stamped = lora.with_b(tensors, {"fc1": np.full((16, 3), 0.25)})
    changed = [key for key in tensors if not np.array_equal(tensors[key], stamped[key])]
    assert changed == ["base_model.model.fc1.lora_B.weight"] and stamped[changed[0]].dtype == np.float32
    with pytest.raises(AdapterRefused, match="no such B matrix"):
        lora.with_b(tensors, {"head": np.zeros((1, 3))})


def test_layers_for_the_watermark_hold_the_whole_change_of_each_adapted_layer():
    pytest.importorskip("security.watermark")
    module = adapted()
    layers, flat = lora.layers(module), lora.merged(module)
    assert list(layers) == ["fc1", "fc2"]
    for name, layer in layers.items():
        whole = layer.W0 + layer.scale * layer.B @ layer.A
        assert np.allclose(whole, flat.get_submodule(name).weight.numpy(), atol=1e-6)
