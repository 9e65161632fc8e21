"""kill -9 of a gateway under load, and of Kafka under the gateway: every answer that was sent is in the topic."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from assets.stream.embedded import EmbeddedLog
from assets.stream.kafka import KafkaLog
from pipelines.broker import LocalBroker
from pipelines.broker_folder import is_open
from tests.gateways import EVENT, SETTINGS, World, blobs_base, headgate, wait_until, world

__all__ = ["blobs_base", "world"]


class Load:
    """Clients that ask as fast as they are answered, each event once, through restarts of the gateway."""

    def __init__(self, world: World, clients: int = 4) -> None:
        self.url, self.sent, self.answered = "", list[str](), dict[str, str]()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(world.token(subject=f"s{n}"), n)) for n in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, token: str, number: int) -> None:
        count, url, client = 0, "", httpx.Client()
        while not self._over.is_set():
            if url != self.url:
                client, url = httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {token}"}), self.url
            event, count = f"{number}-{count}", count + 1
            self.sent.append(event)
            try:
                answer = client.post("/v1/predict", json={**EVENT, "event_id": event}) if url else None
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code == 200:
                self.answered[event] = answer.json()["prediction_id"]
            else:
                time.sleep(0.05)

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def check(self, parts: dict[int, list[dict[str, Any]]]) -> None:
        """Every answer is in the log, nothing else than was asked, and each partition has a client's answers in order."""
        found = [row for rows in parts.values() for row in rows]
        ids: dict[str, set[str]] = {}
        for row in found:
            ids.setdefault(row["event_id"], set()).add(row["prediction_id"])
        print(f"{len(self.answered)} answered, {len(found)} in the log, {len(found) - len(ids)} of them repeated")
        assert all(self.answered[event] in ids.get(event, ()) for event in self.answered)
        assert set(ids) <= set(self.sent) and all(len(each) == 1 for each in ids.values())
        for rows in parts.values():
            firsts = list(dict.fromkeys(row["event_id"] for row in rows))
            for client in {event.split("-")[0] for event in firsts}:
                own = [int(event.split("-")[1]) for event in firsts if event.split("-")[0] == client]
                assert own == sorted(own)


def start_gateway(world: World, load: Load, settings: str) -> subprocess.Popen[str]:
    """The real command, at the port where the clients ask already."""
    port = httpx.URL(load.url).port if load.url else 0
    process = headgate(world, "gateway", "--port", str(port), "--json", settings=settings)
    assert process.stdout
    load.url = json.loads(process.stdout.readline())["url"]
    wait_until(lambda: httpx.get(f"{load.url}/readyz").status_code == 200, seconds=20)
    return process


@pytest.mark.parametrize("rounds", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_kill_9_of_the_gateway_under_load_with_the_log_away_now_and_then_loses_no_answer(world: World, rounds):
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    random_, load = random.Random(seed), Load(world)
    path = world.folder / "var" / "broker" / "embedded.db"
    world.log = EmbeddedLog(path)
    try:
        for number in range(rounds):
            mode = ("available", "strict")[number % 2]
            process = start_gateway(world, load, f'{SETTINGS}[gateway]\nrecording = "{mode}"\n')
            with closing(sqlite3.connect(path, timeout=5.0, isolation_level=None)) as holder:
                if random_.random() < 0.5:
                    holder.execute("BEGIN IMMEDIATE")  # the log takes nothing
                time.sleep(random_.random())
            time.sleep(random_.random() * 0.3)
            if number < rounds - 1:
                process.kill()
                process.communicate()
    finally:
        load.stop()
    end_in_order(process)
    load.check(world.partitions())
    assert len(load.answered) > 50 * rounds and list((world.folder / "var" / "spool").iterdir()) == []


KAFKA, GATEWAY = "kafka", "gateway"  # whom a step kills with -9; what is dead it starts


@pytest.mark.parametrize(
    "steps", [(KAFKA, GATEWAY, GATEWAY, KAFKA), pytest.param(None, marks=pytest.mark.slow)], ids=["short", "random"]
)
def test_kill_9_of_the_gateway_and_of_kafka_in_turn_loses_no_answer(world: World, local_broker, topic, steps):
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    random_, load = random.Random(seed), Load(world)
    settings = SETTINGS.replace('"embedded"', f'"{local_broker.bootstrap}"\npredictions = "{topic}"')
    process = start_gateway(world, load, settings)
    try:
        for step in steps or random_.choices((KAFKA, GATEWAY), k=16):
            time.sleep(0.1 + random_.expovariate(1))
            if step == KAFKA:
                kill_or_start(local_broker)
            elif process.poll() is None:
                process.kill()
                process.communicate()
            else:
                process = start_gateway(world, load, settings)
        time.sleep(0.5)
    finally:
        load.stop()
        if local_broker.bootstrap and not is_open(int(local_broker.bootstrap.rpartition(":")[2])):
            kill_or_start(local_broker)
    if process.poll() is not None:
        process = start_gateway(world, load, settings)
    wait_until(lambda: "\nheadgate_recorder_waiting 0.0" in httpx.get(f"{load.url}/metrics").text, seconds=60)
    end_in_order(process)
    world.log.close()
    world.log = KafkaLog(local_broker.bootstrap)
    load.check(world.partitions(topic))
    assert len(load.answered) > 100


def kill_or_start(broker: LocalBroker) -> None:
    if is_open(int(broker.bootstrap.rpartition(":")[2])):
        os.kill(broker.pid or 0, signal.SIGKILL)
    else:
        broker.stop()
        broker.start(broker.folder or Path())


def end_in_order(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
