"""The randomised canary, end to end: predictions as the gateway records them, joined with labels, decided by the release rules.

Answers are made up by the test, so that the truth is known: stable is wrong in 30 of 100.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from assets.steps import STEPS, exposure
from assets.steps.evidence import evidence
from assets.stream.log import Outgoing
from assets.windows.columns import columns_of
from models import release
from models.adapters import lora
from models.base import build, digest
from models.split import Routing, arm, bucket
from models.version import write_version
from monitoring.evidence import entry
from monitoring.outcome import bets
from monitoring.rollout_audit import audit
from security.journal import Draft, canonical, stamp
from security.keys import private_key
from security.manifest import digest as manifest_digest
from tests import tasks
from tests.worlds import DAY, EVENTS_A_DAY, START, Blobs, World, make_world

STABLE_WRONG = 0.3
AB = {"strategy": "ab", "steps": ["shadow", 50, 100], "min_test": "1d", "min_hold": "1d", "bake": "1d"}


class Plain(Blobs):
    """It says nothing of outcomes."""


class Judged(Blobs):
    """What comes of an answer: 1 where it was on the wrong side."""

    def outcome(self, columns, answers):
        return ((answers > 0.5) != (columns["y"] > 0)).astype(float)

    def slices(self, columns):
        return {"left": columns["x0"] < 0, "right": columns["x0"] >= 0}


class Slow(Judged):
    label_horizon = timedelta(hours=30)


class ByAccount(Slow):
    """Split by account: 60 of them, four events each a day."""

    subject = "account"
    event = Blobs.event.append(pa.field("account", pa.string(), nullable=False))

    def history(self):
        return super().history() | {"account": np.array(["account"] * 2000, dtype=object)}

    def golden(self):
        return super().golden() | {"account": np.array(["account"] * 1000, dtype=object)}


def draw(*what: object) -> float:
    """A fixed number in [0, 1) for these words."""
    return zlib.crc32(" ".join(map(str, what)).encode()) / 2**32


def record(event: str, unit: str, routing: Routing, drawn: tuple[str, float], score: float | None, at: Any) -> dict[str, Any]:
    """As pipelines/gateway/core.py writes it."""
    which, propensity = drawn
    version = routing.canary if which == "canary" else routing.stable
    return {
        "prediction_id": f"p-{event}-{routing.epoch}", "event_id": event, "unit": unit, "epoch": routing.epoch, "arm": which,
        "propensity": propensity, "version": version, "score": score, "shadow_version": None, "shadow_score": None,
        "latency_ms": 3.0, "at": stamp(at),
    }  # fmt: skip


def append(world: World, rows: list[dict[str, Any]], times: list[Any]) -> None:
    topic = world.settings.stream.predictions
    found = [
        Outgoing(row["event_id"].encode(), json.dumps(row).encode(), int(at.timestamp() * 1000))
        for row, at in zip(rows, times, strict=True)
    ]
    world.log.append(topic, found)


Split = Callable[[Routing, str], tuple[str, float]]


def serve(
    world: World, day: int, wrong: float, split: Split = arm, failed: int = 0, unit: Callable[[int], str] | None = None
) -> list[dict[str, Any]]:
    """A day's events, answered as they come: the canary is wrong in this share of them; the first few requests fail."""
    routing = world.workspace.board().routing
    assert routing is not None
    truth = tasks.columns(EVENTS_A_DAY, seed=100 + day)["y"]
    rows, times = [], []
    for k, y in enumerate(truth.tolist()):
        event, at = f"d{day}-{k}", START + day * DAY + k * (timedelta(hours=22) / EVENTS_A_DAY)
        asks = unit(k) if unit else event
        drawn = split(routing, asks)
        is_wrong = draw(event) < (wrong if drawn[0] == "canary" else STABLE_WRONG)
        score = None if k < failed else 0.9 if bool(y) != is_wrong else 0.1
        rows.append(record(event, asks, routing, drawn, score, at))
        times.append(at)
    append(world, rows, times)
    return rows


def new_world(tmp_path, task: str = "Judged", **rollout: Any) -> World:
    """With one version under test, whose weights do not matter here: its adapter is drawn, and changes hardly an answer."""
    world = make_world(
        tmp_path, task=f"tests.test_exposure:{task}", rollout={**AB, **rollout}, update={"every": "28d", "max_age": "90d"}
    )  # fmt: skip
    space = world.workspace
    module = build(space.task, space.base)
    lora.attach(module, space.policies.adapter, lora.first_draw(space.base))
    made = write_version(
        space.store / "blobs" / "versions", number=1, task="blobs", parent=space.lineage().registered_base()["version"],
        base_digest=digest(space.base), tensors=lora.extract(module), adapter_config=space.policies.adapter,
        manifest_extra={"not_covered": []}, key=private_key(space.keys, "trainer"), now=START,
    )  # fmt: skip
    found = manifest_digest((made.path / "manifest.json").read_bytes())
    body = {"version": made.id, "path": str(made.path.relative_to(space.store)), "manifest_digest": found}
    world.journal.append(Draft("lineage/blobs", "version.registered", body), actor="test", at=space.now())
    space.append_decisions(release.enqueue(space.board(), made.id, 1, None, START))
    return world


