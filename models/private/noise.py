"""The two draws privacy rests on: who is in a batch (Poisson sampling) and the Gaussian noise, from the operating
system's randomness.

Takes the stream of bytes from outside and knows neither gradients nor budgets. There is no seed on purpose.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from security.randomness import KeyStream

UNIT = 2.0**-53  # one step of a float64 mantissa: 53 random bits give every value once


def gaussian(stream: KeyStream, count: int, deviation: float = 1.0) -> np.ndarray:
    """`count` independent N(0, deviation^2) draws, float64 (count,).

    Box & Muller 1958 on 53-bit uniforms; u is in (0, 1], so |z| <= sqrt(106 ln 2) = 8.6 deviations and never infinite.
    """
    half = (count + 1) // 2
    uniform = torch.from_numpy((stream.words(2 * half) >> np.uint64(11)).astype(np.float64))
    radius = uniform[:half].add_(1.0).mul_(UNIT).log_().mul_(-2.0 * deviation**2).sqrt_()
    angle = uniform[half:].mul_(2.0 * math.pi * UNIT)
    found = torch.empty(2 * half, dtype=torch.float64)
    torch.cos(angle, out=found[:half]).mul_(radius)  # numpy's own takes five times as long
    torch.sin(angle, out=found[half:]).mul_(radius)
    return found[:count].numpy()


def poisson_sample(stream: KeyStream, rows: int, rate: float) -> np.ndarray:
    """Row numbers of one Poisson batch, int64, ascending: each of `rows` is in with probability `rate`, independently.

    This is the law the accountant assumes (shuffled batches of fixed size are not: 0.5 claimed would be up to 3.2).
    Raises ValueError for a rate outside (0, 1].
    """
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"sampling_rate {rate} is not in (0, 1]; set [privacy] sampling_rate, e.g. 0.125")
    return np.flatnonzero(stream.words(rows) >> np.uint64(11) < np.uint64(math.ceil(rate / UNIT)))
