"""The audit of a release: every decision in the journal, derived once more from the entries before it.

Each transaction of the streams rollout, routing and lineage is taken apart into its causes: a look of the gate, a version
that was queued, a person's verb, the founding of the task. Its entries are written again by the product's own rules, on the
board and on the evidence as they were at that place of the journal, and compared: kinds, order and words exactly, figures
to 1e-9. So a decision that does not follow is found, one that is missing, and a routing change without a decision, also
where the chain of hashes was computed anew.

What a journal cannot show is taken as given: that a person said a verb, whether replicas had acknowledged, whether a
version could be loaded, what the task's policy was when it was journalled, and evidence that no later decision has read.
Entries from before policies were journalled are derived under the one that is passed. It knows no store and no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import product
from math import isclose
from typing import Any

from models import release, release_board, release_verbs
from models.release_board import Board
from models.release_policy import RolloutPolicy, Verdicts
from models.rollout import Decision
from models.rollout_state import TRAFFIC, State
from monitoring import evidence
from monitoring.evidence import Evidence
from monitoring.verdict import judge
from security.journal import Entry, unstamp

TOLERANCE = 1e-9
SAID = {"rollout.paused": "pause", "rollout.resumed": "resume", "rollout.approved": "approve", "rollout.retried": "retry"}
REGISTERED = "version.registered"
BEFORE_SHADOW = (State.QUEUED, State.PREPARING)


@dataclass(frozen=True, slots=True)
class Fault:
    """The first entry of a rollout that does not follow, and why; `seq` as in the journal."""

    seq: int
    version: str
    text: str


@dataclass
class Audit:
    """What was found: entries, looks of the gate and faults by version ("" for what belongs to no version)."""

    entries: dict[str, int] = field(default_factory=dict)
    policies: dict[str, RolloutPolicy] = field(default_factory=dict)  # taken as given: by digest, oldest first
    faults: dict[str, Fault] = field(default_factory=dict)
    looks: int = 0

    @property
    def sound(self) -> bool:
        return not self.faults

    def blame(self, seq: int, version: str, text: str) -> None:
        self.faults.setdefault(version, Fault(seq, version, text))


def audit(entries: Iterable[Entry], policy: RolloutPolicy) -> Audit:
    """Derive every decision again. `entries`: all of rollout, routing, lineage and window streams of one task, in order."""
    walk = _Walk(policy)
    for group in _transactions(entries):
        walk.take(group)
    return walk.found


def _transactions(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Runs of entries with consecutive `seq` and one time stamp; an entry of a window stream stands alone."""
    group: list[Entry] = []
    for entry in entries:
        apart = group and (entry.seq, entry.at, entry.actor) != (group[-1].seq + 1, group[-1].at, group[-1].actor)
        if apart or entry.stream.startswith("window/"):
            if group:
                yield group
            group = []
        if entry.stream.startswith("window/"):
            yield [entry]
        else:
            group.append(entry)
    if group:
        yield group


