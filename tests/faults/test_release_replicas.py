"""I14: no replica answers from a version outside the routing epoch of now and the one before, out of contact or not."""

from __future__ import annotations

from random import Random

from pipelines.gateway.last_good import LastGood
from pipelines.gateway.routing import Follower
from pipelines.gateway.shelf import Shelf
from security.keys import public_key
from tests.gateways import World, blobs_base, world

__all__ = ["blobs_base", "world"]

LEASE, POLL, STEPS = 3.0, 1.0, 150


def follower(world: World, name: str) -> Follower:
    """One that looks when it is told to."""
    shelf = Shelf(world.task, world.store, {"trainer": public_key(world.keys, "trainer")})
    return Follower(
        world.task.name, lambda: world.journal, shelf, LastGood(world.folder / f"{name}.json"), replica=name,
        lease_seconds=LEASE, poll_seconds=POLL, on_look=lambda journal: None, on_refused=lambda *told: None,
    )  # fmt: skip


def test_no_replica_answers_from_a_version_outside_this_epoch_and_the_one_before(world: World) -> None:
    """Two followers whose ticks are told, one route a few ticks, looks missed for up to three leases. One out of contact may
    lag behind for the lease, then its canary takes nothing."""
    rng, versions = Random(14), [world.version(number) for number in range(1, 4)]
    epochs = {world.route(versions[0]): (versions[0], None)}
    followers = [follower(world, f"r{number}") for number in range(2)]
    away, looked, late = [0, 0], [0.0, 0.0], 0
    for step in range(STEPS):
        ticks = float(step)
        if rng.random() < 0.3:
            stable, canary = rng.sample(versions, 2)
            taking = rng.random() < 0.7
            routed = (stable, canary if taking else None)
            epochs[world.route(*routed, 0.5 if taking else 0.0)] = routed
        for k, one in enumerate(followers):
            away[k] = away[k] - 1 if away[k] else (rng.randrange(1, 9) if rng.random() < 0.1 else 0)
            if not away[k]:
                one.look(ticks)
                looked[k] = ticks
            found = one.serving(ticks)
            assert found is not None
            routing, predictors = found
            assert (routing.stable, routing.canary) == epochs[routing.epoch]
            assert {routing.stable, routing.canary} - {None} <= set(predictors)
            if ticks - looked[k] <= POLL:
                assert routing.epoch >= world.epoch - 1, f"I14: tick {ticks}: epoch {routing.epoch} of {world.epoch}"
            elif ticks - looked[k] > LEASE:
                late += 1
                assert routing.weight == 0.0, f"I14: tick {ticks}: a canary answers {ticks - looked[k]} s after the last look"
    assert late > 10 and world.epoch > 20
