"""Kills a pipeline with signal 9 at points it counts: every place where cut, seal, join and journal touch the outside.

A point is the moment before a file is opened for writing, written, flushed, renamed or removed, before a folder is made,
before a statement or a commit of the journal, before the log is asked and after each batch it gave. No sleeping and no
luck: point n of a run is the same place every time, so all of them can be tried, or a seeded choice.

Run as a program it forks a child for each try (a fresh process: a fork of a test process would inherit its threads), and
prints one JSON object: kills, faults, and what was tried.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

WINDOWS = 4
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_MOVES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}


class Points:
    """Counts points, and kills this process at number `fatal` (from 1; 0 = never)."""

    def __init__(self, folder: Path, fatal: int) -> None:
        self._folder, self._fatal = str(folder), fatal
        self.seen: list[str] = []

    def __call__(self, what: str) -> None:
        self.seen.append(what)
        if len(self.seen) == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self, log: Any, journal: Any) -> None:
        """From now on. `log`: the event log that is used; `journal`: its SQLAlchemy engine is listened to."""
        from sqlalchemy import event

        from assets.windows import store

        sys.addaudithook(self._audit)
        os.fsync = self._before(os.fsync, "fsync")
        store.RowGroups.write = self._before(store.RowGroups.write, "write")  # type: ignore[method-assign]
        log.bounds = self._before(log.bounds, "bounds")
        log.read = self._reading(log.read)
        event.listen(journal.engine, "before_cursor_execute", lambda *_: self("statement"))
        event.listen(journal.engine, "commit", lambda _: self("commit"))

    def _audit(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & _WRITES
            if writes and str(path).startswith(self._folder):
                self(f"open {Path(str(path)).suffix}")
        elif name in _MOVES and str(arguments[0]).startswith(self._folder):
            self(name)

    def _before(self, call: Any, what: str) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self(what)
            return call(*args, **kwargs)

        return wrapped

    def _reading(self, read: Any) -> Any:
        def wrapped(*args: Any) -> Any:
            self("read")
            for batch in read(*args):
                yield batch
                self("batch")

        return wrapped


# -- one world: a stream, and what is made of it ------------------------------------------------------------------------


def fill(log: Any, topics: Any, seed: int) -> None:
    """Four hours with copies, orphans, poison, late and early labels, all out of order."""
    from tests.windows import Outgoing, at, event, label

    rng = random.Random(seed)
    records = []
    for number in range(120):
        minute = rng.random() * 60 * (WINDOWS - 1)
        records.append((minute, event(f"e{number}", minute)))
        if rng.random() < 0.8:
            lag = rng.uniform(-20, 150)
            records.append((minute + lag, label(f"e{number}", max(0, minute + lag), number % 2)))
        if rng.random() < 0.1:
            records.append((minute + 30, event(f"e{number}", minute + 30)))
    records += [(rng.random() * 100, label(f"nobody{number}", 30)) for number in range(5)]
    records.sort(key=lambda pair: pair[0] + rng.uniform(0, 10))
    events = [record for _, record in records if b'"x"' in record.value]
    labels = [record for _, record in records if b'"y"' in record.value]
    labels.insert(3, Outgoing(b"k", b"poison", at(5)))
    for start in range(0, len(events), 40):  # several batches
        log.append(topics.events, events[start : start + 40])
    log.append(topics.labels, labels)


def run(stream: Any) -> dict[str, Any]:
    """Everything that is to do, whatever is done already -> what must be equal in every world."""
    for number in range(WINDOWS):
        stream.run(number)
    return shown(stream)


def shown(stream: Any) -> dict[str, Any]:
    """Files, journal entries, and what is wrong with them."""
    from assets.windows.join import find_examples, read_examples

    faults, ids = list(stream.history.journal.verify().faults), []
    entries = [entry for room in ("cut", "window") for entry in stream.history.journal.read(f"{room}/{stream.task}")]
    count = Counter((entry.kind, str(entry.body.get("window"))) for entry in entries)
    faults += [f"{what} is journalled {times} times" for what, times in count.items() if times > 1]
    faults += [f"left behind: {path.name}" for path in stream.root.rglob(".*") if path.is_file()]
    for number in range(WINDOWS):
        found = find_examples(stream.history.refresh(), stream.window(number))
        assert found is not None
        ids += read_examples(stream.root, found)["event_id"].to_pylist()
    faults += [f"{name} is an example {times} times" for name, times in Counter(ids).items() if times > 1]
    return {"hashes": stream.hashes(), "entries": sorted(map(str, count)), "examples": len(ids), "faults": faults}


# -- trying -----------------------------------------------------------------------------------------------------------


class Trials:
    """Worlds on one log. `servers`: a Kafka, or "" for a log in a file."""

    def __init__(self, folder: Path, servers: str, seed: int) -> None:
        self._folder, self._servers, self._seed = folder, servers, seed
        self._topics: Any = None
        self.kills, self.faults = 0, list[str]()
        self.places: Counter[str] = Counter()

    def log(self) -> Any:
        from assets.stream.embedded import EmbeddedLog
        from assets.stream.kafka import KafkaLog

        return KafkaLog(self._servers) if self._servers else EmbeddedLog(self._folder / "log.db")

    def stream(self, name: str) -> Any:
        from tests.windows import Stream

        return Stream(self.log(), self._topics, self._folder / name)

    def prepare(self) -> dict[str, Any]:
        """The topics, filled, and an undisturbed world; `begun` is one in which two windows are done."""
        from assets.stream.log import Topics

        names = self.forked(lambda: self._filled())
        self._topics = Topics(*names)
        return self.forked(lambda: self._undisturbed())

    def _filled(self) -> list[str]:
        from tests.windows import new_topics

        log = self.log()
        topics = new_topics(log, 2)
        fill(log, topics, self._seed)
        return list(topics.all)

    def _undisturbed(self) -> dict[str, Any]:
        stream = self.stream("begun")
        stream.end(60 * WINDOWS)
        stream.run(0), stream.run(1)
        stream.history.journal.close()
        shutil.copytree(stream.folder, self._folder / "twin")
        return run(self.stream("twin"))

    def points(self, name: str) -> list[str]:
        """The points of one run of world `name`, which it finishes."""
        return self.forked(lambda: self._counted(name, 0))

    def _counted(self, name: str, fatal: int) -> list[str]:
        stream = self.stream(name)
        points = Points(stream.folder, fatal)
        points.install(stream.log, stream.history.journal)
        run(stream)
        return points.seen

    def kill(self, name: str, fatal: int) -> bool:
        """Run world `name` until point `fatal`; False when it was finished before."""
        if self.forked(lambda: self._counted(name, fatal), may_die=True) is None:
            self.kills += 1
            return True
        return False

    def compare(self, name: str, wanted: dict[str, Any], what: str) -> None:
        """Finish world `name` and hold it against the undisturbed one."""
        found = self.forked(lambda: run(self.stream(name)))
        self.faults += [f"{what}: {fault}" for fault in found["faults"]]
        self.faults += [f"{what}: {key} differ" for key in ("hashes", "entries", "examples") if found[key] != wanted[key]]

    def forked(self, work: Any, may_die: bool = False) -> Any:
        """What `work` returns in a child; None when it died of signal 9, which it may only if it is said so."""
        told = self._folder / "told.json"
        told.unlink(missing_ok=True)
        child = os.fork()
        if not child:
            code = 1
            try:
                told.write_text(json.dumps(work()))
                code = 0
            except BaseException:  # noqa: BLE001 (printed, and told by the exit code)
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == -signal.SIGKILL and may_die:
            return None
        if code:
            raise SystemExit(f"a child ended with code {code}; seed {self._seed}")
        return json.loads(told.read_text())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--servers", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=0, help="a random schedule; 0 = points in order, once each")
    parser.add_argument("--step", type=int, default=1, help="of the points in order, every so many")
    given = parser.parse_args()
    import pyarrow as pa

    import tests.windows  # noqa: F401 (children find every import made)

    pa.set_cpu_count(1)
    trials, rng = Trials(given.folder, given.servers, given.seed), random.Random(given.seed)
    wanted = trials.prepare()
    trials.faults += wanted["faults"]
    shutil.copytree(given.folder / "begun", given.folder / "count")
    points = trials.points("count")
    if given.kills:
        worlds = schedule(trials, rng, given.kills, len(points), wanted)
    else:
        tried = range(1 + given.seed % given.step, len(points) + 1, given.step)
        worlds = len(tried)
        for number in tried:
            name = f"w{number}"
            shutil.copytree(given.folder / "begun", given.folder / name)
            if not trials.kill(name, number):
                trials.faults.append(f"point {number} ({points[number - 1]}) was not reached")
            trials.compare(name, wanted, f"killed at point {number} ({points[number - 1]})")
            shutil.rmtree(given.folder / name)
    kinds = dict(Counter(point.split()[0] for point in points))
    found = {"seed": given.seed, "kills": trials.kills, "worlds": worlds, "points": len(points), "kinds": kinds}
    print(json.dumps({**found, "examples": wanted["examples"], "faults": trials.faults}))


def schedule(trials: Trials, rng: random.Random, kills: int, points: int, wanted: dict[str, Any]) -> int:
    """Worlds that are killed again and again at random points until they are done, up to so many kills."""
    worlds = 0
    while trials.kills < kills:
        worlds += 1
        name = f"r{worlds}"
        shutil.copytree(trials._folder / "begun", trials._folder / name)
        for _ in range(rng.randrange(1, 9)):
            if not trials.kill(name, rng.randrange(1, points + 1)):
                break
        trials.compare(name, wanted, f"world {worlds}")
        shutil.rmtree(trials._folder / name)
    return worlds


if __name__ == "__main__":
    main()
