"""The jars of Apache Kafka: which ones, where they lie, and that they are the right bytes.

`broker_jars.txt` names every jar with its version and SHA-256, as a lock file does: a resolver that walks the
dependencies itself picks versions that do not fit together (another jackson, an older kafka-clients). This file does
not know how a broker is started.
"""

from __future__ import annotations

import fcntl
import hashlib
from dataclasses import dataclass
from pathlib import Path

PINS = Path(__file__).with_name("broker_jars.txt")
MEGABYTES = 41  # what the pinned jars weigh together


class JarsMissing(Exception):
    """The jars are not here and cannot be had, or are not the pinned ones."""


@dataclass(frozen=True, slots=True)
class Jar:
    """One pinned jar: Maven coordinate and SHA-256 in hex."""

    group: str
    name: str
    version: str
    sha256: str

    def path(self, cache: Path) -> Path:
        """Where it lies in a cache folder, in Maven's own layout."""
        return cache / self.group.replace(".", "/") / self.name / self.version / f"{self.name}-{self.version}.jar"

    def is_at(self, path: Path) -> bool:
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256


def pinned() -> list[Jar]:
    """The pinned jars, one a line: `group:name:version sha256:hex`."""
    jars = []
    for line in PINS.read_text().splitlines():
        coordinate, digest = line.split()
        group, name, version = coordinate.split(":")
        jars.append(Jar(group, name, version, digest.removeprefix("sha256:")))
    return jars


def classpath(cache: Path, *, folder: Path | None = None, maven: str | None = None) -> str:
    """Java's class path for the broker.

    folder: a folder that already holds the jars (any Kafka 4 and a log4j binding); nothing is fetched or checked then.
    cache: else, where the pinned jars lie or are put. maven: the registry's address, None = Maven's central one.
    Raises JarsMissing.
    """
    if folder is not None:
        if not any(folder.glob("kafka_2.*.jar")):
            raise JarsMissing(f"no kafka_2.*.jar in {folder}: name the `libs` folder of an Apache Kafka 4 distribution")
        return f"{folder.absolute()}/*"  # Java expands the star itself
    cache = cache.absolute()
    jars = pinned()
    if not all(jar.is_at(jar.path(cache)) for jar in jars):
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two first starts at once: one fetches, the other finds them
            _fetch(cache, jars, maven)
    return ":".join(str(jar.path(cache)) for jar in jars)


def _fetch(cache: Path, jars: list[Jar], maven: str | None) -> None:
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext

    registry = maven or MAVEN_CENTRAL_URL
    context = MavenContext(repo_cache=cache, remote_repos={"central": registry})
    missing = [jar for jar in jars if not jar.is_at(jar.path(cache))]
    for done, jar in enumerate(missing):
        jar.path(cache).unlink(missing_ok=True)  # half a download, or not the pinned bytes
        try:
            context.project(jar.group, jar.name).at_version(jar.version).artifact().resolve()
        except Exception as error:  # the resolver lets every network error of its own through
            raise JarsMissing(
                f"cannot fetch {len(missing) - done} of the {len(jars)} Kafka jars from {registry}: "
                f"{type(error).__name__}: {error}. Connect once ({MEGABYTES} MB go to {cache}), give a folder of jars, "
                'or set bootstrap_servers = "embedded" under [stream]'
            ) from error
        if not jar.is_at(jar.path(cache)):
            raise JarsMissing(
                f"{jar.path(cache).name} from {registry} does not have the pinned SHA-256 {jar.sha256}: "
                f"the registry is not to be trusted, or a proxy answered for it; see {PINS.name}"
            )
