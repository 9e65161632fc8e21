"""Several adapters on one base: each row gets the one it asked for, whatever other rows, threads and updates do."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models import base
from models.adapters import lora
from models.adapters.lora import AdapterRefused
from models.config import AdapterConfig
from tests.adapters import EMPTY, KINDS, adapted, ids, net, stirred

NAMES = ("linear", "embedding", "convolution", "copy", "bottleneck")
X = ids(24)


def several(*kinds: str) -> nn.Module:
    """Adapter number k is of the k-th kind and goes by its name; the same ones that `adapted` makes alone."""
    module = net()
    for kind in kinds or NAMES:
        lora.attach(module, KINDS[kind], torch.Generator().manual_seed(2), name=kind)
        stirred(module)
    return module


def mixed(module: nn.Module, numbers: torch.Tensor, x: torch.Tensor = X) -> torch.Tensor:
    with lora.rows(module, numbers), torch.inference_mode():
        return module(x)


def numbers(rows: int, kinds: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-1, kinds, (rows,), generator=torch.Generator().manual_seed(seed))


def alone(kinds: tuple[str, ...], chosen: torch.Tensor, x: torch.Tensor = X) -> torch.Tensor:
    """What each row's adapter answers when it is the only one."""
    answers = torch.stack([adapted(kind)(x) for kind in kinds] + [net()(x)])
    return answers[chosen, torch.arange(len(x))].detach()


@pytest.mark.parametrize("seed", range(5))
def test_each_row_gets_what_its_adapter_would_answer_alone(seed):
    chosen = numbers(len(X), len(NAMES), seed)
    assert torch.allclose(mixed(several(), chosen), alone(NAMES, chosen), atol=1e-6)


@pytest.mark.parametrize("number", range(-1, len(NAMES)))
def test_rows_that_all_ask_for_one_adapter_get_its_very_bits(number):
    chosen = torch.full((len(X),), number)
    assert torch.equal(mixed(several(), chosen), alone(NAMES, chosen))


def test_a_single_row_and_no_row_are_answered():
    module = several()
    assert torch.allclose(mixed(module, torch.tensor([1]), X[:1]), adapted("embedding")(X[:1]), atol=1e-6)
    assert mixed(module, torch.empty(0, dtype=torch.long), X[:0]).shape == (0, 1)


def test_prompts_of_one_length_mix_and_others_are_refused():
    module = several("prompt", "all")
    chosen = torch.arange(len(X)) % 2
    assert torch.allclose(mixed(module, chosen), alone(("prompt", "all"), chosen), atol=1e-6)
    with pytest.raises(AdapterRefused, match="prompts of one base must have one length"):
        mixed(module, chosen - 1)


def test_a_copied_module_of_several_arguments_is_chosen_by_row():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.both = nn.Bilinear(3, 3, 2)

        def forward(self, x):
            return self.both(x, x.flip(1))

    module, x, config = Two().requires_grad_(False), torch.randn(6, 3), AdapterConfig(**EMPTY | {"modules_to_save": ("both",)})
    answers = [module(x)]
    for name in ("a", "b"):
        lora.attach(module, config, name=name)
        answers.insert(-1, stirred(module, seed=len(answers))(x))
    chosen = torch.tensor([0, 1, -1, 1, 0, -1])
    assert torch.allclose(mixed(module, chosen, x), torch.stack(answers)[chosen, torch.arange(6)], atol=1e-6)


