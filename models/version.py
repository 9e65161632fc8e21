"""A model version on disk: four files, named after their own content, signed; written once, opened only when all of it
is true.

`adapter.safetensors`, `adapter_config.json`, `manifest.json`, `manifest.dsse`. Opening fails closed and never
unpickles. Knows nothing of routing or of why a version is released; the tensors it is given are the release copy
(stamped), what the manifest says beyond its own fields comes from the caller.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from models import tensorfile
from models.config import AdapterConfig
from security import manifest as manifests
from security.disk import settle
from security.journal import stamp, unstamp

SCHEMA = "headgate/version/1"
TENSORS, CONFIG, MANIFEST, ENVELOPE = "adapter.safetensors", "adapter_config.json", "manifest.json", "manifest.dsse"
CAPS = {TENSORS: 1 << 30, CONFIG: 64 << 10, MANIFEST: 256 << 10, ENVELOPE: 64 << 10}
ID = re.compile(r"v(\d{6,})-([0-9a-f]{8})")
VALID_FOR = timedelta(days=400)
CLOCK_SKEW = timedelta(minutes=5)  # a gateway whose clock lags by this much can still open what was just written
OWN = frozenset({
    "schema", "task", "version", "parent", "base_digest", "created_at", "not_before", "not_after", "files", "tensors",
    "adapter",
})
PrivateKey = Any  # Ed25519; the classes belong to security/, which checks them
PublicKey = Any


class VersionRefused(Exception):
    """This version must not be loaded; the message names what was found, what was wanted and the version."""


@dataclass(frozen=True, slots=True)
class Version:
    """A version as written."""

    id: str
    number: int
    path: Path
    manifest: dict[str, Any]


@dataclass(frozen=True, slots=True)
class OpenedVersion:
    """A version whose every byte was checked."""

    id: str
    manifest: dict[str, Any]
    tensors: dict[str, np.ndarray]
    config: AdapterConfig


def write_version(
    directory: Path,
    *,
    number: int,
    task: str,
    parent: str | None,
    base_digest: str,
    tensors: Mapping[str, np.ndarray],
    adapter_config: AdapterConfig,
    manifest_extra: Mapping[str, Any],
    key: PrivateKey,
    now: datetime,
    valid_for: timedelta = VALID_FOR,
) -> Version:
    """Write and sign (role "trainer") `directory/<version id>/`; all or nothing, and the same call again changes
    nothing.

    `manifest_extra` must hold `not_covered`, the list of what the privacy statement leaves out. Raises VersionRefused
    for that, for a clash with a field of ours, and for tensors that no reader would accept.
    """
    _check_extra(manifest_extra)
    try:
        files = {TENSORS: tensorfile.encode(tensors), CONFIG: _encode_config(adapter_config, base_digest)}
        listed = tensorfile.describe(tensors)
    except tensorfile.TensorsRefused as error:
        raise VersionRefused(f"version {number} of task {task!r} not written: {error}") from error
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "task": task,
        "version": number,
        "parent": parent,
        "base_digest": base_digest,
        "created_at": stamp(now),
        "not_before": stamp(now - CLOCK_SKEW),
        "not_after": stamp(now + valid_for),
        "files": [{"path": k, "size": len(v), "sha256": sha256(v).hexdigest()} for k, v in sorted(files.items())],
        "tensors": listed,
        "adapter": adapter_config.listed(),
        **manifest_extra,
    }
    payload = manifests.encode(manifest)
    files[MANIFEST] = payload
    files[ENVELOPE] = manifests.envelope(payload, [manifests.sign(payload, key, "trainer")])
    name = f"v{number:06d}-{manifests.digest(payload)[:8]}"
    for file, raw in files.items():
        if len(raw) > CAPS[file]:
            raise VersionRefused(f"{name}: {file} has {len(raw)} bytes > {CAPS[file]} allowed; nothing written")
    _publish(directory, name, files)
    return Version(name, number, directory / name, _parse(name, MANIFEST, payload))


def open_version(
    directory: Path,
    *,
    trusted: Mapping[str, PublicKey],
    base_digest: str,
    task: str,
    now: datetime,
    required_roles: Sequence[str] = ("trainer",),
    min_version: int = 0,
) -> OpenedVersion:
    """The version in `directory`, whose last part is its id. Each file is read once; those bytes are hashed and
    parsed.

    Raises VersionRefused: name, links, extra or missing files, sizes, signature, roles, task, base, validity, rollback
    floor, hashes, adapter settings, tensor names, shapes, types, non-finite values, values beyond absmax.
    """
    name = directory.name
    match = ID.fullmatch(name)
    if not match:
        raise VersionRefused(f"{name!r} is not a version id like v000123-1a2b3c4d; nothing was read")
    files = _read_all(directory)
    try:
        manifests.check(files[MANIFEST], files[ENVELOPE], trusted, required_roles)
    except manifests.ManifestRefused as error:
        raise VersionRefused(f"{name}: {error}") from error
    found = manifests.digest(files[MANIFEST])[:8]
    if found != match[2]:
        raise VersionRefused(f"{name}: the manifest's sha256 begins {found}, the id says {match[2]}")
    manifest = _parse(name, MANIFEST, files[MANIFEST])
    try:
        _check_terms(name, manifest, int(match[1]), task, base_digest, now, min_version)
        _check_files(name, manifest, files)
        config = _decode_config(name, manifest, files[CONFIG])
        tensors = tensorfile.decode(files[TENSORS], manifest["tensors"])
    except tensorfile.TensorsRefused as error:
        raise VersionRefused(f"{name}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise VersionRefused(f"{name}: manifest field missing or of the wrong kind: {error!r}") from error
    return OpenedVersion(name, manifest, tensors, config)


def _check_extra(extra: Mapping[str, Any]) -> None:
    clash = sorted(set(extra) & OWN)
    if clash:
        raise VersionRefused(f"manifest_extra sets {', '.join(clash)}, which the version writes itself; leave it out")
    listed = extra.get("not_covered")
    if not isinstance(listed, list | tuple) or not all(isinstance(line, str) for line in listed):
        raise VersionRefused(f"manifest_extra['not_covered'] is {listed!r}: a list of sentences is needed")


def _publish(directory: Path, name: str, files: Mapping[str, bytes]) -> None:
    """Files into a temporary folder, fsynced, then renamed: a crash leaves either the whole version or none."""
    if (directory / name).exists():
        return  # the id is a hash of the content
    directory.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=directory))
    try:
        for file, raw in files.items():
            with (scratch / file).open("xb") as out:
                out.write(raw)
                out.flush()
                os.fsync(out.fileno())
        scratch.chmod(0o755)
        scratch.rename(directory / name)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    settle(directory)


def _read_all(directory: Path) -> dict[str, bytes]:
    try:
        if not stat.S_ISDIR(directory.lstat().st_mode):
            raise VersionRefused(f"{directory.name} is a link or no folder; a version is a folder of four files")
        present = {entry.name for entry in os.scandir(directory)}
        if present != set(CAPS):
            raise VersionRefused(f"{directory.name}: missing {sorted(set(CAPS) - present) or 'none'}, "
                                 f"extra {sorted(present - set(CAPS)) or 'none'}; exactly {sorted(CAPS)} are allowed")
        return {file: _read(directory, file) for file in CAPS}
    except OSError as error:
        raise VersionRefused(f"{directory.name} cannot be read: {error}") from error


def _read(directory: Path, file: str) -> bytes:
    """One read of one regular file through a descriptor that does not follow links."""
    handle = os.open(directory / file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as source:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise VersionRefused(f"{directory.name}: {file} is not a regular file")
        raw = source.read(CAPS[file] + 1)
    if len(raw) > CAPS[file]:
        raise VersionRefused(f"{directory.name}: {file} has more than {CAPS[file]} bytes")
    return raw


def _parse(name: str, file: str, raw: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            raise VersionRefused(f"{name}: {file} names a key twice")
        return made

    try:
        parsed = json.loads(raw, object_pairs_hook=once)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise VersionRefused(f"{name}: {file} is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise VersionRefused(f"{name}: {file} is no JSON object")
    return parsed


def _check_terms(
    name: str, manifest: Mapping[str, Any], number: int, task: str, base_digest: str, now: datetime, min_version: int
) -> None:
    for field, wanted in (("schema", SCHEMA), ("version", number), ("task", task), ("base_digest", base_digest)):
        if manifest[field] != wanted:
            raise VersionRefused(f"{name}: {field} is {manifest[field]!r}, wanted {wanted!r}")
    if number < min_version:
        raise VersionRefused(f"{name}: version {number} < rollback floor {min_version}")
    start, end = unstamp(manifest["not_before"]), unstamp(manifest["not_after"])
    if not start <= now < end:
        raise VersionRefused(f"{name}: valid from {stamp(start)} until {stamp(end)}, now it is {stamp(now)}")


def _check_files(name: str, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    listed = {entry["path"]: entry for entry in manifest["files"]}
    if set(listed) != {TENSORS, CONFIG} or len(manifest["files"]) != len(listed):
        raise VersionRefused(f"{name}: the manifest lists {sorted(listed)}; exactly {[TENSORS, CONFIG]} are allowed")
    for path, entry in listed.items():
        found = (len(files[path]), sha256(files[path]).hexdigest())
        if found != (entry["size"], entry["sha256"]):
            raise VersionRefused(f"{name}: {path} has {found[0]} bytes, sha256 {found[1][:8]}...; signed were "
                                 f"{entry['size']}, {entry['sha256'][:8]}...: it was changed after signing")


def _encode_config(config: AdapterConfig, base_digest: str) -> bytes:
    return json.dumps(config.as_peft(base_digest), indent=2, sort_keys=True).encode()


def _decode_config(name: str, manifest: Mapping[str, Any], raw: bytes) -> AdapterConfig:
    """The signed manifest says what the adapter is; the file beside it must be exactly what we write for that."""
    config = AdapterConfig.of(manifest["adapter"])
    if raw != _encode_config(config, manifest["base_digest"]):
        raise VersionRefused(f"{name}: {CONFIG} is not the file this adapter's settings give")
    return config
