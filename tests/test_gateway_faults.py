"""What the gateway does when journal, log or store are away, or an artefact was changed: it goes on serving."""

from __future__ import annotations

import errno
import gc
import json
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import pytest

from assets.stream.embedded import EmbeddedLog
from assets.stream.kafka import KafkaLog
from monitoring.alarms import all_alarms
from pipelines.gateway import recorder as recording
from pipelines.gateway import routing as follow
from pipelines.gateway import spool as spools
from pipelines.gateway.core import Instant
from security.journal import Journal
from tests.gateways import EVENT, World, blobs_base, headgate, wait_until, world

__all__ = ["blobs_base", "world"]


def ask(client, unit="u"):
    return client.post("/v1/predict", json={**EVENT, "unit": unit})


def test_without_the_journal_serving_goes_on_and_the_canary_gets_nothing_at_lease_expiry(world):
    stable, canary = world.version(1), world.version(2)
    world.route(stable, canary, 1.0)
    made, client = world.gateway(lease_seconds=0.6)
    assert ask(client).json()["arm"] == "canary"
    with world.without_journal():
        wait_until(lambda: made.follower.health(time.monotonic()).fault)
        assert ask(client).json()["version"] == canary  # the lease still runs
        wait_until(lambda: ask(client).json()["arm"] == "stable", seconds=2.0)
        late = ask(client).json()
        assert (late["version"], late["epoch"]) == (stable, 1)
        assert "headgate_canary_weight 0.0" in client.get("/metrics").text
        assert "cannot read the journal" in client.get("/readyz").json()["journal"]
        wait_until(lambda: made.recorder.waiting == 0)
        row = next(row for row in world.recorded() if row["prediction_id"] == late["prediction_id"])
        assert (row["arm"], row["propensity"]) == ("stable", 0.0)
    wait_until(lambda: ask(client).json()["arm"] == "canary")


def test_a_locked_journal_is_an_unreachable_one_and_serving_goes_on(world):
    stable = world.version(1)
    world.route(stable)
    # The lock has to be taken between two looks; on a busy machine the collection below alone takes 0.3 s.
    made, client = world.gateway(lease_seconds=2.5, poll_seconds=1.0)
    path = str(world.folder / "journal" / "journal.db")

    def locked():
        world.journal.close()
        gc.collect()  # a connection in use at that moment goes back to a pool nobody closes any more
        holder = sqlite3.connect(path, timeout=0.01, isolation_level=None)
        holder.execute("PRAGMA locking_mode=EXCLUSIVE")
        try:
            holder.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            holder.close()
            return None
        return holder

    holders = []
    wait_until(lambda: holders.append(locked()) or holders[-1], seconds=10.0)
    wait_until(lambda: "locked" in made.follower.health(time.monotonic()).fault)
    assert [ask(client).status_code for _ in range(20)] == [200] * 20
    wait_until(lambda: not client.get("/v1/versions").json()["leased"])
    holders[-1].close()
    wait_until(lambda: client.get("/v1/versions").json()["leased"])


def test_a_changed_version_is_refused_the_old_one_serves_and_one_alarm_is_raised(world, monkeypatch):
    monkeypatch.setattr(follow, "RETRY_SECONDS", 0.1)
    good, bad = world.version(1), world.version(2)
    world.route(good)
    made, client = world.gateway()
    tensors = world.folder_of(bad) / "adapter.safetensors"
    kept = tensors.read_bytes()
    tensors.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    world.route(bad)
    wait_until(lambda: all_alarms(world.journal, world.task.name))
    time.sleep(0.4)  # several more tries
    answer = ask(client).json()
    assert (answer["version"], answer["epoch"]) == (good, 1)
    (alarm,) = all_alarms(world.journal, world.task.name)
    assert (alarm.kind, alarm.severity) == ("security", "critical") and bad in alarm.message
    assert client.get("/v1/versions").json()["refused"].keys() == {bad}
    assert "headgate_refused_versions_total 1.0" in client.get("/metrics").text
    assert world.acknowledged(made) == 1
    tensors.write_bytes(kept)
    wait_until(lambda: ask(client).json()["version"] == bad)
    wait_until(lambda: world.acknowledged(made) == 2)


