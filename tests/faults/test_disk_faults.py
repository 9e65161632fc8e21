"""A full disk under cut, seal and join: an error that says so, nothing half done, and with space again the same bytes.

Twice: a small file system that really is full (where this process may mount one), and a limit on the size of a file, which
works for anybody. Every amount of space between none and enough is tried, in steps. A disk that fails at a flush or a
rename is in test_window_faults.py, the gateway's spool on a full disk in test_spool.py.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path

import pytest

from assets.stream.embedded import EmbeddedLog
from assets.windows import store
from assets.windows.join import find_examples
from assets.windows.seal import find_sealed
from security.journal import JournalUnreachable
from tests.disks import files_no_larger_than
from tests.faults.undisturbed import HOURS, Undisturbed, fill, left_over
from tests.windows import Stream, new_topics

PAGE = 4096
DISK = 8 << 20


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    opened = EmbeddedLog(tmp_path_factory.mktemp("log") / "log.db")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def world(log, tmp_path_factory):
    stream = Stream(log, new_topics(log), tmp_path_factory.mktemp("disks") / "undisturbed")
    return Undisturbed.of(stream, fill(stream))


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", place], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this process may not mount a file system: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)  # journals in it may be open still


@contextmanager
def filled_up(disk: Path, space: int):
    """All of the disk but so many bytes."""
    ballast = disk / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            with suppress(OSError):
                while file.write(bytes(PAGE)):
                    pass
            file.truncate(max(0, file.tell() - space))
        yield
    finally:
        ballast.unlink()


def check_stopped(world: Undisturbed, stream: Stream) -> None:
    """Nothing is half: what is journalled has its files, and no file is another than it will be in the end."""
    made = stream.hashes()
    assert stream.history.journal.verify().faults == ()
    assert left_over(stream.root) == [] and made.items() <= world.hashes.items()
    for number in range(HOURS):
        sealed = find_sealed(stream.history.refresh(), stream.window(number))
        joined = find_examples(stream.history, stream.window(number))
        promised = {file.path: file.sha256 for file in sealed.all_files()} if sealed else {}
        promised |= joined.files() if joined else {}
        assert all(store.sha256((stream.root / path).read_bytes()) == digest for path, digest in promised.items())


def run(stream: Stream) -> str:
    """The step that found no space, "" when there was enough for all."""
    for number, step in product(range(HOURS), ("cut", "seal", "join")):
        try:
            getattr(stream, step)(number)
        except (OSError, JournalUnreachable) as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG)
            assert full or "disk" in str(error), error
            return step
    return ""


def test_whatever_space_is_left_on_a_full_disk_the_run_stops_by_name_and_goes_on_when_there_is_some(world, disk):
    stopped, space = [], 0
    while not stopped or stopped[-1]:
        stream = world.another(disk / f"{space}")
        with filled_up(disk, space):
            stopped.append(run(stream))
            check_stopped(world, stream)
        world.check(stream)
        stream.history.journal.engine.dispose()
        shutil.rmtree(stream.folder)
        space += 9 * PAGE
    print(stopped)
    assert set(stopped) == {"cut", "seal", "join", ""} and len(stopped) > 20


def test_a_limit_on_the_size_of_a_file_stops_the_run_by_name_and_without_it_the_same_is_made(world, tmp_path):
    stopped, size = [], 0
    while not stopped or stopped[-1]:
        stream = world.another(tmp_path / f"{size}")
        with files_no_larger_than(size):
            stopped.append(run(stream))
        check_stopped(world, stream)
        world.check(stream)
        stream.history.journal.engine.dispose()
        size += 5 * PAGE
    print(stopped)
    assert set(stopped) == {"cut", "seal", "join", ""}


def test_a_process_of_several_that_finds_the_disk_full_ends_the_seal_with_its_error(world, disk):
    stream = world.another(disk / "crew", processes=2)
    stream.cut(0)
    with filled_up(disk, 12 * PAGE):
        with pytest.raises(OSError, match="No space left on device") as full:
            stream.seal(0)
        check_stopped(world, stream)
    assert full.value.errno == errno.ENOSPC
    world.check(world.another(disk / "crew"))
