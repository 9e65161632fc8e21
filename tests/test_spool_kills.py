"""A spool's process killed at each of its system calls, before, in the middle and after: no answered row is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from pipelines.gateway import spool as spools
from pipelines.gateway.spool import Spool
from tests.test_spool import REPOSITORY, SMALL, put, rows


def test_killed_at_every_system_call_no_answered_row_is_lost_and_none_invented(tmp_path):
    command = [sys.executable, "-m", "tests.test_spool_kills", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    points, kills = map(int, done.stdout.split())
    print(f"{kills} kills at {points} calls")
    assert points > 100 and kills >= 2 * points


CALLS = ("pwrite", "open", "unlink", "fdatasync", "fsync", "mkdir", "rmdir", "close", "write")


def killed_at_every_call(folder: Path) -> tuple[int, int]:
    """Fork a worker for each call it makes, kill it before, in the middle of (half written) and after it; then look."""
    kills = 0
    for point in range(1, 10_000):
        codes = set()
        for when in ("before", "half", "after"):
            root = folder / f"{point}-{when}"
            root.mkdir()
            child = os.fork()
            if not child:
                try:
                    kill_at(point, when)
                    work(root)
                except BaseException:  # noqa: BLE001 - printed, and told by the exit code
                    import traceback

                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            codes.add(code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            assert code in (0, -signal.SIGKILL), (point, when, code)
            kills += code == -signal.SIGKILL
            look(root, (point, when))
            shutil.rmtree(root)
        if codes == {0}:
            return point - 1, kills
    raise AssertionError("unreachable")


def kill_at(point: int, when: str) -> None:
    left = [point]

    def fatal(call):
        def wrapped(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0 and when == "half" and call.__name__ == "pwrite":
                handle, data, at = args
                call(handle, data[: len(data) // 2], at)
            if left[0] == 0 and when != "after":
                os.kill(os.getpid(), signal.SIGKILL)
            done = call(*args, **kwargs)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return wrapped

    for name in CALLS:
        setattr(os, name, fatal(getattr(os, name)))
    spools.flush = os.fdatasync


def work(root: Path) -> None:
    """Answer 40 rows, bring them to the log in batches, sync now and then."""
    answers = os.open(root / "answered", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    spool = Spool.own(root / "spool", "8900", SMALL)
    for number in range(40):
        if put(spool, number):
            os.write(answers, b"%d\n" % number)
        if number % 8 == 7:
            bring(root, spool, 5)
        if number % 13 == 12:
            spool.sync()
    while bring(root, spool, 7):
        pass
    spool.sync()
    spool.close()


def bring(root: Path, spool: Spool, most: int) -> int:
    given = spool.read(most)
    if given:
        log = os.open(root / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(log, b"".join(b"%d\n" % (row.timestamp - 1_000) for row in given))
        os.close(log)
        spool.acknowledge()
    return len(given)


def look(root: Path, where: object) -> None:
    def numbers(name: str) -> list[int]:
        path = root / name
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    if (root / "spool").exists():
        spool = Spool.own(root / "spool", "8900", SMALL)
        assert put(spool, 99), where  # whatever was left, the next owner records
        found = [*numbers("log"), *rows(spool)]
        assert found[-1] == 99 and not list(spool.folder.glob("*.damaged")), where
        first = list(dict.fromkeys(found[:-1]))
        assert first == sorted(first) and set(first) <= set(range(40)), (where, found)
        assert set(numbers("answered")) <= set(first), (where, found)
        spool.close()
        assert list((root / "spool").iterdir()) == [], where


if __name__ == "__main__":
    print(*killed_at_every_call(Path(sys.argv[1])))
