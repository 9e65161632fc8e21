"""The operations page of one task as data: eight sections, each with the age of what it is made of.

Pure: facts, policy and moment in, page out. Whatever is not in the journal is not on the page, and a section without
data has a sentence instead. It knows no markup; `render.py` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Literal, TypeVar

from models.release_policy import RolloutPolicy
from monitoring.alarms import Alarm, ordered
from monitoring.dashboard.facts import Facts
from monitoring.dashboard.releases import Release, releases
from monitoring.dashboard.strip import Strip, strip
from monitoring.dashboard.timeline import Decision, timeline
from monitoring.dashboard.training import Training, training
from monitoring.dashboard.windows import ArmRow, Drift, Intake, Quality, arms, drift, intake, quality
from security.journal import Journal
from security.replicas import Replica, Replicas

Clock = Literal["stream", "wall"]
T = TypeVar("T")

STALE_WINDOWS = 3  # a section is stale when nothing came for three windows, and at the latest after `stale_after`
SHOWN_ALARMS = 20


@dataclass(frozen=True, slots=True)
class Section(Generic[T]):
    """`at` is the time of the newest entry the section is made of, `stale` whether what feeds it has stopped.

    `body` is None when there is nothing to show; then `empty` says so."""

    anchor: str
    title: str
    body: T | None
    empty: str
    at: datetime | None
    stale: bool


@dataclass(frozen=True, slots=True)
class Inbox:
    """Alarms that wait for somebody, worst first, and the newest of those somebody has seen."""

    waiting: tuple[Alarm, ...]
    seen: tuple[Alarm, ...]


@dataclass(frozen=True, slots=True)
class Learning:
    quality: Quality | None
    drift: Drift | None


@dataclass(frozen=True, slots=True)
class Page:
    """`now` is the wall clock, `clock` the task's. `fault`: why the journal could not be read just now; then the page
    is what was known before."""

    task: str
    now: datetime
    clock: datetime
    clock_kind: Clock
    seq: int
    fault: str | None
    policy: RolloutPolicy
    strip: Section[Strip]
    releases: Section[list[Release]]
    alarms: Section[Inbox]
    serving: Section[list[ArmRow]]
    learning: Section[Learning]
    training: Section[Training]
    intake: Section[list[Intake]]
    timeline: Section[list[Decision]]


def page(
    facts: Facts,
    policy: RolloutPolicy,
    *,
    window_start: datetime,
    clock: Clock,
    now: datetime,
    replicas: Sequence[Replica] = (),
    fault: str | None = None,
) -> Page:
    """The page as of these facts.

    `clock` "stream": the task's clock is the end of the newest scored window, `window_start` before the first; "wall":
    it is `now`. `replicas` are the live ones: a raise of the weight waits for them."""
    moment = now if clock == "wall" else facts.evidence.processed or window_start
    limit = _stale_after(facts, policy)
    beat = facts.age("window.", "examples.", "evidence.", "update.", "stream.")
    late = fault is not None or (beat is not None and now - beat > limit)
    acknowledged = all(replica.epoch >= facts.board.epoch for replica in replicas)
    found = releases(facts.board, facts.evidence, policy, moment, acknowledged=acknowledged)

    def section(
        anchor: str, title: str, body: T | None, empty: str, *kinds: str, own: bool = False, at: datetime | None = None
    ) -> Section[T]:
        """`own`: stale by the age of its own entries; else by the newest window's, as no news may be good news."""
        at = at or facts.age(*kinds)
        return Section(anchor, title, body, empty, at, late or (own and at is not None and now - at > limit))

    sentence = None if beat is None or now - beat <= limit else (
        f"no window was processed since {beat:%Y-%m-%d %H:%M} UTC, limit {_words(limit)}: see `headgate status`"
    )  # fmt: skip
    inbox = Inbox(ordered(facts.alarms), _seen(facts))
    learning = Learning(quality(facts), drift(facts))
    return Page(
        facts.task, now, moment, clock, facts.seq, fault, policy,
        section("verdict", "Verdict", strip(facts, found, replicas, sentence), "", "routing.", "rollout.", "alarm."),
        section("release", "Active releases", found or None, "No version is being tested.", "rollout.", "evidence."),
        section(
            "alarms", "Alarms", inbox if inbox.waiting or inbox.seen else None, "No alarm was ever raised.", "alarm."
        ),
        section(
            "serving", "Serving by arm", arms(facts) or None, "No recorded prediction has been counted yet.",
            "evidence.", own=True,
        ),
        section(
            "quality", "Quality and drift", learning if learning.quality or learning.drift else None,
            "No window has been scored or tested for drift yet.", "evidence.", "drift.", own=True,
        ),
        section(
            "training", "Training", training(facts), "No base is registered and nothing was trained.", "base.",
            "update.trained", "update.interrupted", "version.",
        ),
        section(
            "intake", "Ingestion", intake(facts) or None, "No window has been sealed yet.", "window.", "examples.",
            own=True,
        ),
        section(
            "timeline", "Decisions", timeline(facts) or None, "Nothing has been decided yet.",
            at=facts.decisions[-1][0].at if facts.decisions else None,
        ),
    )  # fmt: skip


def read_page(
    journal: Journal,
    task: str,
    policy: RolloutPolicy,
    *,
    window_start: datetime,
    clock: Clock,
    now: datetime,
    facts: Facts | None = None,
) -> Page:
    """The page of what the journal holds now; `facts` of an earlier call are brought up to date, not read again.

    Raises JournalUnreachable."""
    known = Facts(task) if facts is None else facts
    known.refresh(journal)
    live = Replicas(journal.engine).live(task, now, policy.lease)
    return page(known, policy, window_start=window_start, clock=clock, now=now, replicas=live)


def _stale_after(facts: Facts, policy: RolloutPolicy) -> timedelta:
    length = facts.window_length
    return policy.stale_after if length is None else min(policy.stale_after, STALE_WINDOWS * length)


def _seen(facts: Facts) -> tuple[Alarm, ...]:
    seen = [alarm for alarm in facts.alarms.values() if alarm.acknowledged is not None]
    return tuple(sorted(seen, key=lambda alarm: -alarm.seq)[:SHOWN_ALARMS])


def _words(span: timedelta) -> str:
    hours = span.total_seconds() / 3600
    return f"{hours / 24:g} days" if hours >= 48 else f"{hours:g} h"