@pytest.mark.parametrize("fault", ["unsigned", "unregistered", "registered otherwise", "another folder", "a link"])
def test_versions_nobody_vouches_for_are_refused(world, fault):
    good, bad = world.version(1), world.version(2)
    if fault == "unsigned":
        (world.folder_of(bad) / "manifest.dsse").write_text("{}")
    elif fault == "another folder":
        for path in world.folder_of(bad).iterdir():
            path.write_bytes((world.folder_of(good) / path.name).read_bytes())
    elif fault == "a link":
        world.folder_of(bad).rename(world.folder / "elsewhere")
        world.folder_of(bad).symlink_to(world.folder / "elsewhere")
    elif fault == "registered otherwise":
        path = str(world.folder_of(bad).relative_to(world.store))
        world.note("lineage", "version.registered", {"version": bad, "path": path, "manifest_digest": "0" * 64})
    else:
        bad = "v000009-00000000"
    world.route(good)
    _, client = world.gateway()
    world.route(bad)
    wait_until(lambda: all_alarms(world.journal, world.task.name))
    assert ask(client).json()["version"] == good


def test_a_withdrawn_canary_gets_nothing_even_when_its_successor_cannot_be_served(world):
    stable, canary, bad = world.version(1), world.version(2), world.version(3)
    world.route(stable, canary, 1.0)
    _, client = world.gateway()
    assert ask(client).json()["version"] == canary
    (world.folder_of(bad) / "manifest.dsse").write_text("{}")
    world.route(stable, bad, 0.01)
    wait_until(lambda: ask(client).json()["arm"] == "stable", seconds=1.0)


def test_a_store_that_is_away_is_no_attack_and_is_tried_again(world, monkeypatch):
    monkeypatch.setattr(follow, "RETRY_SECONDS", 0.1)
    first, second = world.version(1), world.version(2)
    world.route(first)
    _, client = world.gateway()
    world.folder_of(second).rename(world.folder / "away")
    world.route(second)
    wait_until(lambda: client.get("/v1/versions").json()["refused"])
    assert ask(client).json()["version"] == first and not all_alarms(world.journal, world.task.name)
    (world.folder / "away").rename(world.folder_of(second))
    wait_until(lambda: ask(client).json()["version"] == second)


def test_a_restart_without_the_journal_serves_the_last_good_routing_verified_again(world):
    stable, canary = world.version(1), world.version(2)
    world.route(stable, canary, 1.0)
    made, _ = world.gateway()
    made.stop()

    def absent() -> Journal:
        return Journal(f"sqlite:///{world.folder}/keys/trainer.pem/journal.db", busy_seconds=0.1)

    again, client = world.gateway(journal=absent)
    answer = ask(client).json()
    assert (answer["version"], answer["arm"], answer["epoch"]) == (stable, "stable", 1)  # no lease, no canary
    assert client.get("/readyz").status_code == 200
    again.stop()
    (world.folder_of(stable) / "manifest.dsse").write_text("{}")
    _, client = world.gateway(journal=absent)
    assert client.get("/readyz").status_code == 503  # the file proves nothing: what it names is verified


def test_while_kafka_is_away_serving_goes_on_and_what_waits_or_is_lost_is_counted(world):
    nobody = KafkaLog("127.0.0.1:1", timeout=0.5)
    made, client = world.gateway(log=nobody, spool_bytes=8 << 10, drain_seconds=0.3)
    began = time.monotonic()
    assert [ask(client).status_code for _ in range(60)] == [200] * 60
    assert time.monotonic() - began < 2.0
    wait_until(lambda: made.recorder.failures > 0)
    figures = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    waiting, dropped = (float(figures[f"headgate_recorder_{name}"]) for name in ("waiting", "dropped"))
    assert waiting + dropped == 60 and 20 < waiting < 50
    assert 7_000 < float(figures["headgate_recorder_bytes"]) <= 8 << 10
    assert 0 < float(figures["headgate_recorder_oldest_seconds"]) < 10
    ready = client.get("/readyz")
    assert ready.status_code == 200 and "is full" in ready.json()["recording"]
    assert made.stop() == waiting
    wait_until(lambda: not made.recorder._drainer.is_alive())  # it lets go of the spool, as the end of a process does
    nobody.close()
    again, client = world.gateway()
    wait_until(lambda: again.recorder.recorded == waiting)
    assert len(world.recorded()) == waiting and "recording" not in client.get("/readyz").json()


def test_what_waited_is_written_when_the_log_is_back_each_row_at_least_once(world):
    path = world.folder / "late" / "log.db"
    opened = []

    def late() -> EmbeddedLog:
        if not path.parent.exists():
            raise FileNotFoundError(path)
        opened.append(EmbeddedLog(path))
        return opened[-1]

    made, client = world.gateway(log=late)
    asked = [ask(client).json()["prediction_id"] for _ in range(25)]
    wait_until(lambda: made.recorder.failures > 0)
    path.parent.mkdir()
    wait_until(lambda: made.recorder.recorded == 25)
    world.log = opened[0]
    assert {row["prediction_id"] for row in world.recorded()} == set(asked)


