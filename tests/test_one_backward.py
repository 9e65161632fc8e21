"""Gradients of one pass are those that vmap(grad) finds, layer by layer, and what the pass does not know goes to Opacus."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from models.adapters import lora
from models.compat import TrainingRefused
from models.config import AdapterConfig, TrainingConfig
from models.memory import Rung
from models.private.clipping import GradientsRefused, PerExampleGradients
from models.private.one_backward import OneBackward, gradients, known

ROWS = 24


class Problem:
    """What a source of gradients asks of a Task."""

    def loss(self, output, target):
        return nn.functional.cross_entropy(output, target, reduction="none")


class Table(nn.Module):
    """Rows of 6 numbers."""

    shape, adapters, saved = (6,), ("fc1", "fc2"), ("head",)

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(6, 16), nn.Linear(16, 12, bias=False), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(torch.relu(self.fc2(torch.tanh(self.fc1(x)))))


class Tokens(nn.Module):
    """Sequences of 9 vectors of 6; the head sees each of them, so its weight has many positions as well."""

    shape, adapters, saved = (9, 6), ("q", "v"), ("head",)

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 24), nn.Linear(6, 24), nn.Linear(6, 24)
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 3)

    def forward(self, x):
        mixed = torch.softmax(self.q(x) @ self.k(x).mT / 5, dim=-1) @ self.v(x)
        return self.head(self.norm(mixed)).mean(dim=1)


class Long(Tokens):
    """So many positions that a matrix is smaller than its factors, also in the head."""

    shape = (80, 6)


class Twice(Table):
    """One layer used twice in one pass: its gradient is the sum of both uses."""

    shape, adapters = (2, 6), ("fc1", "fc2")

    def forward(self, x):
        return super().forward(x[:, 0]) + super().forward(x[:, 1] ** 2)


class Headless(Table):
    """Nothing copied, only adapters."""

    saved = ()


class HeadOnly(Table):
    """No adapter, only a head, whose input needs no gradient."""

    adapters = ()


class Words(nn.Module):
    """Sequences of 9 words, some of them twice; adapters on the table of words and on a linear layer."""

    shape, adapters, saved = (9,), ("words", "fc"), ("head",)

    def __init__(self):
        super().__init__()
        self.words, self.fc, self.head = nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.fc(self.words(x))).mean(dim=1))


class WordsCopied(Words):
    """The whole table is trained."""

    adapters, saved = ("fc",), ("head", "words")


class Pictures(nn.Module):
    """Pictures of 5 x 6 points; 1x1 convolutions, one with a stride and padding."""

    shape, adapters, saved = (2, 5, 6), ("first", "second"), ("head", "third")

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 1, stride=2, padding=1), nn.Conv2d(6, 6, 1, bias=False)
        self.third, self.head = nn.Conv2d(6, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))).mean(dim=(2, 3)))


MODELS = [Table, Tokens, Long, Twice, Headless, HeadOnly, Words, WordsCopied, Pictures]


def made(kind, rows=ROWS, seed=0):
    """A module with an adapter that has moved, and a batch."""
    torch.manual_seed(seed)
    module = kind().eval()
    lora.attach(module, AdapterConfig(r=3, lora_alpha=6, target_modules=kind.adapters, modules_to_save=kind.saved))
    with torch.no_grad():
        for value in lora.trainable(module).values():
            value += 0.3 * torch.randn_like(value)
    x = torch.randint(0, 7, (rows, *kind.shape)) if issubclass(kind, Words) else torch.randn(rows, *kind.shape)
    return module, x, torch.randint(0, 3, (rows,))


def reference(module, x, y):
    """Per-example gradients by vmap(grad), (n, d) float64."""
    free = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}

    def loss(weights, row, target):
        return Problem().loss(functional_call(module, weights, (row[None],)), target[None])[0]

    found = vmap(grad(loss), (None, 0, 0))(free, x, y)
    order = {id(p): name for name, p in module.named_parameters()}
    return torch.cat([found[order[id(p)]].flatten(1) for p in lora.trainable(module).values()], dim=1).double()


@pytest.mark.parametrize("kind", MODELS)
def test_norms_and_clipped_sums_are_those_of_vmap(kind):
    module, x, y = made(kind)
    wanted = reference(module, x, y)
    norms = wanted.norm(dim=1)
    clip = float(norms.quantile(0.51))
    total = (wanted * (clip / norms).clamp(max=1.0)[:, None]).sum(dim=0)
    with OneBackward(Problem(), module) as one:
        assert known(module) and np.allclose(one.norms((x,), y), norms, rtol=1e-5)
        found = one.clipped_sum((x,), y, clip)
        single = torch.from_numpy(np.stack([one.clipped_sum((x[i : i + 1],), y[i : i + 1], 1e9).total for i in range(ROWS)]))
    assert np.linalg.norm(found.total - total.numpy()) < 2e-5 * total.norm() and found.clipped == int((norms > clip).sum())
    assert torch.allclose(single, wanted * (1 - 1e-5), rtol=1e-5, atol=1e-6 * float(norms.max()))


@pytest.mark.parametrize("kind", MODELS)
def test_the_module_answers_the_same_during_and_after_and_keeps_nothing(kind):
    module, x, y = made(kind)
    before, keys = module(x), [sorted(part.__dict__) for part in module.modules()]
    with OneBackward(Problem(), module) as one:
        assert torch.equal(module(x), before) or torch.allclose(module(x), before, atol=1e-6)
        one.clipped_sum((x,), y, 1.0)
    assert torch.equal(module(x), before) and [sorted(part.__dict__) for part in module.modules()] == keys
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("kind", [Table, Tokens, Twice])
@pytest.mark.parametrize("poison", [math.nan, math.inf, 3e38])
def test_a_row_that_is_not_finite_counts_as_absent(kind, poison):
    module, x, y = made(kind)
    keep = torch.arange(ROWS) != 5
    x[5] = poison
    with OneBackward(Problem(), module) as one:
        found, without = one.clipped_sum((x,), y, 0.5), one.clipped_sum((x[keep],), y[keep], 0.5)
    assert found.not_finite == 1 and np.allclose(found.total, without.total, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e15, 1e30])
def test_no_example_contributes_more_than_the_clip(scale):
    module, x, y = made(Table)
    with OneBackward(Problem(), module) as one:
        for row in range(ROWS):
            assert np.linalg.norm(one.clipped_sum((x[row : row + 1] * scale,), y[row : row + 1], 0.01).total) <= 0.01


def test_many_passes_give_the_sum_of_one():
    module, x, y = made(Tokens, rows=50)
    with OneBackward(Problem(), module) as one:
        whole = one.clipped_sum((x,), y, 0.7)
        one.rung = Rung(13)
        parts = one.clipped_sum((x,), y, 0.7)
        nobody = one.clipped_sum((x[:0],), y[:0], 0.7)
    assert np.allclose(whole.total, parts.total, atol=1e-5) and parts.clipped == whole.clipped
    assert not nobody.total.any() and len(nobody.losses) == 0


@pytest.mark.parametrize("kind", MODELS)
def test_a_forward_pass_that_is_computed_again_gives_the_same_sums(kind):
    module, x, y = made(kind)

    class Again(nn.Module):
        def forward(self, x):
            return checkpoint(module, x, use_reentrant=False)

    with OneBackward(Problem(), module) as one:
        wanted = one.clipped_sum((x,), y, 0.5).total
        one.module = Again()
        assert np.array_equal(one.clipped_sum((x,), y, 0.5).total, wanted)


@pytest.mark.parametrize("kind", MODELS)
def test_checkpointed_blocks_are_the_settings_and_change_no_sum(kind):
    module, x, y = made(kind)
    with gradients(Problem(), module, TrainingConfig()) as kept:
        wanted = kept.clipped_sum((x,), y, 0.5).total
    with gradients(Problem(), module, TrainingConfig(gradient_checkpointing=True)) as twice:
        assert twice.rung.checkpointed and np.allclose(twice.clipped_sum((x,), y, 0.5).total, wanted, atol=1e-6)
    with pytest.raises(ValueError, match=r"checkpoint_modules 'layer' matches no module"):
        gradients(Problem(), module, TrainingConfig(checkpoint_modules=("layer",)))


@pytest.mark.parametrize("kind", MODELS)
def test_a_forward_pass_in_bfloat16_is_clipped_in_float32(kind):
    """Coarser gradients, a few parts in 100, yet none above the clip."""
    module, x, y = made(kind)
    exact = reference(module, x, y)
    with gradients(Problem(), module, TrainingConfig(precision="bf16")) as half:
        assert half.precision == "bf16"
        found = half.clipped_sum((x,), y, 1e6).total
        assert 1e-6 < np.linalg.norm(found - exact.sum(dim=0).numpy()) / np.linalg.norm(found) < 0.2
        clip = float(half.norms((x,), y).min()) / 2
        alone = [half.clipped_sum((x[row : row + 1],), y[row : row + 1], clip).total for row in range(ROWS)]
    assert np.allclose([np.linalg.norm(one) for one in alone], clip, rtol=1e-4)
    assert max(np.linalg.norm(one) for one in alone) <= clip


@pytest.mark.parametrize("layer", ["linear", "embedding"])
def test_positions_that_cancel_hide_no_gradient_from_the_clip(layer):
    """A weighted difference of two equal positions: its norm, 4e-4 of its parts', is lost in float32, its sum is not."""

    class Difference(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(64, 64, bias=False) if layer == "linear" else nn.Embedding(9, 64)
            self.head = nn.Linear(64, 1, bias=False)

        def forward(self, x, weights):
            return (self.head(self.first(x)).squeeze(-1) * weights).sum(dim=1)

    class Linear(Problem):
        def loss(self, output, target):
            return output - target

    module = Difference().eval().requires_grad_(False)
    lora.attach(module, AdapterConfig(r=4, target_modules=(), modules_to_save=("first",)))
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(1, 1, 64, generator=draw).repeat(1, 2, 1) if layer == "linear" else torch.tensor([[3, 3]])
        weights = 1e4 * torch.tensor([[1.0, -1.0 + 4e-4 * float(torch.rand(1, generator=draw))]])
        with gradients(Linear(), module) as one:
            for clip in (0.1, 1.0, 10.0):
                found = one.clipped_sum((x, weights), torch.zeros(1), clip)
                assert np.linalg.norm(found.total) <= clip and found.clipped == 1


def test_what_only_the_hooks_know_is_neither_halved_nor_computed_twice():
    class Normed(Tokens):
        saved = ("head", "norm")

    module, _, _ = made(Normed)
    assert not known(module)
    with pytest.raises(TrainingRefused, match=r"precision_by_hooks 'bf16' given with privacy on: a layer of this adapter"):
        gradients(Problem(), module, TrainingConfig(precision="bf16"))
    with pytest.raises(TrainingRefused, match=r"checkpointing_by_hooks true given"):
        gradients(Problem(), module, TrainingConfig(gradient_checkpointing=True))


def test_sorting_a_batch_by_length_computes_less_and_gives_the_same_sum():
    class Masked(Tokens):
        seen = []

        def forward(self, x, real):
            self.seen.append(tuple(x.shape))
            total = (self.head(self.v(x) + self.q(x)) * real[..., None]).sum(dim=1)
            return total / real.sum(dim=1, keepdim=True)

    module, x, y = made(Masked)
    real = torch.arange(9) < torch.randint(1, 10, (ROWS,))[:, None]
    with gradients(Problem(), module, TrainingConfig(batch_size=8)) as as_drawn:
        wanted = as_drawn.clipped_sum((x, real), y, 0.3)
    Masked.seen.clear()
    with gradients(Problem(), module, TrainingConfig(batch_size=8, sort_by_length=True)) as in_order:
        found = in_order.clipped_sum((x, real), y, 0.3)
    assert np.allclose(found.total, wanted.total, atol=1e-5) and found.clipped == wanted.clipped
    assert np.allclose(sorted(found.losses), sorted(wanted.losses), atol=1e-6)
    assert [shape[0] for shape in Masked.seen] == [8, 8, 8] and Masked.seen[0][1] < Masked.seen[-1][1]


def test_an_unused_layer_is_refused_and_never_goes_without_noise():
    class Idle(Table):
        def forward(self, x):
            return self.head(torch.relu(torch.tanh(self.fc1(x))[:, :12]))

    module, x, y = made(Idle)
    with OneBackward(Problem(), module) as one, pytest.raises(GradientsRefused, match=r"fc2\.lora_A.* got no gradient"):
        one.clipped_sum((x,), y, 1.0)


def test_a_layer_whose_first_dimension_is_not_the_example_is_refused():
    class Flat(Tokens):
        def forward(self, x):
            rows = x.flatten(0, 1)
            return self.head(self.norm(self.v(rows) + self.q(rows))).unflatten(0, (len(x), -1)).mean(dim=1)

    module, x, y = made(Flat)
    with OneBackward(Problem(), module) as one, pytest.raises(GradientsRefused, match="first dimension is not the example"):
        one.clipped_sum((x,), y, 1.0)


def test_other_trainable_layers_are_left_to_opacus():
    class Normed(Table):
        saved = ("head", "norm")

        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(12)

        def forward(self, x):
            return self.head(self.norm(self.fc2(self.fc1(x))))

    class Own(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    module, x, y = made(Normed)
    source, norms = gradients(Problem(), module), reference(module, x, y).norm(dim=1)
    assert isinstance(source, PerExampleGradients) and isinstance(gradients(Problem(), made(Table)[0]), OneBackward)
    with source as by_hooks:
        assert np.allclose(by_hooks.norms((x,), y), norms, rtol=1e-5)
    module.norm, module.head = nn.Identity(), Own(12, 3)
    assert not known(module)
