"""The invariants of a release, held against what was written and against what is so outside: each by its name, I1 to I13.

`Watch` folds every transaction for itself; what it compares with are plain facts (who has acknowledged, which days are
whole, what a clock says), not the product's own verdicts. I7 compares two runs and stands with the histories; I14 has
real followers.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime, timedelta

from assets.windows.clock import window_id
from models import release_board, split
from models.release import CONVICTED
from models.release_board import Board
from models.rollout_state import TRAFFIC, Rollout, State
from monitoring.rollout_audit import audit
from security.journal import Entry, Journal, unstamp
from tests.faults.release_world import DAY, QUICK, START, STREAMS, TASK, World

UNITS = tuple(f"unit-{k}" for k in range(200))


class Broken(AssertionError):
    """An invariant does not hold; the text begins with its name."""


def hold(name: str, true: object, text: object) -> None:
    if not true:
        raise Broken(f"{name}: {text}")


class Watch:
    """Sees every transaction of a world, and the file after every action."""

    def __init__(self, world: World) -> None:
        self.world, self.board = world, Board()
        self.seen: tuple[int, str] = (0, "0" * 64)
        self.raises = self.transactions = 0
        self.scored: dict[tuple[str, str], dict[int, str]] = {}  # pair -> day -> window, as first scored
        self.windows: list[tuple[datetime, str]] = []
        self.arms: dict[tuple[str, str], tuple[float, frozenset[str]]] = {}
        for entry in world.journal.tail():
            self.board = release_board.fold(self.board, entry.kind, entry.body)

    # -- each transaction ----------------------------------------------------------------------------------------------

    def transaction(self, entries: Sequence[Entry]) -> None:
        before, self.transactions = self.board, self.transactions + 1
        for entry in entries:
            self.board = release_board.fold(self.board, entry.kind, entry.body)
            if entry.kind == "evidence.scored":
                self._remember(entry)
        hold("I2 one transaction", self.world.commits == 1, (self.world.commits, [e.kind for e in entries]))
        stepped = [e.body["window"] for e in entries if e.kind == "rollout.stepped"]
        hold("I4 a window is stepped once", not stepped or before.stepped is None or stepped[0] > before.stepped, stepped)
        decided = [e for e in entries if e.stream == f"rollout/{TASK}" and "after" in e.body]
        self._traffic()
        self._caused(before, entries, decided)
        for entry in decided:
            old, new = before.rollouts.get(entry.body["version"]), self.board.rollouts[entry.body["version"]]
            if old is not None:
                self._moved(before, old, new, entry)
        self._sticky()

    def _traffic(self) -> None:
        taking = [one for one in self.board.rollouts.values() if one.state in TRAFFIC]
        leaving = [one for one in self.board.rollouts.values() if one.state is State.ROLLING_BACK]
        hold("I1 one canary a task", len(taking) + len(leaving) <= 1, [(r.version, r.state.value) for r in taking + leaving])
        routing = self.board.routing
        assert routing is not None
        hold("I5 weights", 0.0 <= routing.weight <= 1.0, routing)
        wanted = (taking[0].version, taking[0].weight) if taking else (None, 0.0)
        hold("I5 SHADOW and terminal take nothing", (routing.canary, routing.weight) == wanted, (routing, wanted))
        silent = [r for r in self.board.rollouts.values() if r.weight and r.state not in TRAFFIC]
        hold("I5 SHADOW and terminal take nothing", not silent, [(r.version, r.state.value, r.weight) for r in silent])

    def _caused(self, before: Board, entries: Sequence[Entry], decided: Sequence[Entry]) -> None:
        """Who routes is changed by a decision, the head by a decision or a registration, beside them."""
        routings = [e for e in entries if e.kind == "routing.set"]
        moves = {e.body["version"] for e in decided if "from" in e.body}
        for one in routings:
            hold("I2 routing with its decision", one.body["rollout"] in moves, one.body)
            hold("I4 a stale writer affects nothing", one.body["epoch"] == before.epoch + 1, (before.epoch, one.body))
        hold("I2 one routing a transaction", len(routings) <= 1, routings)
        if self.board.head != before.head:
            registered = any(e.kind == "version.registered" for e in entries)
            hold("I2 head with its decision", registered or moves, entries)
        head, stable = self.board.head, self.board.stable
        for bad in self.board.in_states(State.REJECTED, State.ROLLED_BACK, State.ROLLING_BACK):
            if bad.state is State.ROLLING_BACK and bad.outcome in (State.EXPIRED, State.SUPERSEDED):
                continue
            if self.board.descends(stable, bad.version):
                continue
            hold("I6 what is condemned takes its heirs", not self.board.descends(head, bad.version), (head, bad.version))
            others = [r for r in self.board.rollouts.values() if r.live and r.state not in CONVICTED]
            heirs = [r.version for r in others if r.version != bad.version and self.board.descends(r.version, bad.version)]
            hold("I6 what is condemned takes its heirs", not heirs, (bad.version, heirs))

    def _moved(self, before: Board, old: Rollout, new: Rollout, entry: Entry) -> None:
        gate = entry.body.get("actor") == "gate"
        if old.state in TRAFFIC and new.state not in TRAFFIC and new.state is not State.PROMOTED:
            routing = self.board.routing
            assert routing is not None
            hold("I6 weight 0 in that very transaction", routing.canary != new.version and new.weight == 0.0, routing)
        if new.weight > old.weight:
            self.raises += 1
            self._raised(before, old, new, entry, gate)

    def _raised(self, before: Board, old: Rollout, new: Rollout, entry: Entry, gate: bool) -> None:
        world = self.world
        rows = world.stored("SELECT epoch, seen FROM gateway_replicas")
        wall, lease = world.outside.wall, timedelta(seconds=30)
        lagging = [(e, seen) for e, seen in rows if e < before.epoch and abs(wall - unstamp(seen)) < lease]
        hold("I8 a raise waits for live replicas", not lagging, (before.epoch, lagging))
        hold("I8 nothing paused goes on", not old.paused, old.version)
        if not gate:
            return
        policy = self.board.policy_of(old, world.outside.policy)  # a window's step may take a freeze out first
        now = unstamp(entry.body["clock"])
        for first, last in (text.split(" - ") for text in policy.freeze):
            inside = first <= f"{now:%Y-%m-%d}" <= last
            hold("I8 nothing is raised in a freeze", not inside, (now, policy.freeze))
        self._healthy(old, policy.evidence == "paired", now)

    def _healthy(self, old: Rollout, paired: bool, now: datetime) -> None:
        """Enough whole days with numbers in them, fresh, with labels."""
        hold("I8 no data, no raise", self.windows, "no window was scored")
        end, newest = max(self.windows)
        hold("I8 stale data, no raise", now - end <= timedelta(days=2), (now, end))
        coverage, arms = self.world.outside.share.get(newest, (0.99, {}))
        hold("I8 no labels, no raise", coverage and coverage >= 0.5, (newest, coverage))
        hold("I8 labels of one arm, no raise", not arms or max(arms.values()) - min(arms.values()) <= 0.1, (newest, arms))
        days = self.scored.get((old.version, old.against), {})
        used = {day: window for day, window in days.items() if START + day * DAY >= old.evidence_since}
        dirty = [window for window in used.values() if window in self.world.outside.dirty]
        if paired:
            hold("I8 no numbers, no raise", not dirty, dirty)
            hold("I8 no data, no raise", len(used) >= 2, (old.version, old.against, sorted(used)))
            gain = self.world.outside.gain
            better = gain.get(old.version, 0.0) - gain.get(old.against, 0.0)
            hold("I8 a version far worse is not raised", better > -0.08, (old.version, old.against, better))

    def _remember(self, entry: Entry) -> None:
        window, end = entry.body["window"], unstamp(entry.body["end"])
        if window in [known for _, known in self.windows]:
            return
        self.windows.append((end, window))
        day = (end - START) // DAY - 1
        hold("the world", window == window_id(START + day * DAY), window)
        for pair in entry.body["pairs"]:
            self.scored.setdefault((pair["candidate"], pair["stable"]), {})[day] = window

    def _sticky(self) -> None:
        """A unit that the canary answered is answered by it as long as its weight does not fall."""
        routing = self.board.routing
        if routing is None or routing.canary is None:
            return
        rollout = self.board.rollouts[routing.canary]
        key = (routing.canary, f"{rollout.attempt}")
        weight, kept = self.arms.get(key, (0.0, frozenset()))
        if routing.weight == weight:
            return
        now = frozenset(unit for unit in UNITS if split.arm(routing, unit)[0] == "canary")
        if routing.weight > weight:
            hold("I10 no unit goes back to stable", kept <= now, sorted(kept - now)[:3])
        share = len(now) / len(UNITS)
        hold("I5 weights", abs(share - routing.weight) < 0.15, (share, routing.weight))
        self.arms[key] = routing.weight, now

    # -- the file after each action, and at the end --------------------------------------------------------------------

    def action(self) -> None:
        seq, digest = self.seen
        asked = f"SELECT seq, hash FROM journal WHERE seq IN ({seq}, (SELECT seq FROM journal_head))"
        found = dict(self.world.stored(asked))
        hold("I3 append-only", not seq or found.get(seq) == digest, f"entry {seq} is another one now")
        newest = max(found)
        hold("I3 append-only", newest >= seq, f"entry {seq} was the newest, {newest} is")
        self.seen = (newest, found[newest])

    def burst(self, before: Board) -> None:
        """After errors on every request of a canary up to 50 %, whoever has paused it: unless a person wants to be asked."""
        canary = before.canary
        if canary is None or canary.state not in TRAFFIC or canary.weight > 0.5:
            return
        policy = before.policy_of(canary, QUICK)
        if "errors" not in policy.pause_on:
            after = self.board.rollouts[canary.version]
            told = (after.state.value, after.paused, after.weight)
            hold("I12 guardrails stop a paused rollout", after.state not in TRAFFIC, told)

    def end(self) -> None:
        """The whole history: the chain, the triggers, every decision derived again."""
        journal = self.world.journal
        faults = journal.verify().faults
        hold("I3 the chain verifies", not faults, faults)
        for text in ("UPDATE journal SET actor = 'x' WHERE seq = 1", "DELETE FROM journal WHERE seq = 1"):
            hold("I3 append-only", _refused(self.world, text), text)
        evidence = self.world.first._evidence.refresh()
        for pair, days in self.scored.items():
            counted = {block: sums.n + sums.bad for block, sums in evidence.pairs.get(pair, {}).items()}
            hold("I9 a window counts once", len(counted) == len(days) and set(counted.values()) <= {40}, (pair, counted))
        found = audit(journal.tail(streams=STREAMS), self.world.outside.policy)
        hold("I9 every decision follows", found.sound, {v: (f.seq, f.text) for v, f in found.faults.items()})
        hold("I9 the board is the fold", fresh(journal) == self.board, "another board")


def fresh(journal: Journal) -> Board:
    board = Board()
    for entry in journal.tail():
        board = release_board.fold(board, entry.kind, entry.body)
    return board


def _refused(world: World, text: str) -> bool:
    try:
        world.stored(text)
    except sqlite3.DatabaseError as error:
        return "append-only" in str(error)
    return False
