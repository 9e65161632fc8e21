"""What the gateway does when journal, log or store are away, or an artefact was changed: it goes on serving."""

from __future__ import annotations

import gc
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from assets.stream.embedded import EmbeddedLog
from assets.stream.kafka import KafkaLog
from monitoring.alarms import all_alarms
from pipelines.gateway import routing as follow
from security.journal import Journal
from tests.gateways import EVENT, World, blobs_base, wait_until, world

__all__ = ["blobs_base", "world"]
REPOSITORY = Path(__file__).parents[1]


SETTINGS = """
task = "tests.tasks:TwoBlobs"
[journal]
url = "sqlite:///journal/journal.db"
[store]
url = "store"
[keys]
directory = "keys"
[stream]
bootstrap_servers = "embedded"
"""


def headgate(world: World, *words: str) -> subprocess.Popen[str]:
    """The real command in the world's folder."""
    (world.folder / "headgate.toml").write_text(SETTINGS)
    process = subprocess.Popen(
        [sys.executable, "-c", "from pipelines.cli import main; main()", *words],
        cwd=world.folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    world.children.append(process)
    return process


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
    made, client = world.gateway(lease_seconds=0.9, poll_seconds=0.3)
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
    wait_until(lambda: holders.append(locked()) or holders[-1])
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
    made, client = world.gateway(log=nobody, queue_rows=30, drain_seconds=0.3)
    began = time.monotonic()
    assert [ask(client).status_code for _ in range(40)] == [200] * 40
    assert time.monotonic() - began < 2.0
    wait_until(lambda: made.recorder.failures > 0)
    text = client.get("/metrics").text
    assert "headgate_recorder_waiting 30.0" in text and "headgate_recorder_dropped 10.0" in text
    assert made.stop() == 30
    nobody.close()


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
