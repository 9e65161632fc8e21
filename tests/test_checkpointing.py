"""Blocks that are computed twice instead of kept: the same gradient to the bit, and the module as it was."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from models.checkpointing import blocks, checkpointed
from models.config import TrainingConfig
from models.logical_batch import LogicalBatch
from tests.encoders import Block, Counting, Net, sentences


def gradients(module: nn.Module) -> list[torch.Tensor]:
    columns = sentences(30)
    tokens = torch.from_numpy(columns["tokens"])
    module.zero_grad()
    loss = Counting().loss(module(tokens, tokens > 0), torch.from_numpy(columns["y"])).sum()
    torch.autograd.backward(loss)
    return [p.grad.clone() for p in module.parameters() if p.requires_grad]


@pytest.mark.parametrize("frozen", [(), ("words",), ("words", "head", "blocks.0")])
def test_the_gradient_is_the_same_to_the_bit_also_behind_a_frozen_base(frozen):
    """Reentrant checkpointing loses the gradient of blocks whose input needs none."""
    module = Net()
    for name in frozen:
        module.get_submodule(name).requires_grad_(False)
    plain = gradients(module)
    with checkpointed(module):
        twice = gradients(module)
    assert all(torch.equal(one, other) for one, other in zip(plain, twice, strict=True))


def test_the_blocks_and_only_they_are_computed_twice():
    module, seen = Net(), []
    for name, part in module.named_modules():
        if name in ("blocks.0.up", "blocks.1.up", "head"):
            part.register_forward_pre_hook(lambda part, inputs, name=name: seen.append(name))
    with checkpointed(module):
        gradients(module)
    assert sorted(seen) == ["blocks.0.up"] * 2 + ["blocks.1.up"] * 2 + ["head"]


def test_less_is_kept_between_the_passes():
    module, kept = Net(), []

    def packed(tensor):
        kept[-1] += tensor.numel()
        return tensor

    for context in (partial(checkpointed, module, ["nothing"][:0]), None):
        kept.append(0)
        tokens = torch.ones(30, 24, dtype=torch.int64)
        if context is None:
            with torch.autograd.graph.saved_tensors_hooks(packed, lambda kept: kept):
                module(tokens, tokens > 0)
        else:
            with torch.autograd.graph.saved_tensors_hooks(packed, lambda kept: kept), context():
                module(tokens, tokens > 0)
    assert kept[0] < 0.5 * kept[1]


def test_the_module_is_as_it_was_also_after_an_error():
    module = Net()
    module.blocks[0].forward = mine = partial(Block.forward, module.blocks[0])
    with pytest.raises(ZeroDivisionError), checkpointed(module):
        raise ZeroDivisionError
    assert module.blocks[0].forward is mine and "forward" not in vars(module.blocks[1])


def test_blocks_are_found_by_suffix_and_a_list_means_its_members():
    module = Net()
    assert blocks(module) == list(module.blocks) == blocks(module, ["blocks"])
    assert blocks(module, ["up"]) == [block.up for block in module.blocks]
    assert blocks(module, ["blocks.1", "blocks"]) == [module.blocks[1], module.blocks[0]]
    nested = nn.ModuleDict({"deep": nn.Sequential(nn.ModuleList([nn.Linear(1, 1)]), nn.ReLU())})
    assert blocks(nested) == [nested["deep"][0][0], nested["deep"][1]]


def test_a_module_without_lists_gives_its_children():
    block = Block(3)
    assert blocks(block) == [block.up, block.down]


def test_a_suffix_that_matches_nothing_names_what_is_there():
    with pytest.raises(ValueError, match=r"checkpoint_modules 'layer' matches no module .* available: 0, 1, blocks, down"):
        blocks(Net(), ["layer"])


def test_a_wrong_suffix_is_told_before_memory_runs_out():
    setting = TrainingConfig(checkpoint_modules=("layer",))
    with pytest.raises(ValueError, match="checkpoint_modules 'layer' matches no module"):
        LogicalBatch(Counting(), Net(), (torch.zeros(1),), torch.zeros(1), setting)
