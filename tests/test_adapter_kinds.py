"""Every kind of adapter under one protocol, and the arithmetic of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import base
from models.adapters import lora
from models.adapters.lora import AdapterRefused, Bottleneck, LoRAConv, LoRAEmbedding, Prompt
from models.config import AdapterConfig
from models.private import one_backward
from security import watermark
from tests.adapters import EMPTY, KINDS, WIDTH, WORDS, adapted, ids, net, stirred

EVERY = pytest.mark.parametrize("kind", KINDS)
X = ids(9)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("prompt", "all")])
def test_no_kind_but_the_prompt_changes_a_bit_of_an_answer_at_birth(kind):
    module = net()
    before = module(X)
    lora.attach(module, KINDS[kind])
    assert torch.equal(module(X), before)


@EVERY
def test_every_kind_changes_the_answers_once_it_has_learnt(kind):
    assert (adapted(kind)(X) - net()(X)).abs().min() > 1e-4


@EVERY
def test_only_the_adapter_of_a_kind_is_trainable(kind):
    module = adapted(kind)
    free = {id(p) for p in module.parameters() if p.requires_grad}
    assert free == {id(p) for p in lora.trainable(module).values()} and free


@EVERY
def test_each_trainable_tensor_of_a_kind_gets_a_gradient(kind):
    module = adapted(kind)
    module(X).square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in lora.trainable(module).values())


@EVERY
def test_extracted_tensors_of_a_kind_load_bit_for_bit(kind):
    module, other = adapted(kind), net()
    tensors = lora.extract(module)
    lora.attach(other, KINDS[kind], torch.Generator().manual_seed(99))
    lora.load(other, tensors)
    assert torch.equal(other(X), module(X))
    again = lora.extract(other)
    assert list(again) == list(tensors) and all(np.array_equal(again[key], tensors[key]) for key in tensors)


@EVERY
def test_detaching_a_kind_gives_back_the_very_base(kind):
    module = net()
    digest, layers = base.module_digest(module), {name: id(part) for name, part in module.named_modules()}
    lora.attach(module, KINDS[kind])
    stirred(module)(X)
    lora.detach(module)
    assert base.module_digest(module) == digest
    assert {name: id(part) for name, part in module.named_modules()} == layers


@EVERY
def test_a_merged_copy_of_a_kind_answers_alike_and_leaves_the_module_alone(kind):
    module = adapted(kind)
    digest = base.module_digest(module)
    flat = lora.merged(module)
    assert torch.allclose(flat(X), module(X), atol=1e-5) and not any(p.requires_grad for p in flat.parameters())
    assert base.module_digest(module) == digest
    kept = {type(part) for part in flat.modules()} & {lora.LoRALinear, LoRAEmbedding, LoRAConv, lora.TrainableCopy}
    assert not kept


@EVERY
def test_every_place_of_a_kind_is_called(kind):
    lora.check_used(adapted(kind), X)


def test_the_statistics_of_a_batch_norm_travel_with_its_copy():
    module, other = adapted("copy"), net()
    module.head.copy[0].running_mean += 1.0
    tensors = lora.extract(module)
    assert "base_model.model.head.0.running_mean" in tensors
    lora.attach(other, KINDS["copy"])
    lora.load(other, tensors)
    assert torch.equal(other(X), module(X))
    lora.detach(other)
    assert torch.equal(other.head[0].running_mean, net().head[0].running_mean)


# ---- embedding


def test_an_adapted_embedding_is_base_plus_scaled_product_for_indices_of_any_shape():
    layer = LoRAEmbedding(nn.Embedding(WORDS, WIDTH), 2, 1.5)
    nn.init.normal_(layer.lora_A)
    for indices in (X, X[:, 0], X[None]):
        change = (layer.lora_B @ layer.lora_A[:, indices.flatten()]).T.reshape(*indices.shape, WIDTH)
        assert torch.allclose(layer(indices), layer.base(indices) + 1.5 * change, atol=1e-6)


def test_a_word_that_no_example_names_keeps_its_vector():
    module = net()
    lora.attach(module, KINDS["embedding"])
    step = torch.optim.SGD(lora.trainable(module).values(), 0.5)
    module(X[X[:, 0] != 7].clamp(max=6)).sum().backward()
    step.step()
    every = torch.arange(WORDS)
    same = (module.words(every) == module.words.base(every)).all(dim=1)
    assert same[7:].all() and not same[:7].any()


def test_an_embedding_that_writes_to_itself_in_forward_is_refused():
    module = nn.Sequential(nn.Embedding(WORDS, WIDTH, max_norm=1.0))
    with pytest.raises(AdapterRefused, match=r"'0' in target_modules: .* max_norm = 1.0 writes to the frozen base"):
        lora.attach(module, AdapterConfig(**EMPTY | {"target_modules": ("0",)}))


# ---- convolution


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"stride": (2, 1), "padding": (0, 2)}, {"padding": "same"}, {"bias": False}]
)
def test_an_adapted_convolution_is_the_convolution_with_the_summed_weight(options):
    layer = LoRAConv(nn.Conv2d(3, 5, 1, **options), 2, 1.5)
    nn.init.normal_(layer.lora_B.weight)
    whole = layer.base.weight + 1.5 * (layer.lora_B.weight[:, :, 0, 0] @ layer.lora_A.weight[:, :, 0, 0])[..., None, None]
    x = torch.randn(4, 3, 6, 5)
    wanted = F.conv2d(x, whole, layer.base.bias, layer.base.stride, layer.base.padding)
    assert torch.allclose(layer(x), wanted, atol=1e-5)


@pytest.mark.parametrize("options", [{"kernel_size": 3}, {"kernel_size": 1, "groups": 2}, {"kernel_size": 1, "padding": 1,
                                                                                          "padding_mode": "circular"}])
def test_a_convolution_that_is_no_single_matrix_is_refused(options):
    module = nn.Sequential(nn.Conv2d(4, 6, **options))
    with pytest.raises(AdapterRefused, match=r"only kernel \(1, 1\), 1 group and 'zeros'"):
        lora.attach(module, AdapterConfig(**EMPTY | {"target_modules": ("0",)}))


# ---- bottleneck and prompt


def test_a_bottleneck_adds_a_nonlinear_detour():
    layer = Bottleneck(nn.Linear(4, 6), 3)
    for value in layer.up.parameters():
        nn.init.normal_(value)
    x = torch.randn(2, 5, 4)
    h = layer.base(x)
    assert torch.allclose(layer(x), h + torch.relu(h @ layer.down.weight.T) @ layer.up.weight.T + layer.up.bias, atol=1e-6)


def test_a_prompt_is_the_same_for_every_row_and_comes_first():
    layer = Prompt(nn.Embedding(WORDS, WIDTH), 3)
    out = layer(X)
    assert out.shape == (9, 3 + 5, WIDTH) and torch.equal(out[:, 3:], layer.base(X))
    assert all(torch.equal(out[row, :3], layer.vectors.weight) for row in range(9))


@pytest.mark.parametrize(("setting", "name"), [("bottleneck_modules", "conv"), ("prompt_modules", "conv")])
def test_a_layer_of_unknown_width_is_refused(setting, name):
    with pytest.raises(AdapterRefused, match=f"'conv' in {setting}: .* does not say how wide"):
        lora.attach(net(), AdapterConfig(**EMPTY, **{setting: (name,)}))


def test_a_prompt_before_something_that_is_no_sequence_is_refused():
    module = net()
    lora.attach(module, AdapterConfig(**EMPTY, prompt_modules=("fc",)))
    with pytest.raises(AdapterRefused, match=r"before sequences \(n, T, d\), the layer answered \(9, 4\)"):
        module(X)


# ---- the mark of the release copy


def test_a_stamp_reaches_linear_embedding_and_convolution_and_reads_back():
    config = AdapterConfig(r=4, lora_alpha=4, target_modules=("words", "conv", "fc"), modules_to_save=())
    module = net()
    lora.attach(module, config)
    stirred(module)
    layers = lora.layers(module)
    key = {"secret": b"s" * 32, "claim": {"model": "m", "version": "v1", "recipient": "r"}, "bits": 16}
    stamp = watermark.stamp(layers, **key)
    lora.load(module, lora.with_b(lora.extract(module), stamp.B))
    found = watermark.read(layers, {name: layer.B for name, layer in lora.layers(module).items()}, **key)
    assert set(stamp.B) == {"words", "conv", "fc"} and found.bits_right == 16


def test_the_layers_of_the_mark_hold_the_whole_change_of_each_kind():
    for kind, name in (("embedding", "words"), ("convolution", "conv")):
        module = adapted(kind)
        layer = lora.layers(module)[name]
        whole = layer.W0 + layer.scale * layer.B @ layer.A
        found = lora.merged(module).get_submodule(name).weight.double().numpy()
        assert np.allclose(whole, found.T if kind == "embedding" else found[:, :, 0, 0], atol=1e-6)


def test_settings_of_a_kind_are_listed_and_read_back():
    for config in KINDS.values():
        assert AdapterConfig.of(config.listed()) == config
    assert set(AdapterConfig().listed()) == {"r", "lora_alpha", "target_modules", "modules_to_save"}
    with pytest.raises(TypeError, match="ranks"):
        AdapterConfig.of(AdapterConfig().listed() | {"ranks": 3})
    with pytest.raises(KeyError, match="modules_to_save"):
        AdapterConfig.of({"r": 2, "lora_alpha": 3, "target_modules": ["fc"]})


# ---- under privacy


class Squares:
    """As much of a Task as gradients need."""

    name = "squares"

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output.squeeze(-1) - target).square()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("copy", "all")])  # their BatchNorm is refused
def test_norms_and_sums_of_private_gradients_are_those_of_autograd_row_by_row(kind):
    module, truth = adapted(kind), torch.linspace(-2, 2, len(X))
    weights = list(lora.trainable(module).values())
    rows = []
    for row in range(len(X)):
        loss = Squares().loss(module(X[row : row + 1]), truth[row : row + 1]).sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]).double())
    wanted = torch.stack(rows)
    with one_backward.gradients(Squares(), module) as gradients:
        norms, found = gradients.norms((X,), truth), gradients.clipped_sum((X,), truth, 1e6)
    assert np.allclose(norms, wanted.norm(dim=1).numpy(), rtol=1e-5, atol=1e-6)
    assert np.allclose(found.total, wanted.sum(dim=0).numpy(), rtol=3e-5, atol=1e-5)