def test_threads_with_their_own_choice_never_see_each_others_adapters():
    """Where the choice was one switch on the module, 60 % of answers came from the wrong adapter; here none may."""
    module, answers, stop = several(), [], threading.Event()
    choices = [numbers(len(X), len(NAMES), seed) for seed in range(4)]
    wanted = [alone(NAMES, chosen) for chosen in choices]  # not in the threads: building draws from the shared generator

    def serve(k: int) -> None:
        answers.extend(torch.allclose(mixed(module, choices[k]), wanted[k], atol=1e-6) for _ in range(150))

    def flip() -> None:
        while not stop.is_set():
            for name in NAMES:
                lora.use(module, name)

    switch, threads = threading.Thread(target=flip), [threading.Thread(target=serve, args=(k,)) for k in range(4)]
    for thread in (switch, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    switch.join()
    assert len(answers) == 600 and all(answers)


def test_two_modules_inside_one_another_keep_their_own_choice():
    one, other = several(), several("copy", "linear")
    mine, its = numbers(len(X), 5, 1), numbers(len(X), 2, 2)
    with lora.rows(one, mine), lora.rows(other, its), torch.inference_mode():
        assert torch.allclose(one(X), alone(NAMES, mine), atol=1e-6)
        assert torch.allclose(other(X), alone(("copy", "linear"), its), atol=1e-6)
    assert torch.equal(one(X), adapted("bottleneck")(X))


@pytest.mark.parametrize(("given", "sentence"), [
    (torch.full((24,), 5), "from 5 to 5; there are -1 .base. to 4: linear, embedding"),
    (torch.full((24,), -2), "from -2 to -2"),
    (torch.zeros(24), "type torch.float32"),
    (torch.zeros(24, 1, dtype=torch.long), r"shape \(24, 1\)"),
    (torch.arange(23) % 5, "sees 24 rows, rows.. was given 23 numbers"),
])
def test_numbers_that_name_no_adapter_or_not_each_row_are_refused(given, sentence):
    with pytest.raises(AdapterRefused, match=sentence):
        mixed(several(), given)


def test_rows_of_a_module_without_named_adapters_are_refused():
    for module in (net(), adapted("linear")):
        with pytest.raises(AdapterRefused, match="without named adapters"):
            mixed(module, torch.zeros(24, dtype=torch.long))


def test_adapters_may_not_come_or_go_while_rows_are_answered():
    module = several()
    with lora.rows(module, torch.zeros(24, dtype=torch.long)):
        lora.detach(module, "copy")
        with pytest.raises(AdapterRefused, match=r"when rows\(\) began"):
            module(X)


# ---- training one of them


def test_only_the_current_adapter_is_trainable_and_training_it_leaves_the_others_alone():
    module = several()
    lora.use(module, "embedding")
    others = {name: lora.extract(module, name) for name in NAMES}
    assert list(lora.trainable(module)) == [f"base_model.model.words.lora_embedding_{x}" for x in "AB"]
    assert {id(p) for p in module.parameters() if p.requires_grad} == {id(p) for p in lora.trainable(module).values()}
    optimizer = torch.optim.SGD(lora.trainable(module).values(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        module(X).square().mean().backward()
        optimizer.step()
    for name in NAMES:
        same = [np.array_equal(value, others[name][key]) for key, value in lora.extract(module, name).items()]
        assert not any(same) if name == "embedding" else all(same)
    lora.detach(module)
    assert base.module_digest(module) == base.module_digest(net())


def test_the_last_one_attached_is_current_and_all_others_are_frozen():
    module = several("linear", "copy")
    assert torch.equal(module(X), adapted("copy")(X)) and lora.names(module) == ("linear", "copy")
    assert all("head" in key for key in lora.trainable(module))


def test_a_named_adapter_and_one_alone_exchange_their_tensors():
    module, other = several(), net()
    lora.attach(other, KINDS["convolution"])
    lora.load(other, lora.extract(module, "convolution"))
    assert torch.equal(other(X), adapted("convolution")(X))
    lora.load(module, lora.extract(adapted("convolution", seed=9)), "convolution")
    lora.use(module, "convolution")
    assert torch.equal(module(X), adapted("convolution", seed=9)(X))


def test_adapters_go_one_by_one_and_leave_the_base():
    module = several()
    for name in ("embedding", "linear", "bottleneck", "copy", "convolution"):
        lora.detach(module, name)
        assert name not in lora.names(module)
    assert lora.names(module) == () and base.module_digest(module) == base.module_digest(net())


def test_numbers_close_up_when_an_adapter_goes():
    module = several("linear", "embedding", "copy")
    lora.detach(module, "embedding")
    assert torch.equal(mixed(module, torch.full((24,), 1)), adapted("copy")(X))


def test_one_of_several_is_merged_and_marked_alone():
    module = several()
    flat = lora.merged(module, "linear")
    assert torch.allclose(flat(X), adapted("linear")(X), atol=1e-5) and lora.names(flat) == () and lora.names(module) == NAMES
    lora.use(module, "embedding")
    assert list(lora.layers(module)) == ["words"]


@pytest.mark.parametrize(("name", "sentence"), [
    ("v1.2", r"no adapter name: .* write v1_2"), ("", "no adapter name"), ("a/b", "no adapter name"),
    ("linear", "attached already"),
])
def test_a_name_that_is_taken_or_could_not_be_a_file_is_refused(name, sentence):
    module = several("linear")
    with pytest.raises(AdapterRefused, match=sentence):
        lora.attach(module, KINDS["copy"], name=name)
    assert lora.names(module) == ("linear",)


def test_names_of_methods_are_good_names():
    module = net()
    for name in ("train", "keys", "parts", "forward"):
        lora.attach(module, KINDS["linear"], name=name)
    assert lora.names(module) == ("train", "keys", "parts", "forward")


def test_an_unknown_name_is_refused_with_those_there_are():
    module = several("linear", "copy")
    for ask in (lora.use, lora.extract, lora.detach, lora.merged):
        with pytest.raises(AdapterRefused, match="no adapter is named 'night'; there are: linear, copy"):
            ask(module, "night")


def test_a_place_inside_that_of_another_adapter_is_refused():
    inner = AdapterConfig(**EMPTY | {"target_modules": ("head.1",)})
    for first, second in ((KINDS["copy"], inner), (inner, KINDS["copy"])):
        module = net()
        lora.attach(module, first, name="one")
        with pytest.raises(AdapterRefused, match="name it in one of them"):
            lora.attach(module, second, name="two")
        assert lora.names(module) == ("one",) and torch.equal(module(X), net()(X))


def test_adapters_attached_to_two_parts_one_by_one_are_refused():
    module = nn.Sequential(net(), net())
    for half in module:
        lora.attach(half, KINDS["linear"], name="day")
    with pytest.raises(AdapterRefused, match="attach to the whole"):
        lora.names(module)


def test_the_lines_in_the_documentation_run():
    page = (Path(__file__).parents[1] / "docs/task.md").read_text()
    lines = next(block for part in page.split("```python")[1:] if "lora" in (block := part.split("```")[0]))
    known = {"lora": lora, "torch": torch, "module": net(), "config": KINDS["linear"], "x": ids(4)}
    exec(lines, known)
    assert known["answers"].shape == (4, 1)
