"""Places where an adapter would be ignored, shared or overwritten are refused before anything is changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import base
from models.adapters import lora
from models.adapters.lora import AdapterRefused
from models.config import AdapterConfig, TrainingConfig, UpdateConfig
from models.private import clipping
from models.training import train
from tests.adapters import EMPTY, KINDS, adapted, ids, net
from tests.tasks import TwoBlobs, columns


@pytest.fixture(autouse=True)
def same_numbers():
    """Modules and inputs are the same in every run: some answers are compared with a limit."""
    torch.manual_seed(0)


def only(**changes) -> AdapterConfig:
    return AdapterConfig(**EMPTY | changes)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 1)).eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["linear1", "out_proj", "self_attn", "norm1", "layers.0"])
@pytest.mark.parametrize("setting", ["target_modules", "modules_to_save", "bottleneck_modules"])
def test_whatever_is_inside_a_fused_block_is_refused(name, setting):
    with pytest.raises(AdapterRefused, match=r"bypasses adapters|matches no layer"):
        lora.attach(encoder(), only(**{setting: (name,)}))


def test_a_whole_fused_block_is_copied_and_its_copy_answers_in_eval_mode():
    module, x = encoder(), torch.randn(3, 5, 4)
    before = module(x)
    lora.attach(module, only(modules_to_save=("1",)))
    with torch.inference_mode():
        assert torch.allclose(module(x), before, atol=1e-5)
        for value in lora.trainable(module).values():
            value += 0.3
        assert (module(x) - before).abs().max() > 0.1


class Attention(nn.Module):
    """Written with separate layers, as the refusal says."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = [part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)]
        return x + self.out_proj(nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


def test_adapters_in_attention_of_separate_layers_act_alike_in_training_and_eval_mode_and_get_gradients():
    module, x = nn.Sequential(Attention(), Attention()).eval().requires_grad_(False), torch.randn(3, 5, 8)
    before = module(x)
    lora.attach(module, only(r=64, target_modules=("q_proj", "v_proj", "out_proj")))
    assert len(lora.trainable(module)) == 2 * 3 * 2 and torch.equal(module(x), before)
    with torch.no_grad():
        for value in lora.trainable(module).values():
            value += 0.1
    assert (module(x) - before).abs().max() > 0.1 and torch.equal(module.train()(x), module.eval()(x))
    module(x).square().sum().backward()
    assert all(value.grad.abs().max() > 0 for value in lora.trainable(module).values())


def test_attention_as_a_whole_is_no_low_rank_target():
    with pytest.raises(AdapterRefused, match=r"'0' in target_modules: it is an nn.MultiheadAttention"):
        lora.attach(nn.Sequential(nn.MultiheadAttention(8, 2)), only(target_modules=("0",)))


class Tied(nn.Module):
    """The usual language model: words go in and come out by one table."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.words, self.out, self.how = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False), how
        if how == "parameter":
            self.out.weight = self.words.weight
        if how == "module":
            self.again = self.out
        if how == "inside":
            self.block = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
            self.block[1].weight = self.block[0].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.words(x)
        return h @ self.words.weight.T if self.how == "functional" else self.out(h)


@pytest.mark.parametrize("config", [only(target_modules=("out",)), only(target_modules=("words",)),
                                    only(modules_to_save=("out",)), only(bottleneck_modules=("words",))])
def test_a_tied_weight_is_refused(config):
    with pytest.raises(AdapterRefused, match=r"are one parameter: .* untie them"):
        lora.attach(Tied("parameter"), config)


def test_a_layer_registered_twice_is_refused_and_other_layers_are_not():
    with pytest.raises(AdapterRefused, match=r"out.weight and again.weight are one parameter"):
        lora.attach(Tied("module"), only(target_modules=("out",)))
    lora.attach(Tied("module"), only(target_modules=("words",)))


def test_ties_inside_a_copied_module_are_refused():
    with pytest.raises(AdapterRefused, match=r"block.1.weight and block.0.weight are one parameter"):
        lora.attach(Tied("inside"), only(modules_to_save=("block",)))


def test_code_that_reads_the_weight_instead_of_calling_the_layer_is_told_so():
    module = Tied("functional")
    lora.attach(module, only(target_modules=("words",)))
    with pytest.raises(AdapterRefused, match="reads the weight of an adapted Embedding"):
        module(ids(3))


def test_a_computed_weight_is_refused_because_merging_would_be_lost():
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(AdapterRefused, match="computed from others"):
        lora.attach(module, only(target_modules=("0",)))


def test_places_named_twice_or_inside_one_another_are_refused():
    for config, sentence in [
        (only(target_modules=("fc",), bottleneck_modules=("fc",)), "in target_modules and in bottleneck_modules"),
        (only(target_modules=("1",), modules_to_save=("head",)), r"'head.1' is in target_modules and inside 'head'"),
        (only(modules_to_save=("head", "1")), r"'head.1' is in modules_to_save and inside 'head'"),
    ]:
        with pytest.raises(AdapterRefused, match=sentence):
            lora.attach(net(), config)


# ---- the base stays what it is


class Normed(TwoBlobs):
    def build(self):
        module = super().build()
        module.fc2 = nn.Sequential(module.fc2, nn.BatchNorm1d(8))
        return module


def test_a_batch_norm_of_the_base_keeps_its_statistics_through_an_update():
    task, window = Normed(), columns(300, seed=5, drift=0.8)
    state = base.train_base(task, columns(500, seed=1), epochs=1)
    config = UpdateConfig(AdapterConfig(r=2, target_modules=("fc1",)), TrainingConfig(max_epochs=1))
    update = train(task, state, None, window, None, config, "w1", seed=3)  # compares the base before and after
    assert update.report.weight_delta > 0 and not any("running" in key for key in update.tensors)


def test_a_base_whose_statistics_moved_shows_in_its_digest():
    module = adapted("linear")
    before = base.module_digest(module)
    module.train()(ids(9))
    assert base.module_digest(module) != before


def test_an_adapter_switched_while_gradients_are_taken_is_refused_not_trained_without_noise():
    module = TwoBlobs().build()
    for name in ("day", "night"):
        lora.attach(module, AdapterConfig(r=2), name=name)
    with clipping.PerExampleGradients(TwoBlobs(), module) as gradients:
        lora.use(module, "day")
        with pytest.raises(clipping.GradientsRefused, match="got no gradient"):
            gradients.clipped_sum((torch.randn(5, 4),), torch.ones(5), 1.0)


def test_every_kind_can_be_attached_to_a_base_of_another_type():
    for kind, config in KINDS.items():
        module = net().double()
        lora.attach(module, config)
        assert module(ids(3)).dtype == torch.float64, kind
