"""Serves the operations page on a loopback address, read-only: one page, one style sheet, nothing to click.

There is no login yet, so an address other machines can reach is refused, and so is a request that names another host
(a web page elsewhere could otherwise read this one through its own name). It holds no figure: each request brings the
fold up to date and renders it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from models.release_policy import RolloutPolicy
from monitoring.collector import registry_of
from monitoring.dashboard.facts import Facts
from monitoring.dashboard.page import Clock, Page, page, read_page
from monitoring.dashboard.render import POLICY, render, style
from security.journal import Journal, JournalUnreachable
from security.listening import is_loopback, listen

BUSY_SECONDS = 2.0  # the page says that the journal is away instead of waiting for it
HEADERS = {
    "Content-Security-Policy": POLICY.format(style="'self'") + "; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
START_SECONDS = 10.0


class DashboardRefused(Exception):
    """The page cannot be served there; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What the page is about: a task, its policy, and its clock (`window_start` until a stream's first window)."""

    task: str
    policy: RolloutPolicy
    window_start: datetime
    clock: Clock


def export(journal: Journal, about: Subject, now: datetime) -> str:
    """The page as one file that stands alone. Raises JournalUnreachable."""
    found = read_page(
        journal, about.task, about.policy, window_start=about.window_start, clock=about.clock, now=now
    )
    return render(found, live=False)


class Dashboard:
    """The served page: `start` returns its address, `stop` ends it. For a thread of another process as well as alone."""

    def __init__(self, journal_url: str, about: Subject, *, host: str = "127.0.0.1") -> None:
        """Raises DashboardRefused for a host other machines can reach."""
        _check_loopback(host)
        self.about = about
        self._host = host
        self._journal_url = journal_url
        self._journal: Journal | None = None
        self._facts = Facts(about.task)
        self._figures: CollectorRegistry | None = None
        self._lock = threading.Lock()  # requests run in threads, and a fold is not shared
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, port: int = 0) -> str:
        """Open the journal, fold it, listen; the page's address. Port 0 takes a free one.

        Raises PortInUse, JournalUnreachable."""
        if self._thread is not None:
            raise DashboardRefused("this dashboard is running already: stop it first")
        self._journal = Journal(self._journal_url, busy_seconds=BUSY_SECONDS)
        self._figures = registry_of(self._journal, self.about.task, self.about.policy)
        render(self.page(datetime.now(UTC)), live=True)  # now, so that nobody waits for the fold of a year
        listener = listen(self._host, port, "dashboard")
        config = uvicorn.Config(
            self.app(), lifespan="off", log_level="warning", access_log=False, server_header=False, ws="none"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="dashboard", daemon=True
        )
        self._thread.start()
        name = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{name}:{listener.getsockname()[1]}/"

    def stop(self) -> None:
        """End the server and close the journal; harmless when it does not run."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(START_SECONDS)
        if self._journal is not None:
            self._journal.close()
        self._server = self._thread = self._journal = None

    def page(self, now: datetime) -> Page:
        """The page now; while the journal does not answer, what was known before, with the reason on it."""
        with self._lock:
            about = self.about
            if self._journal is None:
                raise DashboardRefused("the dashboard is not running: start it first")
            try:
                return read_page(
                    self._journal, about.task, about.policy, window_start=about.window_start, clock=about.clock,
                    now=now, facts=self._facts,
                )  # fmt: skip
            except JournalUnreachable as error:
                return page(
                    self._facts, about.policy, window_start=about.window_start, clock=about.clock, now=now,
                    fault=str(error),
                )  # fmt: skip

    def metrics(self) -> bytes:
        """The pipeline's figures (docs/metrics.md) as Prometheus reads them, from the journal."""
        if self._figures is None:
            raise DashboardRefused("the dashboard is not running: start it first")
        with self._lock:
            return generate_latest(self._figures)

    def app(self) -> FastAPI:
        """The routes, for the server and for tests."""
        app = FastAPI(title="headgate dashboard", docs_url=None, redoc_url=None, openapi_url=None)

        @app.middleware("http")
        async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
            named = request.url.hostname or ""
            answer = (
                await call_next(request)
                if is_loopback(named)
                else PlainTextResponse(f"host {named!r} is not this machine: ask for 127.0.0.1 or localhost", 421)
            )
            answer.headers.update(HEADERS)
            return answer

        @app.get("/", response_class=HTMLResponse)
        def show() -> HTMLResponse:
            found = self.page(datetime.now(UTC))
            return HTMLResponse(render(found, live=True), status_code=503 if found.fault else 200)

        @app.get("/style.css")
        def sheet() -> Response:
            return Response(style(), media_type="text/css")

        @app.get("/metrics")
        def metrics() -> Response:
            return Response(self.metrics(), media_type=CONTENT_TYPE_LATEST)

        @app.get("/healthz")
        def alive() -> dict[str, str]:
            return {"status": "alive"}

        return app


def serve(dashboard: Dashboard, port: int, started: Callable[[str], object]) -> None:
    """Serve until Ctrl-C or SIGTERM. `started` is told the address. Call it from the main thread."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    started(dashboard.start(port))
    while not asked.wait(1.0):  # a wait without a limit would hold back signals on some systems
        pass
    dashboard.stop()


def _check_loopback(host: str) -> None:
    if not is_loopback(host):
        raise DashboardRefused(
            f"dashboard host {host} can be reached by other machines, and the page has no login: use 127.0.0.1 "
            "([dashboard] host), and from elsewhere a tunnel: ssh -L 8901:127.0.0.1:8901 MACHINE"
        )
