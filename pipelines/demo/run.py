"""The demo: a summer of flights through the whole loop, on a real Kafka, through the same `run_window` Dagster calls.

Day by day: publish the day, let clients ask the gateway, run the window. What happened is read back and counted at the end.
It knows the order of the story and nothing of how a step works. Everything it starts ends with it.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from assets.base import train_and_register
from assets.windows.clock import window_bounds, window_id
from assets.workspace import Workspace
from monitoring.dashboard.server import Dashboard, Subject, export
from pipelines.broker import LocalBroker, open_log
from pipelines.demo import audit
from pipelines.demo.clients import Clients
from pipelines.demo.flights import FlightDelay
from pipelines.demo.policy import demo_settings
from pipelines.demo.replay import Replayer
from pipelines.demo.replay import Topics as ReplayTopics
from pipelines.demo.retraining import Retraining
from pipelines.demo.screen import Screen
from pipelines.demo.story import Story
from pipelines.gateway.server import Gateway, GatewayConfig
from pipelines.opening import create_topics, workspace_of
from pipelines.run_window import run_window
from pipelines.settings import Settings
from security.journal import Draft, Journal, stamp
from security.keys import make_keys

REQUESTS_A_DAY = 60
AHEAD = timedelta(hours=12)  # the log runs ahead of the window, as a live one does: records pass its end before it is cut
ROUTING_SECONDS = 5.0
ARRIVAL_SECONDS = 10.0


@dataclass
class Demo:
    """One run: its parts, and the CPU seconds of each phase."""

    folder: Path
    fast: bool
    screen: Screen
    story: Story = field(default_factory=Story)
    seconds: dict[str, float] = field(default_factory=dict)

    def play(self, parts: ExitStack) -> dict[str, Any]:
        """Run the whole story; the summary. `parts` holds everything that was started."""
        with self.timed("broker"):
            log, broker, servers = self._log(parts)
        settings = demo_settings(self.folder, bootstrap_servers=servers, tracking=not self.fast)
        make_keys(self.folder / "keys")
        (self.folder / "headgate.toml").write_text(settings.as_toml())
        journal = Journal(settings.journal.url)
        parts.callback(journal.close)
        with self.timed("features"):
            create_topics(settings, log)
            replayer = self._replayer(settings, log)
        workspace = workspace_of(settings, journal, log, task=FlightDelay(self._cache), actor="demo")
        workspace.reports = not self.fast
        with self.timed("base"):
            base = train_and_register(workspace)
        self.screen.say(f"base {base['version']}: {base['rows']} public flights, January to March")
        clients = self._clients(settings, workspace, servers, parts)
        with self.timed("retrained"):
            retraining = Retraining(workspace)
        windows = self._days(workspace, replayer, clients, retraining)
        with self.timed("audit"):
            kind = "Apache Kafka 4.1.1" if broker else "embedded log"
            found = audit.summary(workspace, replayer, clients, retraining, windows, kind, self.seconds)
            found["faults"] = audit.faults(workspace, found)
        self._write(settings, workspace, found)
        self.screen.table(workspace, retraining, windows)
        return found

    @property
    def _cache(self) -> Path:
        return self.folder.parent / "demo-cache"

    def _log(self, parts: ExitStack) -> tuple[Any, LocalBroker | None, str]:
        log, broker, servers = open_log("", self.folder / "broker")
        if broker is not None:
            parts.callback(broker.stop)
        parts.callback(log.close)
        self.screen.say(f"event log: {servers}")
        return log, broker, servers

    def _replayer(self, settings: Settings, log: Any) -> Replayer:
        stream = settings.stream
        topics = ReplayTopics(stream.events, stream.labels, stream.partitions)
        return Replayer(
            log, topics, start=self.story.start, end=self.story.end, wrong_labels=self.story.wrong_labels,
            cache=self._cache,
        )  # fmt: skip

    def _clients(self, settings: Settings, workspace: Workspace, servers: str, parts: ExitStack) -> Clients:
        config = GatewayConfig(
            issuer=settings.gateway.issuer, audience=settings.gateway.audience, topic=settings.stream.predictions,
            partitions=settings.stream.partitions, poll_seconds=0.1,
        )  # fmt: skip
        journal, log = Journal(settings.journal.url, busy_seconds=2.0), open_log(servers, self.folder / "broker")[0]
        parts.callback(journal.close)
        parts.callback(log.close)
        gateway = Gateway(config, FlightDelay(self._cache), journal, workspace.store, workspace.keys, log)
        url = gateway.start(settings.gateway.port)
        parts.callback(gateway.stop)
        self.screen.say(f"gateway: {url}")
        clients = Clients(
            url, workspace.keys, issuer=config.issuer, audience=config.audience, most=REQUESTS_A_DAY if not self.fast else 25
        )
        parts.callback(clients.close)
        return clients

    def _days(
        self, workspace: Workspace, replayer: Replayer, clients: Clients, retraining: Retraining
    ) -> list[str]:
        names = [window_id(start) for start in self.story.windows]
        for name in self.screen.progress(names):
            start, end = window_bounds(workspace.policies.window, name)
            with self.timed("publish"):
                replayer.publish_until(min(end + AHEAD, self.story.end))
                if end == self.story.end:
                    self._end(workspace)
            with self.timed("requests"):
                if not self.fast or workspace.board().canary is not None:
                    clients.ask(replayer.documents(start, end))
                if name == names[-1]:  # the next window takes what is still on its way, and the last one has none
                    self._wait_for_predictions(workspace, clients)
            with self.timed("windows"):
                result = run_window(name, workspace)
            for part, spent in result.seconds.items():
                self.seconds[f"step {part}"] = self.seconds.get(f"step {part}", 0.0) + spent
            self.screen.decisions(name, result)
            with self.timed("retrained"):
                retraining.look(name)
            self._wait_for_routing(workspace, clients)
        return names

    def _end(self, workspace: Workspace) -> None:
        ended = Draft(f"window/{workspace.task.name}", "stream.ended", {"at": stamp(self.story.end)})
        workspace.journal.append(ended, actor="demo", at=workspace.now())

    def _wait_for_predictions(self, workspace: Workspace, clients: Clients) -> None:
        """The gateway answers at once, and records on the way; what did not arrive in time is told by the audit."""
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while _arrived(workspace) < clients.requests and time.monotonic() < deadline:
            time.sleep(0.05)

    def _wait_for_routing(self, workspace: Workspace, clients: Clients) -> None:
        """A stream day takes half a second here: give the gateway the second it needs to pick up a new routing."""
        wanted, deadline = workspace.board().epoch, time.monotonic() + ROUTING_SECONDS
        while clients.epoch() < wanted and time.monotonic() < deadline:
            time.sleep(0.05)

    def _write(self, settings: Settings, workspace: Workspace, found: dict[str, Any]) -> None:
        (self.folder / "summary.json").write_text(json.dumps(found, indent=2) + "\n")
        about = Subject(workspace.task.name, settings.rollout, settings.window.start, settings.window.clock)
        (self.folder / "dashboard.html").write_text(export(workspace.journal, about, workspace.now()))
        self.screen.say(f"page: {self.folder / 'dashboard.html'}")
        self.screen.say(f"live: {sys.argv[0]} --config {self.folder / 'headgate.toml'} dashboard")

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the CPU seconds of this process to `part`."""
        started = time.process_time()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.process_time() - started


    def dashboard(self, parts: ExitStack) -> str:
        """Serve the live page of this run; its address."""
        settings = demo_settings(self.folder)
        about = Subject(FlightDelay.name, settings.rollout, settings.window.start, settings.window.clock)
        page = Dashboard(settings.journal.url, about)
        url = page.start()
        parts.callback(page.stop)
        return url


def clean(folder: Path) -> None:
    """A second run starts from nothing but the cached features and jars."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _arrived(workspace: Workspace) -> int:
    """How many predictions are in the log."""
    found = workspace.log.bounds(workspace.topics.predictions, workspace.now())
    return sum(bounds.latest - bounds.earliest for bounds in found.partitions.values())
