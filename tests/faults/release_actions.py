"""What may happen to a task's releases: each action plans once, outside of every process, and returns what the processes do.

A plan draws all that is random and changes the world outside; what it returns may be cut off by a death and done again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from random import Random
from typing import Any

from assets.windows.clock import window_id
from models import release_verbs
from models.release_verbs import VerbRefused
from monitoring import evidence
from pipelines.release_desk import Stale
from security.journal import Conflict, Draft, JournalUnreachable, unstamp
from security.tokens import TokenRefused
from tests.faults.release_world import DAY, POLICIES, START, TASK, World, drafts_of, pick

Do = Callable[[World], None]
Plan = Callable[[World, Random], Do | None]
WHO = {"actor": "ana", "reason": "release drill"}


def _day(world: World, rng: Random, dirty: bool = False, share: Any = None) -> Do:
    """The next window's time is over and it is scored; on the wall some hours pass after its end."""
    outside = world.outside
    day, outside.day = outside.day, outside.day + 1
    outside.true = max(outside.true, START + outside.day * DAY) + timedelta(minutes=rng.randrange(600))
    window, seed = window_id(START + day * DAY), rng.randrange(2**31)
    outside.seal(window)
    if dirty:
        outside.dirty.add(window)
    if share:
        outside.share[window] = share
    return lambda world: world.score(day, seed)


def days(world: World, rng: Random) -> Do:
    """One to four good windows, and then the controller."""
    todo = [_day(world, rng) for _ in range(rng.randint(1, 4))]

    def do(world: World) -> None:
        for one in todo:
            one(world)
        world.settle()

    return do


def window(world: World, rng: Random) -> Do:
    return _day(world, rng)


def window_not_a_number(world: World, rng: Random) -> Do:
    return _day(world, rng, dirty=True)


def window_tiny_coverage(world: World, rng: Random) -> Do:
    return _day(world, rng, share=(0.1, {}))


def window_one_arm(world: World, rng: Random) -> Do:
    """Labels came for stable's units and hardly for the canary's."""
    return _day(world, rng, share=(0.9, {"stable": 0.95, "canary": 0.6}))


def window_skipped(world: World, rng: Random) -> Do:
    """A window's time is over and nobody has scored it: late, or never."""
    world.outside.skipped.append(world.outside.day)
    _day(world, rng)
    return lambda world: world.settle()


def window_late(world: World, rng: Random) -> Do | None:
    """One that was skipped is scored out of order."""
    if not world.outside.skipped:
        return None
    day = world.outside.skipped.pop(rng.randrange(len(world.outside.skipped)))
    return lambda world: world.score(day, day)


