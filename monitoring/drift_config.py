"""The knobs of `[drift]`. Knows no array, so that reading settings does not load numpy; what they do is told in `drift.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DriftConfig:
    """`[drift]`: the false discovery rate within a window, and the fewest rows a window must have to be tested."""

    q: float = 0.05
    min_rows: int = 500

    def __post_init__(self) -> None:
        if not 0 < self.q < 1 or self.min_rows < 2:
            raise ValueError(f"[drift] q = {self.q}, min_rows = {self.min_rows}: wanted 0 < q < 1 and min_rows >= 2")