def live(world: World, days: range, wrong: float = STABLE_WRONG, **how: Any) -> None:
    for day in days:
        serve(world, day, wrong, **how)
        world.publish(1)
        for _, step in STEPS[:4]:  # up to the release's; nothing is trained here
            step(world.window(day), world.workspace)


def first(world: World) -> Any:
    return min(world.workspace.board().rollouts.values(), key=lambda r: r.number)


def body_of(world: World, day: int) -> Any:
    return world.workspace.body("evidence.scored", world.window(day))


def audited(world: World) -> Any:
    streams = [f"{room}/blobs" for room in ("rollout", "routing", "lineage", "window")]
    return audit(world.journal.tail(streams=streams), world.settings.rollout)


def judged(body: Any) -> Any:
    """What a window says of outcomes."""
    return {name: body[name] for name in ("exposed", "stable_outcome", "arm_coverage", "due")}


def without_labels(world: World, of: Callable[[str], bool], late: timedelta | None = None) -> None:
    """The labels of these events never come, or so much later."""
    send = world._send

    def some(topic: str, document: dict[str, Any], at: Any) -> None:
        if topic != world.settings.stream.labels or not of(document["event_id"]):
            send(topic, document, at)
        elif late is not None:
            send(topic, document, at + late)

    world._send = some  # type: ignore[method-assign]


# -- decided by the release rules --------------------------------------------------------------------------------------


def test_a_better_candidate_is_promoted_on_what_came_of_its_answers(tmp_path):
    world = new_world(tmp_path)
    live(world, range(2), 0.05)
    assert first(world).state == "CANARY" and first(world).forecast == pytest.approx(STABLE_WRONG, abs=0.06)
    live(world, range(2, 3), 0.05)
    (row,), forecast = body_of(world, 2)["exposed"], first(world).forecast
    arms = [bucket(first(world).version, f"d2-{k}") < 0.5 for k in range(EVENTS_A_DAY)]
    costs = [draw(f"d2-{k}") < (0.05 if in_canary else STABLE_WRONG) for k, in_canary in enumerate(arms)]
    expected = bets(arms, 0.5, costs, forecast)
    assert row[5] == pytest.approx(expected.to_row()) and row[2:5] == [0.5, sum(arms), EVENTS_A_DAY - sum(arms)]
    live(world, range(3, 5), 0.05)
    assert world.workspace.board().stable == first(world).version
    reasons = [e.body["reason"] for e in world.journal.read("rollout/blobs") if e.body.get("to") == "PROMOTING"]
    assert len(reasons) == 1 and reasons[0].startswith("outcome of 240 units: effect -0.3")
    found = audited(world)
    assert found.sound, found.faults


def test_a_worse_candidate_is_rolled_back_and_an_equal_one_is_neither(tmp_path):
    worse, equal = (new_world(tmp_path / name) for name in ("worse", "equal"))
    live(worse, range(3), 0.6)
    assert first(worse).outcome == "ROLLED_BACK" and "on the outcome of 240 units" in first(worse).reason
    assert audited(worse).sound
    live(equal, range(6))
    assert first(equal).state == "CANARY" and first(equal).weight == 0.5 and first(equal).holds == ()


def test_a_rollout_is_held_when_the_labels_of_one_arm_do_not_come(tmp_path):
    world = new_world(tmp_path)
    salt = first(world).version
    without_labels(world, lambda event: event[:2] in ("d2", "d3") and bucket(salt, event) < 0.5)
    live(world, range(4), 0.05)
    assert first(world).state == "CANARY" and first(world).holds == ("label_coverage",)
    assert body_of(world, 3)["arm_coverage"] == {"canary": 0.0, "stable": 1.0}


def test_a_rollout_is_held_when_the_router_sends_15_percent_for_10(tmp_path):
    def too_many(routing: Routing, unit: str) -> tuple[str, float]:
        return ("canary" if bucket(routing.salt, unit) < 1.5 * routing.weight else "stable"), routing.weight

    world = new_world(tmp_path, steps=["shadow", 10, 50, 100], min_hold="20d")
    live(world, range(7), split=too_many)
    assert "srm" in first(world).holds and first(world).weight == 0.1
    assert audited(world).sound


# -- what counts -------------------------------------------------------------------------------------------------------


def test_an_outcome_enters_when_its_label_is_mature_and_not_when_it_comes(tmp_path):
    world = new_world(tmp_path, "Slow")
    live(world, range(5), 0.05)
    counts = [body_of(world, day)["stable_outcome"][0] for day in range(4)]
    assert counts[0] == 0 and counts[1] > 150, "labels came half an hour after the events"
    (drawn,), (mature,) = (body_of(world, day)["exposed"] for day in (3, 4))
    assert drawn[3] + drawn[4] == EVENTS_A_DAY and drawn[5][0] == 0
    assert mature[5][0] == pytest.approx(EVENTS_A_DAY * 18 / 22, abs=2), "what arrived more than 30 hours ago"


