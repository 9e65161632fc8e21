"""Planted defects: the product's own private step with one thing wrong each. An audit that lets one pass is blind.

Nothing here is ever on the path of training. Each defect is a small change around the step or around its source of
gradients; what has to find it stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from models import compute
from models.audit import checks as audit_checks
from models.audit.checks import Bench, Check, Maker, Step
from models.audit.subject import NO_CLIP, Subject
from models.private.clipping import ClippedSum
from models.private.private_sgd import Gradients, Noised, Parts, PrivateStep
from security.privacy import Reservation

MICROBATCH = 8
Sum = Callable[[Gradients, Parts, torch.Tensor, float], ClippedSum]


@dataclass(frozen=True, slots=True)
class Mutant:
    """`make` is wrong, or `clipped_sum` of the gradients is. `tier` has to find it; where tier 1 does not, because the
    public examples do not show it, `check` of tier 0 may.
    """

    name: str
    make: Maker = PrivateStep
    clipped_sum: Sum | None = None
    tier: int = 1
    check: Callable[[Bench], Check | None] | None = None


def planted(subject: Subject) -> list[Mutant]:
    """Every defect, made for the layers of `subject`."""
    last = np.zeros(subject.size, bool)
    for place in subject.last_layer():
        last[place] = True
    return [
        Mutant("noise x 0.8", lambda g, law: PrivateStep(g, replace(law, noise_multiplier=0.8 * law.noise_multiplier))),
        Mutant("no noise", lambda g, law: PrivateStep(g, replace(law, noise_multiplier=0.0))),
        Mutant("one layer without noise", lambda g, law: _after(PrivateStep(g, law), _bare(last, law))),
        Mutant("divided by the realised batch", lambda g, law: _after(PrivateStep(g, law), _realised(law)),
               check=audit_checks.divisor),
        Mutant("head not clipped", clipped_sum=_part_clipped(last)),
        Mutant("micro-batches clipped", clipped_sum=_microbatches, check=audit_checks.company),
        Mutant("every record twice", clipped_sum=_doubled),
        Mutant("examples centred on their batch", clipped_sum=_centred, tier=0, check=audit_checks.company),
        Mutant("batches of fixed size", _fixed_size, tier=0, check=audit_checks.inclusion),
        Mutant("fixed seed", _seeded, tier=0, check=audit_checks.fresh),
    ]


def infected(mutant: Mutant, bench: Bench) -> Bench:
    """The same bench with the defect in it."""
    gradients = bench.gradients if mutant.clipped_sum is None else _Wrong(bench.gradients, mutant.clipped_sum)
    return replace(bench, make=mutant.make, gradients=Remembered(gradients))


class Remembered:
    """Sums that were asked for before are not computed again: a defect's thousands of runs are on the same examples."""

    def __init__(self, gradients: Gradients) -> None:
        self.gradients, self.size, self.rung = gradients, gradients.size, gradients.rung
        self._known: dict[tuple[bytes, float], ClippedSum] = {}

    def clipped_sum(self, parts: Parts, truth: torch.Tensor, clip: float) -> ClippedSum:
        """As the source behind it gives it."""
        key = b"".join(value.numpy().tobytes() for value in (*parts, truth)), clip
        if key not in self._known:
            self._known[key] = self.gradients.clipped_sum(parts, truth, clip)
        return self._known[key]


class _Wrong:
    """A source of gradients whose sums are wrong."""

    def __init__(self, gradients: Gradients, wrong: Sum) -> None:
        self.gradients, self.size, self.rung, self.wrong = gradients, gradients.size, gradients.rung, wrong

    def clipped_sum(self, parts: Parts, truth: torch.Tensor, clip: float) -> ClippedSum:
        return self.wrong(self.gradients, parts, truth, clip)


def _part_clipped(free: np.ndarray) -> Sum:
    """The weights in `free` count neither in the norm nor in the clip."""

    def wrong(gradients: Gradients, parts: Parts, truth: torch.Tensor, clip: float) -> ClippedSum:
        found = gradients.clipped_sum(parts, truth, clip)
        total = np.zeros(gradients.size)
        for row in range(len(truth)):
            here = slice(row, row + 1)
            one = gradients.clipped_sum(compute.take(parts, here), truth[here], NO_CLIP).total
            total += one * np.where(free, 1.0, min(1.0, clip / max(float(np.linalg.norm(one[~free])), 1e-300)))
        return replace(found, total=total)

    return wrong


def _microbatches(gradients: Gradients, parts: Parts, truth: torch.Tensor, clip: float) -> ClippedSum:
    """The mean of eight examples is clipped, as if it were one."""
    found, total = gradients.clipped_sum(parts, truth, clip), np.zeros(gradients.size)
    for at in range(0, len(truth), MICROBATCH):
        here = slice(at, at + MICROBATCH)
        rows = len(truth[here])
        mean = gradients.clipped_sum(compute.take(parts, here), truth[here], NO_CLIP).total / rows
        total += rows * mean * min(1.0, clip / max(float(np.linalg.norm(mean)), 1e-300))
    return replace(found, total=total)


def _doubled(gradients: Gradients, parts: Parts, truth: torch.Tensor, clip: float) -> ClippedSum:
    return gradients.clipped_sum(tuple(torch.cat((part, part)) for part in parts), torch.cat((truth, truth)), clip)


def _centred(gradients: Gradients, parts: Parts, truth: torch.Tensor, clip: float) -> ClippedSum:
    """What BatchNorm does in training: every example is seen relative to the others of its batch."""
    moved = [part - part.mean(dim=0) if part.is_floating_point() and len(part) > 1 else part for part in parts]
    if not any(part.is_floating_point() for part in parts):
        truth = truth.roll(1, 0)
    return gradients.clipped_sum(tuple(moved), truth, clip)


def _after(step: PrivateStep, wrong: Callable[[Noised], np.ndarray]) -> Step:
    """The step, and then something wrong is done to its answer."""

    def taken(parts: Parts, truth: torch.Tensor) -> Noised:
        noised = step(parts, truth)
        return replace(noised, gradient=wrong(noised))

    return taken


def _bare(layer: np.ndarray, law: Reservation) -> Callable[[Noised], np.ndarray]:
    return lambda noised: np.where(layer, noised.found.total / law.expected_batch, noised.gradient)


def _realised(law: Reservation) -> Callable[[Noised], np.ndarray]:
    return lambda noised: noised.gradient * (law.expected_batch / max(1, len(noised.found.losses)))


def _fixed_size(gradients: Gradients, law: Reservation) -> Step:
    """Shuffled batches of one size, accounted as Poisson samples: 0.5 claimed may be 3.2."""
    whole, draw = PrivateStep(gradients, replace(law, sampling_rate=1.0)), np.random.default_rng()

    def taken(parts: Parts, truth: torch.Tensor) -> Noised:
        rows = torch.from_numpy(draw.permutation(len(truth))[: round(law.sampling_rate * len(truth))])
        return whole(compute.take(parts, rows), truth[rows])

    return taken


class _Repeating:
    """A stream of words from a seed, the same in every process."""

    def __init__(self) -> None:
        self._draw = np.random.default_rng(0)

    def words(self, count: int) -> np.ndarray:
        return self._draw.integers(0, 2**64, count, dtype=np.uint64)


def _seeded(gradients: Gradients, law: Reservation) -> Step:
    step = PrivateStep(gradients, law)
    step.stream = _Repeating()  # type: ignore[assignment]  # what must not be possible by any argument
    return step
