"""One partition sealed: proved whole, bounded in memory, the same bytes in any process."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from assets.stream.batch import pack
from assets.stream.embedded import EmbeddedLog
from assets.stream.formats import ValueFormat
from assets.stream.log import Outgoing, Record, StreamUnreachable
from assets.windows import crew, store
from assets.windows.part import PartJob, TooManyRejects, seal_part
from assets.windows.proof import Proof, SealIncomplete, pieces
from tests.windows import EVENT, Stream, event, label, new_topics


def run_of(begin, end, holes=()):
    offsets = [offset for offset in range(begin, end) if offset not in holes]
    return pack(0, begin, end, [Record(0, offset, 1000 + offset, b"k", b"%d" % offset) for offset in offsets])


def fingerprint(*batches, start=0, end=10):
    proof = Proof("t", 0, start, end)
    for batch in batches:
        proof.add(batch)
    return proof.fingerprint()


def test_the_fingerprint_does_not_depend_on_how_the_range_was_fetched():
    assert fingerprint(run_of(0, 10)) == fingerprint(run_of(0, 4), run_of(4, 5), run_of(5, 10))
    assert fingerprint(run_of(0, 10, holes=[3])) == fingerprint(run_of(0, 3), run_of(3, 4, holes=[3]), run_of(4, 10))


def test_another_record_at_the_same_offset_is_another_fingerprint():
    changed = [Record(0, offset, 1000 + offset, b"k", b"other" if offset == 7 else b"%d" % offset) for offset in range(10)]
    assert fingerprint(run_of(0, 10)) != fingerprint(pack(0, 0, 10, changed))
    assert fingerprint(run_of(0, 10)) != fingerprint(run_of(0, 10, holes=[7]))


@pytest.mark.parametrize(
    "batches",
    [
        [run_of(0, 4), run_of(5, 10)],  # a hole
        [run_of(0, 6), run_of(5, 10)],  # twice
        [run_of(0, 9)],  # too short
        [run_of(1, 10)],  # begins too late
        [replace(run_of(0, 10), offsets=np.arange(10)[::-1])],  # out of order
        [replace(run_of(0, 10), offsets=np.arange(1, 11))],  # outside
        [replace(run_of(0, 10), partition=1)],
        [run_of(0, 5), replace(run_of(5, 10), kind="batches")],
    ],
)
def test_a_range_that_is_not_given_whole_and_in_order_is_not_believed(batches):
    with pytest.raises(SealIncomplete, match="'t' partition 0"):
        fingerprint(*batches)


def test_pieces_cover_the_range_whatever_the_gaps():
    rng = np.random.default_rng(5)
    for _ in range(500):
        start, length = rng.integers(0, 20, 2).tolist()
        gaps = tuple((low, low + size) for low, size in rng.integers(0, 30, (3, 2)).tolist())
        found = pieces(start, start + length, gaps)
        there = {offset for low, high, is_there in found if is_there for offset in range(low, high)}
        gone = {offset for low, high in gaps for offset in range(low, high)}
        assert there == set(range(start, start + length)) - gone
        assert [piece[0] for piece in found[1:]] == [piece[1] for piece in found[:-1]]


# -- one part, many parts ---------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path):
    opened = EmbeddedLog(tmp_path / "log.db")
    yield opened
    opened.close()


def job_of(topic, file, end, start=0, gaps=(), max_rejects=0.0, partition=0):
    return PartJob(topic, partition, start, end, gaps, ValueFormat(EVENT), file, max_rejects)


def test_an_accepted_gap_is_not_read_and_not_proved(log, tmp_path):
    log.create_topic("t", 1)
    log.append("t", [event(f"e{number}", number) for number in range(10)])
    log.trim("t", 0, 4)
    part = seal_part(log, job_of("t", tmp_path / "f", 10, gaps=((0, 4),)))
    assert (part.rows, part.empty) == (6, 0)
    assert store.table((tmp_path / "f").read_bytes())["_offset"].to_pylist() == [4, 5, 6, 7, 8, 9]
    assert part.fingerprint != seal_part(log, job_of("t", tmp_path / "g", 10, start=4)).fingerprint


def test_a_part_of_many_row_groups_is_the_file_a_single_table_would_be(log, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROWS_PER_GROUP", 64)
    log.create_topic("t", 1)
    log.append("t", [event(f"e{number}", number) for number in range(300)])
    job = job_of("t", tmp_path / "f", 300)
    part = seal_part(log, job)
    tables = [job.format.columns().decode(batch).table for batch in log.read("t", 0, 0, 300)]
    assert store.sha256((tmp_path / "f").read_bytes()) == part.sha256 == written(tmp_path / "g", pa.concat_tables(tables), 300)
    assert groups(tmp_path / "f") == [64, 64, 64, 64, 44]


def written(file, table, step):
    """The sha256 of the table as a file, when so many rows come at a time."""
    with store.RowGroups(file, table.schema) as writer:
        for start in range(0, table.num_rows, step):
            writer.add(table.slice(start, step))
    return writer.sha256


def groups(file):
    metadata = pa.parquet.ParquetFile(file).metadata
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


def test_a_row_group_ends_before_the_row_that_would_make_it_too_many_bytes(tmp_path, monkeypatch):
    """However the rows come. One of 5,000 bytes and more is a group of its own, a null has no bytes."""
    monkeypatch.setattr(store, "ROWS_PER_GROUP", 40)
    monkeypatch.setattr(store, "BYTES_PER_GROUP", 5000)
    rng = np.random.default_rng(7)
    sizes = rng.choice([0, 3, 400, 1900, 5200], (600, 3), p=[0.4, 0.3, 0.2, 0.08, 0.02])
    sizes[:200] //= 10  # few bytes: only the rows are counted
    rows = [{"n": k, "text": "é" * (a // 2) if k % 9 else None, "key": b"k" * b, "list": [0.5] * (c // 8) if k % 7 else None}
            for k, (a, b, c) in enumerate(sizes.tolist())]  # fmt: skip
    schema = pa.schema([("n", pa.int32()), ("text", pa.string()), ("key", pa.binary()), ("list", pa.list_(pa.float64())),
                        ("near", pa.list_(pa.float32(), 2))])  # fmt: skip
    table = pa.Table.from_pylist([row | {"near": [1, 2]} for row in rows], schema)
    due, bytes_so_far = [0], 0
    for row in rows:
        size = 12 + sum(len(row[name] or "") * width for name, width in (("text", 2), ("key", 1), ("list", 8)))
        if due[-1] == 40 or (due[-1] and bytes_so_far + size > 5000):
            due, bytes_so_far = [*due, 0], 0
        due[-1], bytes_so_far = due[-1] + 1, bytes_so_far + size
    assert {1, 40} < set(due) and due.count(40) > 3
    assert len({written(tmp_path / "f", table, step) for step in (600, 250, 41, 7, 1)}) == 1
    assert groups(tmp_path / "f") == due and store.table((tmp_path / "f").read_bytes()).equals(table)


def test_large_rows_do_not_wait_for_a_group_of_many_rows(tmp_path, monkeypatch):
    """16 MB in rows of 32 kB, a megabyte a group: what is kept in between is a few groups, not the file."""
    monkeypatch.setattr(store, "BYTES_PER_GROUP", 32 * 32_000)  # to the byte
    schema, most, begun = pa.schema([("text", pa.string())]), 0, pa.total_allocated_bytes()
    with store.RowGroups(tmp_path / "f", schema) as writer:
        for number in range(100):
            writer.add(pa.table({"text": [f"{number:08}{k:08}" * 2000 for k in range(5)]}, schema))
            most = max(most, pa.total_allocated_bytes() - begun)
    assert most < 5 << 20 and set(groups(tmp_path / "f")) == {32, 20}


def test_every_column_is_packed_as_its_type_is(log, tmp_path):
    log.create_topic("t", 1)
    log.append("t", [event(f"e{number}", number) for number in range(30)])
    seal_part(log, job_of("t", tmp_path / "f", 30))
    group = pa.parquet.ParquetFile(tmp_path / "f").metadata.row_group(0)
    found = {group.column(n).path_in_schema: group.column(n).compression for n in range(group.num_columns)}
    assert found["event_id"] == found["_key"] == "ZSTD"
    assert found["x"] == found["near.list.element"] == "LZ4"
    assert found["_offset"] == found["_timestamp"] == "UNCOMPRESSED"
    assert "DELTA_BINARY_PACKED" in group.column(1).encodings


def test_a_topic_that_is_all_poison_stops_before_it_fills_the_memory(log, tmp_path, monkeypatch):
    monkeypatch.setattr("assets.windows.part.REJECTS_IN_MEMORY", 100)
    monkeypatch.setattr("assets.stream.embedded.BATCH_RECORDS", 50)
    log.create_topic("t", 1)
    log.append("t", [Outgoing(b"k", b"poison")] * 1000)
    seen = []
    with pytest.raises(TooManyRejects, match=r"150 records were rejected > 100.*partition 0 offset 0: not JSON"):
        seal_part(log, job_of("t", tmp_path / "f", 1000, max_rejects=100), seen.append)
    assert seen == [50, 100]


@pytest.fixture
def stream(event_log, tmp_path):
    made = Stream(event_log, new_topics(event_log, 3), tmp_path / "a")
    for number in range(300):
        made.publish(event(f"e{number}", number % 60), label(f"e{number}", number % 60, number % 2))
    made.log.append(made.topics.labels, [Outgoing(b"k", b"poison", event("x", 1).timestamp)])
    made.end(60)
    made.cut(0)
    return made


def test_several_processes_make_the_same_files_as_one(stream, tmp_path):
    other = Stream(stream.log, stream.topics, tmp_path / "b", processes=3)
    other.end(60)
    other.cut(0)
    assert other.seal(0) == stream.seal(0)
    assert other.hashes() == stream.hashes()


class Hangs(EmbeddedLog):
    """A log whose first reader hangs for ever; a file marks that there was one."""

    def read(self, topic, partition, start, end):
        for batch in super().read(topic, partition, start, end):
            yield batch
            if self.dies() and not self.path.with_suffix(".hung").exists():
                self.path.with_suffix(".hung").touch()
                os.kill(os.getpid(), self.signal)
                time.sleep(60)

    signal = signal.SIGSTOP

    def dies(self):
        return True

    def opener(self):
        import functools

        return functools.partial(type(self), self.path)


class Dies(Hangs):
    signal = signal.SIGKILL


class AlwaysDies(Dies):
    def dies(self):
        self.path.with_suffix(".hung").unlink(missing_ok=True)
        return True


@pytest.mark.parametrize("kind", [Hangs, Dies])
def test_a_process_that_hangs_or_dies_is_replaced_and_nothing_is_lost(tmp_path, monkeypatch, caplog, kind):
    monkeypatch.setattr(crew, "STALL_SECONDS", 4.0)
    log = kind(tmp_path / "log.db")
    log.create_topic("t", 2)
    log.append("t", [event(f"e{number}", number) for number in range(100)])
    ends = {part: bounds.latest for part, bounds in log.bounds("t", event_time()).partitions.items()}
    jobs = [job_of("t", tmp_path / f"{part}", end, partition=part) for part, end in ends.items()]
    parts = crew.seal_parts(log, jobs, 2)
    assert [store.sha256(job.file.read_bytes()) for job in jobs] == [part.sha256 for part in parts]
    assert any((tmp_path / f"{part}-1").exists() for part in ends)  # what the first try wrote, under a name of its own
    alone = [seal_part(EmbeddedLog(log.path), job) for job in jobs]
    assert parts == alone
    assert sum(part.rows for part in parts) == 100
    assert "killed, and begun anew" in caplog.text


def test_a_part_on_which_every_process_dies_is_an_error_that_names_it(tmp_path):
    log = AlwaysDies(tmp_path / "log.db")
    log.create_topic("t", 2)
    log.append("t", [event("a", 1, 0), event("b", 1, 1)])
    jobs = [job_of("t", tmp_path / f"{part}", 1, partition=part) for part in range(2)]
    with pytest.raises(StreamUnreachable, match=r"3 processes in turn failed to seal 't' partition \d .*ended with code -9"):
        crew.seal_parts(log, jobs, 2)


def test_an_error_in_a_process_is_the_error_here(log, tmp_path):
    log.create_topic("t", 2)
    log.append("t", [Outgoing(b"k", b"poison", partition=part) for part in range(2) for _ in range(10_001)])
    jobs = [job_of("t", tmp_path / f"{part}", 10_001, partition=part) for part in range(2)]
    with pytest.raises(TooManyRejects, match="not JSON"):
        crew.seal_parts(log, jobs, 2)


def test_a_process_that_died_idle_is_not_listened_to_and_costs_no_try(log, tmp_path, caplog):
    log.create_topic("t", 2)
    log.append("t", [event("a", 1, 0), event("b", 1, 1)])
    found = crew._Crew(log.opener(), 2)
    try:
        for worker in found._workers:
            worker.process.kill()
            worker.process.join()
        begun = time.monotonic()
        assert list(found._heard()) == [] and time.monotonic() - begun > 0.9
        ends = {part: bounds.latest for part, bounds in log.bounds("t", event_time()).partitions.items()}
        parts = found.run([job_of("t", tmp_path / f"{part}", end, partition=part) for part, end in ends.items()])
    finally:
        found.dismiss()
    assert sum(part.rows for part in parts) == 2
    assert [record for record in caplog.records if record.name == "headgate.stream"] == []


class Undead:
    """A process that waits for a disk: a kill does not end it."""

    pid, exitcode = 4711, None

    def kill(self):
        pass

    def join(self, seconds):
        assert seconds is not None

    def is_alive(self):
        return True


@pytest.mark.parametrize(("ready", "what"), [(False, "did not start for 120 s"), (True, "did not move for 60 s")])
def test_a_process_that_no_kill_ends_is_left_behind_and_the_limit_it_passed_is_named(log, tmp_path, caplog, ready, what):
    found = crew._Crew(log.opener(), 0)
    pipe, other = found._context.Pipe()
    found._workers = [crew._Worker(Undead(), pipe, ready=ready, job=0)]
    with pytest.raises(StreamUnreachable, match=what):
        found._replace(0, job_of("t", tmp_path / "f", 1), crew.ATTEMPTS)
    other.close()
    assert "process 4711 was killed and does not end" in caplog.text


def event_time():
    from tests.windows import START

    return START


# -- attempts ---------------------------------------------------------------------------------------------------------


def test_what_a_dead_process_left_is_swept_and_what_a_live_one_makes_is_not(tmp_path):
    dead = tmp_path / "w" / ".attempt-dead"
    dead.mkdir(parents=True)
    (dead / "half").write_bytes(b"x")
    with store.attempt(tmp_path, "w") as first:
        (first / "file").write_bytes(b"whole")
        with store.attempt(tmp_path, "w") as second:
            assert first.exists() and second != first
        store.publish(first / "file", tmp_path, "w/file")
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["file"]


def test_a_folder_that_somebody_holds_for_ever_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.2)
    (tmp_path / "w").mkdir()
    handle = os.open(tmp_path / "w", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(store.StoreBusy, match=f"{tmp_path / 'w'} has been locked by"), store.attempt(tmp_path, "w"):
        pass
    os.close(handle)
    with store.attempt(tmp_path, "w") as made:
        assert made.is_dir()


def test_the_folders_above_a_window_are_flushed_from_the_root_down(tmp_path, monkeypatch):
    flushed, real = [], os.fsync

    def fsync(handle):
        flushed.append(os.fstat(handle).st_ino)
        real(handle)

    monkeypatch.setattr(store.os, "fsync", fsync)
    with store.attempt(tmp_path, "task/windows/w"):
        assert flushed == [path.stat().st_ino for path in (tmp_path, tmp_path / "task", tmp_path / "task" / "windows")]
