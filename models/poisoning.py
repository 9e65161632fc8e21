"""Do records look planted rather than observed? Pure decisions on figures: which records count as null, which window waits.

A record is judged by itself and by public ranges, so that its fate depends on no other record and the accounting of privacy
holds: with it in the batch or without, the others weigh the same. What needs the whole window can only hold back the whole
window. It reads no file, trains nothing and knows no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Any

import numpy as np

from models.config import PoisoningConfig
from models.guard import Finding
from models.task import Columns

Range = Sequence[float]
"""[lowest, highest] value of a column, over all its entries."""

RECENT, LEAST = 28, 8  # windows that one is compared with: at most, and from how many on
LEAST_RECORDS = 100  # a window with fewer is compared with none
SPARE = 4  # records by which a small window may pass a share
CLASSES = 50  # a target with more values is a number


@dataclass(frozen=True, slots=True)
class Figures:
    """What is looked at in one window. In the trust zone.

    records: of the window, `null` of them outside their range, most often by the column `worst`. The rest is of the others:
    `loss` and `fit` of the base (`models/label_fit.py`); `classes`: share of each; `values`: by column, share of the most
    frequent value; `subject`: share of the most frequent subject. None or {} where there is none.
    """

    records: int
    null: int
    worst: str | None
    loss: float | None
    fit: float | None
    classes: Mapping[str, float]
    values: Mapping[str, float]
    subject: float | None

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Figures:
        """The figures of a journalled body, which may say more."""
        return cls(**{field.name: body[field.name] for field in fields(cls)})


def public_ranges(columns: Columns, names: Iterable[str]) -> dict[str, list[float]]:
    """Range of each numeric column of public history that is named and has two finite values that differ.

    A column that is constant in history tells nothing of what else it may say.
    """
    found = {}
    for name in names:
        if name in columns and np.asarray(columns[name]).dtype.kind in "iuf":
            values = np.asarray(columns[name], np.float64)
            values = values[np.isfinite(values)]
            if values.size and values.min() < values.max():
                found[name] = [float(values.min()), float(values.max())]
    return found


def class_columns(columns: Columns, names: Iterable[str]) -> list[str]:
    """Those of the named columns that are numbers of classes: whole, and at most CLASSES of them in public history."""
    found = []
    for name in names:
        values = np.asarray(columns.get(name, ()))
        values = np.unique(values[np.isfinite(values)]) if values.dtype.kind in "iuf" else values[:0]
        if 0 < len(values) <= CLASSES and not np.any(values % 1):
            found.append(name)
    return found


def widened(ranges: Mapping[str, Range], margin: float, exact: Iterable[str] = ()) -> dict[str, tuple[float, float]]:
    """Each range with `margin` of its width added on both sides; as it is for those in `exact`: a class beyond those of
    history is one that the loss does not know."""
    added = {name: 0.0 if name in exact else margin * (high - low) for name, (low, high) in ranges.items()}
    return {name: (low - added[name], high + added[name]) for name, (low, high) in ranges.items()}


def outside(columns: Columns, ranges: Mapping[str, Range]) -> dict[str, np.ndarray]:
    """By column, which records lie outside its range, bool (n,). NaN is a missing value, infinity lies outside.

    What is no number (text, time stamps, lists of different length) has no range.
    """
    found: dict[str, np.ndarray] = {}
    for name, (low, high) in ranges.items():
        if name in columns and np.asarray(columns[name]).dtype.kind in "biuf":
            values = np.asarray(columns[name], np.float64)
            beyond = (values < low) | (values > high) | np.isinf(values)
            found[name] = np.asarray(beyond.any(axis=tuple(range(1, beyond.ndim))))
    return found


def null_records(columns: Columns, ranges: Mapping[str, Range]) -> np.ndarray:
    """Which records count as null, bool (n,): those with any value outside its range."""
    return any_of(outside(columns, ranges), len(next(iter(columns.values()))))


def any_of(beyond: Mapping[str, np.ndarray], records: int) -> np.ndarray:
    """Which records are outside by any column, of what `outside` says of so many."""
    null = np.zeros(records, bool)
    for one in beyond.values():
        null |= one
    return null


def class_shares(target: np.ndarray) -> dict[str, float]:
    """Share of each value of an (n,) target with at most CLASSES of them; {} for another."""
    if target.ndim != 1 or not len(target):
        return {}
    values, counts = np.unique(target, return_counts=True)
    if len(values) > CLASSES:
        return {}
    return {f"{value:g}": count / len(target) for value, count in zip(values.tolist(), counts.tolist(), strict=True)}


def value_shares(columns: Columns, names: Iterable[str]) -> dict[str, float]:
    """By numeric (n,) column of those named, the share of the records that have its most frequent finite value."""
    found = {}
    for name in names:
        column = np.asarray(columns.get(name, ()))
        if column.ndim == 1 and len(column) and column.dtype.kind in "iuf":
            finite = column[np.isfinite(column)]
            found[name] = float(np.unique(finite, return_counts=True)[1].max() / len(column)) if len(finite) else 0.0
    return found


def largest_share(values: np.ndarray) -> float:
    """Share of the most frequent of n > 0 values."""
    return max(Counter(values.tolist()).values()) / len(values)


def judge(now: Figures, earlier: Sequence[Figures], limits: PoisoningConfig, window: str) -> tuple[Finding, ...]:
    """What looks planted in a window; `earlier`: those before it, oldest first, that nobody held back.

    The first two need no comparison. The others are silent below LEAST_RECORDS records and LEAST earlier windows.
    """
    found = [_null(now, limits, window), _subject(now, limits, window)]
    recent = [one for one in earlier if one.records - one.null >= LEAST_RECORDS][-RECENT:]
    if len(recent) >= LEAST and now.records - now.null >= LEAST_RECORDS:
        found += [_labels(now, recent, limits, window), _classes(now, recent, limits, window),
                  _values(now, recent, limits, window)]
    return tuple(one for one in found if one is not None)


def _finding(figure: float, limit: float, said: str, window: str) -> Finding:
    return Finding("poisoning", figure, limit, f"{said} in window {window}: no update learns from it until somebody has "
                   f"looked and `headgate window admit {window} --reason ...`; see docs/alarms.md#poisoning")


def _null(now: Figures, limits: PoisoningConfig, window: str) -> Finding | None:
    if not now.null or (now.null <= limits.max_null_share * now.records + SPARE and now.null < now.records):
        return None  # a window with nothing else is told also when it is small
    share = now.null / now.records
    return _finding(share, limits.max_null_share, f"{now.null} of {now.records} records ({share:.1%}) lie outside the range of "
                    f"public history, most often in {now.worst!r}, beyond max_null_share {limits.max_null_share:g}", window)


def _subject(now: Figures, limits: PoisoningConfig, window: str) -> Finding | None:
    share, records = now.subject, now.records - now.null
    if share is None or records < LEAST_RECORDS or share <= limits.max_subject_share:
        return None
    return _finding(share, limits.max_subject_share, f"{share:.1%} of {records} records are of one subject, beyond "
                    f"max_subject_share {limits.max_subject_share:g}", window)


def _labels(now: Figures, recent: Sequence[Figures], limits: PoisoningConfig, window: str) -> Finding | None:
    """Labels that no longer go with what the base answers, at a loss that is no longer usual: both, for a hard day has a
    high loss, and its labels go with the answers all the more; a dull day has labels that hardly do, and a small loss.
    Deviations are 1.48 times the median absolute one, and at least 5 % of the usual loss."""
    losses = [one.loss for one in recent if one.loss is not None]
    fits = [one.fit for one in recent if one.fit is not None]
    if now.loss is None or now.fit is None or len(fits) < LEAST or median(fits) <= 0.0 or median(losses) <= 0.0:
        return None
    usual = median(losses)
    deviation = max(1.4826 * median(abs(one - usual) for one in losses), 0.05 * usual)
    shift, fit = (now.loss - usual) / deviation, now.fit / median(fits)
    if shift <= limits.max_loss_shift or fit >= limits.min_label_fit:
        return None
    return _finding(shift, limits.max_loss_shift, f"the base's loss {now.loss:.3g} lies {shift:.3g} deviations over the usual "
                    f"{usual:.3g}, beyond max_loss_shift {limits.max_loss_shift:g}, and labels go with its answers {fit:.2g} "
                    f"times as well as usual, under min_label_fit {limits.min_label_fit:g},", window)


def _classes(now: Figures, recent: Sequence[Figures], limits: PoisoningConfig, window: str) -> Finding | None:
    """A class whose share moved further than shares of earlier windows do, in deviations: 1.48 times their median absolute
    one, and no less than so many records give by chance."""
    records, worst = now.records - now.null, (0.0, "", 0.0, 0.0)
    for name in {*now.classes, *(name for one in recent for name in one.classes)} if now.classes else ():
        before, share = [one.classes.get(name, 0.0) for one in recent], now.classes.get(name, 0.0)
        usual = median(before)
        chance = math.sqrt(max(usual * (1 - usual), 1 / records) / records)
        deviation = max(1.4826 * median(abs(one - usual) for one in before), chance)
        worst = max(worst, (abs(share - usual) / deviation, name, share, usual))
    shift, name, share, usual = worst
    if shift <= limits.max_class_shift:
        return None
    return _finding(shift, limits.max_class_shift, f"class {name} has {share:.1%} of the labels, {shift:.3g} deviations from "
                    f"the usual {usual:.1%}, beyond max_class_shift {limits.max_class_shift:g}", window)


def _values(now: Figures, recent: Sequence[Figures], limits: PoisoningConfig, window: str) -> Finding | None:
    """One value of a column that many records share, where earlier windows had none such: a trigger may look so."""
    records, worst = now.records - now.null, (0.0, "", 0.0, 0.0)
    for name, share in now.values.items():
        most = max((one.values[name] for one in recent if name in one.values), default=0.0)
        if most and share * records > limits.max_value_ratio * most * records + SPARE:  # a field that is new is no reason
            worst = max(worst, (share / most, name, share, most))
    ratio, name, share, most = worst
    if not name:
        return None
    return _finding(ratio, limits.max_value_ratio, f"{share:.1%} of {records} records have one and the same value in {name!r}, "
                    f"{ratio:.3g} times the most of {len(recent)} earlier windows ({most:.2%}), beyond max_value_ratio "
                    f"{limits.max_value_ratio:g}", window)
