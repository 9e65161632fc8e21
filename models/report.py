"""What one update did, as plain figures: gathered while it runs, then frozen.

No tensor and no decision. Under privacy these figures read private data without noise: they stay in the trust zone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Run:
    """Figures gathered while training runs."""

    losses: list[float | None] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    steps: int = 0
    seen: int = 0
    clipped: int = 0
    not_finite: int = 0


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one update did.

    `losses` and `gradient_norms`: one a step (private, noise removed) or one an epoch (not private). `loss_before` and
    `loss_after` are means over the same rows, those with a finite loss under both; None when there is none. `blocked`
    is "loss_change" when the change passed its limit, `finding` then says so in words. `seconds` is CPU time.
    """

    window: str
    base_digest: str
    adapter_digest: str
    rows: int
    steps: int
    losses: tuple[float | None, ...]
    loss_before: float | None
    loss_after: float | None
    loss_change: float | None
    blocked: str | None
    finding: str | None
    gradient_norms: tuple[float, ...]
    weight_delta: float
    clipped_share: float
    not_finite: int
    epsilon: float | None
    max_grad_norm: float | None
    learning_rate: float
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)
