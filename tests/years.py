"""A year of hourly windows as the product would have journalled it, for what has to stay fast on an old journal.

52 updates, each in shadow against stable with up to two others; every window is sealed, joined, scored for three pairs and
stepped; the real release rules decide once a day. Entries of a day are written in one transaction, which only saves time.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from models import release
from models.release_board import Board, fold
from models.release_policy import RolloutPolicy
from models.rollout import Decision
from monitoring import evidence
from monitoring.evidence import BlockSum, Evidence, Served, fold_entry, milliseconds
from monitoring.verdict import judge
from security.journal import Draft, Journal, stamp

TASK = "blobs"
START = datetime(2025, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
POLICY = RolloutPolicy(min_hold=DAY, bake=DAY, min_requests=0)
BASE = "base-0011aabb"


class Year:
    """Writes days until told to stop; `others` entries of other streams are spread over them."""

    def __init__(self, journal: Journal, task: str = TASK, others: int = 5000, seed: int = 1) -> None:
        self.journal, self.task, self.rng = journal, task, random.Random(seed)
        self.board, self.evidence, self.drafts = Board(), Evidence(), list[Draft]()
        self.day, self.updates, self.others, self.gains = 0, 0, others, dict[str, float]()
        self.note("lineage", "base.registered", {"version": BASE, "digest": "00", "parent": None, "rows": 77606})
        self.decide(release.found(BASE, START))
        self.flush()

    def note(self, room: str, kind: str, body: dict[str, Any]) -> None:
        self.drafts.append(Draft(f"{room}/{self.task}", kind, body))

    def decide(self, decisions: list[Decision]) -> None:
        for one in decisions:
            self.note(str(one.room), one.kind, dict(one.body))
            self.board = fold(self.board, one.kind, one.body)

    def flush(self) -> None:
        self.journal.append_all(self.drafts, actor="pipeline", at=START + self.day * DAY)
        self.drafts.clear()

    def days(self, count: int) -> None:
        for _ in range(count):
            for hour in range(24):
                self.window(START + self.day * DAY + hour * HOUR, last=hour == 23)
            self.day += 1
            if self.day % 7 == 0:
                self.version(START + self.day * DAY)
            for number in range(self.others // 365):
                body = {"window": f"d{self.day}", "attempt": number, "error": "the broker did not answer " * 4}
                self.note("attempt", "window.failed", body)
            self.flush()

    def window(self, begin: datetime, last: bool) -> None:
        end, name = begin + HOUR, f"{begin:%Y-%m-%dT%H:%MZ}"
        files = [{"topic": topic, "sha256": "0" * 64, "rows": 1000} for topic in ("events", "labels", "predictions")]
        self.note("cut", "cut.decided", {"window": name, "start": stamp(begin), "end": stamp(end), "topics": {}})
        self.note("window", "window.sealed", {"window": name, "rows": {"events": 1000}, "rejects": 0, "files": files})
        self.note("window", "examples.joined", {"window": name, "examples": 990, "coverage": 0.99, "duplicate_events": 0})
        sums = {pair: self.sums(pair, begin) for pair in self.board.pairs()[:3]}
        epoch, weight = self.board.epoch, self.board.routing.weight if self.board.routing else 0.0
        canary = round(1000 * weight)
        served = [Served(epoch, "stable", 1000 - canary, 5, 20), Served(epoch, "canary", canary, canary // 200, canary // 50)]
        body = evidence.entry(name, end, sums, served, 0.99) | {"examples": 990, "losses": {BASE: 0.5}}
        self.note("window", "evidence.scored", body)
        self.evidence = fold_entry(self.evidence, "evidence.scored", body)
        self.decide(self.stepped(name, end, last))
        self.note("window", "window.finished", {"window": name})

    def sums(self, pair: tuple[str, str], begin: datetime) -> list[BlockSum]:
        block = begin.replace(hour=0)
        gain = self.gains[pair[0]] + self.rng.gauss(0, 0.03)
        return [BlockSum(milliseconds(block), 990, 990 * gain, 990 * (gain * gain + 0.01))]

    def stepped(self, name: str, end: datetime, last: bool) -> list[Decision]:
        if not last:
            return [Decision("rollout", "rollout.stepped", {"window": name, "clock": stamp(end)})]
        found = {
            one.version: judge(one, self.evidence, self.board.policy_of(one, POLICY), end, acknowledged=True, prepared=True)
            for one in self.board.rollouts.values() if one.live or one.watched
        }
        return release.step_board(self.board, found, POLICY, end, name)

    def version(self, now: datetime) -> None:
        self.updates += 1
        version, parent = f"v{self.updates:06d}-{self.updates:08x}", self.board.head
        self.gains[version] = self.rng.gauss(0.01, 0.02)
        report = {"gradient_norms": [0.5] * 32, "losses": [0.5] * 32, "rows": 6500}
        about = {"number": self.updates, "version": version, "parent": parent, "report": report, "blocked": None}
        about |= {"retention": {"value": 0.9971, "bound": 0.99, "rows": 500}, "watermark": {"z": 24.4}, "clock": stamp(now)}
        self.note("lineage", "version.registered", about)
        moved = Decision("lineage", "head.moved", {"head": version, "reason": "newest", "clock": stamp(now)})
        self.decide([moved, *release.enqueue(self.board, version, self.updates, parent, now)])