def test_duplicates_late_labels_and_a_second_answer_change_nothing(tmp_path):
    plain, messy = (new_world(tmp_path / name) for name in ("plain", "messy"))
    for world, late in ((plain, None), (messy, timedelta(hours=2))):
        without_labels(world, lambda event: draw("lost", event) < 0.1, late)
    for day in range(4):
        live(plain, range(day, day + 1), 0.05)
        rows = serve(messy, day, 0.05)
        noon = START + day * DAY + timedelta(hours=23)
        append(messy, rows[::3], [noon] * len(rows[::3]))  # the recorder after a crash
        again = [row | {"prediction_id": row["prediction_id"] + "b", "score": 1.0 - row["score"]} for row in rows[::2]]
        append(messy, again, [noon] * len(again))  # the client asks once more
        messy.publish(1)
        for _, step in STEPS[:4]:
            step(messy.window(day), messy.workspace)
        assert judged(body_of(plain, day)) == judged(body_of(messy, day))
        if day:
            append(messy, rows[1::2], [START + (day + 1) * DAY + timedelta(minutes=1)] * len(rows[1::2]))  # and on another day


def test_a_second_answer_on_another_day_changes_nothing_for_an_event_that_waits_for_its_label(tmp_path):
    plain, messy = (new_world(tmp_path / name, "Slow") for name in ("plain", "messy"))
    rows: list[dict[str, Any]] = []
    for day in range(5):
        live(plain, range(day, day + 1), 0.05)
        morning = START + day * DAY + timedelta(minutes=5)
        other = [{"prediction_id": row["prediction_id"] + "b", "score": 1.0 - row["score"]} for row in rows]
        again = [row | differs | {"at": stamp(morning)} for row, differs in zip(rows, other, strict=True)]
        append(messy, again, [morning] * len(again))
        rows = serve(messy, day, 0.05)
        messy.publish(1)
        for _, step in STEPS[:4]:
            step(messy.window(day), messy.workspace)
        assert judged(body_of(plain, day)) == judged(body_of(messy, day)), day
    assert body_of(messy, 4)["exposed"] and body_of(messy, 4)["due"]["of"]


def test_an_account_counts_once_a_step_and_not_at_all_once_it_is_seen_in_both_arms(tmp_path):
    world = new_world(tmp_path, "ByAccount", min_hold="20d")
    send, account = world._send, lambda k: f"account {k % 60}"

    def with_account(topic: str, document: dict[str, Any], at: Any) -> None:
        of = {"account": account(int(document["event_id"].split("-")[1]))} if topic == world.settings.stream.events else {}
        send(topic, document | of, at)

    world._send = with_account  # type: ignore[method-assign]
    live(world, range(4), unit=account)
    assert first(world).state == "CANARY" and sum(body_of(world, 3)["exposed"][0][3:5]) == 60
    moved = [f"account {k}" for k in range(60) if bucket(first(world).version, f"account {k}") < 0.5][:10]
    live(world, range(4, 5), unit=account, split=lambda r, u: ("stable", r.weight) if u in moved else arm(r, u))
    (row,) = body_of(world, 4)["exposed"]
    assert row[3:5] == [0, 0] and row[5][0] == 60 - len(moved), "none is new; what matures is of the day before"
    assert body_of(world, 4)["exposure"]["in_both"] == len(moved) == 10


def test_a_window_that_is_scored_again_says_the_same_and_a_lost_file_comes_back(tmp_path):
    world = new_world(tmp_path)
    live(world, range(4), 0.2)
    body = body_of(world, 3)
    examples = columns_of(world.workspace.examples(world.window(3)))
    answers = exposure.predictions(world.window(3), world.workspace)
    whole = np.ones(len(examples["y"]), dtype=bool)
    again = exposure.served(world.window(3), world.again(), answers, examples, whole)
    said = json.loads(canonical({**entry(body["window"], START, {}, **again.entry), **again.body}))
    assert judged(said) == judged(body) and said["exposure"] == body["exposure"]
    files = [world.workspace.store / path for path in body["exposure"]["files"]]
    before = [path.read_bytes() for path in files]
    files[0].unlink()
    head = world.journal.head()
    assert evidence(world.window(3), world.workspace) == body and world.journal.head() == head
    assert [path.read_bytes() for path in files] == before


def test_a_request_that_failed_has_the_worst_outcome(tmp_path):
    world = new_world(tmp_path)
    rows = serve(world, 0, 0.0, failed=20)
    live_rows = [row | {"event_id": f"x{k}", "score": None} for k, row in enumerate(rows[:5])]
    append(world, live_rows, [START] * 5)  # of events that never come
    world.publish(1)
    for _, step in STEPS[:3]:
        step(world.window(0), world.workspace)
    n, total = body_of(world, 0)["stable_outcome"]
    assert (n, total) == (EVENTS_A_DAY, 20 + sum(draw(f"d0-{k}") < STABLE_WRONG for k in range(20, EVENTS_A_DAY)))
    assert body_of(world, 0)["due"] == {"of": None, "stable": [EVENTS_A_DAY + 5, EVENTS_A_DAY]}
