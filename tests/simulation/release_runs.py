"""Synthetic day blocks for the error rates of the release gate: how they look, and the rules applied to many at once.

`gate` is the rule of one rollout written over arrays, so that ten thousand can be run; a test compares it, rollout by
rollout, with the product's own verdicts and board. It knows no flights and no models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from models.release import enqueue, found, step_board
from models.release_board import Board, fold_all
from models.release_policy import RolloutPolicy
from models.rollout import Decision
from monitoring.evidence import BlockSum, Evidence, entry, fold, milliseconds
from monitoring.sequential import path
from monitoring.verdict import SHARE_SINCE_START, judge

Days = NDArray[np.float64]
DAY = timedelta(days=1)
START = datetime(2013, 6, 3, 8, tzinfo=UTC)
DAILY = 900  # examples a day


@dataclass(frozen=True)
class Ends:
    """The day each rollout ended, by kind; 0 where it did not end so. Day 1 is the first block."""

    promoted: NDArray[np.int64]  # entered the canary
    harmed: NDArray[np.int64]

    def share(self, name: str) -> float:
        return float(np.mean(getattr(self, name) > 0))

    def median(self, name: str) -> float:
        days = getattr(self, name)
        return float(np.median(np.where(days > 0, days, np.inf)))


def normal(rng: np.random.Generator, runs: int, days: int, gain: float, sd: float = 0.03) -> Days:
    """Block means in nats of `runs` rollouts: flights have a day-to-day sd near .03."""
    return gain + sd * rng.standard_normal((runs, days))


def storms(rng: np.random.Generator, runs: int, days: int) -> Days:
    """Equal models, calm and stormy days in spells: sd .01 or .09, the mean of each day 0 given the past."""
    stormy = np.zeros((runs, days), dtype=bool)
    for t in range(1, days):
        stay = rng.random(runs) < 0.8
        stormy[:, t] = np.where(stay, stormy[:, t - 1], rng.random(runs) < 0.3)
    noise: Days = np.where(stormy, 0.09, 0.01) * rng.standard_normal((runs, days))
    return noise


def ties(rng: np.random.Generator, runs: int, days: int) -> Days:
    """Equal models that mostly answer alike: 0 on 80 % of the days, else + or - the cap."""
    return rng.choice([-0.1, 0.0, 0.1], p=[0.1, 0.8, 0.1], size=(runs, days))


def gate(days: Days, policy: RolloutPolicy) -> Ends:
    """Pass and harm of many rollouts in shadow, looked at after every block; whichever comes first ends it."""
    x = np.clip(days / policy.cap, -1.0, 1.0)
    n = np.arange(1, days.shape[1] + 1)
    mean = np.cumsum(days, axis=1) / n
    below = np.cumsum(days < -policy.cap, axis=1)
    older = np.concatenate([np.zeros((len(days), policy.min_blocks)), below[:, : -policy.min_blocks]], axis=1)
    tail = below - older[:, : days.shape[1]] > 0
    passed = (np.exp(path(x)) >= policy.promote_threshold) & (n >= policy.min_blocks) & (mean > 0) & ~tail
    harm = np.exp(np.minimum(path(-x), 700.0))
    harmed = SHARE_SINCE_START * harm + (1.0 - SHARE_SINCE_START) >= policy.harm_threshold
    first_pass, first_harm = _first(passed), _first(harmed)
    never = np.int64(days.shape[1] + 1)
    p, h = np.where(first_pass > 0, first_pass, never), np.where(first_harm > 0, first_harm, never)
    return Ends(np.where(p < h, first_pass, 0), np.where((h <= p) & (first_harm > 0), first_harm, 0))


def _first(hits: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0).astype(np.int64)


class Stream:
    """The product's own evidence, verdicts and board, fed one synthetic day at a time."""

    def __init__(self, policy: RolloutPolicy) -> None:
        self.policy = policy
        self.evidence = Evidence()
        self.board = fold_all(Board(), found("base-1", START))
        self.day = 0
        self.log: list[tuple[int, Decision]] = []

    @property
    def now(self) -> datetime:
        return START + self.day * DAY

    def add(self, version: str, number: int, parent: str) -> None:
        """An update: the version waits for a slot and is the new lineage head, unless its family is condemned."""
        self._apply(enqueue(self.board, version, number, parent, self.now))
        if self.board.rollouts[version].live:
            self._apply([Decision("lineage", "head.moved", {"head": version})])
        self._look()

    def pass_day(self, gain: Callable[[str, str], float]) -> None:
        """Scores every pair of the board for one more day: `gain(candidate, stable)` in nats."""
        block = milliseconds(self.now)
        pairs: Mapping[tuple[str, str], list[BlockSum]] = {
            pair: [BlockSum(block, DAILY, DAILY * gain(*pair), 0.0)] for pair in self.board.pairs()
        }
        window, self.day = self.now.isoformat(), self.day + 1
        self.evidence = fold(self.evidence, entry(window, self.now, pairs, coverage=1.0))
        self._look()

    def _look(self) -> None:
        verdicts = {
            version: judge(rollout, self.evidence, self.policy, self.now, acknowledged=True, prepared=True)
            for version, rollout in self.board.rollouts.items()
            if rollout.live or rollout.watched
        }
        self._apply(step_board(self.board, verdicts, self.policy, self.now))

    def _apply(self, decisions: list[Decision]) -> None:
        self.log += [(self.day, d) for d in decisions]
        self.board = fold_all(self.board, decisions)

    def first(self, version: str, *states: str) -> int | None:
        """The day the version came into one of these states."""
        for day, decision in self.log:
            body = decision.body
            if decision.room == "rollout" and body.get("version") == version and body["after"]["state"] in states:
                return day
        return None
