"""Files of the store: the same table is always the same bytes, and a file is there whole or not at all.

It knows Parquet, paths and hashes. It does not know windows beyond the name of their folder, nor what the rows mean.
The bytes are promised for one version of pyarrow; the journal keeps that version beside each hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from security import disk
from security.disk import settle

ROWS_PER_GROUP = 65_536
BYTES_PER_GROUP = 64 << 20  # of values, before they are packed: rows of up to 1 kB are not touched by it
LAYOUT = 3  # of the Parquet files; another one gives other bytes for the same rows

LOCK_SECONDS = 30.0  # the lock of a folder is held while old attempts are swept, usually for milliseconds

_ATTEMPT = ".attempt-"


class StoreDamaged(Exception):
    """A file of the store is missing, or is not the one the journal names."""


class StoreBusy(Exception):
    """Another process holds a folder of the store for too long."""


def window_folder(task: str, window: str) -> str:
    """The folder of a window, relative to the store: a colon is no file name on some systems."""
    return f"{task}/windows/{window.replace(':', '')}"


class RowGroups:
    """A Parquet file written a row group at a time, so that memory does not grow with it. A context manager.

    A group ends where the next row would be more than ROWS_PER_GROUP rows or BYTES_PER_GROUP bytes of values; a larger
    row is one of its own. So the bytes depend on the rows alone, however they were added. On leaving without an error
    the file is whole and flushed to the disk; `rows` and `sha256` are its own.
    """

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self._out, self._digest = file.open("wb"), hashlib.sha256()
        self._schema = schema
        self._varying = [number for number, kind in enumerate(schema.types) if not pa.types.is_primitive(kind)]
        self._fixed = sum(kind.bit_width for kind in schema.types if pa.types.is_primitive(kind)) // 8
        self._waiting: list[pa.Table] = []
        self._count = self._most = 0
        self.rows, self.sha256 = 0, ""

    def __enter__(self) -> RowGroups:
        self._writer = _writer(pa.PythonFile(self, mode="w"), self._schema)
        return self

    def add(self, table: pa.Table) -> None:
        """Rows that come next. Raises OSError when the disk does not take them."""
        self._waiting.append(table)
        self._count += table.num_rows
        self._most += self._at_most(table)
        self.rows += table.num_rows
        if self._count >= ROWS_PER_GROUP or self._most > BYTES_PER_GROUP:
            self._write()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self._write(last=True)
                self._writer.close()
                with self._named():
                    self._out.flush()
                    os.fsync(self._out.fileno())
                self.sha256 = self._digest.hexdigest()
        finally:
            self._out.close()

    def _write(self, *, last: bool = False) -> None:
        """The groups that are full; at the end what is left, too."""
        rest = pa.concat_tables(self._waiting) if self._waiting else self._schema.empty_table()
        while rest.num_rows:
            group = rest.slice(0, ROWS_PER_GROUP)
            rows = self._fitting(group)
            if not last and rows == rest.num_rows < ROWS_PER_GROUP:
                break
            self._writer.write_table(_plain(group.slice(0, rows)))
            rest = rest.slice(rows)
        self._waiting, self._count = ([rest] if rest.num_rows else []), rest.num_rows
        self._most = self._at_most(rest)

    def _fitting(self, table: pa.Table) -> int:
        """How many of the first rows are not too many bytes for one group; at least one."""
        if self._most <= BYTES_PER_GROUP or self._at_most(table) <= BYTES_PER_GROUP:
            return int(table.num_rows)
        lengths = np.full(table.num_rows, self._fixed)
        for number in self._varying:
            lengths += _lengths(table.column(number))
        return max(1, int(np.searchsorted(np.cumsum(lengths), BYTES_PER_GROUP, side="right")))

    def _at_most(self, table: pa.Table) -> int:
        """Bytes of the values without a look at each: Arrow counts a few bytes a row too many, never too few."""
        return self._fixed * table.num_rows + sum(table.column(number).nbytes for number in self._varying)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """A disk that is full says so without saying which file it was."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: free space, and run the window again", self._out.name) from error

    # What pyarrow asks of a file it writes to.

    closed = False

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        with self._named():
            return self._out.write(data)

    def flush(self) -> None:
        self._out.flush()

    def tell(self) -> int:
        return self._out.tell()


