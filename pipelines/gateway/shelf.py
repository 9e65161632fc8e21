"""Where versions lie and how they are opened: nothing is served that is not signed, whole and built on a registered
base.

The catalog is a fold of the lineage stream; `Shelf.open` turns a version id into a Predictor, or refuses. It does not
know which version is routed, nor what happens after a refusal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.config import AdapterConfig
from models.task import Task
from security.journal import Entry

if TYPE_CHECKING:
    from models.version import OpenedVersion


class StoreUnreachable(Exception):
    """A file of the store could not be read; it may be there later."""


class Refusal(Exception):
    """A version must not be served: unknown, unsigned, changed, or not what the journal registered."""


@dataclass(frozen=True, slots=True)
class Place:
    """One version as the journal registered it; paths are relative to the store, `path` None = the bare base."""

    version: str
    base_digest: str
    base_path: str
    path: str | None = None
    manifest_digest: str | None = None


Catalog = Mapping[str, Place]


def fold(catalog: Catalog, entry: Entry) -> Catalog:
    """The catalog after one lineage entry: a version belongs to the base that was registered last before it."""
    body = entry.body
    if entry.kind == "base.registered":
        base = Place(body["version"], body["digest"], body["path"])
        return {**catalog, base.version: base}
    if entry.kind == "version.registered":
        under = latest_base(catalog)
        if under is not None:
            place = Place(body["version"], under.base_digest, under.base_path, body["path"], body["manifest_digest"])
            return {**catalog, place.version: place}
    return catalog


def latest_base(catalog: Catalog) -> Place | None:
    """The base registered last, or None."""
    bases = [place for place in catalog.values() if place.path is None]
    return bases[-1] if bases else None


class Shelf:
    """The versions of one task in one store. `trusted` maps a signer's role to its public key."""

    def __init__(self, task: Task, store: Path, trusted: Mapping[str, Any]) -> None:
        self._task, self._store, self._trusted = task, Path(store), dict(trusted)

    def open(self, place: Place, now: datetime) -> Any:
        """The version's Predictor, verified. Raises Refusal or StoreUnreachable."""
        from models.adapters.lora import AdapterRefused
        from models.base import BaseRefused
        from models.predictor import Predictor

        base = self._base(place)
        try:
            if place.path is None:
                return Predictor(self._task, base, None, AdapterConfig(), place.version)
            opened = self._version(place, place.path, now)
            return Predictor(self._task, base, opened.tensors, opened.config, place.version)
        except (BaseRefused, AdapterRefused) as misfit:
            raise Refusal(str(misfit)) from misfit

    def _version(self, place: Place, path: str, now: datetime) -> OpenedVersion:
        from models.version import VersionRefused, open_version
        from security import manifest

        folder = self._inside(path)
        if not folder.exists():
            raise StoreUnreachable(f"{folder} is not there: check [store] url; running versions go on serving")
        try:
            opened = open_version(
                folder, trusted=self._trusted, base_digest=place.base_digest, task=self._task.name, now=now
            )
        except VersionRefused as refused:
            raise Refusal(str(refused)) from refused
        if opened.id != place.version:
            raise Refusal(f"the folder of {place.version} holds {opened.id}: not what the journal registered")
        # The id carries 8 hex digits of this digest, which the owner of the key could meet twice; the journal has 64.
        found = manifest.digest(manifest.encode(opened.manifest))
        if place.manifest_digest is not None and found != place.manifest_digest:
            wanted = place.manifest_digest[:16]
            raise Refusal(f"{opened.id}: manifest {found[:16]}, the journal registered {wanted}: changed")
        return opened

    def _base(self, place: Place) -> bytes:
        path = self._inside(place.base_path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StoreUnreachable(_unreadable(path, error)) from error
        found = hashlib.sha256(content).hexdigest()
        if found != place.base_digest:
            wanted = place.base_digest[:16]
            raise Refusal(f"base {path} has sha256 {found[:16]}, the journal registered {wanted}: changed")
        return content

    def _inside(self, relative: str) -> Path:
        # Not resolved: a link must stay visible to `open_version`, which refuses it.
        if Path(relative).is_absolute() or ".." in Path(relative).parts:
            raise Refusal(f"path {relative!r} leads out of the store {self._store}: the journal entry is not ours")
        return self._store / relative


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path} cannot be read ({error.strerror or error}): check [store] url; running versions go on serving"
