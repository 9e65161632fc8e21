"""Alarms: what a person has to look at, raised once, kept in the journal until someone acknowledges them.

An alarm is an entry `alarm.raised` of the stream `alarm/<task>`; the open alarms are a fold of that stream. Raising is
compare-and-set, so two processes that see the same fault leave one entry. It does not know who is told (that is a
projection of the journal) nor how a figure was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal

from security.journal import Conflict, Draft, Entry, Journal, Projection, stamp

Severity = Literal["critical", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "info")
ATTEMPTS = 8  # writers that may win the race before us; each loss means the stream grew


class AlarmError(ValueError):
    """An alarm of an unknown kind or severity, or an acknowledgement of one that is not open."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the table: how bad, what it says, what to do. `standing`: a condition that goes on over windows, so one
    open alarm stands for all of them until it is acknowledged."""

    name: str
    severity: Severity
    meaning: str
    cure: str
    standing: bool = False

    @property
    def docs(self) -> str:
        """Where the runbook is, e.g. `docs/alarms.md#gradient-norm`."""
        return f"docs/alarms.md#{self.name.replace('_', '-')}"


_TABLE = (
    Kind("gradient_norm", "critical", "the gradient norm of an update passed its limit",
         "look at the window's rejects and drift, then train again or raise [guard] max_gradient_norm"),
    Kind("loss_change", "warning", "the loss of an update moved too far from its parent's",
         "compare the window with the one before; the version stays blocked, a real change comes again with the next update"),
    Kind("non_finite", "critical", "a loss, gradient or weight was NaN or infinite",
         "look for NaN or extreme values in the window's features; lower the learning rate"),
    Kind("no_weight_change", "warning", "an update ended with the weights it began with",
         "check target_modules, the learning rate and that the window's batches were not empty"),
    Kind("update_norm", "warning", "an update moved the weights much further than those before it",
         "compare the window's labels and drift with those before; a larger learning rate does it too"),
    Kind("update_direction", "warning", "an update turned back along what was learnt",
         "compare the window's labels with those before; acknowledge it when the change is real"),
    Kind("drift", "warning", "inputs left the reference in two of the last three windows, or the detector failed",
         "read the drift report of the window; renew the base when the change is here to stay", standing=True),
    Kind("retention", "warning", "an update forgot a protected regime",
         "see `headgate version list`: the next update starts from the head before; or take it out of [retention] protected"),
    Kind("quality_drop", "critical", "the served version is worse than it was",
         "roll back if a candidate serves; otherwise look at drift and label coverage"),
    Kind("budget", "warning", "the privacy budget refused an update",
         "wait for new windows or change [privacy] target_epsilon by a recorded decision", standing=True),
    Kind("poisoning", "critical", "records of a window look planted",
         "trace its records by partition and offset; `headgate window admit` lets it in, otherwise nothing learns from it"),
    Kind("stream_gap", "critical", "records were deleted from Kafka before they were read",
         "bring the records back, or go on without them with `headgate window accept-gap`; the chain of windows waits"),
    Kind("stream_unreachable", "critical", "Kafka did not answer three times in a row",
         "check the brokers and [stream] bootstrap_servers; the window waits, serving goes on", standing=True),
    Kind("open_transaction", "warning", "a producer's open transaction holds a window back",
         "find the producer, or abort the transaction on the broker; the window waits, nothing is lost", standing=True),
    Kind("label_coverage", "warning", "too few events of a window got their label",
         "check the producer of labels and label_horizon", standing=True),
    Kind("latency", "warning", "requests are slower than their limit",
         "compare the arms; abort the rollout when only the canary is slow", standing=True),
    Kind("error_rate", "critical", "requests fail more often than their limit",
         "compare the arms; abort the rollout when only the canary fails", standing=True),
    Kind("security", "critical", "an artefact, key or token was refused",
         "treat it as an attack until shown otherwise; the running version goes on"),
    Kind("stale", "warning", "no new window, version or routing for too long",
         "see `headgate status` for the step that waits", standing=True),
)  # fmt: skip
KINDS: Mapping[str, Kind] = MappingProxyType({kind.name: kind for kind in _TABLE})


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm as the journal tells it; `acknowledged` is None while it is open."""

    kind: str
    window: str
    severity: Severity
    message: str
    figure: float | None
    limit: float | None
    cure: str
    docs: str
    at: datetime
    seq: int
    acknowledged: datetime | None = None
    acknowledged_by: str = ""
    reason: str = ""


Alarms = Mapping[tuple[str, str], Alarm]  # by (kind, window), in the order they were raised


def stream(task: str) -> str:
    """The journal stream of a task's alarms."""
    return f"alarm/{task}"


def fold(state: Alarms, entry: Entry) -> Alarms:
    """The alarms after one more entry; pure. The first of a (kind, window) counts."""
    body = entry.body
    key = (body["kind"], body["window"])
    if entry.kind == "alarm.raised" and key not in state:
        fields = ("kind", "window", "severity", "message", "figure", "limit", "cure", "docs")
        return {**state, key: Alarm(**{name: body[name] for name in fields}, at=entry.at, seq=entry.seq)}
    if entry.kind == "alarm.acknowledged" and key in state:
        seen = {"acknowledged": entry.at, "acknowledged_by": entry.actor, "reason": body["reason"]}
        return {**state, key: replace(state[key], **seen)}
    return state


def projection(journal: Journal, task: str) -> Projection[Alarms]:
    """An incremental fold, for those who look often (dashboard, metrics)."""
    return Projection(journal, stream(task), {}, fold)


def all_alarms(journal: Journal, task: str) -> tuple[Alarm, ...]:
    """Every alarm ever raised, in order."""
    return tuple(projection(journal, task).refresh().values())