def _lengths(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Bytes of each value of a column of text, bytes or lists of numbers, 0 of a null, (n,)."""
    plain = pa.types.is_string(column.type) or pa.types.is_binary(column.type)
    found = pc.binary_length(column) if plain else pc.list_value_length(column)
    width = 1 if plain else column.type.value_type.bit_width // 8
    return found.fill_null(0).to_numpy().astype(np.int64) * width


def _writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """Integers as packed differences, floats by lz4, text by zstd: 0.61 us and 80 bytes a row of 20 columns.

    All by zstd 0.87 and 75, all by lz4 0.55 and 130; with dictionaries and statistics, which nobody reads, a fifth more time.
    """
    packed = [field.name for field in schema if pa.types.is_integer(field.type) or pa.types.is_timestamp(field.type)]
    compression = {_leaf(field): _compression(field.type) for field in schema}
    return pq.ParquetWriter(
        sink, schema.remove_metadata(), use_dictionary=False, write_statistics=False,
        column_encoding=dict.fromkeys(packed, "DELTA_BINARY_PACKED"), compression=compression,
        compression_level={leaf: 1 for leaf, codec in compression.items() if codec == "zstd"},
    )  # fmt: skip


def _compression(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind) or pa.types.is_timestamp(kind):
        return "none"  # packed already
    floats = pa.types.is_floating(kind) or pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
    return "lz4" if floats else "zstd"


def _leaf(field: pa.Field) -> str:
    """The name Parquet knows a column by: of a list it is that of the elements."""
    nested = pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
    return f"{field.name}.list.element" if nested else field.name


def _plain(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(None).combine_chunks()


def sha256(payload: bytes) -> str:
    """The hash by which the journal names a file."""
    return hashlib.sha256(payload).hexdigest()


def put(root: Path, path: str, payload: bytes) -> str:
    """Write the file: a temporary name beside it, flushed to the disk, renamed. Returns its sha256."""
    disk.put(root / path, payload)
    return sha256(payload)


@contextmanager
def attempt(root: Path, folder: str) -> Iterator[Path]:
    """A folder of its own for files that are being made, inside `folder`; gone afterwards, with what is left in it.

    Attempts of processes that died are swept away first: a live one holds the lock of its folder. Raises StoreBusy.
    """
    home = root / folder
    home.mkdir(parents=True, exist_ok=True)
    for parent in reversed(Path(folder).parents):  # else a power cut takes the name of the folder, and all that is in it
        settle(root / parent)
    with locked(home):  # else a sweeper could meet the new folder before it is locked
        for old in home.glob(f"{_ATTEMPT}*"):
            _sweep(old)
        made = Path(tempfile.mkdtemp(prefix=_ATTEMPT, dir=home))
        lock = os.open(made, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def publish(made: Path, root: Path, path: str) -> None:
    """Give a file that is whole and flushed the name under which the journal will name it."""
    made.replace(root / path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    handle, deadline = os.open(folder, os.O_RDONLY), time.monotonic() + LOCK_SECONDS
    try:
        while not _lock(handle):
            if time.monotonic() > deadline:
                raise StoreBusy(
                    f"{folder} has been locked by another process for {LOCK_SECONDS:.0f} s: nothing was written; end the "
                    "process that hangs (`fuser` names it), and run the window again"
                )
            time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sweep(old: Path) -> None:
    try:
        lock = os.open(old, os.O_RDONLY)
    except FileNotFoundError:  # its owner was faster
        return
    try:
        if _lock(lock):
            shutil.rmtree(old, ignore_errors=True)
    finally:
        os.close(lock)


def present(root: Path, path: str) -> bool:
    """Whether the file exists."""
    return (root / path).is_file()


def get(root: Path, path: str, wanted: str) -> bytes:
    """The bytes of a file, if they are the ones with this hash. Raises StoreDamaged."""
    try:
        payload = (root / path).read_bytes()
    except FileNotFoundError as error:
        raise _missing(root, path) from error
    _check(root, path, wanted, sha256(payload))
    return payload


def check(root: Path, path: str, wanted: str) -> None:
    """Raises StoreDamaged when the file is missing or has another hash; its bytes are not kept."""
    try:
        with (root / path).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise _missing(root, path) from error
    _check(root, path, wanted, found)


def _missing(root: Path, path: str) -> StoreDamaged:
    return StoreDamaged(
        f"{root / path} is missing, the journal promises it: seal the window again (`headgate run-window`), or "
        "bring the file back from a backup"
    )


def _check(root: Path, path: str, wanted: str, found: str) -> None:
    if found != wanted:
        raise StoreDamaged(
            f"{root / path} has sha256 {found[:16]}..., the journal says {wanted[:16]}...: the file was changed; "
            "delete it and run the window again to restore it from the log"
        )


def table(payload: bytes, columns: list[str] | None = None) -> pa.Table:
    """The table in the bytes of a Parquet file, or these columns of it."""
    return pq.read_table(pa.BufferReader(payload), columns=columns, use_threads=False)
