"""Follows the journal's routing: loads what it names, swaps by one assignment, and knows what to do when nothing
answers.

A thread looks at the journal every half second. Versions are opened off the request path; only when all of a routing
is verified does it become what is served, and only then is its epoch acknowledged. What served last is kept in a
file, so that a restart without the journal serves. Without a successful look for `lease_seconds` a canary's weight is
0: nobody could tell this replica to stop it. It does not know tokens, requests or how a version is opened.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from models.split import Routing
from pipelines.gateway.last_good import LastGood
from pipelines.gateway.shelf import Catalog, Place, Refusal, Shelf, StoreUnreachable, fold, latest_base
from security.journal import Entry, Journal, JournalError, Projection
from security.replicas import Replicas

logger = logging.getLogger("headgate.gateway")

RETRY_SECONDS = 5.0  # a version that cannot be served is tried again: stores come back, files get restored
RENEW_SHARE = 1 / 6  # of the lease between two signs of life: each is a commit with an fsync, a look is only a read
KNOWN_SECONDS = 1.0  # a start that can serve already does not wait longer for news
NOT_YET = "not read yet"


@dataclass(frozen=True, slots=True)
class Served:
    """One epoch as it is served; replaced whole, never changed. `held` is the same with the canary at weight 0."""

    routing: Routing
    held: Routing
    predictors: Mapping[str, Any]
    places: Mapping[str, Place]


@dataclass(frozen=True, slots=True)
class Health:
    """How a replica stands with the journal.

    `age`: seconds since it was last read, None = never. `fault`: why it cannot be read now, "" = it can. `refused`:
    version -> reason, of what the journal routes and this replica does not serve.
    """

    age: float | None
    leased: bool
    fault: str
    refused: Mapping[str, str]


class _NotServable(Exception):
    def __init__(self, version: str, reason: str, *, refused: bool) -> None:
        super().__init__(reason)
        self.version, self.refused = version, refused


class Follower:
    """Keeps `serving` true to the journal.

    `open_journal` is called in the thread until it succeeds. `on_look(journal)` runs at each successful look,
    `on_refused(journal, version, reason)` once for each version that must not be served.
    """

    def __init__(
        self,
        task: str,
        open_journal: Callable[[], Journal],
        shelf: Shelf,
        last_good: LastGood,
        *,
        replica: str,
        lease_seconds: float,
        poll_seconds: float,
        on_look: Callable[[Journal], None],
        on_refused: Callable[[Journal, str, str], None],
    ) -> None:
        self._task, self._replica = task, replica
        self._open_journal, self._shelf, self._last_good = open_journal, shelf, last_good
        self._lease_seconds, self._poll_seconds = lease_seconds, poll_seconds
        self._on_look, self._on_refused = on_look, on_refused
        self._journal: Journal | None = None
        self._lineage: Projection[Catalog] | None = None
        self._routing: Projection[Routing | None] | None = None
        self._served: Served | None = None
        self._replicas: Replicas | None = None
        self._acknowledged: tuple[int, float] | None = None  # the epoch, and the ticks of the look that said so
        self._leased_at: float | None = None  # ticks of the last look that found all served and could say so
        self._looked_at: float | None = None
        self._fault = NOT_YET
        self._refused: dict[str, str] = {}
        self._told: set[str] = set()
        self._retry_at = 0.0
        self._stop, self._looked = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="routing", daemon=True)

    def serving(self, ticks: float) -> tuple[Routing, Mapping[str, Any]] | None:
        """The routing to answer from and its predictors by version, or None while nothing is verified."""
        served = self._served
        if served is None:
            return None
        return (served.routing if self._leased(ticks) else served.held), served.predictors

    def health(self, ticks: float) -> Health:
        """How this replica stands with the journal, at `ticks` monotonic seconds."""
        age = None if self._looked_at is None else ticks - self._looked_at
        return Health(age, self._leased(ticks), self._fault, dict(self._refused))

    def start(self, wait_seconds: float) -> None:
        """Serve what served last and begin to follow; with nothing to serve wait `wait_seconds` for the first look."""
        self._remember()
        self._thread.start()
        self._looked.wait(wait_seconds if self._served is None else min(wait_seconds, KNOWN_SECONDS))

    def stop(self) -> None:
        """Stop following; what is served stays."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _leased(self, ticks: float) -> bool:
        return self._leased_at is not None and ticks - self._leased_at <= self._lease_seconds

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self.look(began)
                self._fault = ""
            except Exception as error:  # noqa: BLE001 - fail static: whatever the journal raises, serving goes on
                if self._fault in ("", NOT_YET):
                    logger.warning("the journal cannot be followed, what was routed last goes on serving: %s", error)
                self._fault = str(error) if isinstance(error, JournalError) else f"{type(error).__name__}: {error}"
            self._looked.set()
            self._stop.wait(max(0.0, self._poll_seconds - (time.monotonic() - began)))

    def look(self, ticks: float) -> None:
        """One look at the journal, begun at `ticks`; raises what the journal raises."""
        journal = self._journal = self._journal or self._open_journal()
        wanted, catalog = self._fold(journal)
        current = self._served is not None and self._served.routing == wanted
        if wanted is not None and not current and ticks >= self._retry_at:
            current = self._follow(journal, wanted, catalog, ticks)
        self._looked_at = ticks
        self._on_look(journal)
        if self._served is not None:
            self._renew(journal, self._served.routing, wanted, ticks)

    def _renew(self, journal: Journal, served: Routing, wanted: Routing | None, ticks: float) -> None:
        """Say which epoch is served.

        The lease runs from the look that could say so: whoever waits for this replica counts from that word, and the
        canary must have stopped here before they stop waiting.
        """
        if wanted is not None and wanted.canary != served.canary:
            # The journal withdrew this canary, and what replaces it cannot be served: its lease ends now, not in 30 s.
            self._leased_at = None
        lapsed = self._leased_at is None and served == wanted
        said, at = self._acknowledged or (None, 0.0)
        if said == served.epoch and not lapsed and ticks - at < self._lease_seconds * RENEW_SHARE:
            return
        self._replicas = self._replicas or Replicas(journal.engine)
        self._replicas.acknowledge(self._task, self._replica, served.epoch, datetime.now(UTC))
        self._acknowledged = (served.epoch, ticks)
        if served == wanted:
            self._leased_at = ticks

    def _fold(self, journal: Journal) -> tuple[Routing | None, Catalog]:
        if self._lineage is None or self._routing is None:
            self._lineage = Projection(journal, f"lineage/{self._task}", {}, fold)
            self._routing = Projection(journal, f"routing/{self._task}", None, _routing_after)
        # Lineage second: whatever a routing names was registered before it.
        routing = self._routing.refresh()
        catalog = self._lineage.refresh()
        return routing or _bare_base(catalog), catalog

    def _follow(self, journal: Journal, wanted: Routing, catalog: Catalog, ticks: float) -> bool:
        """Open what `wanted` names and serve it; False when a version is refused or cannot be read."""
        try:
            served = self._opened(wanted, catalog)
        except _NotServable as fault:
            self._retry_at = ticks + RETRY_SECONDS
            logger.error("epoch %d is not served: version %s: %s", wanted.epoch, fault.version, fault)
            self._refused[fault.version] = str(fault)
            if fault.refused and fault.version not in self._told:
                self._on_refused(journal, fault.version, str(fault))
                self._told.add(fault.version)
            return False
        self._publish(served)
        self._last_good.write(served.routing, served.places)
        return True

    def _opened(self, wanted: Routing, catalog: Catalog) -> Served:
        old, predictors, places = self._served, {}, {}
        for version in (wanted.stable, wanted.canary):
            if version is None:
                continue
            if version not in catalog:
                raise _NotServable(version, "it is routed but was never registered in the journal", refused=True)
            place = places[version] = catalog[version]
            if old is not None and old.places.get(version) == place:
                predictors[version] = old.predictors[version]
                continue
            try:
                predictors[version] = self._shelf.open(place, datetime.now(UTC))
            except (Refusal, StoreUnreachable) as error:
                raise _NotServable(version, str(error), refused=isinstance(error, Refusal)) from error
        return Served(wanted, replace(wanted, weight=0.0), predictors, places)

    def _publish(self, served: Served) -> None:
        self._served = served  # the one assignment: a request reads it once, so it never sees half of a change
        self._refused.clear()
        self._retry_at = 0.0

    def _remember(self) -> None:
        """Serve what the file names, verified again; its canary waits at weight 0 for the journal."""
        kept = self._last_good.read()
        if kept is None:
            return
        try:
            self._publish(self._opened(*kept))
        except _NotServable as fault:
            logger.error("version %s of the last good routing is not served: %s", fault.version, fault)


def _routing_after(before: Routing | None, entry: Entry) -> Routing | None:
    if entry.kind != "routing.set":
        return before
    body = entry.body
    return Routing(body["epoch"], body["stable"], body["canary"], float(body["weight"]), body["salt"])


def _bare_base(catalog: Catalog) -> Routing | None:
    """Before the first `routing.set` the registered base answers, as epoch 0."""
    base = latest_base(catalog)
    return None if base is None else Routing(0, base.version)
