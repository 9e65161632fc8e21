"""The rules of a task's own methods and data: what must hold for its rows, losses and answers to mean what they should.

Each looks at few rows and takes milliseconds. It knows no adapter and no stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from models import compute
from models.config import PoisoningConfig
from models.conformance import FEW, Broken, Case, Rule, arrays, first_difference
from models.golden import golden_sets
from models.poisoning import SPARE, outside, public_ranges, widened
from models.retention import correct, size_told
from models.task import Columns, has_outcome, misfits, outcomes, slices

EXTREMES = (1e6, 1e9)  # an output times this: a bounded loss is as large at both
PUBLIC = 16
JUDGED_ROWS = 256  # on which outcomes are tried, each with each answer
ANSWERS = (0.0, 0.25, 0.5, 0.95, 1.0)  # besides the base's own


def history(case: Case) -> str:
    """The base, the clip and the drift reference come from declared-public history."""
    if getattr(case.task, "history", None) is None:
        raise Broken(
            "there is none: add history(), which returns {column: array} of declared-public events with their labels; "
            "`headgate base train` needs it"
        )
    return f"{_complete(case, case.history, 'history()'):,} rows"


def golden(case: Case) -> str:
    """Golden sets are rows with labels whose answers are right or wrong, and enough of them for a floor that is enforced."""
    sets, settings = golden_sets(case.task), case.retention
    unknown = sorted(set(settings.protected) - set(sets) - set(settings.born()))
    if unknown:
        there = ", ".join([*sets, *settings.born()]) or "none"
        raise Broken(f"[retention] protected names {unknown[0]!r}, regimes are: {there}; every update would be refused")
    sizes, module = dict[str, int](), case.module()
    for name, columns in sets.items():
        sizes[name] = _complete(case, columns, f"golden set {name!r}")
        some = {key: column[:FEW] for key, column in columns.items()}
        output = compute.outputs(module, compute.inputs(case.task, some)).numpy()
        correct(np.asarray(case.task.answer(output)), np.asarray(case.task.target(some)))
    sizes |= {name: case.measured.get(name, {}).get("rows") or 0 for name in settings.born()}
    told = []
    for name, rows in sizes.items():
        if not rows:
            told.append(f"regime {name!r} has not been measured yet")
            continue
        enough, sentence = size_told(name, rows, settings.floor, case.measured.get(name))
        if not enough and name in settings.protected:
            raise Broken(f"{sentence}; every update would be refused: add rows, or lower [retention] floor")
        told.append(sentence)
    return "; ".join(told) or "there is none: retention is not measured"


def public_inputs(case: Case) -> str:
    """Public inputs show how far a version's mark is felt."""
    made = getattr(case.task, "public_inputs", None)
    if made is None:
        return "there are none: how far the mark of a version is felt will not be measured"
    columns = made(PUBLIC)
    _complete(case, columns, f"public_inputs({PUBLIC})", labels=False)
    return f"{compute.row_count(columns)} rows"


def watched(case: Case) -> str:
    """`monitored` and `event_time` name fields of the event."""
    named = [*(getattr(case.task, "monitored", None) or ()), *filter(None, [getattr(case.task, "event_time", None)])]
    if unknown := [name for name in named if name not in case.task.event.names]:
        raise Broken(f"monitored or event_time names {unknown[0]!r}, no field of event: correct the name")
    return f"{len(named)} named" if named else "all plain fields"


