"""Every combination of choices that is refused, in one table: what was found, why it cannot hold, and the cure.

It knows the settings by name and whether privacy is on; no tensor, no module, no journal. Whoever learns of a choice that
no setting holds (a seed, a loss that couples records) asks with it as a named fact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from models.config import TrainingConfig


class TrainingRefused(ValueError):
    """The update cannot be run as asked; nothing was learnt. The message names the setting to change."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """With privacy on, `choice` is refused when `bad(value)`."""

    choice: str
    bad: Callable[[Any], bool]
    why: str
    cure: str


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value in values


def _over(limit: float) -> Callable[[Any], bool]:
    return lambda value: value is not None and value > limit


NOTHING = "a private update takes plain SGD steps on batches drawn by [privacy] sampling_rate, so this would change nothing"

REFUSALS = (
    Refusal("precision", _is("fp16"), "gradients would be clipped at their scaled size, and a step skipped on overflow tells "
            "of a record (Opacus' update came out 4 times too large)", "use \"auto\", \"bf16\" or \"fp32\""),
    Refusal("precision_by_hooks", _is("bf16"), "a layer of this adapter is only known to Opacus' hooks, which are not built "
            "for bfloat16", "set [training] precision to \"auto\" or \"fp32\""),
    Refusal("optimizer", _is("adamw8bit"), NOTHING, "use \"adamw\", which privacy replaces by SGD"),
    Refusal("warmup_steps", _over(0), NOTHING, "set it to 0"),
    Refusal("gradient_accumulation_steps", _over(1), NOTHING, "set it to 1"),
    Refusal("checkpointing_by_hooks", _is(True), "a layer of this adapter is only known to Opacus' hooks, which do not see the "
            "gradients of a block that is computed a second time", "set [training] gradient_checkpointing to false"),
    Refusal("seed", lambda value: value is not None, "repeatable noise protects nobody", "remove it"),
    Refusal("loss", _is("coupled"), "one record would change the gradients of all others in its batch, so no clip bounds its "
            "influence (measured: 1.18 times the bound)", "use a loss whose value for a record depends on that record "
            "alone; train contrastive losses on public history"),
    Refusal("replay_rows", _over(0), "a record that is trained on again is charged again, and its budget is for one update",
            "set it to 0"),
    Refusal("tensor_parallel", _over(1), "each process sees a part of a gradient's norm (0.73 of it, measured) and clips too "
            "little", "set it to 1 and spread examples instead"),
    Refusal("pipeline_parallel", _over(1), "each process sees a part of a gradient's norm and clips too little",
            "set it to 1 and spread examples instead"),
    Refusal("gradient_compression", _is("int8"), "gradients would be rounded before the noise, which changes what the clip "
            "bounds", "use \"none\", or round after the noise"),
    Refusal("early_stop_patience", _over(0), "the step at which training stops would tell of the private records",
            "set it to 0; the number of steps is chosen before a record is read"),
    Refusal("tuned_on", _is("window"), "each trial is a query on the window that nobody paid for",
            "use \"public\": choose clip, rates and features on declared history"),
    Refusal("sort_across_batches", _is(True), "a record's batch would depend on the other records, and the accountant assumes "
            "that each is drawn alone", "set it to false; sort inside one batch"),
)  # fmt: skip


def refused(config: TrainingConfig, privacy_on: bool, **facts: Any) -> str | None:
    """Why these choices cannot hold together, or None. `facts`: choices no setting holds, by the names of the table.

    Only privacy refuses anything so far. Raises ValueError for a fact the table does not know: it would guard nothing.
    """
    if unknown := sorted(set(facts) - {row.choice for row in REFUSALS}):
        raise ValueError(f"facts {', '.join(unknown)} are in no row of compat.REFUSALS: add a row, or correct the name")
    if not privacy_on:
        return None
    settings = asdict(config)
    choices = settings | facts
    for row in REFUSALS:
        value = choices.get(row.choice)
        if row.bad(value):
            place = f"[training] {row.choice} =" if row.choice in settings else row.choice
            return f"{place} {_spelt(value)} given with privacy on: {row.why}; {row.cure}"
    return None


def _spelt(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def refuse(config: TrainingConfig, privacy_on: bool, **facts: Any) -> None:
    """Raise TrainingRefused with the sentence of `refused`."""
    if sentence := refused(config, privacy_on, **facts):
        raise TrainingRefused(sentence)
