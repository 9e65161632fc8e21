"""The knobs of learning, as small frozen values with the defaults of `headgate.toml`.

Knows no torch and no file: `pipelines/settings.py` reads the TOML and hands these over, so that a settings dump, the
CLI and the ledger never pay for a tensor library. What the knobs do is told where they are used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Which layers get a low-rank adapter and which are copied whole; names are suffixes, as in PEFT."""

    r: int = 16
    lora_alpha: float = 32
    target_modules: tuple[str, ...] = ("fc1", "fc2")
    modules_to_save: tuple[str, ...] = ("head",)

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"adapter rank {self.r} < 1: set [adapter] r to at least 1")
        if not self.lora_alpha > 0:
            raise ValueError(f"lora_alpha {self.lora_alpha} is not > 0: the adapter would change nothing")
        if not self.target_modules and not self.modules_to_save:
            raise ValueError("target_modules and modules_to_save are both empty: nothing would be trained; name one")

    @property
    def scale(self) -> float:
        """lora_alpha / r: what B @ A is multiplied with (Hu et al. 2021, §4.1)."""
        return self.lora_alpha / self.r

    def as_peft(self, base_digest: str) -> dict[str, Any]:
        """Content of `adapter_config.json` as PEFT reads it; the base is named by digest, never by a place to fetch
        from.
        """
        return {
            "peft_type": "LORA",
            "base_model_name_or_path": base_digest,
            "r": self.r,
            "lora_alpha": int(self.lora_alpha) if self.lora_alpha == int(self.lora_alpha) else self.lora_alpha,
            "target_modules": list(self.target_modules),
            "modules_to_save": list(self.modules_to_save) or None,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "use_rslora": False,
            "use_dora": False,
            "inference_mode": True,
            "task_type": None,
        }


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Epochs, batch size, warm-up and accumulation count without privacy only; the rate holds for both paths."""

    max_epochs: int = 4
    batch_size: int = 16
    learning_rate: float = 2e-3
    lr_decay: float = 0.95
    min_learning_rate: float = 1e-4
    warmup_steps: int = 0
    gradient_accumulation_steps: int = 1
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name in ("max_epochs", "batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"[training] {name} = {getattr(self, name)} < 1: set it to at least 1")
        for name in ("learning_rate", "min_learning_rate", "lr_decay"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"[training] {name} = {getattr(self, name)} is not a number of at least 0")
        if self.precision not in ("auto", "fp32"):
            raise ValueError(f"[training] precision = {self.precision!r}: only 'auto' and 'fp32' are built; use one")

    def rate(self, update_number: int) -> float:
        """Learning rate of the given update (0 = first): decayed once per update, never below the floor.

        A `learning_rate` that already lies under `min_learning_rate` is taken as it is.
        """
        floor = min(self.min_learning_rate, self.learning_rate)
        return max(floor, self.learning_rate * self.lr_decay**update_number)


@dataclass(frozen=True, slots=True)
class GuardConfig:
    """Limits of the training guard (`models/guard.py`)."""

    max_gradient_norm: float = 10.0
    max_loss_change: float = 0.5


@dataclass(frozen=True, slots=True)
class RetentionConfig:
    """Accuracy to be kept on golden data, and the regimes for which that is enforced rather than reported."""

    floor: float = 0.995
    protected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UpdateConfig:
    """Everything one update needs; `update_number` counts the updates of this lineage from 0 (for `lr_decay`)."""

    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    update_number: int = 0
