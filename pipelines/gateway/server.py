"""A gateway, put together and running: the parts, their threads and a socket.

`Gateway` is the whole of it, in process or behind `headgate gateway`. It owns what it opens (threads, socket) and
closes neither the journal nor the log it was given. It does not know settings files or signals.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvicorn

from assets.stream.log import EventLog, TimestampType
from assets.windows.clock import WindowPolicy
from models.release_policy import RolloutPolicy
from models.split import Routing
from models.task import Task
from monitoring.alarms import raise_alarm
from pipelines.gateway.answer import Answer, ok
from pipelines.gateway.app import App
from pipelines.gateway.core import Core
from pipelines.gateway.counts import Counts
from pipelines.gateway.figures import Figures
from pipelines.gateway.last_good import LastGood
from pipelines.gateway.openapi import document
from pipelines.gateway.recorder import Recorder
from pipelines.gateway.request import RequestReader
from pipelines.gateway.rollouts import Rollouts
from pipelines.gateway.routing import Follower
from pipelines.gateway.shelf import Shelf
from pipelines.gateway.spool import SPOOL_BYTES
from pipelines.release_desk import ReleaseDesk
from security.journal import Journal
from security.keys import key_id, public_key
from security.limits import Limiter
from security.listening import is_loopback, listen
from security.tokens import Verifier

logger = logging.getLogger("headgate.gateway")

FIRST_LOOK_SECONDS = 10.0  # torch alone takes 2 s to load; a gateway that answers 503 meanwhile helps nobody
PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class GatewayConfig:
    """The gateway's knobs. Seconds are wall seconds; `rate_per_second` and `burst` hold for each token subject, in this
    process; `partitions` and `timestamp_type` are what `topic` gets when it does not exist yet.

    recording: "available" answers also when the prediction cannot be recorded, and counts it; "strict" answers only when
    its record is on the disk. spool: the folder in which predictions wait for the log, one folder a port; None = `spool`
    beside the store. rollout, window: the release desk behind `/v1/rollouts` has them for what is not in the journal yet.
    drill: share of the canary's answers that fail on purpose, in a rehearsal."""

    host: str = "127.0.0.1"
    issuer: str = "headgate"
    audience: str = "headgate-gateway"
    recording: str = "available"
    topic: str = "predictions"
    partitions: int = 3
    timestamp_type: TimestampType = "CreateTime"
    rate_per_second: float = 200.0
    burst: int = 400
    max_body: int = 64 << 10
    poll_seconds: float = 0.5
    lease_seconds: float = 30.0
    spool: Path | None = None
    spool_bytes: int = SPOOL_BYTES
    drain_seconds: float = 15.0
    last_good: Path | None = None
    rollout: RolloutPolicy = RolloutPolicy()
    window: WindowPolicy = WindowPolicy(every=timedelta(hours=1), start=datetime(2026, 1, 1, tzinfo=UTC))
    drill: float = 0.0
    replica: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")

    def __post_init__(self) -> None:
        if self.recording not in ("available", "strict"):
            raise ValueError(f'[gateway] recording = {self.recording!r}: set "available" or "strict"')

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect; then /metrics needs no token."""
        return is_loopback(self.host)


class Gateway:
    """One replica for one task. `journal` and `log` may be functions that open them: then an absent one is only late.

    `log` None records nothing. Raises KeyRefused for missing keys and SchemaUnusable for an event no request can carry.
    """

    def __init__(
        self,
        config: GatewayConfig,
        task: Task,
        journal: Journal | Callable[[], Journal],
        store: Path,
        keys: Path,
        log: EventLog | Callable[[], EventLog] | None,
    ) -> None:
        self.config, self.task = config, task
        self.spool = config.spool or Path(store).parent / "spool"
        self.figures = Figures()
        self.counts = Counts(task.name, config.replica, config.rollout.slow_ms)
        self._revoked = 0
        trusted = {"trainer": public_key(keys, "trainer")}
        token = public_key(keys, "token")
        self.verifier = Verifier({key_id(token): token}, config.issuer, config.audience)
        self.recorder = None if log is None else self._recorder(log)
        open_journal: Callable[[], Journal] = (lambda: journal) if isinstance(journal, Journal) else journal
        self.follower = Follower(
            task.name,
            open_journal,
            Shelf(task, store, trusted),
            LastGood(config.last_good or Path(store) / task.name / "last-routing.json"),
            replica=config.replica,
            lease_seconds=config.lease_seconds,
            poll_seconds=config.poll_seconds,
            on_look=self._on_look,
            on_refused=self._on_refused,
        )
        reader = RequestReader(task.event, task.subject)
        limiter = Limiter(config.rate_per_second, config.burst)
        self.core = Core(
            reader, self.verifier, limiter, self.follower, self.recorder, self.figures, config.max_body,
            strict=config.recording == "strict", counts=self.counts, drill=config.drill,
        )  # fmt: skip
        self._openapi = ok(document(reader, task.name))
        self.rollouts = Rollouts(lambda: ReleaseDesk(open_journal(), task.name, config.rollout, config.window))
        self._app = App(self.core, self._pages(), self.rollouts, open_metrics=config.loopback)
        self._show_figures()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, port: int = 0) -> str:
        """Listen (port 0 = a free one), follow the journal, record; returns the base URL. Raises PortInUse."""
        listener = listen(self.config.host, port, "gateway")
        host, bound = listener.getsockname()[:2]
        if self.recorder is not None:
            self.recorder.start(self.spool, str(bound))
        self.follower.start(FIRST_LOOK_SECONDS)
        settings = uvicorn.Config(
            self._app,
            lifespan="off",
            ws="none",
            http="httptools",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody here decides by a client's address, so nobody may forge it
            timeout_graceful_shutdown=5,
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="gateway", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)
        return f"http://[{host}]:{bound}" if ":" in host else f"http://{host}:{bound}"

    def stop(self) -> int:
        """Finish the requests in flight, record what waits; returns how many rows stay in the spool."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(10.0)
        self.rollouts.stop()
        self.follower.stop()
        return 0 if self.recorder is None else self.recorder.stop(self.config.drain_seconds)

    def _recorder(self, log: EventLog | Callable[[], EventLog]) -> Recorder:
        open_log: Callable[[], EventLog] = log if callable(log) else lambda: log
        config = self.config

        def make_topic(opened: EventLog) -> None:
            opened.create_topic(config.topic, config.partitions, timestamp_type=config.timestamp_type)

        return Recorder(open_log, config.topic, make_topic, spool_bytes=config.spool_bytes)

    def _on_look(self, journal: Journal) -> None:
        for entry in journal.read("auth", self._revoked):
            self._revoked = entry.stream_seq
            if entry.kind == "token.revoked":
                self.verifier.revoke(entry.body["jti"])
        self.counts.publish(journal, datetime.now(UTC))

    def _on_refused(self, journal: Journal, version: str, reason: str) -> None:
        self.figures.refused_versions.inc()
        raise_alarm(
            journal,
            self.task.name,
            kind="security",
            window=version,  # one alarm a version, however many replicas and restarts refuse it
            message=f"version {version} refused: {reason}; what was served before goes on",
            figure=None,
            limit=None,
            at=datetime.now(UTC),
            actor=f"gateway {self.config.replica}",
        )

    def _pages(self) -> dict[str, Callable[[], Answer]]:
        return {
            "/healthz": lambda: ok({"status": "alive"}),
            "/readyz": self._ready,
            "/v1/versions": self._versions,
            "/metrics": lambda: Answer(200, self.figures.text(), PROMETHEUS),
            "/openapi.json": lambda: self._openapi,
        }

    def _ready(self) -> Answer:
        health = self.follower.health(time.monotonic())
        serving = self.follower.serving(time.monotonic())
        epoch = serving[0].epoch if serving else None
        fault = self.recorder.fault if self.recorder is not None else ""
        ready = serving is not None and not (fault and self.core.strict)  # it would answer every request with 503
        body = {"ready": ready, "epoch": epoch, "journal": health.fault or "ok"} | ({"recording": fault} if fault else {})
        return ok(body, 200 if ready else 503)

    def _versions(self) -> Answer:
        now = time.monotonic()
        health, serving = self.follower.health(now), self.follower.serving(now)
        routing = serving[0] if serving else None
        return ok(
            {
                "task": self.task.name,
                "epoch": routing.epoch if routing else None,
                "stable": routing.stable if routing else None,
                "canary": routing.canary if routing else None,
                "weight": routing.weight if routing else None,
                "leased": health.leased,
                "journal_age_seconds": health.age,
                "refused": dict(health.refused),
                "replica": self.config.replica,
            }
        )

    def _show_figures(self) -> None:
        def routed(read: Callable[[Routing], float]) -> Callable[[], float]:
            def value() -> float:
                serving = self.follower.serving(time.monotonic())
                return read(serving[0]) if serving else float("nan")

            return value

        def age() -> float:
            found = self.follower.health(time.monotonic()).age
            return float("inf") if found is None else found

        show, recorder = self.figures.show, self.recorder
        show("headgate_routing_epoch", "Epoch that is served.", routed(lambda routing: routing.epoch))
        show("headgate_canary_weight", "Share of units the canary gets; 0 without a lease.", routed(lambda r: r.weight))
        show("headgate_journal_age_seconds", "Seconds since the journal was last read.", age)
        if recorder is not None:
            show("headgate_recorder_waiting", "Predictions in the spool, not in the log yet.", lambda: recorder.waiting)
            show("headgate_recorder_bytes", "Bytes of the spool on the disk.", lambda: recorder.size)
            show("headgate_recorder_oldest_seconds", "Age of the oldest that waits.", lambda: recorder.age(time.time()))
            show("headgate_recorder_recorded", "Predictions written to the log.", lambda: recorder.recorded)
            show("headgate_recorder_dropped", "Predictions that were lost.", lambda: recorder.dropped)
            show("headgate_recorder_failures", "Writes to log or disk that failed.", lambda: recorder.failures)
