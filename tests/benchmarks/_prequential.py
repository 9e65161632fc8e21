"""Test, then train, on a recorded stream: each event is answered by the newest version there was, each label used once mature.

Updates are the product's own: `models.training.train` on a lineage, under a reservation of a ledger of its own, or without
one. An update that the guard blocks or interrupts is no parent and answers nothing. It chooses no rate and judges nothing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.base import auto_clip, train_base
from models.config import AdapterConfig, TrainingConfig, UpdateConfig
from models.guard import UpdateInterrupted
from models.predictor import Predictor
from models.training import train
from pipelines.demo.retraining import Encoded
from security.journal import Journal
from security.privacy import Ledger, PrivacyPolicy, Reservation

WINDOW = 86_400  # seconds
ADAPTER = AdapterConfig(r=8, lora_alpha=16)
DELTA = 1e-5


@dataclass(frozen=True)
class Stream:
    """Encoded examples in order of time, `seen` at those seconds; labels mature `horizon` later.

    What is mature at `public_until` is declared-public history, on which a base trains for `epochs`. The stream runs over
    [begins, ends).
    """

    task: Any
    inputs: np.ndarray
    truth: np.ndarray
    seen: np.ndarray
    public_until: int
    begins: int
    ends: int
    epochs: int = 2

    @property
    def mature(self) -> np.ndarray:
        return np.asarray(self.seen + int(self.task.label_horizon.total_seconds()))

    def rows(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of the chosen rows, as `Encoded` reads them."""
        return {"inputs": self.inputs[chosen], "truth": self.truth[chosen]}

    def rehearsal(self) -> Stream:
        """History alone: its first half is the history, its second the stream. Choices are made on it."""
        middle = int(self.seen[0] + self.public_until) // 2
        return replace(self, public_until=middle, begins=middle, ends=self.public_until)


@dataclass(frozen=True)
class Arm:
    """How updates learn: `epsilon` None is without privacy; `rate` None is no update at all; `rows` that make one."""

    rows: int
    epsilon: float | None = None
    rate: float | Literal["auto"] | None = None


@dataclass
class Replay:
    """Logits of all events of the stream and their truth; examples of each update; CPU seconds of all updates."""

    output: np.ndarray
    truth: np.ndarray
    examples: list[int] = field(default_factory=list)
    refused: int = 0
    seconds: float = 0.0
    clipped: list[float] = field(default_factory=list)
    spent: float | None = None


@dataclass(frozen=True)
class Base:
    """A frozen base of the public part, and the clip "auto" stands for."""

    state: bytes
    clip: float
    seed: int


def base_of(stream: Stream, seed: int) -> Base:
    task, history = Encoded(stream.task), stream.rows(np.flatnonzero(stream.mature <= stream.public_until))
    state = train_base(task, history, epochs=stream.epochs, seed=seed)
    return Base(state, auto_clip(task, state, history, ADAPTER), seed)


def replay(stream: Stream, base: Base, arm: Arm) -> Replay:
    """The whole stream in daily windows."""
    task, parts, at, trained = Encoded(stream.task), [], stream.begins, stream.begins
    predictor, lineage = Predictor(task, base.state, None, ADAPTER), _Lineage(task, base, arm)
    inside, mature = (stream.seen >= stream.begins) & (stream.seen < stream.ends), stream.mature
    found = Replay(np.empty(0), stream.truth[inside])
    with _ledger(arm) as ledger:
        while at < stream.ends:
            asked = inside & (stream.seen >= at) & (stream.seen < at + WINDOW)
            if asked.any():
                parts.append(predictor.outputs(stream.rows(np.flatnonzero(asked))).numpy())
            at += WINDOW
            waiting = np.flatnonzero(inside & (mature > trained) & (mature <= at))
            if arm.rate is None or len(waiting) < arm.rows or at >= stream.ends:
                continue
            predictor = lineage.update(stream.rows(waiting), ledger, (trained, at), found) or predictor
            trained = at
        found.spent = ledger.epsilon_per_event() if ledger is not None else None
    found.output = np.concatenate(parts)
    return found


class _Lineage:
    """The adapter so far, and how the next one is made of it."""

    def __init__(self, task: Any, base: Base, arm: Arm) -> None:
        self.task, self.base, self.arm = task, base, arm
        self.head: dict[str, np.ndarray] | None = None
        self.reports: list[dict[str, Any]] = []
        self.number = 0

    def update(
        self, columns: dict[str, np.ndarray], ledger: Ledger | None, matured: tuple[int, int], found: Replay
    ) -> Predictor | None:
        """A predictor with the new adapter, None when the guard refused it."""
        rate, began = self.arm.rate, time.process_time()
        assert rate is not None
        rows, window = len(columns["truth"]), f"{datetime.fromtimestamp(matured[1], UTC):%Y-%m-%dT%H:%MZ}"
        config = UpdateConfig(ADAPTER, TrainingConfig(learning_rate=rate), update_number=self.number)
        reservation = None if ledger is None else self._reserved(ledger, window, matured, rows)
        self.number += 1
        seed = self.base.seed if reservation is None else None
        try:
            made = train(self.task, self.base.state, self.head, columns, reservation, config, window, seed, self.reports)
        except UpdateInterrupted:
            found.refused += 1
            return None
        finally:
            found.seconds += time.process_time() - began
        self.reports.append(made.report.as_dict())
        found.examples.append(rows)
        found.clipped.append(made.report.clipped_share)
        if made.report.blocked is not None:
            found.refused += 1
            return None
        self.head = made.tensors
        return Predictor(self.task, self.base.state, self.head, ADAPTER)

    def _reserved(self, ledger: Ledger, window: str, matured: tuple[int, int], rows: int) -> Reservation:
        lag = self.task.label_horizon
        start, end = (datetime.fromtimestamp(at, UTC) - lag for at in matured)
        return ledger.reserve(
            task="bench", update=window, windows=[window], arrived=(start, end), count=rows, max_grad_norm=self.base.clip,
            actor="bench", at=end + lag,
        )  # fmt: skip


@contextmanager
def _ledger(arm: Arm) -> Iterator[Ledger | None]:
    """An empty ledger of the arm's epsilon; None without privacy."""
    if arm.epsilon is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(f"sqlite:///{Path(folder)}/journal.db")
        try:
            yield Ledger(journal, "bench", "labels", PrivacyPolicy(target_epsilon=arm.epsilon, target_delta=DELTA))
        finally:
            journal.close()