def in_range(case: Case) -> str:
    """Fields stay where history has them: one that grows with time makes every record of later windows count as null."""
    user: Any = case.task
    limits, columns = PoisoningConfig(), dict(case.history)
    own = {"event_id", user.subject, getattr(user, "event_time", None), *getattr(user, "ranges", {})}
    rows = compute.row_count(columns)
    cut = rows - rows // 10
    before, last = ({name: np.asarray(c)[part] for name, c in columns.items()} for part in (slice(cut), slice(cut, None)))
    taken = public_ranges(before, [name for name in user.event.names if name not in own])
    most = limits.max_null_share * (rows - cut) + SPARE  # as for a window
    grown = [name for name, beyond in outside(last, taken).items() if beyond.sum() > most]
    cure = "a field that grows with time: declare it in `ranges`, or leave it out"
    null = outside(last, widened(taken, limits.range_margin))
    if far := [name for name, beyond in null.items() if beyond.sum() > most]:
        raise Broken(
            f"{', '.join(far)}: {null[far[0]].mean():.0%} of the last tenth of history would count as null by the range of the "
            f"first nine, [poisoning] range_margin {limits.range_margin:g}: {cure}"
        )
    if grown:
        return f"{', '.join(grown)}: the last tenth of history lies beyond the first nine, within range_margin; if it is {cure}"
    return f"{len(taken)} fields stay where history has them"


def label_derived(case: Case) -> str:
    """Columns made of other records' labels carry them past the accounting."""
    derived = case.task.label_derived
    if derived and case.private and not case.derived_public:
        raise Broken(
            f"{len(derived)} columns are made of other records' labels ({', '.join(derived[:3])}): leave them out, or set "
            "[privacy] label_derived_public = true if they are public (docs/label-derived.md)"
        )
    return f"{len(derived)} columns, declared public" if derived and case.private else "none that matters"


def encode_repeats(case: Case) -> str:
    """The same rows are the same inputs, and stay as they were."""
    columns = case.rows(slice(None))
    before = {name: column.copy() for name, column in columns.items()}
    one, two = (arrays(case.task.encode(columns)) for _ in range(2))
    for name, column in columns.items():
        if column.dtype != object and not np.array_equal(column, before[name], equal_nan=column.dtype.kind == "f"):
            raise Broken(f"encode wrote into column {name!r}: work on a copy")
    if (row := first_difference(one, two)) is not None:
        raise Broken(f"encode gave other inputs for row {row} the second time: no random draw, no state, no clock")
    return " and ".join(f"{part.dtype} {part.shape}" for part in one)


def encode_row_wise(case: Case) -> str:
    """Row i from row i alone: what else is in the batch, and in which order, changes nothing."""
    whole = arrays(case.task.encode(case.rows(slice(None))))
    order = np.arange(compute.row_count(case.columns))[::-1]
    turned = arrays(case.task.encode(case.rows(order)))
    if (row := first_difference(tuple(part[order] for part in whole), turned)) is not None:
        raise Broken(f"row {order[row]} is encoded differently in another order: {_ALONE}")
    for row in range(FEW):
        alone = arrays(case.task.encode(case.rows([row])))
        if first_difference(tuple(part[row : row + 1] for part in whole), alone) is not None:
            raise Broken(f"row {row} alone is encoded differently than among {len(order)}: {_ALONE}")
    return f"{len(order)} rows turned round, {FEW} of them alone"


_ALONE = "take means, ranks and vocabularies from history once, not from the rows at hand"


def encode_event_only(case: Case) -> str:
    """A request has the event's columns only; and what else is beside them changes nothing."""
    whole, names = case.few(), case.task.event.names
    known = arrays(case.task.encode(whole))
    bare = arrays(case.task.encode({name: column for name, column in case.few().items() if name in names}))
    more = arrays(case.task.encode({**case.few(), "_unknown": np.arange(len(known[0]), dtype=float)}))
    for other, what in ((bare, "without the label columns"), (more, "beside an unknown column")):
        if (row := first_difference(known, other)) is not None:
            raise Broken(f"row {row} is encoded differently {what}: read the fields of `event` by name, and no label")
    return "labels and unknown fields change nothing"


def no_rows(case: Case) -> str:
    """A window can be empty."""
    nothing = case.rows(slice(0))
    parts, truth = compute.inputs(case.task, nothing), compute.targets(case.task, nothing)
    output = compute.outputs(case.module(), parts)
    if len(output) or len(truth):
        raise Broken(f"0 rows gave {len(output)} outputs and {len(truth)} targets: give as many as there are rows")
    return "0 rows in, 0 rows out"


