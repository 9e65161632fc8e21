"""Between windows: live counts stop a canary within seconds, time and acknowledgements move one, and all is derived again."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from models import release
from models.rollout_state import State
from monitoring.alarms import acknowledge, all_alarms
from monitoring.rollout_audit import audit
from pipelines import controller as controlling
from pipelines.controller import Controller, control
from pipelines.release_desk import ReleaseDesk
from security.journal import Conflict
from security.replicas import Replicas
from tests.controllers import (
    POLICY,
    ROOT,
    SETTINGS,
    WALL,
    Clock,
    answered,
    audited,
    canary,
    known,
    made,
    of_kind,
    promoted,
    scored,
    world,
)
from tests.gateways import EVENT, World, blobs_base, headgate, wait_until
from tests.releases import board, steer, written

__all__ = ["blobs_base", "world"]


# -- decisions --------------------------------------------------------------------------------------------------------


def test_errors_of_the_canary_roll_it_back_and_the_counts_stand_before_the_decision(world):
    version, desk = canary(world), made(world)
    answered(world, 2, stable=30, canary=30, failed=3)
    before = world.journal.head()
    assert desk.look() == [] or of_kind(world, "rollout", "rollout.held")
    answered(world, 2, stable=60, canary=60, failed=20)
    kinds = [decision.kind for decision in desk.look()]
    assert kinds[0] == "rollout.advanced" and "routing.set" in kinds
    assert board(world).rollouts[version].state is State.ROLLING_BACK and board(world).routing.weight == 0.0
    entries = world.journal.tail(before)
    served = [[2, "canary", 60, 20, 0], [2, "stable", 60, 0, 0]]
    counted = next(entry for entry in entries if entry.body.get("served") == served)
    decision = next(entry for entry in entries if entry.body.get("to") == "ROLLING_BACK")
    assert (counted.kind, counted.seq, counted.at) == ("served.counted", decision.seq - 1, decision.at)
    assert counted.body["clock"] == decision.body["clock"]
    (alarm,) = all_alarms(world.journal, world.task.name)
    assert (alarm.kind, alarm.severity, alarm.at) == ("error_rate", "critical", decision.at) and alarm.figure >= alarm.limit
    found = audited(world)
    assert found.faults == {} and found.looks >= 2


def test_a_second_attempt_that_fails_raises_its_own_alarm_although_the_first_was_acknowledged(world):
    version = canary(world)
    answered(world, board(world).epoch, stable=100, canary=100, failed=60)
    desk = made(world)
    desk.look()
    (first,) = all_alarms(world.journal, world.task.name)
    acknowledge(
        world.journal, world.task.name, kind=first.kind, window=first.window, reason="seen", at=datetime.now(UTC), actor="ana"
    )
    while board(world).rollouts[version].live:
        desk.look()
    people = ReleaseDesk(world.journal, world.task.name, POLICY, WALL)
    people.act("retry", version, actor="ana", reason="mended")
    written(world, release.step_board(board(world), {version: known(world, version, POLICY, True)}, POLICY, datetime.now(UTC)))
    promoted(world, version)
    answered(world, board(world).epoch, stable=100, canary=100, failed=60, replica="r2")
    desk.look()
    second = all_alarms(world.journal, world.task.name)[-1]
    assert second.window == f"{version} attempt 2" and second.acknowledged is None


def test_an_audit_without_the_counts_does_not_believe_the_decision(world):
    canary(world)
    answered(world, 2, stable=60, canary=60, failed=20)
    assert made(world).look()
    rooms = ("rollout", "routing", "lineage")
    assert audit(world.journal.tail(streams=[f"{room}/{world.task.name}" for room in rooms]), POLICY).faults


def test_without_a_decision_nothing_is_written(world):
    canary(world)
    desk = made(world)
    while desk.look():
        pass
    answered(world, 2, stable=300, canary=300, failed=1)
    before = world.journal.head()
    for number in range(3):
        answered(world, 2, stable=300 + number, canary=310 + number, failed=1)
        assert desk.look() == []
    assert world.journal.head() == before


@pytest.mark.parametrize("clock", ["wall", "stream"])
def test_a_step_whose_time_has_come_is_taken_between_windows_and_never_on_a_replayed_stream(world, clock):
    policy = replace(POLICY, min_hold=timedelta(hours=6), min_blocks=1, min_samples=1, alpha=0.9, shadow_slots=1)
    version, window = canary(world, policy=policy), replace(WALL, clock=clock)
    start = board(world).rollouts[version].state_since
    day = start.replace(hour=0, minute=0, second=0, microsecond=0)
    for number in range(1, 4):  # three days of proof, the last of them ended now
        scored(world, day + number * timedelta(days=1), gain=0.1)
    wall = Clock(day + timedelta(days=3))
    desk = made(world, policy, window, wall=wall)
    held = board(world).rollouts[version].state
    while desk.look():
        pass
    moved = board(world).rollouts[version]
    assert held is State.CANARY and moved.state is State.BAKING, moved.reason
    baked = moved.state_since + policy.bake
    wall.now = baked - timedelta(seconds=1)
    assert desk.look() == []
    wall.now = baked + timedelta(seconds=1)
    decisions = desk.look()
    assert bool(decisions) == (clock == "wall")
    assert board(world).stable == (version if clock == "wall" else world.base_version)
    assert audited(world, policy).faults == {}


def test_a_raise_waits_for_the_replica_that_lags_and_goes_on_when_it_has_said_so(world):
    version = canary(world)
    name, epoch = world.task.name, board(world).epoch
    promoted(world, version, full=True)
    replicas, desk = Replicas(world.journal.engine), made(world)
    scored(world, datetime.now(UTC))
    replicas.acknowledge(name, "lags", epoch, datetime.now(UTC))
    while desk.look():
        pass
    assert board(world).rollouts[version].state is State.PROMOTING
    assert board(world).rollouts[version].holds == ("not_acknowledged",)
    replicas.acknowledge(name, "lags", epoch + 1, datetime.now(UTC))
    assert desk.look() and board(world).rollouts[version].state is State.BAKING
    assert audited(world).faults == {}


def test_a_version_that_waits_to_be_loaded_is_left_to_the_worker_and_the_audit_understands(world):
    canary(world)
    queued = world.version(2)
    written(world, release.enqueue(board(world), queued, 2, world.base_version, datetime.now(UTC)))
    answered(world, 2, stable=60, canary=60, failed=20)
    desk = made(world)
    while desk.look():
        pass
    assert board(world).rollouts[queued].state is State.PREPARING
    found = audited(world)
    assert found.faults == {}


def test_many_controllers_make_each_transition_once(world):
    version = canary(world)
    answered(world, 2, stable=60, canary=60, failed=20)
    desks = [made(world, actor=f"controller {number}") for number in range(4)]
    begin = threading.Barrier(4)

    def look(desk: Controller) -> int:
        begin.wait()
        return len(desk.look())

    with ThreadPoolExecutor(4) as threads:
        lengths = list(threads.map(look, desks))
    assert sum(length > 0 for length in lengths) >= 1
    moves = [e.body["to"] for e in of_kind(world, "rollout", "rollout.advanced") if e.body["version"] == version]
    assert moves.count("ROLLING_BACK") == 1 and len(all_alarms(world.journal, world.task.name)) == 1
    assert audited(world).faults == {}


def test_a_decision_on_evidence_that_grew_meanwhile_is_taken_again(world, monkeypatch):
    canary(world)
    answered(world, 2, stable=60, canary=60, failed=20)
    desk, real, once = made(world), controlling.release.step_board, []

    def slow(*args):
        if not once:
            once.append(scored(world, datetime.now(UTC)))  # the worker scores a window between our read and our append
        return real(*args)

    monkeypatch.setattr(controlling.release, "step_board", slow)
    assert desk.look()
    (counted,) = of_kind(world, "window", "served.counted")
    (window,) = of_kind(world, "window", "evidence.scored")
    assert window.seq < counted.seq and audited(world).faults == {}


# -- the loop ---------------------------------------------------------------------------------------------------------


def test_without_the_journal_it_goes_on_and_people_are_told_when_it_is_back(world, monkeypatch):
    monkeypatch.setattr(controlling, "POLL", timedelta(seconds=0.05))
    monkeypatch.setattr(controlling, "LONGEST_POLL", timedelta(seconds=0.1))
    monkeypatch.setattr(controlling, "BLIND", timedelta(seconds=0.3))
    version, stop = canary(world), threading.Event()
    looking = threading.Thread(target=control, args=(made(world), stop))
    looking.start()
    try:
        with world.without_journal():
            time.sleep(0.6)
        answered(world, 2, stable=60, canary=60, failed=20)
        wait_until(lambda: board(world).rollouts[version].state is not State.CANARY)
        wait_until(lambda: len(all_alarms(world.journal, world.task.name)) == 2)
    finally:
        stop.set()
        looking.join()
    (told,) = [alarm for alarm in all_alarms(world.journal, world.task.name) if alarm.kind == "stale"]
    assert "could not look for" in told.message and "no canary was stopped meanwhile" in told.message


def test_an_entry_nobody_can_read_ends_no_controller(world, monkeypatch, caplog):
    monkeypatch.setattr(controlling, "POLL", timedelta(seconds=0.02))
    canary(world)
    world.note("window", "served.counted", {"served": [["no epoch"]]})
    stop, looking = threading.Event(), made(world)
    thread = threading.Thread(target=control, args=(looking, stop))
    thread.start()
    time.sleep(0.3)
    assert thread.is_alive()
    stop.set()
    thread.join()
    assert caplog.text.count("nothing is decided until this is mended") == 1


def test_it_loads_no_model():
    heavy = ("torch", "mlflow", "pyarrow")
    code = f"import sys, pipelines.controller, pipelines.effects; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_a_conflict_five_times_in_a_row_is_said(world, monkeypatch):
    canary(world)
    answered(world, 2, stable=60, canary=60, failed=20)

    def lost(*args, **kwargs):
        raise Conflict("another process decided first")

    monkeypatch.setattr(world.journal, "append_all", lost)
    with pytest.raises(Conflict, match="5 times in a row"):
        made(world).look()


# -- over HTTP, as processes ------------------------------------------------------------------------------------------


def serve(world: World, servers: str = "embedded", mlflow: str = "") -> httpx.Client:
    process = headgate(world, "gateway", "--port", "0", "--json", settings=SETTINGS.format(servers=servers, mlflow=mlflow))
    url = json.loads(process.stdout.readline())["url"]
    token = world.token("model:predict", "versions:read", "release:read", "release:write")
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=10.0)


def weight(client: httpx.Client) -> float:
    return client.get("/v1/versions").json()["weight"]


def test_a_burst_of_errors_is_rolled_back_within_seconds_by_the_real_processes(world):
    version = canary(world, spread=30.0)
    client = serve(world)
    process = headgate(world, "controller", settings=SETTINGS.format(servers="embedded", mlflow=""))
    assert "watching" in process.stderr.readline()
    wait_until(lambda: weight(client) == 0.5)
    began, statuses = time.monotonic(), []
    while weight(client) > 0.0:
        statuses.append(client.post("/v1/predict", json={**EVENT, "unit": f"u{len(statuses)}"}).status_code)
        time.sleep(0.02)
        assert time.monotonic() - began < 10.0, statuses
    took = time.monotonic() - began
    print(f"rolled back {took:.2f} s after the first request, {statuses.count(500)} users got an error")
    assert took < 5.0
    assert client.post("/v1/predict", json=EVENT).json()["version"] == world.base_version
    assert board(world).rollouts[version].state in (State.ROLLING_BACK, State.ROLLED_BACK)
    wait_until(lambda: board(world).rollouts[version].state is State.ROLLED_BACK)  # the replica acknowledged
    assert audited(world).faults == {}
    process.terminate()
    assert process.wait(10) == 0


def test_an_abort_is_at_the_replica_within_5_s_with_mlflow_the_event_log_and_the_metrics_away(world):
    version = canary(world)
    away = "127.0.0.1:9"  # nobody listens there: event log and MLflow; nobody scrapes /metrics
    client = serve(world, servers=away, mlflow=f"http://{away}")
    process = headgate(world, "controller", settings=SETTINGS.format(servers=away, mlflow=f"http://{away}"))
    assert "watching" in process.stderr.readline()
    wait_until(lambda: weight(client) == 0.5)
    began = time.monotonic()
    assert steer(world, client, version, "abort", match=None).status_code == 200
    wait_until(lambda: weight(client) in (0.0, None))
    took = time.monotonic() - began
    print(f"aborted over HTTP: weight 0 at the replica after {took:.2f} s")
    assert took < 5.0 and process.poll() is None
    wait_until(lambda: board(world).rollouts[version].state in (State.ROLLED_BACK, State.REJECTED), 10.0)
    process.terminate()
    assert process.wait(10) == 0