class _Walk:
    """Board and evidence at one place of the journal, and what was found so far."""

    def __init__(self, policy: RolloutPolicy) -> None:
        self.policy = policy
        self.board = Board()
        self.evidence = Evidence()
        self.found = Audit()

    def take(self, group: Sequence[Entry]) -> None:
        for entry in group:
            if entry.stream.startswith("rollout/") and "version" in entry.body:
                self.found.entries[entry.body["version"]] = self.found.entries.get(entry.body["version"], 0) + 1
        if group[0].stream.startswith("window/"):
            self._score(group[0])
            return
        while group:
            group = self._one_cause(group)

    def _score(self, entry: Entry) -> None:
        if entry.kind not in (evidence.SCORED, evidence.COUNTED):
            return
        try:
            for text, candidate in _impossible(entry.body) if entry.kind == evidence.SCORED else ():
                self.found.blame(entry.seq, candidate, text)
            self.evidence = evidence.fold_entry(self.evidence, entry.kind, entry.body)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self.found.blame(entry.seq, "", f"{entry.kind}: is no entry of this kind: {error}")

    def _one_cause(self, group: Sequence[Entry]) -> Sequence[Entry]:
        """Derives what the first entry begins and returns the rest; at a fault the whole transaction is folded as it is."""
        first = group[0]
        if first.stream.startswith("lineage/") and first.kind != "head.moved":
            return self._registered(group)
        mismatches = []
        try:
            for expected in self._derive(group):
                mismatch = _compare(group, expected)
                if mismatch is None:
                    return self._adopt(group, len(expected))
                mismatches.append(mismatch)
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # a refused verb is a ValueError
            mismatches.append((0, f"cannot be derived: {error}"))
        where, text = max(mismatches, key=lambda found: found[0])
        self._blame(group, where, text)
        return self._adopt(group, len(group))

    def _registered(self, group: Sequence[Entry]) -> Sequence[Entry]:
        """Training and registration are the lineage's own; a registration may move the head to its version."""
        moves = group[0].kind == REGISTERED and len(group) > 1 and group[1].kind == "head.moved"
        return self._adopt(group, 2 if moves and group[1].body["head"] == group[0].body["version"] else 1)

    def _adopt(self, group: Sequence[Entry], count: int) -> Sequence[Entry]:
        for place, entry in enumerate(group[:count]):
            try:
                self.board = release_board.fold(self.board, entry.kind, entry.body)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                self._blame(group, place, f"is no entry of this kind: {error}")
        return group[count:]

    def _blame(self, group: Sequence[Entry], where: int, text: str) -> None:
        entry = group[min(where, len(group) - 1)]
        version = entry.body.get("version") or entry.body.get("rollout") or ""
        self.found.blame(entry.seq, version, f"{entry.kind}: {text}")

    def _derive(self, group: Sequence[Entry]) -> Iterator[list[Decision]]:
        """What the rules write here, in each way that what the journal does not hold may have been."""
        first = group[0]
        body, now = first.body, unstamp(first.body["clock"])
        if first.kind == "rollout.queued":
            proposer = body["after"]["proposer"]
            asked = {key: body[key] for key in ("actor", "reason") if key in body}
            yield release.enqueue(self.board, body["version"], body["number"], body["parent"], now, proposer, **asked)
        elif first.kind == "routing.set" and self.board.stable is None:
            yield release.found(body["stable"], now)
        elif first.kind in SAID or body.get("actor", "gate") != "gate":
            yield self._said(group, now)
        else:
            yield from self._looked(group, now)

    def _said(self, group: Sequence[Entry], now: datetime) -> list[Decision]:
        """What a person's verb makes: the verb is given, what follows from it is not."""
        entry = group[0]
        body = entry.body
        actor, version = body["actor"], body["version"]
        if entry.kind in SAID:
            verb = getattr(release_verbs, SAID[entry.kind])
            more = {"policy": self.policy} if entry.kind == "rollout.retried" else {}
            return list(verb(self.board, version, now, actor=actor, reason=body["reason"], **more))
        said = {"actor": actor, "reason": body["reason"].removeprefix(f"{actor}: ")}
        if State(body["to"]) is State.ROLLED_BACK:  # at once: an abort goes through ROLLING_BACK or to REJECTED
            target = next(one.body["stable"] for one in group if one.kind == "routing.set")
            return release_verbs.undo(self.board, now, policy=self.policy, to_version=target, **said)
        if State(body["to"]) not in TRAFFIC | {State.PROMOTED}:
            return release_verbs.abort(self.board, version, now, **said)
        acknowledged = bool((body["figures"] or {}).get("acknowledged"))
        verdicts = self._judge(version, now, acknowledged, None)
        frozen = self.board.policy_of(self.board.rollouts[version], self.policy)
        full = body["step"] == len(frozen.weights) - 1
        return release_verbs.promote(self.board, version, verdicts, self.policy, now, full=full, **said)

    def _looked(self, group: Sequence[Entry], now: datetime) -> Iterator[list[Decision]]:
        """What the gate decides at one look; replicas had acknowledged, and versions could be loaded, or not."""
        ends = next((n for n, entry in enumerate(group) if entry.kind == "rollout.stepped"), None)
        window = None if ends is None else group[ends].body["window"]
        if window is not None and window not in self.evidence.windows:
            raise ValueError(f"window {window} was stepped without evidence of it before")
        self.found.looks += 1
        told = [RolloutPolicy.from_body(entry.body["policy"]) for entry in group[:ends] if entry.kind == "policy.set"]
        self.found.policies |= {policy.digest: policy for policy in told}
        loaded = {
            entry.body["version"]: entry.body["figures"].get("prepared")
            for entry in reversed(group[:ends]) if entry.body.get("figures")  # the first of a version is of this look
        }
        # later looks of the same moment may have set another policy; None: the controller loads no version
        for policy, loads, acknowledged in product([None, *told], (True, None), (True, False)):
            verdicts = {
                version: self._judge(version, now, acknowledged, loaded.get(version, one.state in BEFORE_SHADOW and loads))
                for version, one in self.board.rollouts.items() if one.live or one.watched
            }
            yield self._step(policy, verdicts, now, window)
            if window is not None:  # a look without a window may share its time stamp with the window's own
                yield self._step(policy, verdicts, now, None)

    def _step(
        self, told: RolloutPolicy | None, verdicts: Mapping[str, Verdicts], now: datetime, window: str | None
    ) -> list[Decision]:
        board, policy = self.board, told or self.board.policy
        if policy is None:  # written before policies and the holdback were
            policy = replace(self.policy, holdback=0.0)
            board = replace(self.board, policy=policy)
        return release.step_board(board, verdicts, policy, now, window)

    def _judge(self, version: str, now: datetime, acknowledged: bool, prepared: bool | None) -> Verdicts:
        rollout = self.board.rollouts[version]
        policy = self.board.policy_of(rollout, self.policy)
        return judge(rollout, self.evidence, policy, now, acknowledged=acknowledged, prepared=prepared)


