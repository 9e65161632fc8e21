"""How far an update under privacy has come: written down at every step, so that a process that is killed loses one step.

The law. A reservation pays for `steps + spare` noisy steps and they are counted when they begin: the checkpoint says
"step k has begun" before step k draws its batch, in the same write that keeps the weights after the steps before it. A
step in flight when the process died is therefore spent, and the next attempt draws a batch and noise afresh (the key of
the noise is never stored). Over all attempts no more than the reserve is ever begun; an update that has used it up ends
with the steps it finished. An older checkpoint, after a power cut or from a backup, repeats steps whose outcome nobody
saw: what is released is one chain of at most so many noisy steps, whatever was thrown away beside it.

The first record is written right after RESERVE and before anything is read. So it is only ever made by the process whose
reservation it is: written before, it could wipe out the record of another that reserved first. No record under an open
reservation means: nobody knows what was begun, and the update is lost. So is one whose record does not fit (`facts`), or
with `spare` + 1 attempts in a row that finished no step: what kills it would kill it again.

It does not know who may train (`assets/training_lease.py`), and no ledger. What it holds is private: the trust zone's.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from models.report import Run
from security.checkpoint import Checkpoint

if TYPE_CHECKING:
    from security.privacy import Reservation


SERIES = ("losses", "norms", "layer_norms")


class ProgressLost(Exception):
    """Nobody can go on from what is there; the message says why, as a clause."""


@dataclass(slots=True)
class Progress:
    """`weights`: (d,) float64 after the last finished step, None before the first; a record has them in float32, as the module.
    `layout`: whose they are, {name: size}.

    `kept`: which examples the update is for, bool (rows,), None for all. `idle`: attempts since a step was last finished.
    Without a checkpoint it only counts, for one process that nobody is to go on from.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    kept: np.ndarray | None = None
    checkpoint: Checkpoint | None = None
    run: Run = field(default_factory=Run)
    begun: int = 0
    attempts: int = 1
    idle: int = 1
    weights: np.ndarray | None = None
    layout: Mapping[str, int] = field(default_factory=dict)
    _about: bytes | None = None  # what of a record stays the same from step to step

    def start(self) -> None:
        """The first record: nothing has begun."""
        self.end()  # a copy from before would have the higher number
        self._write()

    def again(self) -> None:
        """A new attempt, counted before it can fail."""
        self.attempts, self.idle = self.attempts + 1, self.idle + 1
        self._write()

    def attach(self, layout: Mapping[str, int], start: np.ndarray) -> np.ndarray:
        """The weights to go on from, `start` before the first step. Raises ProgressLost when they are another module's."""
        if self.weights is not None and dict(self.layout) != dict(layout):
            raise ProgressLost("its weights are those of another module")
        self.layout, self._about = layout, None
        return start if self.weights is None else self.weights

    def begin(self, law: Reservation) -> bool:
        """Whether there is one more step to take; if so it is spent from now on, whatever becomes of it."""
        more = self.run.steps < law.steps and self.begun < law.reserved
        self.begun += more
        self._write()
        return more

    def finish(self, weights: np.ndarray) -> None:
        """The step is taken and noted in `run`. The next `begin` writes it down."""
        self.weights, self.idle = weights, 0

    def end(self) -> None:
        """Nobody goes on from here: the update has its end."""
        if self.checkpoint is not None:
            self.checkpoint.remove()

    def _write(self) -> None:
        if self.checkpoint is None:
            return
        if self._about is None:
            kept = None if self.kept is None else len(self.kept)
            self._about = json.dumps({"facts": self.facts, "layout": self.layout, "kept": kept}).encode()
        head: dict[str, Any] = {name: getattr(self, name) for name in ("begun", "attempts", "idle")}
        head["run"] = {each.name: getattr(self.run, each.name) for each in fields(self.run) if each.name not in SERIES}
        series, numbers = _series(self.run), array("d")
        for values in series.values():
            numbers.extend(values)
        head["series"] = {name: len(values) for name, values in series.items()}
        bits = b"" if self.kept is None else np.packbits(self.kept).tobytes()
        weights = b"" if self.weights is None else self.weights.astype(np.float32).tobytes()
        lines = self._about + b"\n" + json.dumps(head).encode() + b"\n"
        self.checkpoint.write(b"".join((lines, bits, numbers.tobytes(), weights)))


def left_behind(checkpoint: Checkpoint, facts: Mapping[str, Any], spare: int) -> Progress:
    """The progress of a process that died, for `again`. The caller must be the only one that trains.

    facts: what it must belong to, {name: JSON value}. Raises ProgressLost.
    """
    found = _read(checkpoint)
    changed = [name for name in {**found.facts, **facts} if found.facts.get(name) != facts.get(name)]
    if changed:
        told = (f"{name} was {found.facts.get(name)} and is {facts.get(name)}" for name in changed)
        raise ProgressLost(f"its checkpoint does not fit: {', '.join(told)}")
    if found.idle > spare:
        raise ProgressLost(f"{found.idle} attempts in a row finished no step, {spare + 1} are allowed")
    return found


def _series(run: Run) -> dict[str, list[float]]:
    """What has a figure for each step. As bytes they cost nothing, as text as much as all the rest of a record."""
    losses = [math.nan if value is None else value for value in run.losses]
    return {"losses": losses, "norms": run.norms, **{f"layer {name}": values for name, values in run.layer_norms.items()}}


def _read(checkpoint: Checkpoint) -> Progress:
    content = checkpoint.read()
    if content is None:
        raise ProgressLost("its checkpoint is damaged" if checkpoint.exists() else "it has no checkpoint")
    try:
        about, head, rest = content.split(b"\n", 2)
        told = json.loads(about) | json.loads(head)
        rows, lengths, run = told.pop("kept"), told.pop("series"), Run(**told.pop("run"))
        size = 0 if rows is None else (rows + 7) // 8
        kept = None if rows is None else np.unpackbits(np.frombuffer(rest[:size], np.uint8), count=rows).astype(bool)
        ends = size + 8 * np.cumsum([0, *lengths.values()])
        series = {name: np.frombuffer(rest[at:end]).tolist() for name, at, end in zip(lengths, ends, ends[1:], strict=False)}
        weights = np.frombuffer(rest[ends[-1] :], np.float32).astype(np.float64)
        run.losses, run.norms = [None if value != value else value for value in series.pop("losses")], series.pop("norms")
        run.layer_norms = {name.removeprefix("layer "): values for name, values in series.items()}
        return Progress(kept=kept, checkpoint=checkpoint, run=run, weights=weights if weights.size else None, **told)
    except (ValueError, TypeError, KeyError) as error:
        raise ProgressLost("its checkpoint was written by another version of this program") from error
