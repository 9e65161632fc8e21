"""What a user supplies: a Task, found by name.

A Task is a structural protocol, so a plug-in imports nothing of ours. This file says what the members are and refuses,
with the cure, a name that leads to something else. It does not run a Task: shapes and values are checked where they
are used.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

if TYPE_CHECKING:  # commands that only look read this file too
    import numpy as np

    from models.release_policy import RolloutPolicy

Columns = Mapping[str, "np.ndarray"]
"""{name: array of shape (n,) or (n, k)}; every array has the same n."""

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@runtime_checkable
class Task(Protocol):
    """One learning problem on one pair of topics. Tensors are torch's, columns are numpy's."""

    name: str
    subject: str | None
    event: Any
    label: Any
    label_horizon: timedelta
    label_seen: str
    negative_if_absent: bool
    label_derived: tuple[str, ...]

    def build(self) -> Any:
        """The frozen base: a fresh torch.nn.Module, called with what `encode` gives."""

    def encode(self, columns: Columns) -> np.ndarray | tuple[np.ndarray, ...]:
        """Model inputs, row i from row i alone; no torch, no state."""

    def target(self, columns: Columns) -> np.ndarray:
        """The truth, (n,) or (n, k)."""

    def loss(self, output: Any, target: Any) -> Any:
        """Training loss, tensors in, tensor (n,) out: one value for each example (privacy needs it)."""

    def gate_loss(self, output: Any, target: Any) -> Any:
        """Bounded loss, tensors in, tensor (n,) out: what the release gate compares."""

    def score(self, output: np.ndarray, target: np.ndarray) -> Mapping[str, float]:
        """Figures for display."""

    def answer(self, output: np.ndarray) -> np.ndarray:
        """What a client receives, (n,): a probability, a class, a number."""


METHODS = ("build", "encode", "target", "loss", "gate_loss", "score", "answer")
JUDGED = ("outcome", "slices")  # what a release may be judged by besides the losses; both may be left out
REQUIRED = ("name", "event", "label", "label_horizon", *METHODS)
# What else a task may have (history, golden, public_inputs, ...) is in docs/task.md, and tried by `headgate check`.
OPTIONAL: dict[str, Any] = {"subject": None, "label_seen": "always", "negative_if_absent": False, "label_derived": ()}


class TaskError(ValueError):
    """The configured task cannot be used; the message names the task, what is wrong and the cure."""


LEAST_EXPLORED = 0.01  # of the units, where a label is seen only of what was allowed: fewer, and nothing is ever learnt of it


def has_outcome(task: Any) -> bool:
    """Whether the task says what came of an answer."""
    return getattr(task, "outcome", None) is not None


def outcomes(task: Any, columns: Columns, answers: np.ndarray) -> np.ndarray:
    """What came of answering `answers` (n,) to these mature examples, float64 (n,) in [0, 1], more is worse.

    Raises TaskError for another shape or a value outside."""
    import numpy as np

    found = np.asarray(task.outcome(columns, answers), dtype=np.float64)
    if found.shape != answers.shape:
        raise TaskError(f"task {task.name}: outcome gave shape {found.shape} for {len(answers)} rows; one value each")
    wrong = np.flatnonzero(~((found >= 0.0) & (found <= 1.0)))
    if len(wrong):
        raise TaskError(
            f"task {task.name}: outcome of row {wrong[0]} is {found[wrong[0]]}, outside [0, 1]: divide the cost by its largest "
            "value and clip it"
        )
    return found


def slices(task: Any, columns: Columns) -> dict[str, np.ndarray]:
    """The rows of each slice the task knows, {name: bool (n,)}; {} without the member. Raises TaskError."""
    import numpy as np

    rows = len(next(iter(columns.values())))
    found = {}
    for name, marked in dict(task.slices(columns) if getattr(task, "slices", None) else {}).items():
        found[name] = np.asarray(marked)
        if found[name].shape != (rows,) or found[name].dtype != np.bool_:
            raise TaskError(
                f"task {task.name}: slice {name!r} is {found[name].dtype} {found[name].shape} for {rows} rows; bool, one each"
            )
    return found


def misfits(task: Any, policy: RolloutPolicy, columns: Columns) -> list[str]:
    """Why versions of this task cannot be released under this policy, each with its cure; `columns` may have no rows."""
    found = []
    if policy.evidence == "outcome" and not has_outcome(task):
        found.append(
            f'[rollout] evidence = "outcome" (strategy "{policy.strategy}") and task {task.name} has no outcome(columns, '
            'answers): write one (docs/task.md), or set evidence = "paired" with another strategy'
        )
    known = slices(task, columns) if policy.protected_slices else {}
    if unknown := [name for name in policy.protected_slices if name not in known]:
        there = ", ".join(known) or "none"
        found.append(
            f"[rollout] protected_slices names {unknown[0]!r}; slices(columns) of task {task.name} has: {there}. Correct the "
            "name, or add the slice"
        )
    if task.label_seen == "if_allowed" and policy.weights:
        cure = f'set evidence = "outcome" and a first step of {LEAST_EXPLORED * 100:g} or more'
        if policy.evidence == "paired":
            found.append(
                f'task {task.name} has label_seen = "if_allowed": what was refused has no label, so a comparison on labels '
                f"says nothing of a version that refuses other things: {cure}"
            )
        elif policy.weights[0] < LEAST_EXPLORED:
            found.append(f"[rollout] the first step is {policy.weights[0]:.2%} of the units: {cure}")
    return found


def load_task(spec: str) -> Task:
    """Import and make the Task named `package.module:Class`; optional members it leaves out get their defaults.

    Raises TaskError: malformed name, module not found, class missing, members missing or of the wrong kind.
    """
    module_name, colon, class_name = spec.partition(":")
    if not colon or not module_name or not class_name.isidentifier():
        raise TaskError(f"task {spec!r} is not of the form 'package.module:Class', e.g. 'acme.fraud:Fraud'")
    made = getattr(_module(spec, module_name), class_name, None)
    if made is None:
        there = ", ".join(_classes(module_name)) or "none"
        raise TaskError(f"task {spec!r}: module {module_name!r} has no class {class_name!r}; its classes: {there}")
    try:
        task = made() if isinstance(made, type) else made
    except Exception as error:
        raise TaskError(f"task {spec!r}: {class_name}() failed with {type(error).__name__}: {error}") from error
    return check(task, spec)


def check(task: Any, spec: str) -> Task:
    """The same object with defaults filled in, or TaskError listing every fault at once."""
    missing = [name for name in REQUIRED if not hasattr(task, name)]
    if missing:
        raise TaskError(f"task {spec!r} lacks {', '.join(missing)}; a Task has {', '.join(REQUIRED)}")
    for name, default in OPTIONAL.items():
        if not hasattr(task, name):
            setattr(task, name, default)
    faults = _faults(task)
    if faults:
        raise TaskError(f"task {spec!r}: " + "; ".join(faults))
    return cast(Task, task)


def _module(spec: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # `error.name` is the part that is absent: ours (or a parent of it), or something the user's module imports.
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise TaskError(
                f"task {spec!r}: no module {error.name!r} on the import path; start from the folder that holds it, "
                f"or install its package (pip install -e .)"
            ) from error
        raise TaskError(f"task {spec!r}: importing {name!r} needs module {error.name!r}; install it") from error
    except Exception as error:
        raise TaskError(f"task {spec!r}: importing {name!r} failed with {type(error).__name__}: {error}") from error


def _classes(module_name: str) -> list[str]:
    found = vars(importlib.import_module(module_name))
    return sorted(k for k, v in found.items() if isinstance(v, type) and v.__module__ == module_name)


def _faults(task: Any) -> list[str]:
    faults = [f"{name} is not a method" for name in METHODS if not callable(getattr(task, name))]
    faults += [f"{name} is not a method" for name in JUDGED if not callable(getattr(task, name, check))]
    if not isinstance(task.name, str) or not NAME.fullmatch(task.name):
        faults.append(f"name {task.name!r} must match {NAME.pattern} (it becomes part of paths and journal streams)")
    if not isinstance(task.label_horizon, timedelta) or task.label_horizon < timedelta(0):
        faults.append(f"label_horizon {task.label_horizon!r} must be a timedelta of at least 0")
    if task.label_seen not in ("always", "if_allowed"):
        faults.append(f"label_seen {task.label_seen!r} must be 'always' or 'if_allowed'")
    if task.label_seen == "if_allowed" and task.negative_if_absent:
        faults.append(
            "negative_if_absent with label_seen = 'if_allowed': what was refused has no label either and is no negative; set "
            "it to False, and send a label for each event that was allowed"
        )
    for side in ("event", "label"):
        names = getattr(getattr(task, side), "names", None)
        if names is None:
            faults.append(f"{side} must be a pyarrow schema")
        elif "event_id" not in names:
            faults.append(f"{side} has no field 'event_id' (fields: {', '.join(names)})")
    events = getattr(task.event, "names", [])
    unknown = [name for name in (*task.label_derived, *filter(None, [task.subject])) if name not in events]
    if unknown:
        faults.append(f"subject or label_derived names {', '.join(unknown)}, not a field of event")
    return faults if faults else _range_faults(task)


def _range_faults(task: Any) -> list[str]:
    """What is wrong with the `ranges` a task declares; its schemas are sound."""
    declared = getattr(task, "ranges", {})
    if not isinstance(declared, Mapping):
        return [f"ranges {declared!r} must be {{field: (lowest, highest)}}"]
    types = {field.name: field.type for side in (task.event, task.label) for field in side}
    faults = []
    for name, pair in declared.items():
        if name not in types or not _numeric(types[name]):
            what = f"a field of {types[name]}" if name in types else "no field of event or label"
            faults.append(f"ranges names {name!r}, {what}: name a field of numbers, or leave it out")
        elif not _is_range(pair):
            faults.append(f"ranges[{name!r}] = {pair!r} must be two finite numbers, (lowest, highest), the first the smaller")
    return faults


def _numeric(kind: Any) -> bool:
    """Whether a field of this type, or what its lists hold, is a number."""
    from pyarrow import types

    held = kind.value_type if types.is_fixed_size_list(kind) else kind
    return bool(types.is_integer(held) or types.is_floating(held) or types.is_boolean(held))


def _is_range(pair: Any) -> bool:
    try:
        low, high = (float(value) for value in pair)
    except (TypeError, ValueError):
        return False
    return math.isfinite(low) and math.isfinite(high) and low < high
