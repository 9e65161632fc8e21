"""Step `rollout`: turn the evidence into verdicts, ask the release rules once, append what they decided.

The rules are pure and live in `models/release.py`; this step brings them figures and carries their entries, with the alarms
of what they stop, to the journal in one transaction. A person's verb, or the controller, that came in between makes it read and
decide again.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from assets.workspace import Workspace
from models import release
from models.release_board import Board
from models.release_policy import Verdicts
from models.rollout import Decision
from models.rollout_state import State
from models.version import VersionRefused
from monitoring.alarms import raise_alarm
from monitoring.convictions import alarms_of
from monitoring.verdict import judge
from security.journal import Conflict
from security.replicas import Replicas

if TYPE_CHECKING:
    from models.predictor import Predictor

ATTEMPTS = 5


def rollout(window: str, workspace: Workspace) -> Mapping[str, Any]:
    """Decide on this window's evidence; {"window", "decisions": [...]}. A window is stepped once."""
    return {"window": window, "decisions": decide(workspace, workspace.clock(window), window)}


def decide(workspace: Workspace, now: datetime, window: str | None = None) -> list[str]:
    """Ask the rules and append their entries; returns them as short sentences. With `window`, at most once for it."""
    for _ in range(ATTEMPTS):
        board = workspace.board()
        found = verdicts(workspace, board, now)
        decisions = release.step_board(board, found, workspace.policies.rollout, now, window)
        if not decisions:
            return []
        policy, journal = workspace.policies.rollout, workspace.journal
        try:
            workspace.append_decisions(
                decisions, also=alarms_of(decisions, board, policy, journal, workspace.task.name, window)
            )
        except Conflict:
            continue
        return [sentence(decision) for decision in decisions if decision.kind != "rollout.stepped"]
    raise Conflict(f"the release of {workspace.task.name} was changed by others {ATTEMPTS} times in a row: try again")


def verdicts(workspace: Workspace, board: Board, now: datetime) -> dict[str, Verdicts]:
    """The verdict on every rollout that is under test, watched, or being prepared."""
    acknowledged = _acknowledged(workspace, board)
    found = {}
    for version, one in board.rollouts.items():
        if one.live or one.watched:
            prepared = verified(workspace, version) is not None if one.state in (State.PREPARING, State.QUEUED) else None
            found[version] = judge(
                one, workspace.evidence(), board.policy_of(one, workspace.policies.rollout), now,
                acknowledged=acknowledged, prepared=prepared,
            )
    return found


def _acknowledged(workspace: Workspace, board: Board) -> bool:
    """Whether every replica with a live lease routes by the newest epoch. Without any replica there is nobody to wait for."""
    lease = workspace.policies.rollout.lease
    return Replicas(workspace.journal.engine).all_acknowledged(workspace.task.name, board.epoch, workspace.wall(), lease)


def verified(workspace: Workspace, version: str) -> Predictor | None:
    """The version, ready to score; None, and a security alarm, when one of the checks refuses it."""
    try:
        return workspace.predictor(version)
    except VersionRefused as error:
        raise_alarm(
            workspace.journal, workspace.task.name, kind="security", window=version, message=str(error), figure=None,
            limit=None, at=workspace.now(), actor=workspace.actor,
        )  # fmt: skip
        return None


def sentence(decision: Decision) -> str:
    """One decision in words, for logs and progress."""
    body = decision.body
    match decision.kind:
        case "rollout.advanced":
            share = f" at {body['weight']:.0%}" if body["to"] == State.CANARY else ""
            return f"{body['version']}: {body['from']} -> {body['to']}{share} ({body['reason']})"
        case "rollout.retried":
            return f"{body['version']}: attempt {body['after']['attempt']} waits for a slot ({body['reason']})"
        case "routing.set":
            canary = f", {body['weight']:.0%} to {body['canary']}" if body["canary"] else ""
            return f"routing epoch {body['epoch']}: stable {body['stable']}{canary}"
        case "head.moved":
            return f"the next update starts from {body['head']} ({body['reason']})"
        case "rollout.held":
            holds = "; ".join(body["reasons"]) or "nothing any more"
            return f"{body['version']}: held by {holds}"
        case "policy.set":
            return f"release policy {body['digest']} for versions that start from here on"
    what = decision.kind.partition(".")[2].replace("_", " ")
    return f"{body.get('version', '')}: {what} ({body.get('reason', '')})"
