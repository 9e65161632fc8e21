"""Files of the store: the same table is always the same bytes, and a file is there whole or not at all.

It knows Parquet, paths and hashes. It does not know windows beyond the name of their folder, nor what the rows mean.
The bytes are promised for one version of pyarrow; the journal keeps that version beside each hash.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_GROUP = 65_536
MILLISECONDS = pa.timestamp("ms", tz="UTC")


class StoreDamaged(Exception):
    """A file of the store is missing, or is not the one the journal names."""


def window_folder(task: str, window: str) -> str:
    """The folder of a window, relative to the store: a colon is no file name on some systems."""
    return f"{task}/windows/{window.replace(':', '')}"


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as one Parquet file. One chunk a column, one call, fixed settings: no trace of how the rows came in."""
    plain = table.replace_schema_metadata(None).combine_chunks()
    texts = [field.name for field in plain.schema if pa.types.is_string(field.type)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        plain, sink, row_group_size=ROWS_PER_GROUP, compression="zstd", compression_level=1, use_dictionary=texts
    )
    return bytes(sink.getvalue())


def sha256(payload: bytes) -> str:
    """The hash by which the journal names a file."""
    return hashlib.sha256(payload).hexdigest()


def put(root: Path, path: str, payload: bytes) -> str:
    """Write the file: a temporary name beside it, flushed to the disk, renamed. Returns its sha256."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return sha256(payload)


def settle(root: Path, folder: str) -> None:
    """Flush the names in a folder to the disk: after this, a journal entry may promise that the files are there."""
    handle = os.open(root / folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def present(root: Path, path: str) -> bool:
    """Whether the file exists."""
    return (root / path).is_file()


def get(root: Path, path: str, wanted: str) -> bytes:
    """The bytes of a file, if they are the ones with this hash. Raises StoreDamaged."""
    try:
        payload = (root / path).read_bytes()
    except FileNotFoundError as error:
        raise StoreDamaged(
            f"{root / path} is missing, the journal promises it: seal the window again (`headgate run-window`), or "
            "bring the file back from a backup"
        ) from error
    found = sha256(payload)
    if found != wanted:
        raise StoreDamaged(
            f"{root / path} has sha256 {found[:16]}..., the journal says {wanted[:16]}...: the file was changed; "
            "delete it and run the window again to restore it from the log"
        )
    return payload


def table(payload: bytes, columns: list[str] | None = None) -> pa.Table:
    """The table in the bytes of a Parquet file, or these columns of it."""
    return pq.read_table(pa.BufferReader(payload), columns=columns, use_threads=False)
