"""An undisturbed world to hold a disturbed one against, and faults that come at a counted batch of a read.

Every world here reads the same topics, each with its own folder and its own client, so that what one of them makes must
be byte for byte what the others make. No fault is waited for by sleeping: `FaultAt` counts.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from assets.stream import kafka as kafka_log
from assets.stream.log import EventLog, Outgoing
from assets.windows.seal import find_sealed, read_sealed
from tests.faults.test_window_faults import HOURS, journal_of, run_all
from tests.windows import Stream, at, event, label

FETCH = 16 << 10  # bytes: a window of half a megabyte is then many answers, and a fault can come between two
EVENTS, RECORDS = 480, 40  # events of the first hour, and records of one batch of the log


def fill(stream: Stream, seed: int = 5) -> list[str]:
    """Three hours, most of it in the first; a copy, an orphan and a poison record are among them. The events' names."""
    rng = random.Random(seed)
    minutes = [60 * number / EVENTS for number in range(EVENTS)] + [60 + number for number in range(120)]
    names = [f"e{number}-{base64.b64encode(rng.randbytes(150)).decode()}" for number in range(len(minutes))]
    for start in range(0, len(names), RECORDS):
        pairs = list(zip(names, minutes, strict=True))[start : start + RECORDS]
        stream.log.append(stream.topics.events, [event(name, minute) for name, minute in pairs])
        stream.log.append(stream.topics.labels, [label(name, minute + 5, rng.randrange(2)) for name, minute in pairs])
    copy = event(names[0], 179)
    stream.log.append(stream.topics.events, [copy])
    stream.log.append(stream.topics.labels, [label("nobody", 190), Outgoing(b"k", b"poison", at(191))])
    return [*names, names[0]]


@dataclass(frozen=True)
class Undisturbed:
    """What a run of all windows made when nothing went wrong, and of which records."""

    stream: Stream
    names: list[str]
    hashes: dict[str, str]
    entries: list[tuple[str, object]]

    @classmethod
    def of(cls, stream: Stream, names: list[str]) -> Undisturbed:
        stream.end(60 * HOURS)
        hashes = run_all(stream)
        assert sorted(sealed_names(stream)) == sorted(names), "the undisturbed world is not whole itself"
        assert stream.join(HOURS - 1).examples + stream.join(HOURS - 2).examples > 100
        assert not sealed_nothing(stream) and left_over(stream.root) == []
        return cls(stream, names, hashes, journal_of(stream))

    def another(self, folder: str | Path, log: EventLog | None = None, **changes: object) -> Stream:
        """A world on the same topics, in a folder beside this one or anywhere, as far as it was made there before."""
        place = self.stream.folder.parent / folder
        made = replace(self.stream, log=log or self.stream.log, folder=place, **changes)
        if made.history.refresh().ended() is None:
            made.end(60 * HOURS)
        return made

    def check(self, stream: Stream) -> None:
        """Run what is left to do: nothing lost, nothing doubled, the same bytes, each journal entry once."""
        hashes = run_all(stream)
        assert sorted(sealed_names(stream)) == sorted(self.names)
        assert hashes == self.hashes
        assert journal_of(stream) == self.entries
        assert left_over(stream.root) == []


def sealed_names(stream: Stream, windows: int = HOURS) -> list[str]:
    """The events in the sealed windows, by window, partition and offset."""
    found = []
    for number in range(windows):
        sealed = find_sealed(stream.history.refresh(), stream.window(number))
        assert sealed is not None
        found += read_sealed(stream.root, sealed, stream.topics.events, ["event_id"])["event_id"].to_pylist()
    return found


def left_over(root: Path) -> list[str]:
    """Temporary files and folders that nobody swept away."""
    return [str(path.relative_to(root)) for path in root.rglob(".*")]


def sealed_nothing(stream: Stream, number: int = 0) -> bool:
    """Whether a window has neither an entry nor a file, half or whole."""
    entry = find_sealed(stream.history.refresh(), stream.window(number))
    folder = stream.window(number).replace(":", "")
    return entry is None and not any(path.is_file() for path in stream.root.rglob(f"{folder}/**/*"))


class FaultAt:
    """`act()` once, after the log has given so many batches of a topic; then `acted` is (partition, offset) of the place.

    What it interrupts is the middle of a read: it fails where the batch was the last of its range.
    """

    def __init__(self, log: EventLog, topic: str, number: int, act: Callable[[], object]) -> None:
        self.acted: tuple[int, int] | None = None
        read, given = log.read, count(1)

        def reading(of: str, partition: int, start: int, end: int):  # type: ignore[no-untyped-def]
            for batch in read(of, partition, start, end):
                yield batch
                if of == topic and next(given) == number:
                    assert batch.end < end, f"batch {number} was the last of [{start}, {end})"
                    self.acted = (partition, batch.end)
                    act()

        log.read = reading  # type: ignore[method-assign]


def small_fetches(monkeypatch) -> None:
    """Answers of a few record batches instead of 8 MiB, for clients that are opened from now on in this process."""
    monkeypatch.setattr(kafka_log, "FETCH_BYTES", (FETCH,))