def _compare(group: Sequence[Entry], expected: Sequence[Decision]) -> tuple[int, str] | None:
    """The place of the first entry that differs and how; None where the transaction begins with what was expected."""
    if not expected:
        return 0, "the rules decide nothing here"
    for place, decision in enumerate(expected):
        if place >= len(group):
            return place, f"the transaction ends here; the rules go on with {_told(decision)}"
        entry = group[place]
        if (entry.stream.split("/")[0], entry.kind) != (str(decision.room), decision.kind) or (
            entry.body.get("version") != decision.body.get("version")
        ):
            return place, f"the rules write {_told(decision)}"
        different = _difference(entry.body, decision.body)
        if different is not None:
            return place, different
    return None


def _told(decision: Decision) -> str:
    about = decision.body.get("version") or decision.body.get("window") or decision.body.get("stable") or ""
    return f"{decision.kind} {about} {decision.body.get('reason', '')}".strip()


def _difference(stored: Any, derived: Any, name: str = "") -> str | None:
    """The first value that differs, by its path. A key that only the rules of today write is no difference."""
    if isinstance(stored, Mapping) and isinstance(derived, Mapping):
        for key in stored:
            inside = f"{name}.{key}".lstrip(".")
            if key not in derived:
                return f"{inside} = {stored[key]!r} is nothing the rules write"
            found = _difference(stored[key], derived[key], inside)
            if found is not None:
                return found
        return None
    if isinstance(stored, list | tuple) and isinstance(derived, list | tuple) and len(stored) == len(derived):
        return next(filter(None, (_difference(a, b, name) for a, b in zip(stored, derived, strict=True))), None)
    if _equal(stored, derived):
        return None
    return f"{name} = {stored!r}, derived {derived!r}"


def _equal(stored: Any, derived: Any) -> bool:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (stored, derived))
    return isclose(stored, derived, rel_tol=TOLERANCE, abs_tol=TOLERANCE) if numbers else bool(stored == derived)


def _impossible(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What no scorer can have written: (sentence, candidate). Every pair counts the examples of its window once."""
    void = (body.get("void") or {}).get("examples", 0) + body.get("null", 0)
    for pair in body["pairs"]:
        counted = sum(row[1] + row[4] for row in pair["blocks"])
        if "examples" in body and counted != body["examples"] - void:
            yield f"evidence.scored: blocks count {counted} examples of {body['examples'] - void}", pair["candidate"]
        for _, n, total, squares, _ in pair["blocks"]:
            if n * squares < total * total * (1.0 - TOLERANCE) - TOLERANCE:
                yield f"evidence.scored: {n} values cannot sum to {total!r} with squares {squares!r}", pair["candidate"]
