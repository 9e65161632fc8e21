"""What one update did, as plain figures: gathered while it runs, then frozen.

No tensor and no decision. Under privacy these figures read private data without noise: they stay in the trust zone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Run:
    """Figures gathered while training runs."""

    losses: list[float | None] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    layer_norms: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    skipped: int = 0
    seen: int = 0
    clipped: int = 0
    not_finite: int = 0
    precision: str = "fp32"
    rung: str | None = None
    rungs_down: int = 0
    attempts: int = 1
    lost: int = 0


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one update did.

    `losses` and `gradient_norms`: one a step (private, noise removed) or one an epoch (not private, the largest norm);
    `layer_norms` the same for each layer. `loss_before` and `loss_after` are means over the same
    rows, those with a finite loss under both; None when there is none. `blocked` is "loss_change" when the change passed its
    limit, `finding` then says so in words; `findings` has everything the guard noticed without stopping, each as
    {kind, figure, limit, message}. `update_cosine` is that of this update with all earlier ones together, None without one.
    `rung` is where the memory ladder ended, `rungs_down` how often memory ran out; `skipped_steps` had a gradient beyond
    float16. It took `attempts` processes, and `lost_steps` had begun and came to nothing; rung and time are those of
    the last one. Of the `rows`, a public count under privacy, `null_rows` counted as null. `class_shares` is None under
    privacy and for a target without classes. `seconds` is CPU time.
    """

    window: str
    base_digest: str
    adapter_digest: str
    rows: int
    null_rows: int
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
    layer_norms: Mapping[str, tuple[float, ...]]
    update_cosine: float | None
    findings: tuple[Mapping[str, Any], ...]
    class_shares: Mapping[str, float] | None
    precision: str
    rung: str | None
    rungs_down: int
    skipped_steps: int
    attempts: int
    lost_steps: int

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)
