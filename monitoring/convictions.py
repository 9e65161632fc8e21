"""The alarms of the stops among a moment's decisions, to be written in the same transaction as these.

A version that the gate proved worse is told to people; its descendants are part of the same story, and a version that could not
be loaded or ran out of time has a story of its own. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.release_board import Board
from models.release_policy import RolloutPolicy
from models.rollout import Decision
from models.rollout_state import State
from monitoring.alarms import drafted
from security.journal import Draft, Journal


def alarms_of(
    decisions: Sequence[Decision], board: Board, policy: RolloutPolicy, journal: Journal, task: str, window: str | None = None
) -> list[Draft]:
    """Entries for the versions stopped by these decisions, taken on `board`. Without a window the version names the alarm."""
    found: dict[str, Draft] = {}
    for decision in decisions:
        body = decision.body
        if decision.kind != "rollout.advanced" or body["to"] not in (State.REJECTED, State.ROLLING_BACK):
            continue
        if body["after"]["outcome"] == State.EXPIRED or body["figures"]["prepared"] is False:
            continue
        kind, figure, limit = conviction(body, board.policy_of(board.rollouts[body["version"]], policy))
        draft = drafted(
            journal, task, kind=kind, window=window or _named(body),
            severity="critical" if body["to"] == State.ROLLING_BACK else "warning",  # nobody was served by a shadow
            message=f"{body['version']} was stopped: {body['reason']}", figure=figure, limit=limit,
        )  # fmt: skip
        if draft is not None:
            found.setdefault(kind, draft)  # one of a kind a moment, as `raise_alarm` would have it
    return list(found.values())


def _named(body: Mapping[str, Any]) -> str:
    """The version, and its attempt from the second on: an alarm that was acknowledged is not raised again by its name."""
    attempt = body["after"].get("attempt", 1)
    return str(body["version"]) if attempt == 1 else f"{body['version']} attempt {attempt}"


def conviction(body: Mapping[str, Any], policy: RolloutPolicy) -> tuple[str, float | None, float]:
    """The kind of alarm, the figure and its limit behind a stop, by the gate that its reason names first."""
    figures, reason = body["figures"], body["reason"]
    if reason.startswith("errors:"):
        return "error_rate", figures["errors_e"], policy.guard_threshold
    if reason.startswith("slow:"):
        return "latency", figures["slow_e"], policy.guard_threshold
    if "on the outcome" in reason:
        return "quality_drop", figures["outcome_harm_e"], policy.harm_threshold
    if "protected slice" in reason:
        return "quality_drop", max(harm for _, _, harm, _ in figures["slices"]), policy.harm_threshold
    return "quality_drop", figures["harm_e"], policy.harm_threshold
