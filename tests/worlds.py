"""A whole small installation for tests: a task with a public history, an embedded log, a journal, a store, keys.

Windows are days of 240 events; labels come 30 minutes later; updates are due every two days unless a test says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from assets.base import train_and_register
from assets.stream.embedded import EmbeddedLog
from assets.stream.log import Outgoing
from assets.windows.clock import window_id
from assets.workspace import Workspace
from pipelines.opening import create_topics, workspace_of
from pipelines.settings import Settings, make_settings
from security.journal import Journal
from security.keys import make_keys
from tests import tasks

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
EVENTS_A_DAY = 240


class Blobs(tasks.TwoBlobs):
    """The two blobs with a declared-public history, as a real task would have."""

    def history(self) -> dict[str, np.ndarray]:
        return tasks.columns(2000, seed=1)

    def golden(self) -> dict[str, np.ndarray]:
        return tasks.columns(1000, seed=2)

    def public_inputs(self, n: int) -> dict[str, np.ndarray]:
        return tasks.columns(n, seed=3)


@dataclass
class World:
    """The parts a test touches. `publish` writes days to the log; day 0 is the first window."""

    folder: Path
    settings: Settings
    log: EmbeddedLog
    journal: Journal
    workspace: Workspace
    published: int = field(default=0)

    def window(self, day: int) -> str:
        return window_id(START + day * DAY)

    def publish(
        self, days: int, drift: float = 0.0, *, change: Callable[[dict[str, np.ndarray]], None] = lambda rows: None
    ) -> None:
        """The next `days` days, and the first event and label of the day after, so that the last one is due; `change` may
        write into the rows of each day."""
        for day in range(self.published, self.published + days):
            rows = tasks.columns(EVENTS_A_DAY, seed=100 + day, drift=drift)
            change(rows)
            self._append(rows, START + day * DAY, f"d{day}")
        self.published += days
        self._append(tasks.columns(2, seed=9), START + self.published * DAY + timedelta(minutes=10), f"mark{self.published}")

    def _append(self, rows: dict[str, np.ndarray], start: datetime, prefix: str) -> None:
        count = len(rows["y"])
        for k in range(count):
            at = start + k * (timedelta(hours=22) / EVENTS_A_DAY)
            event: dict[str, Any] = {name: float(rows[name][k]) for name in tasks.FEATURES}
            name = f"{prefix}-{k}"
            self._send(self.settings.stream.events, {"event_id": name, **event}, at)
            label = {"event_id": name, "y": int(rows["y"][k])}
            self._send(self.settings.stream.labels, label, at + timedelta(minutes=30))
        for topic, records in self._waiting.items():
            self.log.append(topic, sorted(records, key=lambda record: record.timestamp or 0))
        self._waiting.clear()

    @property
    def _waiting(self) -> dict[str, list[Outgoing]]:
        return self.__dict__.setdefault("waiting", {})

    def _send(self, topic: str, document: dict[str, Any], at: datetime) -> None:
        record = Outgoing(document["event_id"].encode(), json.dumps(document).encode(), int(at.timestamp() * 1000))
        self._waiting.setdefault(topic, []).append(record)

    def again(self) -> Workspace:
        """A workspace as a new process would open it: nothing remembered but journal, store and log."""
        self.workspace = workspace_of(self.settings, self.journal, self.log)
        self.workspace.reports = False
        return self.workspace


def as_toml(found: dict[str, Any]) -> str:
    """The settings as the file a person would have written."""
    lines = [f'task = "{found["task"]}"']
    for name, section in found.items():
        if isinstance(section, dict):
            lines.append(f"[{name}]")
            lines += [f"{key} = {_toml_value(value)}" for key, value in section.items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime) else json.dumps(value)


def make_world(folder: Path, **sections: Any) -> World:
    """A world with its base registered; `sections` override settings, e.g. `update={"every": "1d"}`."""
    found = {
        "task": "tests.worlds:Blobs",
        "store": {"url": str(folder / "store")},
        "journal": {"url": f"sqlite:///{folder / 'journal.db'}"},
        "keys": {"directory": str(folder / "keys")},
        "stream": {"bootstrap_servers": "embedded", "partitions": 2},
        "window": {"every": "1d", "start": START, "clock": "stream"},
        "update": {"every": "2d", "min_examples": 300, "max_age": "7d"},
        "adapter": {"r": 4, "lora_alpha": 8.0},
        "training": {"learning_rate": 0.003},  # 480 rows a private update: noise would drown a larger step
        "rollout": {"steps": ["shadow", 50, 100], "min_hold": "1d", "bake": "1d", "min_requests": 0},
        "drift": {"min_rows": 100},
        "tracking": {"mlflow_url": ""},
    }
    for name, section in sections.items():
        found[name] = {**found.get(name, {}), **section} if isinstance(section, dict) else section
    settings = make_settings(found)
    make_keys(folder / "keys")
    (folder / "headgate.toml").write_text(as_toml(found))
    (folder / "var" / "broker").mkdir(parents=True)  # where a process started in this folder looks for the log
    log, journal = EmbeddedLog(folder / "var" / "broker" / "embedded.db"), Journal(settings.journal.url)
    create_topics(settings, log)
    world = World(folder, settings, log, journal, workspace_of(settings, journal, log))
    world.workspace.reports = False
    train_and_register(world.workspace)
    return world