def test_a_strict_gateway_answers_only_what_is_on_the_disk_and_refuses_what_cannot_be(world, monkeypatch):
    kept, go, broken = spools.flush, threading.Event(), threading.Event()

    def flush(handle: int) -> None:
        assert go.wait(5)
        if broken.is_set():
            raise OSError(errno.EIO, "Input/output error")
        kept(handle)

    monkeypatch.setattr(spools, "flush", flush)
    monkeypatch.setattr(recording, "SYNC_SECONDS", 0.1)
    made, client = world.gateway(recording="strict")
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, client) for _ in range(8)]
        wait_until(lambda: made.recorder.recorded == 8)  # Kafka has them: that the disk has not is what is waited for
        assert not any(each.done() for each in asked)
        go.set()
        assert [each.result().status_code for each in asked] == [200] * 8
    broken.set()
    refused = ask(client)
    assert (refused.status_code, refused.json()["error"], refused.headers["retry-after"]) == (503, "not_recorded", "5")
    assert client.get("/readyz").status_code == 503 and "Input/output" in client.get("/readyz").json()["recording"]
    assert made.core.handle(f"Bearer {world.token()}", json.dumps(EVENT).encode(), Instant.now()).status == 503
    broken.clear()
    wait_until(lambda: ask(client).status_code == 200)
    assert made.core.handle(f"Bearer {world.token()}", json.dumps(EVENT).encode(), Instant.now()).status == 200
    text = client.get("/metrics").text
    assert 'headgate_requests_total{arm="none",status="503"}' in text  # the fault of neither arm
    assert 'headgate_requests_total{arm="stable",status="503"}' not in text


def test_a_strict_gateway_whose_spool_is_full_answers_503_and_records_exactly_what_it_answered(world):
    there = threading.Event()

    def log() -> EmbeddedLog:
        if not there.is_set():
            raise ConnectionError("away")
        return world.log

    made, client = world.gateway(recording="strict", spool_bytes=8 << 10, log=log)
    answers = [ask(client) for _ in range(60)]
    answered = {each.json()["prediction_id"] for each in answers if each.status_code == 200}
    assert 10 < len(answered) < 40 and {each.status_code for each in answers} == {200, 503}
    assert client.get("/readyz").status_code == 503 and "is full" in client.get("/readyz").json()["recording"]
    there.set()
    wait_until(lambda: made.recorder.waiting == 0)
    assert {row["prediction_id"] for row in world.recorded()} == answered
    wait_until(lambda: ask(client).status_code == 200)


def test_sigterm_drains_the_recorder_and_ends_with_exit_code_0(world: World):
    world.route(world.version(1))
    process = headgate(world, "gateway", "--port", "0", "--json")
    assert process.stdout
    url = json.loads(process.stdout.readline())["url"]
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {world.token()}"}) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200, seconds=20)
        asked = [ask(client).json()["prediction_id"] for _ in range(100)]
        path = world.folder / "var" / "broker" / "embedded.db"
        wait_until(path.exists)
        with closing(sqlite3.connect(path, timeout=5.0, isolation_level=None)) as holder:
            wait_until(lambda: holder.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'topics'").fetchone()[0])
            wait_until(lambda: holder.execute("SELECT COUNT(*) FROM topics").fetchone()[0])
            holder.execute("BEGIN IMMEDIATE")  # the log takes nothing while the gateway is told to end
            asked += [ask(client).json()["prediction_id"] for _ in range(100)]
            process.send_signal(signal.SIGTERM)
            time.sleep(1.0)
            holder.execute("ROLLBACK")
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    world.log = EmbeddedLog(path)
    assert {row["prediction_id"] for row in world.recorded()} == set(asked)


def test_a_port_in_use_ends_the_command_with_one_sentence(world: World):
    _, client = world.gateway()
    port = httpx.URL(client.base_url).port
    process = headgate(world, "gateway", "--port", str(port))
    answer, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and answer == ""
    assert errors.splitlines()[-1].startswith(f"Error: port {port} on 127.0.0.1 is in use")


def test_a_token_issued_by_the_command_is_accepted_until_the_command_revokes_it(world: World):
    _, client = world.gateway()
    answer, errors = headgate(world, "token", "issue", "--subject", "acme", "--json").communicate(timeout=60)
    issued = json.loads(answer)
    client.headers["authorization"] = f"Bearer {issued['token']}"
    assert ask(client).status_code == 200, errors
    assert client.get("/v1/versions").status_code == 403
    answer, errors = headgate(world, "token", "revoke", issued["jti"]).communicate(timeout=60)
    assert answer == f"revoked {issued['jti']}\n", errors
    wait_until(lambda: ask(client).status_code == 401, seconds=1.0)
