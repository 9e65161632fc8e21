"""A task's journal with one of everything the operations page shows, for the dashboard's tests.

`Story` lets days pass on the stream's clock: windows are sealed and scored with the sums a test asks for, and the real
release rules decide on them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

from models import release
from models.release_policy import RolloutPolicy
from models.rollout import Decision
from monitoring import evidence
from monitoring.alarms import acknowledge, raise_alarm
from monitoring.dashboard.facts import Facts
from monitoring.dashboard.server import Subject
from monitoring.evidence import BlockSum, Served, milliseconds
from monitoring.verdict import judge
from security.journal import Draft, Journal, stamp
from security.privacy import Ledger, PrivacyPolicy

TASK = "parcels"
DAY = timedelta(days=1)
START = datetime(2026, 3, 2, tzinfo=UTC)
WALL = datetime(2026, 5, 1, 12, tzinfo=UTC)
BASE = "base-0011aabb"
POLICY = RolloutPolicy(
    steps=("shadow", 10, 50, 100), min_requests=0, min_hold=DAY, bake=DAY, shadow_slots=2, approval="none"
)
SUBJECT = Subject(TASK, POLICY, START, "stream")
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{7*7}}</style></title>"


class Story:
    """A journal in which days pass: windows are sealed and scored, the real release rules decide, on the stream's
    clock."""

    def __init__(self, journal: Journal, wall: datetime = WALL) -> None:
        self.policy, self.acknowledged = POLICY, True
        self.journal, self.wall, self.day = journal, wall, 0
        self._known = Facts(TASK)
        self.put("lineage", "base.registered", {"version": BASE, "digest": "00", "parent": None, "rows": 77606})
        self.decide(release.found(BASE, START))

    @property
    def clock(self) -> datetime:
        return START + self.day * DAY

    def facts(self) -> Facts:
        """The journal as of now."""
        self._known.refresh(self.journal)
        return self._known

    def put(self, room: str, kind: str, body: dict[str, Any], actor: str = "pipeline") -> None:
        self.journal.append(Draft(f"{room}/{TASK}", kind, body), actor=actor, at=self.wall)

    def decide(self, decisions: list[Decision]) -> None:
        drafts = [Draft(f"{d.room}/{TASK}", d.kind, d.body) for d in decisions]
        self.journal.append_all(drafts, actor="pipeline", at=self.wall)

    def version(self, number: int, parent: str = BASE, name: str | None = None, **report: Any) -> str:
        version = name or f"v{number:06d}-{number:08x}"
        windows = [f"{START + k * DAY:%Y-%m-%dT%H:%MZ}" for k in range(max(self.day, 1))]
        figures = {
            "rows": 6500, "loss_before": 0.5312, "loss_after": 0.5107, "loss_change": -0.04, "epsilon": 0.4999,
            "clipped_share": 0.01, "weight_delta": 0.03,
            "gradient_norms": [0.4, 0.62, 0.0], "blocked": None, "finding": None, **report,
        }  # fmt: skip
        about = {"number": number, "window": windows[-1], "windows": windows, "parent": parent, "report": figures}
        self.put("lineage", "update.trained", {**about, "update": f"{TASK}/{number:06d}"})
        watermark = {"z": 24.4, "bits_right": 64}
        registered = {**about, "version": version, "blocked": figures["blocked"], "watermark": watermark}
        registered |= {"retention": {"value": 0.9971, "bound": 0.99}, "clock": stamp(self.clock)}
        self.put("lineage", "version.registered", registered)
        if figures["blocked"] is None:
            moved = {"head": version, "reason": "newest update that passed its checks", "clock": stamp(self.clock)}
            self.put("lineage", "head.moved", moved)
            self.decide(release.enqueue(self.facts().board, version, number, parent, self.clock))
            self.settle()
        return version

    def days(self, count: int, gain: float = 0.05, served: bool = False) -> None:
        for _ in range(count):
            self.window(gain, served)

    def window(self, gain: float, served: bool = False) -> None:
        begin, window = self.clock, f"{self.clock:%Y-%m-%dT%H:%MZ}"
        self.day += 1
        board = self.facts().board
        self.put("cut", "cut.decided", {"window": window, "start": stamp(begin), "end": stamp(self.clock), "topics": {}})
        self.put("window", "window.sealed", {"window": window, "rows": {"events": 903, "labels": 899}, "rejects": 1})
        joined = {
            "window": window, "examples": 870, "coverage": 0.9943, "duplicate_events": 2, "duplicate_labels": 1,
            "late_labels": 4, "lag_seconds": {"p50": 9600.0, "p90": 20280.0, "p99": None},
        }  # fmt: skip
        self.put("window", "examples.joined", joined)
        sums = {pair: [BlockSum(milliseconds(begin), 870, 870 * gain, 870 * gain**2)] for pair in board.pairs()}
        counts = [Served(board.epoch, "stable", 900, 3, 9), Served(board.epoch, "canary", 100, 1, 1)] if served else []
        body = evidence.entry(window, self.clock, sums, counts, 0.9943)
        self.put("window", "evidence.scored", body | {"examples": 870, "losses": {BASE: 0.5, board.head or BASE: 0.45}})
        self.settle(window)

    def settle(self, window: str | None = None) -> None:
        """Let the real rules move as far as they will at this moment."""
        while True:
            facts = self.facts()
            found = {
                r.version: judge(r, facts.evidence, self.policy, self.clock, acknowledged=self.acknowledged, prepared=True)
                for r in facts.board.rollouts.values()
            }
            decisions = release.step_board(facts.board, found, self.policy, self.clock, window)
            if not decisions:
                return
            self.decide(decisions)

    def drift(self, state: str = "DRIFT", alarm: bool = True) -> None:
        window = f"{self.clock - DAY:%Y-%m-%dT%H:%MZ}"
        feature = {"name": "weight_kg", "kind": "numeric", "p": 1e-9, "adjusted": 3e-8, "effect": 0.31, "usual": 0.04}
        body = {
            "window": window, "state": state, "rows": 903, "tested": 30, "drifted": ["weight_kg"], "share": 1 / 30,
            "threshold": 0.021, "q": 0.05, "min_rows": 500, "alarm": alarm, "files": [],
            "message": "share of drifted features 0.033 > 0.021", "evidently": {"drifted": 3, "tested": 30},
            "top": [{**feature, "drifted": True, "effect_name": "w1_sd"}],
        }  # fmt: skip
        self.put("window", "drift.tested", body)


def full_story(journal: Journal, wall: datetime = WALL) -> Story:
    """One of everything: a canary, a version in shadow, one that is watched, drift, alarms, charges, requests."""
    story = Story(journal, wall)
    ledger = Ledger(journal, "cluster", "labels", PrivacyPolicy())
    reservation = ledger.reserve(
        task=TASK, update=f"{TASK}/000001", windows=["2026-03-02T00:00Z"], arrived=(START, START + DAY), count=6500,
        max_grad_norm=1.0, actor="pipeline", at=wall,
    )  # fmt: skip
    story.days(2)
    first = story.version(1)
    ledger.settle(reservation, steps=32, artefact="ab", actor="pipeline", at=wall)
    story.days(8, 0.08)
    story.version(2, first)
    story.days(3, 0.08, served=True)
    story.drift()
    more = {"at": wall, "actor": "pipeline", "figure": 14.2, "limit": 10.0}
    raise_alarm(journal, TASK, kind="gradient_norm", window="2026-03-09T00:00Z", message="norm 14.2 > 10", **more)
    raise_alarm(journal, TASK, kind="drift", window="2026-03-12T00:00Z", message="share 0.42 > 0.21", **more)
    acknowledge(
        journal, TASK, kind="gradient_norm", window=None, reason="a broken scale", at=wall, actor="on call"
    )
    return story


def text_of(markup: str) -> str:
    reader = Markup()
    reader.feed(markup)
    return " ".join(" ".join(reader.text).split())


class Markup(HTMLParser):
    """Tags, attributes and text as a browser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {(tag, name) for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text.append(data)
