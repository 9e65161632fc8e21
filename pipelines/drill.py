"""A fire drill of the rollback: one more replica whose canary fails on purpose, asked with public events, until the
controller takes the traffic away.

It is real: the errors count, and the canary is rolled back. Nothing of it is recorded as a prediction, the clients of
other replicas see none of it, and the version may try again (`headgate rollout retry`). It decides nothing and writes
nothing but the replica's counts.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from assets.board_fold import BoardFold
from models.rollout_state import TRAFFIC, Rollout, State
from models.task import Task
from pipelines.gateway.core import PREDICT, Instant
from pipelines.gateway.server import Gateway, GatewayConfig
from pipelines.settings import Settings
from security.journal import Journal
from security.keys import private_key
from security.tokens import issue

LOOK_SECONDS = 0.2


class NoDrill(ValueError):
    """There is nothing to drill on, or nothing to drill with; the message says what would be."""


@dataclass(frozen=True)
class Drilled:
    """What came of it: seconds from the first failed answer to the decision and to weight 0 here; None: not in time."""

    version: str
    canary: int
    failed: int
    decided: float | None
    silent: float | None
    reason: str


def drill(
    settings: Settings, task: Task, journal: Journal, *, share: float, rate: float, limit: float,
    tell: Callable[[str], None] = lambda text: None,
) -> Drilled:
    """Fail `share` of the canary's answers at `rate` requests a second, at most `limit` seconds long."""
    if not 0.0 < share <= 1.0:
        raise NoDrill(f"--errors {share} is outside (0, 1]: 0.5 fails every second answer of the canary")
    board = BoardFold(journal, task.name)
    canary = board.refresh().canary
    if canary is None or canary.state not in TRAFFIC:
        raise NoDrill("no version has users now: `headgate rollout promote VERSION` gives one its first step")
    events, keys = documents(task), Path(settings.keys.directory)
    token = issue(
        private_key(keys, "token"), subject="drill", scopes=[PREDICT], issuer=settings.gateway.issuer,
        audience=settings.gateway.audience, lifetime=timedelta(hours=1), now=datetime.now(UTC),
    )
    with TemporaryDirectory() as folder:
        config = GatewayConfig(
            issuer=settings.gateway.issuer, audience=settings.gateway.audience, rate_per_second=1e6, burst=1_000_000,
            rollout=settings.rollout, window=settings.window, drill=share, last_good=Path(folder) / "routing.json",
            replica=f"drill-{uuid.uuid4().hex[:8]}", lease_seconds=settings.rollout.lease.total_seconds(),
        )  # fmt: skip
        gateway = Gateway(config, task, journal, Path(settings.store.url), keys, None)
        logger = logging.getLogger("headgate.gateway")
        level = logger.level
        logger.setLevel(logging.CRITICAL)  # each failure on purpose would be an error there
        gateway.start()
        try:
            return _Watch(gateway, board, canary, tell).run(events, f"Bearer {token}", rate, limit)
        finally:
            gateway.stop()
            logger.setLevel(level)


def documents(task: Task) -> Iterator[bytes]:
    """Events of the task's public history as request bodies, again and again, each under a new id."""
    history = getattr(task, "history", None)
    if history is None:
        raise NoDrill(f"task {task.name} declares no public history(), so there are no events to ask with")
    columns: Mapping[str, np.ndarray] = history()
    names = [name for name in task.event.names if name != "event_id"]
    count, run = len(columns[names[0]]), uuid.uuid4().hex[:8]

    def endless() -> Iterator[bytes]:
        number = 0
        while True:
            row = {name: _value(columns[name][number % count]) for name in names}
            yield json.dumps({"event_id": f"drill-{run}-{number}", **row}).encode()
            number += 1

    return endless()


def _value(value: Any) -> Any:
    """A numpy value as JSON has it: no number is null, a time is text."""
    if isinstance(value, np.datetime64):
        return np.datetime_as_string(value, unit="us") + "Z"
    found = value.tolist() if hasattr(value, "tolist") else value
    return None if isinstance(found, float) and not np.isfinite(found) else found


class _Watch:
    """Asks, and looks at the journal in between."""

    def __init__(self, gateway: Gateway, board: BoardFold, canary: Rollout, tell: Callable[[str], None]) -> None:
        self._gateway, self._board, self._tell = gateway, board, tell
        self._canary = canary
        self._first: float | None = None
        self._asked = self._failed = 0
        self._decided: float | None = None
        self._silent: float | None = None
        self._reason = ""

    def run(self, events: Iterator[bytes], authorization: str, rate: float, limit: float) -> Drilled:
        began = looked = time.monotonic()
        sent = 0
        while self._silent is None and time.monotonic() - began < limit:
            self._ask(next(events), authorization)
            sent += 1
            if time.monotonic() - looked >= LOOK_SECONDS:
                looked = time.monotonic()
                self._look()
            time.sleep(max(0.0, began + sent / rate - time.monotonic()))
        return Drilled(self._canary.version, self._asked, self._failed, self._decided, self._silent, self._reason)

    def _ask(self, body: bytes, authorization: str) -> None:
        answer = self._gateway.core.handle(authorization, body, Instant.now())
        said = json.loads(answer.body)
        if answer.status not in (200, 500):
            raise NoDrill(f"the replica of the drill answers {answer.status}: {said.get('message')}")
        if said.get("arm") == "canary":
            self._asked += 1
            self._failed += answer.status == 500
            if answer.status == 500 and self._first is None:
                self._first = time.monotonic()
                self._tell(f"{self._canary.version} fails its first answer, at a weight of {self._canary.weight:.0%}")

    def _look(self) -> None:
        since = time.monotonic() - (self._first or time.monotonic())
        if self._decided is None:
            now = self._board.refresh().rollouts[self._canary.version]
            if now.state in TRAFFIC:
                return
            self._decided, self._reason = since, now.reason
            ended = now.outcome if now.state is State.ROLLING_BACK else now.state
            self._tell(f"+{since:.1f} s  {now.version}: {ended.value} after {self._failed} failed answers ({now.reason})")
        serving = self._gateway.follower.serving(time.monotonic())
        if serving is not None and serving[0].weight == 0.0:
            self._silent = time.monotonic() - (self._first or time.monotonic())
            self._tell(f"+{self._silent:.1f} s  this replica gives it no traffic (routing epoch {serving[0].epoch})")
