"""Speed of a private step beside the same step without privacy, on one thread. Goal: at least 0.9, in at most its memory.

Two models with low-rank adapters of rank 8 and a head: a perceptron (64-512-512-512-2) and an encoder (4 layers of 256, 64
tokens; adapters on q and v), with 64 and 512 examples a step. Every side takes whole steps, forward to written weights, in
turns in one process: plain autograd through the adapter's own layers, with SGD, and with AdamW as in an update without privacy;
ours, clipped, noised with the operating system's randomness, and SGD; Opacus (hooks, and ghost clipping, which does without
per-example gradients) with its own noise and SGD. `figure` is the smallest ratio of ours to plain with SGD over the four, the
memory is the growth of a fresh process over its start.

    python -m tests.benchmarks.train --rounds 3
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from statistics import median
from typing import Any

import torch
from torch import nn

from models.adapters import lora
from models.config import AdapterConfig
from models.private.clipping import Clipping, PerExampleGradients
from models.private.one_backward import OneBackward
from models.private.private_sgd import PrivateStep, flattened
from security.privacy import Reservation
from tests.benchmarks import ROOT, result, show
from tests.benchmarks.peers import peak_mb

CLIP, SIGMA, RATE = 1.0, 1.0, 0.01
STEPS = {("mlp", 64): 60, ("mlp", 512): 20, ("encoder", 64): 3, ("encoder", 512): 1}  # a turn: about half a second
CASES = tuple(STEPS)


class Perceptron(nn.Sequential):
    """64-512-512-512-2."""

    def __init__(self) -> None:
        super().__init__()
        for number, (before, after) in enumerate([(64, 512), (512, 512), (512, 512)]):
            self.add_module(f"fc{number}", nn.Linear(before, after))
            self.add_module(f"act{number}", nn.ReLU())
        self.add_module("head", nn.Linear(512, 2))


class Block(nn.Module):
    """Attention with separate projections, and two layers; norms before them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        q, k, v = (p(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.o_proj(mixed)
        out: torch.Tensor = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return out


class Encoder(nn.Module):
    """4 blocks of width 256 over 64 tokens; the head sees their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[Block(256, 4) for _ in range(4)])
        self.head = nn.Linear(256, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.blocks(x).mean(dim=1))
        return out


class Problem:
    """What a source of gradients asks of a Task."""

    name, label_horizon = "bench", timedelta(0)

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, target, reduction="none")


def case(name: str, rows: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A module with its adapter, and a batch."""
    module = Perceptron() if name == "mlp" else Encoder()
    targets = ("fc0", "fc1", "fc2") if name == "mlp" else ("q_proj", "v_proj")
    lora.attach(module.eval(), AdapterConfig(r=8, lora_alpha=16, target_modules=targets, modules_to_save=("head",)))
    x = torch.randn(rows, 64) if name == "mlp" else torch.randn(rows, 64, 256)
    return module, x, torch.randint(0, 2, (rows,))


Step = Callable[[], None]


def plain(kind: type[torch.optim.Optimizer]) -> Callable[[nn.Module, torch.Tensor, torch.Tensor], Step]:
    def made(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Step:
        optimizer = kind(lora.trainable(module).values(), lr=RATE)  # type: ignore[call-arg]
        rows = torch.arange(len(y))

        def step() -> None:
            optimizer.zero_grad()
            Problem().loss(module(x[rows]), y[rows]).mean().backward()
            optimizer.step()

        return step

    return made


def private(source: type[Clipping]) -> Callable[[nn.Module, torch.Tensor, torch.Tensor], Step]:
    def made(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Step:
        gradients = source(Problem(), module).__enter__()  # type: ignore[arg-type]
        law = Reservation("bench", ("w",), SIGMA, 1.0, 1, CLIP, math.inf, 1.0, expected_batch=len(y))
        noised, used = PrivateStep(gradients, law), flattened(gradients.parameters)
        weights = used.double().numpy()

        def step() -> None:
            nonlocal weights
            weights -= RATE * noised((x,), y).gradient
            used.copy_(torch.from_numpy(weights))

        return step

    return made


def opacus(ghost: bool) -> Callable[[nn.Module, torch.Tensor, torch.Tensor], Step]:
    def made(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Step:
        from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
        from opacus.optimizers import DPOptimizer
        from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

        for part in module.modules():
            part.training = any(p.requires_grad for p in part.parameters(recurse=False))
        settings = {"noise_multiplier": SIGMA, "max_grad_norm": CLIP, "expected_batch_size": len(y)}
        inner = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=RATE)
        if not ghost:
            wrapped = GradSampleModule(module)
            optimizer: Any = DPOptimizer(inner, **settings)
            loss: Any = nn.CrossEntropyLoss()
        else:
            wrapped = GradSampleModuleFastGradientClipping(module, max_grad_norm=CLIP, use_ghost_clipping=True)
            optimizer = DPOptimizerFastGradientClipping(inner, **settings)
            loss = DPLossFastGradientClipping(wrapped, optimizer, nn.CrossEntropyLoss(), "mean")

        def step() -> None:
            optimizer.zero_grad()
            loss(wrapped(x), y).backward()
            optimizer.step()

        return step

    return made


SIDES = {
    "plain": plain(torch.optim.SGD),
    "plain, AdamW": plain(torch.optim.AdamW),
    "ours": private(OneBackward),
    "ours by hooks": private(PerExampleGradients),
    "opacus hooks": opacus(False),
    "opacus ghost": opacus(True),
}


def speeds(name: str, rows: int, rounds: int) -> dict[str, list[float]]:
    """Examples a CPU second of each side, a figure a round."""
    steps = {side: made(*case(name, rows)) for side, made in SIDES.items()}
    found: dict[str, list[float]] = defaultdict(list)
    for step in steps.values():
        step()
    for number in range(rounds):
        for side in [*steps][number % len(steps) :] + [*steps][: number % len(steps)]:
            began = time.process_time()
            for _ in range(STEPS[name, rows]):
                steps[side]()
            found[side].append(rows * STEPS[name, rows] / (time.process_time() - began))
    return found


def memory(name: str, rows: int, side: str) -> float:
    """MB by which a fresh process grows in three steps."""
    command = [sys.executable, "-m", "tests.benchmarks.train", "--memory", name, str(rows), side]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def grown(name: str, rows: int, side: str) -> float:
    module, x, y = case(name, rows)
    small = SIDES[side](*case(name, 2))
    small()  # what libraries load at their first use is nobody's
    before = peak_mb()
    step = SIDES[side](module, x, y)
    for _ in range(3):
        step()
    return peak_mb() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory", nargs=3, metavar=("MODEL", "ROWS", "SIDE"), help="only this: MB, as one number")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # Opacus, where the input needs no gradient
    if asked.memory:
        print(grown(asked.memory[0], int(asked.memory[1]), asked.memory[2]))
        return
    cases = {}
    for name, rows in CASES:
        found = speeds(name, rows, asked.rounds)
        pairs = {side: zip(rates, found["plain"], strict=True) for side, rates in found.items()}
        ratios = {side: round(median(a / b for a, b in pair), 3) for side, pair in pairs.items()}
        used = {side: memory(name, rows, side) for side in ("plain", "ours", "opacus hooks")}
        cases[f"{name} {rows}"] = {
            "ratios": ratios, "examples_per_cpu_second": round(median(found["ours"])),
            "memory": {side: round(mb / used["plain"], 2) for side, mb in used.items()}, "plain_mb": round(used["plain"]),
        }  # fmt: skip
        print(name, rows, json.dumps(cases[f"{name} {rows}"]), file=sys.stderr)
    worst = min(each["ratios"]["ours"] for each in cases.values())
    peer = "plain autograd, the same adapter, SGD"
    report = result("train", "private / plain speed", [worst], peer, [1.0], ("torch", "opacus"))
    show(report | {"cases": cases, "samples": asked.rounds})


if __name__ == "__main__":
    main()
