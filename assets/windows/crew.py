"""Seals the parts of a window: one after the other here, or in several processes that are watched.

A process that does not move for `STALL_SECONDS` (a client that hangs for ever, a disk that does not answer) is killed and
its part is begun anew; a part is a pure function of its range, so nothing is lost by that. It knows processes and pipes;
it does not know what sealing is.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from assets.stream.log import EventLog, StreamUnreachable
from assets.windows.part import PartJob, SealedPart, seal_part

logger = logging.getLogger("headgate.stream")

STALL_SECONDS = 60.0
START_SECONDS = 120.0  # until a process has imported what it needs, on a machine that is busy
END_SECONDS = 5.0  # a killed process ends at once, or waits for a disk that may never answer
ATTEMPTS = 3
# A process costs about one CPU second to start (its imports): worth it from about two seconds of sealing on.
OFFSETS_FOR_TWO = 500_000

Opener = Callable[[], EventLog]


def seal_parts(log: EventLog, jobs: Sequence[PartJob], processes: int) -> list[SealedPart]:
    """The parts in the order of the jobs. processes: 0 = by the size of the window and the number of cores.

    Raises what `seal_part` raises, of the first part that fails; StreamUnreachable when a part stalls three times.
    """
    if (count := processes or _worth(jobs)) == 1:
        return [seal_part(log, job) for job in jobs]
    crew = _Crew(log.opener(), min(count, len(jobs)))
    try:
        return crew.run(jobs)
    finally:
        crew.dismiss()


def _worth(jobs: Sequence[PartJob]) -> int:
    offsets = sum(job.end - job.start for job in jobs)
    full = sum(job.end > job.start for job in jobs)
    return min(os.cpu_count() or 1, full) if offsets >= OFFSETS_FOR_TWO and full > 1 else 1


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    ready: bool = False
    job: int | None = None
    moved: float = 0.0
    offset: int = -1

    @property
    def limit(self) -> float:
        return STALL_SECONDS if self.ready else START_SECONDS


class _Crew:
    """Processes that each seal one part at a time. Started afresh: a fork would inherit clients and threads."""

    def __init__(self, opener: Opener, count: int) -> None:
        self._opener = opener
        self._context = multiprocessing.get_context("spawn")
        self._workers = [self._hire() for _ in range(count)]

    def run(self, jobs: Sequence[PartJob]) -> list[SealedPart]:
        waiting = sorted(range(len(jobs)), key=lambda index: jobs[index].start - jobs[index].end)  # the largest first
        done: dict[int, SealedPart] = {}
        tries = dict.fromkeys(waiting, 0)
        while len(done) < len(jobs):
            for place, worker in enumerate(self._workers):
                if worker.job is None and waiting:
                    if not worker.process.is_alive():  # it died while it had nothing to do
                        _end(worker)
                        self._workers[place] = self._hire()
                    self._give(self._workers[place], waiting.pop(0), jobs, tries)
            for index, part in self._heard():
                _file(jobs[index], tries[index]).replace(jobs[index].file)
                done[index] = part
            for place, worker in enumerate(self._workers):
                if worker.job is not None and self._lost(worker):
                    waiting.insert(0, worker.job)
                    self._replace(place, jobs[worker.job], tries[worker.job])
        return [done[index] for index in range(len(jobs))]

    def dismiss(self) -> None:
        """End every process, whatever it does."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            _end(worker)

    def _hire(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(self._opener, theirs), name="headgate-seal", daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _give(self, worker: _Worker, index: int, jobs: Sequence[PartJob], tries: dict[int, int]) -> None:
        tries[index] += 1
        worker.job, worker.moved, worker.offset = index, time.monotonic(), jobs[index].start
        with suppress(OSError):  # it has died: `_lost` sees it
            worker.pipe.send(replace(jobs[index], file=_file(jobs[index], tries[index])))

    def _heard(self) -> Iterator[tuple[int, SealedPart]]:
        # The pipe of a dead process is ready for ever: without a job nobody would ever take it away.
        heard = [worker.pipe for worker in self._workers if worker.job is not None or worker.process.is_alive()]
        for pipe in wait(heard, timeout=1.0):
            worker = next(each for each in self._workers if each.pipe is pipe)
            try:
                said = worker.pipe.recv()
            except (EOFError, OSError):
                worker.process.join(1.0)
                continue
            worker.moved, worker.ready = time.monotonic(), True
            if isinstance(said, BaseException):
                raise said
            if isinstance(said, int):
                worker.offset = said
            elif isinstance(said, SealedPart) and worker.job is not None:
                index, worker.job = worker.job, None
                yield index, said

    def _lost(self, worker: _Worker) -> bool:
        return not worker.process.is_alive() or time.monotonic() - worker.moved > worker.limit

    def _replace(self, place: int, job: PartJob, tries: int) -> None:
        worker = self._workers[place]
        alive = worker.process.is_alive()
        slow = f"did not {'move' if worker.ready else 'start'} for {worker.limit:.0f} s"
        what = slow if alive else f"ended with code {worker.process.exitcode}"
        where = f"{job.topic!r} partition {job.partition} at offset {worker.offset} of [{job.start}, {job.end})"
        _end(worker)
        if tries >= ATTEMPTS:
            raise StreamUnreachable(
                f"{tries} processes in turn failed to seal {where}, the last {what}: nothing was sealed; look at the "
                "broker and the disk, and run the window again"
            )
        logger.warning("a process that sealed %s %s: killed, and begun anew", where, what)
        self._workers[place] = self._hire()


def _file(job: PartJob, tries: int) -> Path:
    """Where one try writes: a killed process that does not end still holds the file of its own try, and no other."""
    return job.file.with_name(f"{job.file.name}-{tries}")


def _end(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join(END_SECONDS)
    if worker.process.is_alive():
        logger.warning(
            "process %s was killed and does not end for %.0f s: left behind; look at the disk",
            worker.process.pid, END_SECONDS,
        )  # fmt: skip
    worker.pipe.close()


def _work(opener: Opener, pipe: Connection) -> None:
    """What a process of the crew does: parts, until the pipe closes (which the end of the parent does too)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    log: EventLog | None = None
    with suppress(EOFError, OSError):
        pipe.send(None)
        while True:
            job: PartJob = pipe.recv()
            try:
                log = log or opener()
                pipe.send(seal_part(log, job, pipe.send))
            except (EOFError, BrokenPipeError):
                return
            except BaseException as error:  # noqa: BLE001 (sent to the parent, which raises it)
                pipe.send(_sendable(error))


def _sendable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 (our own bytes, a moment old)
    except Exception:  # noqa: BLE001 (whatever an exception of a library does when it is pickled)
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