def open_alarms(journal: Journal, task: str) -> tuple[Alarm, ...]:
    """The alarms nobody acknowledged, worst first, then newest first."""
    return ordered(projection(journal, task).refresh())


def ordered(state: Alarms) -> tuple[Alarm, ...]:
    """Open alarms of a state in the order a person should read them: by severity, then newest first."""
    waiting = [alarm for alarm in state.values() if alarm.acknowledged is None]
    return tuple(sorted(waiting, key=lambda alarm: (SEVERITIES.index(alarm.severity), -alarm.seq)))


def is_open(journal: Journal, task: str, kind: str) -> bool:
    """Is an alarm of this kind waiting for somebody?"""
    return any(alarm.kind == kind for alarm in open_alarms(journal, task))


def raise_alarm(
    journal: Journal,
    task: str,
    *,
    kind: str,
    window: str,
    message: str,
    figure: float | None,
    limit: float | None,
    at: datetime,
    actor: str,
    severity: Severity | None = None,
    cure: str | None = None,
) -> Entry:
    """Journal an alarm and return its entry, or the entry that already says so.

    "Already" is the same (kind, window), and for a standing kind any open alarm of the kind. `severity` and `cure` come
    from the table unless given. A figure that is not finite is left out: the message says it.
    Raises AlarmError for an unknown kind or severity, JournalUnreachable when the journal does not answer.
    """
    body = _body(kind, window, message, figure, limit, severity, cure)
    for _ in range(ATTEMPTS):
        draft, existing = _draft(journal, task, body)
        if existing:
            return existing
        try:
            return journal.append(draft, actor=actor, at=at)
        except Conflict:
            continue
    raise Conflict(f"alarm {kind} of {window} lost {ATTEMPTS} races for {stream(task)}: nothing was written, try again")


def drafted(
    journal: Journal,
    task: str,
    *,
    kind: str,
    window: str,
    message: str,
    figure: float | None,
    limit: float | None,
    severity: Severity | None = None,
) -> Draft | None:
    """The alarm as an entry for a caller's own transaction; None when it stands already. See `raise_alarm`.

    It compares the length of its stream: an alarm raised meanwhile makes the transaction a Conflict.
    """
    draft, existing = _draft(journal, task, _body(kind, window, message, figure, limit, severity, None))
    return None if existing else draft


def _body(
    kind: str, window: str, message: str, figure: float | None, limit: float | None, severity: Severity | None,
    cure: str | None,
) -> dict[str, Any]:
    row = _row(kind)
    level = severity or row.severity
    if level not in SEVERITIES:
        raise AlarmError(f"severity {level!r} is none of {', '.join(SEVERITIES)}")
    return {
        "kind": kind,
        "window": window,
        "severity": level,
        "message": message,
        "figure": _number(figure),
        "limit": _number(limit),
        "cure": cure or row.cure,
        "docs": row.docs,
    }


def _draft(journal: Journal, task: str, body: Mapping[str, Any]) -> tuple[Draft, Entry | None]:
    """The entry to be, and the one that already says so."""
    entries = journal.read(stream(task))
    existing = _existing(entries, _row(body["kind"]), body["window"])
    return Draft(stream(task), "alarm.raised", body, len(entries)), existing


def acknowledge(
    journal: Journal, task: str, *, kind: str, window: str | None, reason: str, at: datetime, actor: str
) -> list[Entry]:
    """Acknowledge the open alarm of (kind, window), or with `window=None` every open alarm of the kind.

    Raises AlarmError when there is none, or no reason is given. Acknowledging a second time changes nothing.
    """
    _row(kind)
    if not reason.strip():
        raise AlarmError(f"acknowledging {kind} needs a reason: it goes into the journal beside your name")
    known = [alarm for alarm in all_alarms(journal, task) if alarm.kind == kind and window in (None, alarm.window)]
    if not known:
        where = f"window {window} of {stream(task)}" if window else stream(task)
        raise AlarmError(f"no {kind} alarm in {where}: nothing to acknowledge; see `headgate status` for the open ones")
    waiting = [alarm.window for alarm in known if alarm.acknowledged is None]
    drafts = [
        Draft(stream(task), "alarm.acknowledged", {"kind": kind, "window": name, "reason": reason}) for name in waiting
    ]
    return journal.append_all(drafts, actor=actor, at=at) if drafts else []


def as_json(alarm: Alarm) -> dict[str, Any]:
    """The alarm as a JSON object (times as journal stamps)."""
    seen = alarm.acknowledged
    return {
        "kind": alarm.kind,
        "window": alarm.window,
        "severity": alarm.severity,
        "message": alarm.message,
        "figure": alarm.figure,
        "limit": alarm.limit,
        "cure": alarm.cure,
        "docs": alarm.docs,
        "at": stamp(alarm.at),
        "acknowledged": None if seen is None else stamp(seen),
        "acknowledged_by": alarm.acknowledged_by,
        "reason": alarm.reason,
    }


def _row(kind: str) -> Kind:
    if kind not in KINDS:
        raise AlarmError(f"alarm kind {kind!r} is none of {', '.join(KINDS)}; a new one needs a page in docs/alarms.md")
    return KINDS[kind]


def _number(value: float | None) -> float | None:
    """NaN and infinity have no canonical JSON: the message tells them, the figure is absent."""
    return None if value is None or value != value or abs(value) == float("inf") else float(value)


def _existing(entries: list[Entry], row: Kind, window: str) -> Entry | None:
    acknowledged = {(e.body["kind"], e.body["window"]) for e in entries if e.kind == "alarm.acknowledged"}
    for entry in entries:
        key = (entry.body["kind"], entry.body["window"])
        if entry.kind != "alarm.raised" or key[0] != row.name:
            continue
        if key[1] == window or (row.standing and key not in acknowledged):
            return entry
    return None
