"""The gateway's figures for Prometheus, in a registry of their own.

Only names, labels and how to count; the parts that are counted are read when somebody asks. It knows no route and no
token.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

# From a tiny model in process (0.1 ms) to a heavy one; the middle is dense because SLOs live there.
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
NO_ARM = "none"


class Figures:
    """Counts requests and latencies; shows the state of routing and recorder through functions given to `show`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "headgate_requests", "Requests to /v1/predict by arm and status.", ["arm", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "headgate_predict_seconds",
            "Validate, split, predict and queue.",
            ["arm"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.rate_limited = Counter("headgate_rate_limited", "Requests refused with 429.", registry=self.registry)
        self.refused_versions = Counter(
            "headgate_refused_versions", "Versions that were routed but failed verification.", registry=self.registry
        )
        ProcessCollector(registry=self.registry)
        # labels() costs a lock and a lookup a request: bind each pair once.
        self._bound: dict[tuple[str, int], Counter] = {}
        self._timed = {arm: self._seconds.labels(arm) for arm in ("stable", "canary")}

    def answered(self, arm: str, status: int, seconds: float | None = None) -> None:
        """Count one answer; `arm` is "none" when it was refused before the split."""
        pair = (arm, status)
        if pair not in self._bound:
            self._bound[pair] = self._requests.labels(arm, str(status))
        self._bound[pair].inc()
        if seconds is not None:
            self._timed[arm].observe(seconds)

    def show(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value is asked for at each scrape."""
        Gauge(name, help_text, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """The exposition, text format 0.0.4."""
        return generate_latest(self.registry)
