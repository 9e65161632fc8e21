"""A full disk under cut, seal and join: an error that says so, nothing half done, and with space again the same bytes.

Twice: a small file system that really is full (where this process may mount one), and a limit on the size of a file, which
works for anybody. Every amount of space between none and enough is tried, in steps. A disk that fails at a flush or a
rename is in test_window_faults.py, the gateway's spool on a full disk in test_spool.py.
"""

from __future__ import annotations

import errno
import resource
import shutil
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from assets.stream.embedded import EmbeddedLog
from assets.stream.join import find_examples
from assets.stream.seal import find_sealed
from tests.faults.test_window_faults import journal_of
from tests.faults.undisturbed import Undisturbed, fill, left_over
from tests.windows import Stream, new_topics

PAGE = 4096
DISK = 8 << 20
NUMBER = 2  # the window that is made on the full disk: it has rows of its own, and the examples of the first


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    opened = EmbeddedLog(tmp_path_factory.mktemp("log") / "log.db")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def world(log, tmp_path_factory):
    stream = Stream(log, new_topics(log), tmp_path_factory.mktemp("disks") / "undisturbed")
    return Undisturbed.of(stream, fill(stream))


@pytest.fixture(scope="module")
def begun(world):
    """Two windows are done; copies of it go on."""
    stream = world.another("begun")
    stream.run(0), stream.run(1)
    stream.history.journal.close()
    return stream.folder


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", place], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this process may not mount a file system: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@contextmanager
def filled_up(disk: Path, space: int):
    """All of the disk but so many bytes."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file, suppress(OSError):
        while True:
            file.write(bytes(PAGE))
            file.flush()
    with ballast.open("r+b") as file:
        file.truncate(max(0, ballast.stat().st_size - space))
    yield
    ballast.unlink()


@contextmanager
def limited(size: int):
    """No file may grow beyond so many bytes; Python ignores the signal, so a write fails with EFBIG."""
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)


def check_stopped(world: Undisturbed, stream: Stream) -> None:
    """What is journalled has its files, whole; what is not has none that another run would not replace."""
    history = stream.history.refresh()
    assert stream.history.journal.verify().faults == ()
    assert left_over(stream.root) == []
    assert stream.hashes().items() <= world.hashes.items()  # nothing half, nothing else
    sealed, joined = find_sealed(history, stream.window(NUMBER)), find_examples(history, stream.window(NUMBER))
    for path in [file.path for file in sealed.all_files()] if sealed else []:
        assert (stream.root / path).is_file()
    for path in joined.files() if joined else []:
        assert (stream.root / path).is_file()


def run(world: Undisturbed, stream: Stream) -> str:
    """The step that found no space, "" when there was enough."""
    for name in ("cut", "seal", "join"):
        try:
            getattr(stream, name)(NUMBER)
        except (OSError, OperationalError) as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG)
            assert full or "disk" in str(error), error
            return name
    return ""


def test_whatever_space_is_left_on_a_full_disk_the_run_stops_by_name_and_goes_on_when_there_is_some(world, begun, disk):
    stopped, space = [], 0
    while not stopped or stopped[-1]:
        folder = shutil.copytree(begun, disk / f"{space}")
        stream = world.another(folder)
        with filled_up(disk, space):
            stopped.append(run(world, stream))
            if stopped[-1]:
                check_stopped(world, stream)
        world.check(stream)
        stream.history.journal.close()
        shutil.rmtree(folder)
        space += 4 * PAGE
    print(stopped)
    assert set(stopped) == {"cut", "seal", "join", ""}


def test_a_limit_on_the_size_of_a_file_stops_the_run_by_name_and_without_it_the_same_is_made(world, begun, tmp_path):
    stopped, size = [], 0
    while not stopped or stopped[-1]:
        stream = world.another(shutil.copytree(begun, tmp_path / f"{size}"))
        with limited(size):
            stopped.append(run(world, stream))
        if stopped[-1]:
            check_stopped(world, stream)
        world.check(stream)
        stream.history.journal.close()
        size += 4 * PAGE
    print(stopped)
    assert {"cut", "seal", ""} <= set(stopped)


def test_a_process_of_several_that_finds_the_disk_full_ends_the_seal_with_its_error(world, begun, disk):
    stream = world.another(shutil.copytree(begun, disk / "crew"), processes=2)
    stream.cut(NUMBER)
    with filled_up(disk, 3 * PAGE), pytest.raises(OSError, match="No space left on device") as full:
        stream.seal(NUMBER)
    assert full.value.errno == errno.ENOSPC
    check_stopped(world, stream)
    world.check(stream)
    assert journal_of(stream) == world.entries
