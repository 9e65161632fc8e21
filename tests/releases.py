"""Real rollouts in a gateway's world: the base is stable, versions are queued and stepped by the release rules."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import httpx

from models import release
from models.release_board import Board
from models.release_policy import RolloutPolicy, Verdicts
from models.rollout import Decision
from pipelines.reading import read_board
from security.journal import Draft, Entry
from tests.gateways import World, wait_until

UNSEEN = Verdicts(prepared=True, acknowledged=True)  # what there is to say of a version before its first window
READY = replace(UNSEEN, fresh=True)
QUICK_POLICY = RolloutPolicy(steps=("shadow", 10, 50, 100))


def board(world: World) -> Board:
    return read_board(world.journal, world.task.name)


def written(world: World, decisions: list[Decision]) -> None:
    drafts = [Draft(f"{d.room}/{world.task.name}", d.kind, d.body) for d in decisions]
    world.journal.append_all(drafts, actor="test", at=datetime.now(UTC))


def step(world: World, policy: RolloutPolicy = QUICK_POLICY, verdicts: Verdicts = UNSEEN) -> None:
    """What the gate does at each look; nothing is proven by it."""
    found = board(world)
    written(world, release.step_board(found, dict.fromkeys(found.rollouts, verdicts), policy, datetime.now(UTC)))


def in_shadow(world: World, number: int, policy: RolloutPolicy = QUICK_POLICY, proposer: str = "pipeline") -> str:
    """A signed version under test."""
    version = world.version(number)
    if board(world).stable is None:
        written(world, release.found(world.base_version, datetime.now(UTC)))
    now, parent = datetime.now(UTC), world.base_version
    written(world, release.enqueue(board(world), version, number, parent, now, proposer=proposer))
    step(world, policy)
    return version


def bake(world: World, version: str) -> None:
    """From PROMOTING on: every replica has acknowledged."""
    step(world, verdicts=READY)
    assert board(world).rollouts[version].state.value == "BAKING"


def about(world: World, version: str, kind: str) -> list[Entry]:
    entries = world.journal.read(f"rollout/{world.task.name}")
    return [entry for entry in entries if entry.kind == kind and entry.body.get("version") == version]


def steer(
    world: World,
    client: httpx.Client,
    version: str,
    verb: str,
    *,
    subject: str = "ana",
    match: str | None = "look",
    **said: object,
) -> httpx.Response:
    """POST a verb with a token of its scope; `match` "look" sends the ETag of a look just taken, None sends no If-Match."""
    approve = verb == "approve"
    token = world.token("release:approve", subject=subject, rollout=version) if approve else None
    headers = {"authorization": f"Bearer {token or world.token('release:write', subject=subject)}"}
    if match is not None:
        headers["if-match"] = etag(world, client, version) if match == "look" else match
    body = {"reason": "release drill", **said}
    return client.post(f"/v1/rollouts/{version}/{verb}", json=body, headers=headers)


def etag(world: World, client: httpx.Client, version: str) -> str:
    return look(world, client, f"/{version}").headers["etag"]


def look(world: World, client: httpx.Client, path: str = "") -> httpx.Response:
    headers = {"authorization": f"Bearer {world.token('release:read')}"}
    return client.get(f"/v1/rollouts{path}", headers=headers)


def served(client: httpx.Client) -> tuple[int, float]:
    """Epoch and canary weight that this replica answers with."""
    found = client.get("/v1/versions").json()
    return found["epoch"], found["weight"]


def caught_up(world: World) -> None:
    """Every replica has acknowledged the newest epoch."""
    epoch = board(world).epoch
    wait_until(lambda: all(world.acknowledged(made) == epoch for made in world.running))
