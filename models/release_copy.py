"""The release copy of an adapter: the clean weights with a watermark, checked to answer like the clean ones.

Stamping is post-processing of released weights: it reads no record, so the privacy charge stays what it is. Training goes
on from the clean adapter, never from this copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models import base as bases
from models.adapters import lora
from models.config import AdapterConfig
from models.predictor import Predictor
from models.task import Columns, Task
from security import watermark

LEAST_AGREEMENT = 0.99  # below, the stamp would be felt by users
# The strongest stamp that is not felt. At .30 one flight adapter among several hundred agreed with its clean copy on
# 98.9 % of answers only; small, noisy adapters do so often. The self-test reads any of these strengths alike, attacks
# leave less of a weaker one.
STRENGTHS = (0.30, 0.20, 0.15, 0.10)


class StampRefused(Exception):
    """The stamped copy does not answer like the clean adapter; nothing is released."""


@dataclass(frozen=True, slots=True)
class ReleaseCopy:
    """`agreement`: share of public inputs on which both give the same decision (None without public inputs); `eta`:
    size of the stamp relative to the adapter's carrier."""

    tensors: dict[str, np.ndarray]
    stamp: watermark.Stamp
    agreement: float | None
    eta: float


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
    """Stamp the low-rank layers under a key of this claim, at the first strength that public inputs do not feel.

    Only public inputs choose the strength, so it costs no privacy. Raises watermark.WatermarkFailed and StampRefused.
    """
    module = bases.build(task, base)
    lora.attach(module, config, lora.first_draw(base))
    lora.load(module, tensors)
    layers = lora.layers(module)
    clean = None if public is None else _decisions(Predictor(task, base, tensors, config).answers(public))
    agreement: float | None = None
    for eta in STRENGTHS:
        stamp = watermark.stamp(layers, secret=secret, claim=claim, eta=eta)
        stamped = lora.with_b(tensors, stamp.B)
        if clean is not None and public is not None:
            agreement = float(np.mean(clean == _decisions(Predictor(task, base, stamped, config).answers(public))))
        if agreement is None or agreement >= LEAST_AGREEMENT:
            return ReleaseCopy(stamped, stamp, agreement, eta)
    raise StampRefused(
        f"stamped copies agree with the clean adapter on at most {agreement:.2%} of public inputs, least "
        f"{LEAST_AGREEMENT:.0%}, even at strength {STRENGTHS[-1]}: nothing released; a larger adapter rank gives the stamp room"
    )


def _decisions(answers: np.ndarray) -> np.ndarray:
    """A class as it is, a probability as its side of one half."""
    return answers > 0.5 if np.issubdtype(answers.dtype, np.floating) else answers
