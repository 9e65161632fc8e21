"""The knobs of learning, as small frozen values with the defaults of `headgate.toml`.

Knows no torch and no file: `pipelines/settings.py` reads the TOML and hands these over, so that a settings dump, the
CLI and the ledger never pay for a tensor library. What the knobs do is told where they are used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Which layers get which adapter: low-rank, a trained copy, a bottleneck behind them, a prompt before their sequence.

    Names are suffixes of module names, as in PEFT.
    """

    r: int = 16
    lora_alpha: float = 32
    target_modules: tuple[str, ...] = ("fc1", "fc2")
    modules_to_save: tuple[str, ...] = ("head",)
    bottleneck_modules: tuple[str, ...] = ()
    bottleneck_size: int = 16
    prompt_modules: tuple[str, ...] = ()
    prompt_length: int = 8

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"adapter rank {self.r} < 1: set [adapter] r to at least 1")
        if not 0 < self.lora_alpha < float("inf"):
            raise ValueError(f"lora_alpha {self.lora_alpha} is not a number > 0: the adapter would change nothing, or all")
        for name in ("bottleneck_size", "prompt_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"[adapter] {name} = {getattr(self, name)} < 1: set it to at least 1")
        if not (self.target_modules or self.modules_to_save or self._ours()):
            raise ValueError("target_modules, modules_to_save, bottleneck_modules and prompt_modules are all empty: nothing "
                             "would be trained; name one")

    @property
    def scale(self) -> float:
        """lora_alpha / r: what B @ A is multiplied with (Hu et al. 2021, §4.1)."""
        return self.lora_alpha / self.r

    def _ours(self) -> dict[str, Any]:
        """What PEFT has no word for, where it is used."""
        used: dict[str, Any] = {}
        if self.bottleneck_modules:
            used |= {"bottleneck_modules": list(self.bottleneck_modules), "bottleneck_size": self.bottleneck_size}
        if self.prompt_modules:
            used |= {"prompt_modules": list(self.prompt_modules), "prompt_length": self.prompt_length}
        return used

    def listed(self) -> dict[str, Any]:
        """The settings as a manifest lists them; kinds that are not used are left out. `of` reads them back."""
        return {
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "target_modules": list(self.target_modules),
            "modules_to_save": list(self.modules_to_save),
        } | self._ours()

    @classmethod
    def of(cls, listed: Mapping[str, Any]) -> AdapterConfig:
        """The settings of a manifest. Raises KeyError for one that is missing, TypeError for one that is unknown."""
        read: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in listed.items()}
        return cls(**{key: read[key] for key in ("r", "lora_alpha", "target_modules", "modules_to_save")} | read)

    def as_peft(self, base_digest: str) -> dict[str, Any]:
        """Content of `adapter_config.json` as PEFT reads it; the base is named by digest, never by a place to fetch
        from. A bottleneck or prompt gives a type that PEFT refuses: it would load the rest and leave them out.
        """
        return {
            "peft_type": "HEADGATE" if self._ours() else "LORA",
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
        } | self._ours()


_WINDOW = r"(\d{4}-\d\d-\d\dT\d\d:\d\dZ)"
REGIME = re.compile(rf"([a-z0-9][a-z0-9_-]{{0,63}}) {_WINDOW} {_WINDOW}")
REGIME_FORM = "summer 2026-06-01T00:00Z 2026-06-28T00:00Z"

