"""The rules of a task's module: adapters sit where they are used, come back as they were, and leave the base alone.

It knows the adapters and the sources of per-example gradients; it trains nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from models import compute
from models.adapters import lora
from models.adapters.places import find_places
from models.base import module_digest
from models.conformance import Broken, Case, Rule
from models.private import one_backward
from models.private.clipping import SLACK

CLOSE = 1e-5  # of float32 sums in another order


def base_unchanged(case: Case) -> str:
    """Answering and an adapter that comes and goes leave every weight and buffer as it was."""
    module, parts = case.module(), compute.inputs(case.task, case.few())
    before = module_digest(module)
    for _ in range(2):
        module(*parts)
    if module_digest(module) != before:
        raise Broken("forward wrote to a buffer of the module: compute it, or keep it out of eval mode")
    _attach(case, module)
    module(*parts)
    lora.detach(module)
    if module_digest(module) != before:
        raise Broken("the base is another one after an adapter was attached and taken away: does forward write to a buffer?")
    return before[:8]


def adapter_layers(case: Case) -> str:
    """The names of [adapter] lead to layers that can carry an adapter and that forward calls."""
    module = case.module()
    places = find_places(module, case.adapter)
    _attach(case, module)
    lora.check_used(module, *compute.inputs(case.task, case.few()))
    if not lora.layers(module):
        raise Broken("no layer of low rank: a released version's mark sits in one; name a layer in [adapter] target_modules")
    weights = sum(value.numel() for value in lora.trainable(module).values())
    return f"{', '.join(places)}: {weights:,} weights"


def adapter_comes_back(case: Case) -> str:
    """Taken out, taken away and put on again, an adapter answers with the same bits."""
    module, parts = case.module(), compute.inputs(case.task, case.few())
    _attach(case, module)
    before, tensors = module(*parts), lora.extract(module)
    lora.detach(module)
    lora.attach(module, case.adapter, torch.Generator().manual_seed(2))
    lora.load(module, tensors)
    if not torch.equal(module(*parts), before):
        raise Broken("the same adapter answers differently after it was put on again: does forward keep state or draw numbers?")
    return f"{len(tensors)} tensors"


def records_apart(case: Case) -> str:
    """No trainable layer mixes the records of a batch."""
    if not case.private:
        return "not needed: [privacy] enabled = false"
    module = case.module()
    _attach(case, module)
    one_backward.gradients(case.task, module)  # what it would refuse under privacy it refuses here
    return "none that would be trained"


def gradients(case: Case) -> str:
    """The gradients private training clips are those of each example by itself."""
    if not case.private:
        return "not needed: [privacy] enabled = false"
    module = case.module()
    _attach(case, module)
    parts, truth = compute.inputs(case.task, case.few()), compute.targets(case.task, case.few())
    alone = np.array([_alone(case, module, parts, truth, row) for row in range(len(truth))])
    norms = np.linalg.norm(alone, axis=1)
    clip = float(np.median(norms)) or 1.0
    wanted = (alone * np.minimum(1.0, clip * (1 - SLACK) / np.maximum(norms, 1e-300))[:, None]).sum(axis=0)
    with one_backward.gradients(case.task, module) as source:
        found, summed = source.norms(parts, truth), source.clipped_sum(parts, truth, clip).total
    off = max(_off(found, norms), _off(summed, wanted))
    if not off <= CLOSE:
        raise Broken(f"per-example gradients are off by {off:.2g} > {CLOSE:g}: one of [adapter]'s layers hides what it does")
    way = "one backward pass" if one_backward.known(module) else "Opacus' hooks (slower: a layer that one pass does not know)"
    return f"{way}, off by {off:.1g}"


def _off(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), 1e-12))


def _alone(
    case: Case, module: nn.Module, parts: tuple[torch.Tensor, ...], truth: torch.Tensor, row: int
) -> np.ndarray:
    """Gradient of one example by plain autograd, (d,) float64."""
    weights, here = list(lora.trainable(module).values()), slice(row, row + 1)
    total = case.task.loss(module(*compute.take(parts, here)), truth[here]).sum()
    found = torch.autograd.grad(total, weights, allow_unused=True)
    whole = [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)]
    return torch.cat([g.detach().double().ravel() for g in whole]).numpy()


def _attach(case: Case, module: nn.Module) -> None:
    """An adapter away from its start, where half of a low-rank gradient is zero."""
    draw = torch.Generator().manual_seed(1)
    lora.attach(module, case.adapter, draw)
    with torch.no_grad():
        for value in lora.trainable(module).values():
            value.add_(torch.randn(value.shape, generator=draw), alpha=0.1)


RULES = (
    Rule("adapter layers", adapter_layers, ("shapes",)),
    Rule("adapter comes back", adapter_comes_back, ("adapter layers",)),
    Rule("base unchanged", base_unchanged, ("adapter layers",)),
    Rule("records apart", records_apart, ("adapter layers",)),
    Rule("gradients of each example", gradients, ("loss of each example", "records apart")),
)
