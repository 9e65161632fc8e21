"""A small real world for gateway tests: keys, a journal, a store with a base and signed versions, a log, clients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from assets.stream.embedded import EmbeddedLog
from models.adapters import lora
from models.base import build, digest, train_base
from models.config import AdapterConfig
from models.task import Task, check
from models.version import write_version
from pipelines.gateway.server import Gateway, GatewayConfig
from security.journal import Draft, Journal
from security.keys import make_keys, private_key
from security.manifest import digest as manifest_digest
from security.replicas import Replicas
from security.tokens import issue
from tests.tasks import TwoBlobs, columns

EVENT = {"event_id": "e1", "x0": 1.0, "x1": -0.5, "x2": 0, "x3": 2.25}
REPOSITORY = Path(__file__).parents[1]
QUICK: dict[str, Any] = {"poll_seconds": 0.05, "rate_per_second": 50_000.0, "burst": 50_000, "drain_seconds": 2.0}

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


def wait_until(true: Callable[[], Any], seconds: float = 5.0) -> float:
    """Wait for a condition; the seconds it took. Fails the test when it does not come."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"did not happen within {seconds:g} s"
        time.sleep(0.01)
    return time.monotonic() - began


@dataclass
class World:
    """Everything a gateway needs, in one folder. The journal has a folder of its own so that it can be taken away."""

    folder: Path
    base: bytes
    task: Task = field(default_factory=lambda: check(TwoBlobs(), "tests.tasks:TwoBlobs"))
    running: list[Gateway] = field(default_factory=list)
    children: list[subprocess.Popen[str]] = field(default_factory=list)
    epoch: int = 0

    def __post_init__(self) -> None:
        self.keys, self.store = self.folder / "keys", self.folder / "store"
        make_keys(self.keys)
        self.journal_url = f"sqlite:///{self.folder}/journal/journal.db"
        self.journal = Journal(self.journal_url, busy_seconds=0.2)
        self.log = EmbeddedLog(self.folder / "log.db", timeout=0.1)
        path = f"{self.task.name}/bases/{digest(self.base)}.safetensors"
        (self.store / path).parent.mkdir(parents=True)
        (self.store / path).write_bytes(self.base)
        self.base_version = f"base-{digest(self.base)[:8]}"
        body = {"version": self.base_version, "digest": digest(self.base), "path": path, "max_grad_norm": 1.0}
        self.note("lineage", "base.registered", body)

    def note(self, stream: str, kind: str, body: dict[str, Any]) -> None:
        self.journal.append(Draft(f"{stream}/{self.task.name}", kind, body), actor="test", at=datetime.now(UTC))

    def version(self, number: int, spread: float = 0.1) -> str:
        """Write, sign and register a version whose adapter is drawn by its number."""
        module, config = build(self.task, self.base), AdapterConfig(r=2)
        lora.attach(module, config, lora.first_draw(self.base))
        draw = np.random.default_rng(number)
        adapter = lora.extract(module)
        tensors = {name: (a + draw.normal(0, spread, a.shape)).astype(a.dtype) for name, a in adapter.items()}
        written = write_version(
            self.store / self.task.name / "versions",
            number=number,
            task=self.task.name,
            parent=self.base_version,
            base_digest=digest(self.base),
            tensors=tensors,
            adapter_config=config,
            manifest_extra={"not_covered": []},
            key=private_key(self.keys, "trainer"),
            now=datetime.now(UTC),
        )
        found = manifest_digest((written.path / "manifest.json").read_bytes())
        path = str(written.path.relative_to(self.store))
        body = {"version": written.id, "path": path, "manifest_digest": found}
        self.note("lineage", "version.registered", body)
        return written.id

    def acknowledged(self, gateway: Gateway) -> int | None:
        """The epoch this replica said it serves."""
        live = Replicas(self.journal.engine).live(self.task.name, datetime.now(UTC))
        return {replica.replica: replica.epoch for replica in live}.get(gateway.config.replica)

    def folder_of(self, version: str) -> Path:
        return self.store / self.task.name / "versions" / version

    def route(self, stable: str, canary: str | None = None, weight: float = 0.0, salt: str = "r1") -> int:
        """Decide the next routing epoch."""
        self.epoch += 1
        body = {"epoch": self.epoch, "stable": stable, "canary": canary, "weight": weight, "salt": salt}
        self.note("routing", "routing.set", body)
        return self.epoch

    def gateway(self, *, log: Any = "own", journal: Any = None, **config: Any) -> tuple[Gateway, httpx.Client]:
        """A started gateway and a client with a token for everything."""
        made = Gateway(
            GatewayConfig(**{**QUICK, "spool": self.folder / "spool", **config}),
            self.task,
            journal or self.journal,
            self.store,
            self.keys,
            self.log if log == "own" else log,
        )
        self.running.append(made)
        client = httpx.Client(base_url=made.start(), headers={"authorization": f"Bearer {self.token()}"})
        return made, client

    def token(
        self, *scopes: str, ago: timedelta = timedelta(0), subject: str = "acme", rollout: str | None = None
    ) -> str:
        return issue(
            private_key(self.keys, "token"),
            subject=subject,
            scopes=scopes or ("model:predict", "versions:read", "metrics:read"),
            issuer="headgate",
            audience="headgate-gateway",
            lifetime=timedelta(minutes=10),
            now=datetime.now(UTC) - ago,
            rollout=rollout,
        )

    def recorded(self, topic: str = "predictions") -> list[dict[str, Any]]:
        """Every prediction in the log."""
        return [row for rows in self.partitions(topic).values() for row in rows]

    def partitions(self, topic: str = "predictions") -> dict[int, list[dict[str, Any]]]:
        """The predictions of each partition, in the log's order."""
        found = {}
        for partition, bounds in self.log.bounds(topic, datetime.now(UTC)).partitions.items():
            batches = self.log.read(topic, partition, bounds.earliest, bounds.latest)
            found[partition] = [json.loads(record.value or b"") for batch in batches for record in batch]
        return found

    @contextmanager
    def without_journal(self) -> Iterator[None]:
        """Take the database away; connections that are open are closed, as a lost server would close them."""
        away = self.folder / "journal-away"
        (self.folder / "journal").rename(away)
        self.journal.close()
        yield
        away.rename(self.folder / "journal")

    def close(self) -> None:
        for gateway in self.running:
            gateway.stop()
        for child in self.children:  # a test that failed half-way must not leave its gateway running
            child.kill()
            child.communicate()
        self.journal.close()
        self.log.close()


def headgate(world: World, *words: str, settings: str = SETTINGS) -> subprocess.Popen[str]:
    """The real command in the world's folder."""
    (world.folder / "headgate.toml").write_text(settings)
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


@pytest.fixture(scope="session")
def blobs_base() -> bytes:
    """One base for all tests."""
    return train_base(check(TwoBlobs(), "tests.tasks:TwoBlobs"), columns(512), epochs=1)


@pytest.fixture
def world(tmp_path, blobs_base) -> Iterator[World]:
    made = World(tmp_path, blobs_base)
    yield made
    made.close()
