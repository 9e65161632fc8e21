"""Decisions in words, newest first: who, what, why, with the figures of that moment; section 8 of the page.

Each line is one entry of the journal. Nothing is left out between the first and the last line but the steps that
decided nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from monitoring.dashboard.facts import UNREADABLE, Facts
from security.journal import Entry, unstamp

SHOWN = 60
Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Decision:
    """`clock` is the task's clock as last journalled by then, `at` the wall's. `tone`: good, bad, warn or plain. `again`:
    same transaction as the line above it."""

    seq: int
    at: datetime
    clock: datetime | None
    actor: str
    what: str
    about: str
    why: str
    figures: str
    tone: str
    again: bool


def timeline(facts: Facts) -> list[Decision]:
    """The newest decisions of the task, newest first."""
    newest = list(facts.decisions)[-SHOWN:][::-1]
    above = [None, *((entry.at, clock) for entry, clock in newest)]
    return [_decision(*one, (one[0].at, one[1]) == at) for one, at in zip(newest, above, strict=False)]


def _decision(entry: Entry, clock: str | None, again: bool) -> Decision:
    body = entry.body
    actor = str(body.get("actor") or entry.actor)
    try:
        what, about, why = WORDS[entry.kind](body) if entry.kind in WORDS else _other(entry.kind, body)
        figures, when = _figures(entry.kind, body), unstamp(clock) if clock else None
    except UNREADABLE as error:
        what, about, why = entry.kind, "", f"this entry cannot be read: {type(error).__name__}: {error}"
        figures, when = "", None
    return Decision(entry.seq, entry.at, when, actor, what, about, why, figures, _tone(entry), again)


def _other(kind: str, body: Body) -> tuple[str, str, str]:
    return kind, str(body.get("version") or body.get("update") or ""), str(body.get("reason") or "")


def _named(what: str) -> Callable[[Body], tuple[str, str, str]]:
    return lambda body: (what, str(body["version"]), str(body.get("reason") or ""))


def _advanced(body: Body) -> tuple[str, str, str]:
    here, there = body["from"], body["to"]
    weight = f" at {body['weight']:.0%}".replace("%", " %") if there in ("CANARY", "PROMOTING") else ""
    return (f"{here} → {there}{weight}" if here != there else f"{there}{weight}"), body["version"], body["reason"]


def _held(body: Body) -> tuple[str, str, str]:
    holds = ", ".join(body["holds"])
    return ("held" if holds else "hold released"), body["version"], "; ".join(body["reasons"]) or holds


def _queued(body: Body) -> tuple[str, str, str]:
    return "queued for release", body["version"], f"trained from {body['parent']}"


def _routing(body: Body) -> tuple[str, str, str]:
    share = f"{body['weight']:.0%}".replace("%", " %")
    canary = f"{share} to {body['canary']}; " if body["canary"] else ""
    return f"routing epoch {body['epoch']}", str(body["stable"]), canary + str(body.get("reason") or "")


def _registered(body: Body) -> tuple[str, str, str]:
    windows = body["windows"]
    made = f"trained on {len(windows)} windows, {windows[0][:10]} to {windows[-1][:10]}, from {body['parent']}"
    blocked = f"; blocked: {body['blocked']}" if body.get("blocked") else ""
    return "version registered", body["version"], made + blocked


def _base(body: Body) -> tuple[str, str, str]:
    return "base registered", body["version"], f"trained on {body['rows']:,} rows" if body.get("rows") else ""


def _interrupted(body: Body) -> tuple[str, str, str]:
    return "update interrupted", str(body["update"]), str(body["message"])


def _alarm(body: Body) -> tuple[str, str, str]:
    return f"{body['severity']} alarm", str(body["kind"]), str(body["message"])


def _acknowledged(body: Body) -> tuple[str, str, str]:
    return "alarm acknowledged", f"{body['kind']} of {body['window']}", str(body["reason"])


def _refused(body: Body) -> tuple[str, str, str]:
    return "privacy budget refused", str(body["update"]), str(body["reason"])


def _crashed(body: Body) -> tuple[str, str, str]:
    return "privacy charge lost", str(body["update"]), str(body["reason"])


def _policy(body: Body) -> tuple[str, str, str]:
    return "release policy", str(body["digest"]), "for versions that start from here on"


def _head(body: Body) -> tuple[str, str, str]:
    return "next update starts from", str(body["head"]), str(body.get("reason") or "")


WORDS: Mapping[str, Callable[[Body], tuple[str, str, str]]] = {
    "rollout.queued": _queued,
    "policy.set": _policy,
    "rollout.started": _named("preparing"),
    "rollout.retried": _named("retried"),
    "rollout.advanced": _advanced,
    "rollout.withdrawn": _named("withdrawn"),
    "rollout.held": _held,
    "rollout.paused": _named("paused"),
    "rollout.resumed": _named("resumed"),
    "rollout.approved": _named("approved"),
    "rollout.superseded": _named("superseded"),
    "rollout.restarted": _named("evidence restarted"),
    "rollout.watch_ended": _named("watch ended"),
    "routing.set": _routing,
    "head.moved": _head,
    "version.registered": _registered,
    "base.registered": _base,
    "update.interrupted": _interrupted,
    "alarm.raised": _alarm,
    "alarm.acknowledged": _acknowledged,
    "REFUSE": _refused,
    "CRASH": _crashed,
}


def _figures(kind: str, body: Body) -> str:
    """The figures of the decision that its reason does not say already."""
    if kind == "version.registered":
        report, mark = body.get("report") or {}, body.get("watermark") or {}
        parts = [
            ("loss", report.get("loss_before"), ".4f"), ("to", report.get("loss_after"), ".4f"),
            ("epsilon", report.get("epsilon"), ".4f"), ("watermark z", mark.get("z"), ".1f"),
        ]  # fmt: skip
        return ", ".join(f"{name} {value:{form}}" for name, value, form in parts if value is not None)
    if kind == "alarm.raised" and body.get("figure") is not None and body.get("limit") is not None:
        return f"{body['figure']:.3g}, limit {body['limit']:g}"
    found = body.get("figures")
    if not found or not found.get("blocks") or " blocks, mean gain" in str(body.get("reason")):
        return ""
    mean = "" if found.get("mean") is None else f", mean {found['mean']:+.4f}"
    return (
        f"evidence {_number(found['promote_e'])}, harm {_number(found['harm_e'])}, {found['blocks']} blocks, "
        f"{found['samples']:,} examples{mean}"
    )


def _number(figure: float | None) -> str:
    return "not a number" if figure is None else f"{figure:.1f}"


def _tone(entry: Entry) -> str:
    ended = str(entry.body.get("to", ""))
    if entry.kind in ("update.interrupted", "REFUSE", "CRASH", "rollout.withdrawn") or ended in (
        "REJECTED", "ROLLING_BACK", "ROLLED_BACK", "WITHDRAWN",
    ):  # fmt: skip
        return "bad"
    if entry.kind == "alarm.raised":
        return "bad" if entry.body.get("severity") == "critical" else "warn"
    if entry.kind in ("rollout.held", "rollout.paused"):
        return "warn"
    return "good" if ended in ("CANARY", "PROMOTING", "PROMOTED") else "plain"
