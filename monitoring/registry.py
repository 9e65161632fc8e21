"""MLflow's model registry as a picture of the board: a registered model named like the task, a version for each version of
ours, the aliases `stable` and `canary`.

Nothing here is read back to decide anything. `project` looks before it writes, so doing it again changes nothing and what
somebody moved by hand is moved back. It takes the client it is given and imports no MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.release_board import Board

VERSION_TAG, STATE_TAG = "headgate.version", "headgate.rollout"
ALIASES = ("stable", "canary")
PAGE = 200


@dataclass(frozen=True, slots=True)
class Releases:
    """What the registry is to show: each version's state, and which version an alias names (None: it names none)."""

    states: Mapping[str, str]
    aliases: Mapping[str, str | None]


def releases_of(board: Board) -> Releases:
    """The picture of a board. A stable version that never had a rollout, the base, is shown as BASE."""
    states = {one.version: one.state.value for one in sorted(board.rollouts.values(), key=lambda one: one.number)}
    if board.stable is not None:
        states = {board.stable: "BASE"} | states if board.stable not in states else states
    return Releases(states, {"stable": board.stable, "canary": board.routing.canary if board.routing else None})


def project(client: Any, task: str, wanted: Releases) -> list[str]:
    """Make the registry show `wanted`; what had to be changed, a sentence each. Raises what MLflow raises."""
    changes = []
    found = client.search_registered_models(filter_string=f"name = '{task}'")
    if not found:
        client.create_registered_model(task, description="A picture of Headgate's journal; changes made here are undone.")
        changes.append(f"registered model {task} was made")
    known = _versions(client, task)
    for version, state in wanted.states.items():
        if version not in known:
            known[version] = _create(client, task, version, state)
            changes.append(f"{version} was registered as version {known[version].version}")
        elif known[version].tags.get(STATE_TAG) != state:
            client.set_model_version_tag(task, known[version].version, STATE_TAG, state)
            changes.append(f"{version} is {state}, was {known[version].tags.get(STATE_TAG)}")
    there = client.get_registered_model(task).aliases
    for alias in ALIASES:
        named = wanted.aliases.get(alias)
        number, before = None if named is None else str(known[named].version), there.get(alias)
        if (None if before is None else str(before)) == number:
            continue
        if number is None:
            client.delete_registered_model_alias(task, alias)
        else:
            client.set_registered_model_alias(task, alias, number)
        changes.append(f"alias {alias} is {named or 'nothing'} (version {number or '-'}), was version {before or '-'}")
    return changes


def _versions(client: Any, task: str) -> dict[str, Any]:
    """Our version -> MLflow's; the first, should two writers have made one each."""
    found: dict[str, Any] = {}
    token = None
    while True:
        page = client.search_model_versions(f"name = '{task}'", max_results=PAGE, page_token=token)
        for one in sorted(page, key=lambda one: int(one.version)):
            ours = one.tags.get(VERSION_TAG)
            if ours is not None and (ours not in found or int(one.version) < int(found[ours].version)):
                found[ours] = one
        token = page.token
        if not token:
            return found


def _create(client: Any, task: str, version: str, state: str) -> Any:
    """One that points at the logged model of the version, when its training was recorded; else at the name alone."""
    source, run_id, model_id = f"headgate://{task}/{version}", None, None
    experiment = client.get_experiment_by_name(task)
    if experiment is not None:
        tagged = f"tags.`{VERSION_TAG}` = '{version}'"
        logged = client.search_logged_models([experiment.experiment_id], filter_string=tagged, max_results=1)
        if logged:
            model = logged[0]  # its folder: "models:/ID" would be looked up at the process-wide tracking URI
            source, run_id, model_id = model.artifact_location, model.source_run_id, model.model_id
    return client.create_model_version(
        task, source, run_id, tags={VERSION_TAG: version, STATE_TAG: state}, await_creation_for=0, model_id=model_id
    )
