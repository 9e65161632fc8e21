"""The routing that was served last, in a file, so that a gateway can start while the journal is away.

The file names versions and where they lie; it proves nothing, so what it names is verified again when it is opened.
It does not know when to write, nor whether what it names should still be served.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from models.split import Routing
from pipelines.gateway.shelf import Place
from security import disk

logger = logging.getLogger("headgate.gateway")


class LastGood:
    """One file. Neither reading nor writing raises: without it a start waits for the journal, and the log says why."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, routing: Routing, places: Mapping[str, Place]) -> None:
        """Replace the file whole: written beside it, fsynced, renamed."""
        body = {"routing": asdict(routing), "places": [asdict(place) for place in places.values()]}
        try:
            disk.put(self.path, json.dumps(body).encode())
        except OSError as error:
            logger.warning("the last good routing could not be kept in %s: %s", self.path, error)

    def read(self) -> tuple[Routing, dict[str, Place]] | None:
        """What was written last, or None when there is nothing usable."""
        try:
            body = json.loads(self.path.read_text())
            return Routing(**body["routing"]), {place["version"]: Place(**place) for place in body["places"]}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("the last good routing in %s cannot be used, waiting for the journal: %s", self.path, error)
            return None