def window_again(world: World, rng: Random) -> Do | None:
    """The same entry once more, as a writer without the step's guard would leave it, and the step once more."""
    scored = world.journal.read(f"window/{TASK}", kinds=(evidence.SCORED,))
    if not scored:
        return None
    entry = pick(rng, scored[-3:])
    length = world.journal.length(f"window/{TASK}")

    def do(world: World) -> None:
        with suppress(Conflict):
            draft = Draft(f"window/{TASK}", evidence.SCORED, entry.body, expected=length)
            world.journal.append(draft, actor="pipeline", at=world.shop.now())
        world.step((unstamp(entry.body["end"]) - START) // DAY - 1)
        world.settle()

    return do


def update(world: World, rng: Random) -> Do | None:
    """A version was trained from the lineage head, from stable, or from a version that may be convicted by now."""
    outside, board = world.outside, world.desk.board()
    if not outside.day:
        return None
    outside.versions += 1
    number = outside.versions
    parent = rng.choice([board.head, board.head, board.stable, *list(board.rollouts)[-2:]])
    own = rng.choice([0.07, 0.07, 0.07, 0.0, -0.09])
    outside.gain[f"v{number:06d}"] = outside.gain.get(parent or "", 0.0) + own
    return lambda world: world.register(number, parent)


def look(world: World, rng: Random) -> Do:
    world.outside.true += timedelta(seconds=rng.randrange(20))
    return lambda world: world.settle()


def _unsettled(world: World, rng: Random) -> tuple[Do, int | None]:
    """Something the rules will act on, and that nobody has looked at: a window's evidence, errors, time."""
    kind = rng.choice(["window", "window", "window", "errors", "time"])
    if kind == "window":
        day, seed = world.outside.day, rng.randrange(2**31)
        _day(world, rng)
        return (lambda world: world.witness(day, seed)), day
    if kind == "errors":
        _count(world, rng, 60)
    world.outside.true += timedelta(hours=rng.randrange(30))
    return World.beat, None


def _meanwhile(world: World, other: Callable[[], object], first: Callable[[], object]) -> None:
    """`first` has read; before it writes, `other` does its work. In turn: `other`, then `first`."""
    if world.turns:
        other()
        first()
        return
    world.between.append(other)
    try:
        first()
        if world.between:  # it had nothing to write
            world.between.pop()()
    finally:
        world.between.clear()


def race(world: World, rng: Random) -> Do:
    """Controller B, or the worker, has read the board; before it writes, controller A decides."""
    prepare, day = _unsettled(world, rng)
    worker = day is not None and rng.random() < 0.5

    def do(world: World) -> None:
        prepare(world)
        late = (lambda: world.step(day)) if worker and day is not None else world.second.look
        _meanwhile(world, world.first.look, late)
        world.settle(world.second)  # with other settings it may have found nothing before and something after
        world.settle()

    return do


def _said(world: World, rng: Random, verb: str) -> tuple[str, str | None, dict[str, Any]] | None:
    board = world.desk.board()
    live = [v for v, one in board.rollouts.items() if one.live]
    if verb == "undo":
        return verb, None, {}
    if verb == "retry":
        live = [v for v, one in board.rollouts.items() if not one.live]
    version = board.canary.version if board.canary and rng.random() < 0.5 else pick(rng, live)
    if version is None:
        return None
    return verb, version, {"full": rng.random() < 0.4} if verb == "promote" else {}


def _looked(world: World) -> str:
    """The revision a person sees who looks now."""
    world.desk.board()
    return world.desk.revision


def verb(world: World, rng: Random) -> Do | None:
    """A person speaks, by what they have just read."""
    name = rng.choice(["promote", "promote", "pause", "pause", "resume", "retry", "undo", "undo"])
    said = _said(world, rng, name)
    revision = _looked(world)
    world.outside.true += timedelta(seconds=rng.randrange(60))
    return said and (lambda world: _beat_and_speak(world, said, revision))


def pause(world: World, rng: Random) -> Do | None:
    """Somebody wants to look closer, and good days pass."""
    said, before, after = _said(world, rng, "pause"), days(world, rng), [_day(world, rng) for _ in range(4)]

    def do(world: World) -> None:
        before(world)
        if said is not None:
            _beat_and_speak(world, said, None)
        for one in after:
            one(world)
        world.settle()

    return do


def abort(world: World, rng: Random) -> Do | None:
    said = _said(world, rng, "abort")
    revision, world.aborted = _looked(world), (said[1] if said else None) or ""
    return said and (lambda world: _beat_and_speak(world, said, revision))


def _beat_and_speak(world: World, said: tuple[str, str | None, dict[str, Any]], revision: str | None) -> None:
    world.beat()
    with suppress(VerbRefused, TokenRefused, Stale, Conflict):
        world.desk.write(said[0], said[1], **WHO, revision=revision, **said[2])


def approve(world: World, rng: Random) -> Do | None:
    """A second person's consent. Its proof by a token is tested where tokens are; here the rule writes."""
    said = _said(world, rng, "approve")
    if said is None:
        return None
    version = said[1] or ""

    def do(world: World) -> None:
        with suppress(VerbRefused):
            found = release_verbs.approve(world.desk.board(), version, world.desk.clock(), actor="bo", reason="seen")
            if found:
                world.journal.append_all(drafts_of(world, found), actor="bo", at=world.outside.wall)
        world.settle()

    return do


def stale_verb(world: World, rng: Random) -> Do | None:
    """A person's promote, retry or resume was asked for an earlier revision, or the controller decides while they write."""
    said = _said(world, rng, rng.choice(["promote", "resume", "retry", "undo"]))
    if said is None:
        return None
    prepare, _ = _unsettled(world, rng)
    early = "1-1" if rng.random() < 0.2 else None

    def do(world: World) -> None:
        prepare(world)
        world.between.append(world.first.look)
        try:
            with suppress(VerbRefused, TokenRefused, Stale, Conflict):
                world.desk.write(said[0], said[1], **WHO, revision=early, **said[2])
        finally:
            world.between.clear()

    return do


def abort_beats_promote(world: World, rng: Random) -> Do | None:
    """One person promotes, another aborts before that is written."""
    board = world.desk.board()
    version = pick(rng, [v for v, one in board.rollouts.items() if one.live])
    if version is None:
        return None
    world.aborted = version

    def do(world: World) -> None:
        def stop() -> None:
            with suppress(VerbRefused):
                world.other_desk.write("abort", version, actor="bo", reason="stop drill")

        def go() -> None:
            with suppress(VerbRefused, Conflict):
                world.desk.write("promote", version, **WHO, full=True)

        world.beat()
        _meanwhile(world, stop, go)
        world.beat()  # whoever died in between has beaten once more

    return do


def replicas(world: World, rng: Random) -> Do:
    """A replica appears, lags at the epoch of now, catches up, or dies; a lease may run out."""
    outside, name = world.outside, rng.choice(["r1", "r2"])
    epoch = world.desk.board().epoch
    change = rng.choice(["follow", "lag", "lag", "die", "lease"])
    if change in ("follow", "lag"):
        outside.replicas[name] = None if change == "follow" else max(epoch - rng.randrange(2), 0)
    elif change == "die":
        outside.replicas.pop(name, None)
    outside.true += timedelta(seconds=31 if change == "lease" else rng.randrange(10))
    return lambda world: world.settle()


def clock(world: World, rng: Random) -> Do:
    """The clock on the wall jumps, either way."""
    outside = world.outside
    outside.offset = rng.choice([timedelta(0), timedelta(hours=-5), timedelta(days=-9), timedelta(hours=7), timedelta(days=3)])
    return lambda world: world.settle()


def settings(world: World, rng: Random) -> Do:
    """The processes start again with another policy, in the middle of whatever is under way."""
    world.outside.policy = POLICIES[rng.choice(sorted(POLICIES))]
    world.settings()
    return lambda world: world.settle()


def one_controller_with_old_settings(world: World, rng: Random) -> Do:
    """Half of a deployment: the other controller still has the settings from before."""
    old = world.second.policy
    world.outside.policy = POLICIES[rng.choice(sorted(POLICIES))]
    world.settings()

    def do(world: World) -> None:
        world.second.policy = old
        world.settle(world.second)
        world.settle()

    return do


def artefact(world: World, rng: Random) -> Do | None:
    """A version's file is deleted, or comes back; most often of one that is about to be loaded."""
    outside, board = world.outside, world.desk.board()
    version = pick(rng, list(board.rollouts)[-2:])
    if version is None:
        return None
    outside.gone ^= {version}
    return lambda world: world.settle()


def traffic(world: World, rng: Random) -> Do:
    """Requests to both arms of the epoch, without a fault to speak of."""
    return _served(world, rng, 0)


def burst(world: World, rng: Random) -> Do:
    """The canary answers with errors only; now and then a person has just paused it."""
    canary, do = world.desk.board().canary, _served(world, rng, 60)
    if canary is None or rng.random() < 0.5:
        return do

    def paused(world: World) -> None:
        with suppress(VerbRefused):
            world.desk.write("pause", canary.version, **WHO)
        do(world)

    return paused


def _served(world: World, rng: Random, errors: int) -> Do:
    _count(world, rng, errors)
    return lambda world: world.settle()


def _count(world: World, rng: Random, errors: int) -> None:
    outside, routing = world.outside, world.desk.board().routing
    assert routing is not None
    arms = {"stable": (60, 1, 1)} | ({"canary": (60, errors, 0)} if routing.canary and routing.weight else {})
    for arm, added in arms.items():
        known = outside.counts.setdefault((routing.epoch, arm), [0, 0, 0])
        outside.counts[routing.epoch, arm] = [a + b for a, b in zip(known, added, strict=True)]
    outside.true += timedelta(seconds=rng.randrange(5))


def unavailable(world: World, rng: Random) -> Do:
    """The journal takes no write while the controller looks and a person speaks; then it is back."""
    said = _said(world, rng, "promote")

    def do(world: World) -> None:
        world.beat()
        with world.locked():
            with suppress(JournalUnreachable):
                world.first.look()
            with suppress(JournalUnreachable, VerbRefused):
                world.desk.write(said[0], said[1], **WHO, **said[2]) if said else None
        world.settle()

    return do


ACTIONS: dict[Plan, int] = {
    days: 24, window: 8, window_not_a_number: 1, window_tiny_coverage: 2, window_one_arm: 2, window_skipped: 2, window_late: 3,
    window_again: 3, update: 16, look: 4, race: 8, verb: 9, pause: 4, abort: 3, abort_beats_promote: 3, approve: 3,
    stale_verb: 5, replicas: 12, clock: 4, settings: 2, one_controller_with_old_settings: 2, artefact: 2, traffic: 6, burst: 3,
    unavailable: 2,
}  # fmt: skip
