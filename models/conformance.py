"""What `headgate check` asks of a task: rules, each a small function, run one after the other and told as a list.

A rule gets a `Case` and returns a sentence of what it has seen, or raises `Broken` with what was found and the cure. One that
crashes has failed; one that needs another which failed is not run. This file does not know what the rules are: they are in
task_rules.py and adapter_rules.py, those of the schemas in assets/schema_rules.py.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from models import compute
from models.config import AdapterConfig, RetentionConfig
from models.release_policy import RolloutPolicy
from models.task import Columns, Task

State = Literal["ok", "FAIL", "-"]
FEW = 8  # rows of a rule that looks at them one by one


class Broken(Exception):
    """A rule does not hold: what was found, and the cure."""


@dataclass(frozen=True)
class Case:
    """A task, rows of it (events with labels, public or made), and the settings that matter.

    columns: at least `FEW` rows from `source`. measured: {regime: figures} of the newest version, {} without one. streamed:
    the sides ("event", "label") whose records are JSON.
    """

    task: Task
    columns: Columns
    source: str
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    private: bool = True
    derived_public: bool = False
    measured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    streamed: tuple[str, ...] = ("event", "label")
    rollout: RolloutPolicy = field(default_factory=RolloutPolicy)

    @cached_property
    def history(self) -> Any:
        """What the task's `history()` gives, which may take seconds to load."""
        user: Any = self.task
        return user.history()

    def rows(self, chosen: slice | np.ndarray | list[int]) -> dict[str, np.ndarray]:
        """These rows, copied, so that a task that writes into them spoils nothing."""
        return {name: column[chosen].copy() for name, column in self.columns.items()}

    def few(self) -> dict[str, np.ndarray]:
        """The first few rows."""
        return self.rows(slice(FEW))

    def module(self) -> nn.Module:
        """A fresh base with the same weights each time, as every update meets it: frozen, in eval mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module: nn.Module = self.task.build()
        return module.eval().requires_grad_(False)


@dataclass(frozen=True, slots=True)
class Rule:
    """`needs`: names of rules without which it can say nothing."""

    name: str
    find: Callable[[Case], str]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a rule: "ok", "FAIL", or "-" when it was not run."""

    rule: str
    state: State
    text: str


def run(case: Case, rules: Iterable[Rule]) -> list[Outcome]:
    """Every rule on this case, in order; never raises for what a task does wrong."""
    found: list[Outcome] = []
    with compute.one_thread():
        for rule in rules:
            missing = [one.rule for one in found if one.rule in rule.needs and one.state != "ok"]
            waits = Outcome(rule.name, "-", f"not run, it needs: {', '.join(missing)}")
            found.append(waits if missing else _outcome(rule, case))
    return found


def _outcome(rule: Rule, case: Case) -> Outcome:
    try:
        return Outcome(rule.name, "ok", rule.find(case))
    except Exception as error:  # noqa: BLE001 - whatever a task does wrong is the answer
        return Outcome(rule.name, "FAIL", _told(error))


def _told(error: Exception) -> str:
    """Ours carry value and cure; of another one its kind and the line it came from."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    raised_by_us = isinstance(error, ValueError) and Path(last.filename).is_relative_to(Path(__file__).parent)
    if raised_by_us or type(error).__module__.split(".")[0] in ("models", "assets", "security"):
        return str(error)
    return f"{type(error).__name__}: {error} (raised in {last.name}, {Path(last.filename).name}:{last.lineno})"


def arrays(encoded: np.ndarray | tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """What `encode` gave, as a tuple."""
    return encoded if isinstance(encoded, tuple) else (encoded,)


def first_difference(one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> int | None:
    """The first row in which two encodings differ beyond rounding; None when they are the same. 0 when shapes differ."""
    worst: list[int] = []
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape:
            return 0
        floating = np.issubdtype(a.dtype, np.floating) and np.issubdtype(b.dtype, np.floating)
        same = np.isclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True) if floating else np.asarray(a == b)
        rows = np.flatnonzero(~same.reshape(len(a), -1).all(axis=1)) if len(a) else np.empty(0, np.int64)
        worst += rows[:1].tolist()
    return min(worst, default=None)
