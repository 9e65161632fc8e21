"""The release copy of an adapter: the clean weights with a watermark in them, checked to answer like the clean ones.

Stamping is post-processing of released weights: it reads no record, so the privacy charge stays what it is. Training goes
on from the clean adapter, never from this copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models import base as bases
from models import lora
from models.config import AdapterConfig
from models.predictor import Predictor
from models.task import Columns, Task
from security import watermark

LEAST_AGREEMENT = 0.99  # below, the stamp would be felt by users


class StampRefused(Exception):
    """The stamped copy does not answer like the clean adapter; nothing is released."""


@dataclass(frozen=True, slots=True)
class ReleaseCopy:
    """`agreement`: share of public inputs on which both give the same decision (None without public inputs)."""

    tensors: dict[str, np.ndarray]
    stamp: watermark.Stamp
    agreement: float | None


def release_copy(
    task: Task,
    base: bytes,
    tensors: Mapping[str, np.ndarray],
    config: AdapterConfig,
    *,
    secret: bytes,
    claim: Mapping[str, str],
    public: Columns | None,
) -> ReleaseCopy:
    """Stamp the low-rank layers under a key of this claim. Raises watermark.WatermarkFailed and StampRefused."""
    module = bases.build(task, base)
    lora.attach(module, config, lora.first_draw(base))
    lora.load(module, tensors)
    stamp = watermark.stamp(lora.layers(module), secret=secret, claim=claim)
    stamped = lora.with_b(tensors, stamp.B)
    agreement = None
    if public is not None:
        clean, copy = (Predictor(task, base, which, config).answers(public) for which in (tensors, stamped))
        agreement = float(np.mean(_decisions(clean) == _decisions(copy)))
        if agreement < LEAST_AGREEMENT:
            raise StampRefused(
                f"the stamped copy agrees with the clean adapter on {agreement:.2%} of {len(clean)} public inputs, "
                f"least {LEAST_AGREEMENT:.0%}: nothing released; a larger adapter rank gives the stamp more room"
            )
    return ReleaseCopy(stamped, stamp, agreement)


def _decisions(answers: np.ndarray) -> np.ndarray:
    """A class as it is, a probability as its side of one half."""
    return answers > 0.5 if np.issubdtype(answers.dtype, np.floating) else answers