def absent_labels(case: Case) -> str:
    """With `negative_if_absent`, `target` gives the negative for an event without label: `_label_absent`, its columns null."""
    if not case.task.negative_if_absent:
        return "not used: negative_if_absent is False"
    columns = case.few()
    for name in case.task.label.names:
        if name != "event_id":
            number = columns[name].dtype.kind in "biuf"
            columns[name] = np.full(FEW, np.nan) if number else np.full(FEW, None, dtype=object)
    truth = np.asarray(case.task.target(columns | {"_label_absent": np.ones(FEW, dtype=bool)}))
    if len(truth) != FEW or not np.isfinite(truth.astype(float)).all():
        raise Broken(f"target of events without label is {truth[:3]}: give the negative where columns['_label_absent']")
    return f"an event without label is {truth[0]}"


def shapes(case: Case) -> str:
    """One input, target, output and answer for each row; figures by name."""
    columns, rows = case.few(), FEW
    parts, truth = compute.inputs(case.task, columns), compute.targets(case.task, columns)
    output: Any = case.module()(*parts)
    if not isinstance(output, torch.Tensor) or output.shape[:1] != (rows,):
        raise Broken(f"the module answered with {_shape(output)} for {rows} rows: return one tensor, a row each")
    answer = np.asarray(case.task.answer(output.numpy()))
    if answer.shape != (rows,):
        raise Broken(f"answer gave shape {answer.shape} for {rows} rows: one value each")
    figures: Any = case.task.score(output.numpy(), truth.numpy())
    if not isinstance(figures, Mapping) or not all(isinstance(value, int | float) for value in figures.values()):
        raise Broken(f"score gave {figures!r:.60}: return {{name: number}}")
    return f"output {tuple(output.shape)}, target {tuple(truth.shape)}, score {', '.join(figures) or 'none'}"


def loss(case: Case) -> str:
    """One value for each example, of that example alone: without it no privacy holds."""
    losses = _losses(case, "loss")
    parts, truth = compute.inputs(case.task, case.few()), compute.targets(case.task, case.few())
    if compute.couples_records(case.task, case.module(), parts, truth):
        raise Broken("the loss of an example depends on those beside it: no mean over the batch, no in-batch negatives")
    return f"{losses.mean():.4g} on average"


def gate_loss(case: Case) -> str:
    """Finite and bounded, however wrong an output is: one record must not decide a release."""
    _losses(case, "gate_loss")
    output, truth = _output(case), compute.targets(case.task, case.few())
    largest = []
    for scale in EXTREMES:
        both = torch.cat([case.task.gate_loss(sign * scale * output, truth) for sign in (1, -1)])
        if not torch.isfinite(both).all():
            raise Broken(f"gate_loss is {both[~torch.isfinite(both)][0].item()} for {scale:g} times an output: clip it")
        largest.append(float(both.abs().max()))
    if largest[1] > 2 * largest[0] + 1e-6:
        raise Broken(f"gate_loss grows with the output, {largest[0]:.3g} and then {largest[1]:.3g}: clip it")
    return f"at most {largest[1]:.4g}"


def outcome(case: Case) -> str:
    """What came of an answer: a cost in [0, 1] for each row of mature examples, also where a request had no label."""
    if not has_outcome(case.task):
        return "there is none: a release is judged by losses alone"
    own = np.asarray(case.task.answer(_output(case).numpy()), dtype=np.float64)
    count = len(next(iter(case.columns.values())))
    columns = case.rows(np.unique(np.linspace(0, count - 1, min(count, JUDGED_ROWS)).astype(int)))
    rows = len(next(iter(columns.values())))
    pool = np.unique([*own, *ANSWERS])
    mixed = np.random.default_rng(0).choice(pool, rows)
    seen = [_outcome(case.task, columns, answers) for answers in (mixed, *(np.full(rows, value) for value in pool))]
    low, high = min(found.min() for found in seen), max(found.max() for found in seen)
    if low == high:
        return f"{low:.4g} for every row and answer that was tried: it never varies, so no version can be better by it"
    return f"{low:.4g} to {high:.4g}, {np.mean(seen):.4g} on average, over {len(seen)} answers to {rows} rows"


