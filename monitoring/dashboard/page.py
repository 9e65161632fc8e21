"""The operations page of one task as data: eight sections, each with the age of what it is made of.

Pure: facts, policy and moment in, page out. Whatever is not in the journal, nor in the tables of the gateways beside it,
is not on the page, and a section without data has a sentence instead. It knows no markup; `render.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, Literal, TypeVar

from models.release_policy import RolloutPolicy
from monitoring.alarms import Alarm, ordered
from monitoring.dashboard.facts import Facts
from monitoring.dashboard.releases import Release, releases
from monitoring.dashboard.strip import Strip, strip
from monitoring.dashboard.timeline import Decision, timeline
from monitoring.dashboard.training import Training, training
from monitoring.dashboard.windows import ArmRow, Drift, Intake, Quality, arms, drift, intake, quality
from monitoring.live_counts import news, with_news
from security.journal import Journal
from security.replicas import Replica, Replicas
from security.served import LiveCounts

Clock = Literal["stream", "wall"]
T = TypeVar("T")

STALE_WINDOWS = 3  # a section is stale when nothing came for three windows, and at the latest after `stale_after`
SHOWN_ALARMS = 20


@dataclass(frozen=True, slots=True)
class Section(Generic[T]):
    """`at` is the time of the newest entry the section is made of, `stale` whether what feeds it has stopped.

    `body` is None when there is nothing to show; then `empty` says so."""

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
    counted: Mapping[str, Any] | None = None,
    fault: str | None = None,
) -> Page:
    """The page as of these facts, and of what the gateways have counted since the newest window.

    `clock` "stream": the task's clock is the end of the newest scored window, `window_start` before the first; "wall":
    it is `now`. `replicas` are the live ones: a raise of the weight waits for them."""
    moment = now if clock == "wall" else facts.evidence.processed or window_start
    ages = _Ages(facts, now, _stale_after(facts, policy), away=fault is not None)
    acknowledged = all(replica.epoch >= facts.board.epoch for replica in replicas)
    found = releases(facts.board, with_news(facts.evidence, counted), policy, moment, acknowledged=acknowledged)
    inbox = Inbox(ordered(facts.alarms), _seen(facts))
    learning = Learning(quality(facts), drift(facts))
    section, own = ages.section, ages.own_section
    return Page(
        facts.task, now, moment, clock, facts.seq, fault, policy,
        section("Verdict", strip(facts, found, replicas, ages.sentence()), "", "routing.", "rollout.", "alarm."),
        section("Active releases", found or None, "No version is being tested.", "rollout.", "evidence."),
        section("Alarms", inbox if inbox.waiting or inbox.seen else None, "No alarm was ever raised.", "alarm."),
        own("Serving by arm", arms(facts) or None, "No recorded prediction has been counted yet.", "evidence."),
        own("Quality and drift", learning if learning.quality or learning.drift else None,
            "No window has been scored or tested for drift yet.", "evidence.", "drift."),
        section("Training", training(facts), "No base is registered and nothing was trained.", "base.",
                "update.trained", "update.interrupted", "version."),
        own("Ingestion", intake(facts) or None, "No window has been sealed yet.", "window.", "examples."),
        section("Decisions", timeline(facts) or None, "Nothing has been decided yet.",
                at=facts.decisions[-1][0].at if facts.decisions else None),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Ages:
    """Which sections are stale. `away`: the journal does not answer, so all of them."""

    facts: Facts
    now: datetime
    limit: timedelta
    away: bool

    @property
    def beat(self) -> datetime | None:
        """The newest sign that windows are being processed."""
        return self.facts.age("window.", "examples.", "evidence.", "update.", "stream.")

    def late(self, at: datetime | None) -> bool:
        return self.away or (at is not None and self.now - at > self.limit)

    def section(
        self, title: str, body: T | None, empty: str, *kinds: str, at: datetime | None = None
    ) -> Section[T]:
        """Stale when windows stopped coming: its own entries may be old because nothing happened."""
        return Section(title, body, empty, at or self.facts.age(*kinds), self.late(self.beat))

    def own_section(self, title: str, body: T | None, empty: str, *kinds: str) -> Section[T]:
        """Stale by its own entries, which every window brings."""
        at = self.facts.age(*kinds)
        return Section(title, body, empty, at, self.late(self.beat) or self.late(at))

    def sentence(self) -> str | None:
        """That windows stopped coming, in words; None when they did not."""
        beat = self.beat
        if beat is None or self.now - beat <= self.limit:
            return None
        return f"no window was processed since {beat:%Y-%m-%d %H:%M} UTC, limit {_words(self.limit)}: see `headgate status`"


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
    counted = news(LiveCounts(journal.engine), task, known.board, known.evidence)
    return page(known, policy, window_start=window_start, clock=clock, now=now, replicas=live, counted=counted)


def _stale_after(facts: Facts, policy: RolloutPolicy) -> timedelta:
    length = facts.window_length
    return policy.stale_after if length is None else min(policy.stale_after, STALE_WINDOWS * length)


def _seen(facts: Facts) -> tuple[Alarm, ...]:
    seen = [alarm for alarm in facts.alarms.values() if alarm.acknowledged is not None]
    return tuple(sorted(seen, key=lambda alarm: -alarm.seq)[:SHOWN_ALARMS])


def _words(span: timedelta) -> str:
    hours = span.total_seconds() / 3600
    return f"{hours / 24:g} days" if hours >= 48 else f"{hours:g} h"