PLAIN_RATE = 2e-3  # AdamW's steps do not depend on the size of gradients
NOISE_IN_WEIGHTS = 0.01  # deviation; better than the base on all streams tried, .02 only from 1,344 examples an update on
DECAYS = 20  # a private rate falls to a twentieth at least, as the one without privacy does with its floor
LARGEST_PRIVATE_RATE = 0.05  # from .1 on clipped gradients turn large updates away
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
OPTIMIZERS = ("adamw", "adamw8bit")


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Without privacy everything counts. With it the rate does, epochs and batch size do not, and `models/compat.py`
    refuses the rest. `learning_rate` "auto" is 2e-3 without privacy, and with it what its noise allows (see `rate`).

    `batch_size` examples are one micro-batch, `gradient_accumulation_steps` of them one step. `checkpoint_modules` says where
    memory is saved by computing twice: always with `gradient_checkpointing`, else when memory runs out.
    """

    max_epochs: int = 4
    batch_size: int = 16
    learning_rate: float | Literal["auto"] = "auto"
    lr_decay: float = 0.95
    min_learning_rate: float = 1e-4
    warmup_steps: int = 0
    gradient_accumulation_steps: int = 1
    precision: str = "auto"
    optimizer: str = "adamw"
    gradient_checkpointing: bool = False
    checkpoint_modules: tuple[str, ...] = ()
    sort_by_length: bool = False
    early_stop_patience: int = 0

    def __post_init__(self) -> None:
        for name in ("max_epochs", "batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"[training] {name} = {getattr(self, name)} < 1: set it to at least 1")
        for name in ("warmup_steps", "early_stop_patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"[training] {name} = {getattr(self, name)} < 0: set it to at least 0")
        given = () if self.learning_rate == "auto" else ("learning_rate",)
        for name in (*given, "min_learning_rate", "lr_decay"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"[training] {name} = {getattr(self, name)} is not a number of at least 0")
        if self.lr_decay > 1.0:
            raise ValueError(f"[training] lr_decay = {self.lr_decay} > 1: every update would take larger steps; give at most 1")
        for name, known in (("precision", PRECISIONS), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"[training] {name} = {getattr(self, name)!r} is none of {', '.join(known)}; use one")

    def rate(self, update_number: int, noise: float | None = None) -> float:
        """Learning rate of the given update (0 = first): decayed once per update, never below the floor.

        noise: with privacy on, the deviation of what a whole update at rate 1 adds to each weight. "auto" keeps it at
        `NOISE_IN_WEIGHTS`, whatever the number of examples, and never lets it stop at a floor near to it: noise adds up over
        updates. A rate that already lies under `min_learning_rate` is taken as it is.
        """
        if self.learning_rate == "auto" and noise is not None:
            start = min(LARGEST_PRIVATE_RATE, NOISE_IN_WEIGHTS / noise)
            floor = min(self.min_learning_rate, start / DECAYS)
        else:
            start = PLAIN_RATE if self.learning_rate == "auto" else self.learning_rate
            floor = min(self.min_learning_rate, start)
        return max(floor, start * self.lr_decay**update_number)


@dataclass(frozen=True, slots=True)
class GuardConfig:
    """Limits of the training guard (`models/guard.py`).

    `max_update_norm` is in units of the median of earlier updates; `max_update_turn` in deviations of the cosine that earlier
    updates had with what was learnt before them.
    """

    max_gradient_norm: float = 10.0
    max_loss_change: float = 0.5
    max_update_norm: float = 5.0
    max_update_turn: float = 6.0

    def __post_init__(self) -> None:
        for name in ("max_gradient_norm", "max_loss_change", "max_update_norm", "max_update_turn"):
            if not getattr(self, name) > 0:
                raise ValueError(f"[guard] {name} = {getattr(self, name)} is not > 0: every update would be stopped")


@dataclass(frozen=True, slots=True)
class PoisoningConfig:
    """What a record and a window may look like (`models/poisoning.py`).

    `range_margin` is in widths of the range public history has, `max_loss_shift` and `max_class_shift` in deviations from the
    usual, `min_label_fit` in units of the usual, `max_value_ratio` in units of the most that earlier windows had. `quarantine`
    false: a window beyond a limit raises its alarm and is learnt from all the same.
    """

    quarantine: bool = True
    range_margin: float = 2.0
    max_null_share: float = 0.05
    max_loss_shift: float = 5.0
    min_label_fit: float = 0.75
    max_class_shift: float = 12.0
    max_value_ratio: float = 4.0
    max_subject_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("range_margin", "max_null_share", "min_label_fit"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"[poisoning] {name} = {getattr(self, name)} is not a number of at least 0")
        for name in ("max_loss_shift", "max_class_shift", "max_value_ratio", "max_subject_share"):
            if not getattr(self, name) > 0:
                raise ValueError(f"[poisoning] {name} = {getattr(self, name)} is not > 0: every window would be held back")


@dataclass(frozen=True, slots=True)
class RetentionConfig:
    """Accuracy to be kept on golden data, and the regimes for which that is enforced rather than reported.

    `golden_share` of the events that are joined from now on are golden: never trained on. `regimes` were born in
    production: "name first-window last-window" each, and the golden events of these windows are its golden set.
    """

    floor: float = 0.995
    protected: tuple[str, ...] = ()
    golden_share: float = 0.0
    regimes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 < self.floor < 1.0:
            raise ValueError(f"[retention] floor = {self.floor} is not between 0 and 1: no finite golden set shows 1")
        if not 0.0 <= self.golden_share <= 0.5:
            raise ValueError(f"[retention] golden_share = {self.golden_share} is not in [0, 0.5]: 0.02 keeps 2 % from training")
        self.born()

    def born(self) -> dict[str, tuple[str, str]]:
        """{regime: its first and last window}. Raises ValueError for another form, or a name that is given twice."""
        found: dict[str, tuple[str, str]] = {}
        for text in self.regimes:
            parts = REGIME.fullmatch(text)
            if parts is None:
                raise ValueError(f'[retention] regimes: {text!r} is not like "{REGIME_FORM}" (first and last window)')
            if parts[1] in found or parts[2] > parts[3]:
                raise ValueError(f"[retention] regimes: {text!r} repeats a name, or ends before it begins")
            found[parts[1]] = parts[2], parts[3]
        return found


@dataclass(frozen=True, slots=True)
class UpdateConfig:
    """Everything one update needs; `update_number` counts the updates of this lineage from 0 (for `lr_decay`)."""

    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    update_number: int = 0