def _outcome(task: Any, columns: Columns, answers: np.ndarray) -> np.ndarray:
    found = outcomes(task, columns, answers)
    if not np.array_equal(found, outcomes(task, columns, answers)):
        raise Broken("outcome gave other values for the same rows: no random draw, no state, no clock")
    for row in range(0, len(answers), max(1, len(answers) // 16)):
        alone = outcomes(task, {name: column[[row]] for name, column in columns.items()}, answers[[row]])[0]
        if alone != found[row]:
            raise Broken(f"outcome of row {row} is {found[row]:.4g} among others and {alone:.4g} alone: row i from row i alone")
    return found


def slice_rows(case: Case) -> str:
    """Slices are rows of an event; protected ones have some."""
    found = slices(case.task, case.rows(slice(None)))
    if not found:
        return "there are none"
    return ", ".join(f"{name} {int(marked.sum())} of {len(marked)} rows" for name, marked in found.items())


def released_under(case: Case) -> str:
    """What the policy of releases asks of a task is there."""
    if faults := misfits(case.task, case.rollout, case.few()):
        raise Broken("; ".join(faults))
    return f'evidence "{case.rollout.evidence}", {len(case.rollout.protected_slices)} protected slices'


def _losses(case: Case, name: str) -> torch.Tensor:
    losses: Any = getattr(case.task, name)(_output(case), compute.targets(case.task, case.few()))
    if not isinstance(losses, torch.Tensor) or losses.shape != (FEW,):
        raise Broken(f"{name} gave {_shape(losses)} for {FEW} examples, wanted ({FEW},): reduction=\"none\", one value each")
    if not torch.isfinite(losses).all():
        row = int((~torch.isfinite(losses)).nonzero()[0])
        raise Broken(f"{name} of row {row} is not finite on {case.source}: mend the row or encode")
    return losses.detach()


def _output(case: Case) -> torch.Tensor:
    return compute.outputs(case.module(), compute.inputs(case.task, case.few()))


def _shape(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


def _complete(case: Case, columns: Any, what: str, *, labels: bool = True) -> int:
    """The number of rows. Raises Broken for missing columns or no rows, ValueError for unequal lengths."""
    wanted = [*case.task.event.names, *(case.task.label.names if labels else ())]
    if missing := [name for name in wanted if name not in columns]:
        raise Broken(f"{what} lacks {', '.join(dict.fromkeys(missing))}: return every field of event{' and label' * labels}")
    if not (rows := compute.row_count(columns)):
        raise Broken(f"{what} has 0 rows: give some thousand")
    return rows


RULES = (
    Rule("history", history),
    Rule("label-derived columns", label_derived),
    Rule("watched columns", watched),
    Rule("fields in range", in_range, ("history",)),
    Rule("encode repeats", encode_repeats),
    Rule("encode row-wise", encode_row_wise, ("encode repeats",)),
    Rule("encode reads events only", encode_event_only, ("encode repeats",)),
    Rule("shapes", shapes, ("encode repeats",)),
    Rule("no rows", no_rows, ("shapes",)),
    Rule("absent labels", absent_labels),
    Rule("loss of each example", loss, ("shapes",)),
    Rule("gate loss bounded", gate_loss, ("shapes",)),
    Rule("outcome", outcome, ("shapes",)),
    Rule("slices", slice_rows),
    Rule("release policy", released_under, ("slices",)),
    Rule("golden sets", golden, ("shapes",)),
    Rule("public inputs", public_inputs),
)
