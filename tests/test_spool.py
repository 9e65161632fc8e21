"""The spool: whatever happens to the process or the disk, rows come back whole, in order, none left out, none invented."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines.gateway import spool as spools
from pipelines.gateway.spool import Spool, SpoolDamaged
from tests.disks import files_no_larger_than

REPOSITORY = Path(__file__).parents[1]
SMALL, HEAD, ROW, IN_SEGMENT = 4096, 16, 55, 9  # bytes; a segment has 512, so this spool takes 72 rows


def put(spool: Spool, number: int) -> int:
    return spool.append(b"%04d" % number, b"row" + b"%04d" % number * 6, 1_000 + number)


def rows(spool: Spool, most: int = 10) -> list[int]:
    """Take everything off; the numbers in the order they came."""
    found = []
    while given := spool.read(most):
        for row in given:
            number = row.timestamp - 1_000
            assert (row.key, row.value) == (b"%04d" % number, b"row" + b"%04d" % number * 6)
            found.append(number)
        spool.acknowledge()
    return found


def after_a_crash(spool: Spool, root: Path) -> Spool:
    """What another process finds when this one is killed now: the files as they are."""
    shutil.copytree(spool.folder, root / "crashed")
    return Spool.own(root, "crashed", spool.limit)


def test_rows_come_back_in_order_and_what_is_taken_off_leaves_the_disk(tmp_path):
    spool = Spool.own(tmp_path / "spool", "8900", SMALL)
    assert [put(spool, number) for number in range(40)] == list(range(1, 41))
    assert spool.rows == 40 and spool.size == 40 * ROW + 5 * HEAD and len(list(spool.folder.iterdir())) == 5
    assert spool.folder.stat().st_mode & 0o777 == 0o700
    assert [row.timestamp - 1_000 for row in spool.read(4)] == [row.timestamp - 1_000 for row in spool.read(4)] == [0, 1, 2, 3]
    assert rows(spool) == list(range(40))
    assert spool.rows == 0 and len(list(spool.folder.iterdir())) == 1
    assert put(spool, 40) and rows(spool) == [40]
    spool.close()
    assert list((tmp_path / "spool").iterdir()) == [] and put(spool, 41) == 0


def test_what_was_not_taken_off_is_found_by_the_next_owner_and_comes_before_its_own_rows(tmp_path):
    first = Spool.own(tmp_path, "8900", SMALL)
    for number in range(20):
        put(first, number)
    first.read(8)
    first.acknowledge()
    again = after_a_crash(first, tmp_path)
    assert again.rows == 12
    put(again, 20)
    assert rows(again) == list(range(8, 21))
    first.close()
    assert (tmp_path / "8900").is_dir()  # rows wait in it


def test_a_torn_last_row_is_cut_off_wherever_the_tear_is(tmp_path):
    made = Spool.own(tmp_path / "made", "8900", SMALL)
    ends = [put(made, number) and made.size for number in range(3)]
    whole = next(made.folder.iterdir()).read_bytes()
    assert len(whole) == ends[-1]
    for cut in range(ends[1], ends[2]):
        for lost in (b"", bytes(ends[2] - cut)):  # cut off, or zeros where the disk wrote nothing
            folder = tmp_path / f"{cut}-{len(lost)}"
            folder.mkdir()
            (folder / "000000000001.rows").write_bytes(whole[:cut] + lost)
            spool = Spool.own(tmp_path, folder.name, SMALL)
            put(spool, 7)
            if cut > ends[1] and lost and any(whole[cut:]):  # a row that is there in full, with zeros in it
                with pytest.raises(SpoolDamaged):
                    assert rows(spool) == [0, 1, 7]
                assert rows(spool) == [7]
            else:
                assert rows(spool) == [0, 1, 7], (cut, lost)
            spool.close()


def test_no_changed_bit_loses_or_invents_a_row_without_a_trace(tmp_path):
    made = Spool.own(tmp_path / "made", "8900", SMALL)
    for number in range(3):
        put(made, number)
    whole = next(made.folder.iterdir()).read_bytes()
    for place in range(len(whole)):
        for bit in (0, 7):
            folder = tmp_path / f"{place}-{bit}"
            folder.mkdir()
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            (folder / "000000000001.rows").write_bytes(changed)
            spool = Spool.own(tmp_path, folder.name, SMALL)
            given: list[int] = []
            try:
                given += rows(spool, 1)
            except SpoolDamaged as damaged:
                given = ["damaged", damaged.rows >= 1]
                (kept,) = folder.glob("*.damaged")
                assert kept.read_bytes()[HEAD:] == changed[HEAD:] and rows(spool) == [] and spool.rows == 0
            assert given in ([0, 1, 2], ["damaged", True]), (place, bit)
            spool.close()


def test_rows_before_a_damaged_one_are_given_and_the_segments_behind_it_too(tmp_path):
    made = Spool.own(tmp_path, "8900", SMALL)
    for number in range(12):
        put(made, number)
    again = after_a_crash(made, tmp_path)
    for spool in (made, again):  # one that runs, and one that finds it
        first = min(spool.folder.glob("*.rows"))
        data = bytearray(first.read_bytes())
        data[HEAD + 3 * ROW + 30] ^= 1
        first.write_bytes(data)
    found = Spool.own(tmp_path, "crashed", SMALL)
    assert found.folder.name == "crashed-1"
    for spool in (made, again):
        given = [row.timestamp - 1_000 for row in spool.read(10)]
        assert given == [0, 1, 2]
        spool.acknowledge()
        with pytest.raises(SpoolDamaged, match=r"000000000001\.damaged holds \d"):
            spool.read(10)
        assert rows(spool) == list(range(IN_SEGMENT, 12)) and spool.rows == 0


def test_a_full_spool_keeps_what_came_first_counts_nothing_it_has_not_and_takes_rows_again(tmp_path):
    spool = Spool.own(tmp_path, "8900", SMALL)
    taken = [number for number in range(200) if put(spool, number)]
    assert taken == list(range(8 * IN_SEGMENT)) and spool.size == 8 * (IN_SEGMENT * ROW + HEAD) <= SMALL
    assert sum(path.stat().st_size for path in spool.folder.iterdir()) == spool.size
    assert "is full" in spool.fault
    spool.mend()
    assert "is full" in spool.fault  # there is no room yet
    assert rows(spool) == taken
    spool.mend()
    assert spool.fault == "" and put(spool, 200) and rows(spool) == [200]


def test_a_disk_that_takes_only_a_part_of_a_row_loses_no_other_row(tmp_path):
    for size in range(HEAD + 2 * ROW, HEAD + 3 * ROW):  # wherever the limit falls in a row
        spool = Spool.own(tmp_path, f"{size}", 1 << 20)
        with files_no_larger_than(size):
            taken = [number for number in range(5) if put(spool, number)]
            assert taken == [0, 1] and "File too large" in spool.fault
            assert put(spool, 8) == 0  # not tried again before `mend`
        spool.mend()
        assert spool.fault == "" and put(spool, 9)
        crashed = after_a_crash(spool, tmp_path)
        assert rows(spool) == rows(crashed) == [*taken, 9]
        shutil.rmtree(tmp_path / "crashed")
        spool.close()


def test_a_row_larger_than_one_read_and_one_segment_passes(tmp_path):
    spool = Spool.own(tmp_path, "8900", 64 << 20)
    large = [os.urandom(size) for size in (spools.READ_BYTES * 3, 10, spools.SEGMENT_BYTES + 1, 7)]
    for value in large:
        assert spool.append(b"k", value, 1)
    found = []
    while given := spool.read(100):
        found += [row.value for row in given]
        spool.acknowledge()
    assert found == large


def test_a_flush_that_fails_is_told_once_and_its_file_gets_no_more_rows(tmp_path, monkeypatch):
    spool = Spool.own(tmp_path, "8900", SMALL)
    kept, calls = spools.flush, []

    def broken(handle: int) -> None:
        calls.append(handle)
        raise OSError(errno.EIO, "Input/output error")

    put(spool, 0)
    monkeypatch.setattr(spools, "flush", broken)
    number, error = spool.sync()
    assert (number, error.errno) == (1, errno.EIO) and len(calls) == 1
    monkeypatch.setattr(spools, "flush", kept)
    assert spool.sync() == (1, None)  # nothing new: and row 1 was reported as failed
    put(spool, 1)
    assert spool.sync() == (2, None) and len(list(spool.folder.iterdir())) == 2
    assert rows(spool) == [0, 1]


def test_two_owners_of_one_name_have_two_folders_and_leave_each_other_alone(tmp_path):
    one, two = (Spool.own(tmp_path, "8900", SMALL) for _ in range(2))
    assert (one.folder.name, two.folder.name) == ("8900", "8900-1")
    put(one, 1)
    put(two, 2)
    assert Spool.abandoned(tmp_path) == []
    one.close()
    (left,) = Spool.abandoned(tmp_path)
    assert left.folder == one.folder and rows(left) == [1]
    left.close()
    assert rows(two) == [2] and [path.name for path in tmp_path.iterdir()] == ["8900-1"]


def test_a_folder_that_cannot_be_opened_strands_no_other_is_said_once_and_no_lock_leaks(tmp_path, monkeypatch, caplog):
    for name in ("8001", "8002", "8003"):
        dead = Spool.own(tmp_path, name, SMALL)
        put(dead, int(name))
        os.close(dead._lock)  # its process died
    real_open, real_find = os.open, spools.find

    def no_access(path, *rest, **more):  # whoever runs the tests may be root, whom modes do not stop
        if Path(path).name == "8002":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_open(path, *rest, **more)

    def no_disk(path):
        if path.parent.name == "8001":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real_find(path)

    monkeypatch.setattr(spools.os, "open", no_access)
    monkeypatch.setattr(spools, "find", no_disk)
    (third,) = Spool.abandoned(tmp_path)
    assert third.folder.name == "8003" and Spool.abandoned(tmp_path) == []
    with pytest.raises(OSError, match="Input/output error"):
        Spool.own(tmp_path, "8001", SMALL)
    monkeypatch.undo()
    assert [spool.folder.name for spool in Spool.abandoned(tmp_path)] == ["8001", "8002"]
    told = [record.getMessage() for record in caplog.records if record.name == "headgate.gateway"]
    assert len(told) == 2 and "8001 cannot be opened" in told[0] and "8002 cannot be opened" in told[1]


def test_a_folder_is_free_the_moment_its_process_is_killed(tmp_path):
    script = (
        "import sys; from pathlib import Path; from pipelines.gateway.spool import Spool\n"
        "spool = Spool.own(Path(sys.argv[1]), '8900', 4096)\n"
        "spool.append(b'0005', b'row' + b'0005' * 6, 1005); print('ready', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout and other.stdout.readline() == b"ready\n"
    assert Spool.abandoned(tmp_path) == []
    other.kill()
    other.communicate()
    spool = Spool.own(tmp_path, "8900", SMALL)
    assert spool.folder.name == "8900" and rows(spool) == [5]


def test_any_order_of_calls_and_crashes_gives_every_row_once_in_order_and_repeats_only_after_a_crash(tmp_path):
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    random_, crashes = random.Random(seed), 0
    spool, waiting, sent, number = Spool.own(tmp_path, "0", SMALL), [], [], 0
    for _ in range(4_000):
        what = random_.choices(["put", "take", "look", "sync", "mend", "crash"], [10, 4, 1, 1, 1, 0.2])[0]
        if what == "put" and put(spool, number):
            waiting.append(number)
        number += what == "put"
        if what in ("take", "look"):
            given = [row.timestamp - 1_000 for row in spool.read(random_.randrange(1, 12))]
            assert given == waiting[: len(given)] and bool(given) == bool(waiting)
            if what == "take" and given:
                spool.acknowledge()
                sent, waiting = sent + given, waiting[len(given) :]
        if what == "sync":
            assert spool.sync() == (spool.appended, None)
        if what == "mend":
            spool.mend()
        if what == "crash":
            crashes += 1
            shutil.copytree(spool.folder, tmp_path / f"{crashes}")
            spool.close()
            spool = Spool.own(tmp_path, f"{crashes}", SMALL)
        assert spool.rows == len(waiting) and spool.size <= SMALL
    assert crashes > 5 and len(sent) > 500 and sorted(set(sent)) == sent


def test_one_thread_appends_one_flushes_and_one_takes_off_without_a_row_lost_or_twice(tmp_path):
    spool, number, found, over = Spool.own(tmp_path, "8900", SMALL), 20_000, [], threading.Event()

    def append() -> None:
        for each in range(number):
            while not put(spool, each):  # full
                time.sleep(0)

    def flush() -> None:
        while not over.is_set():
            assert spool.sync()[1] is None

    kept = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for work in (append, flush)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while len(found) < number and time.monotonic() < deadline:
            found += rows(spool, 7)
    finally:
        sys.setswitchinterval(kept)
        over.set()
    for thread in threads:
        thread.join()
    assert found == list(range(number)) and (spool.rows, spool.appended) == (0, number)
    spool.close()
    assert list(tmp_path.iterdir()) == []
