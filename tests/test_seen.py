"""Known ids in their blocks, and the index of a window on the disk: found again, whole, or refused."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from assets.windows import index, seen
from assets.windows.index import Index, IndexOutdated
from assets.windows.store import StoreDamaged


def some(rng, count):
    return np.sort(rng.integers(0, 2**64, count, dtype=np.uint64))


def whole(pieces):
    pieces = list(pieces)
    none = np.empty(0, dtype=np.uint64)
    return seen.Block(
        np.concatenate([none, *(piece.hashes for piece in pieces)]),
        np.concatenate([none.view(np.uint8), *(piece.bits for piece in pieces)]),
    )


def test_the_ids_of_any_number_of_windows_lie_in_few_blocks_that_tile_them():
    for number in range(1, 600):
        spans = [(n - (n & -n), n) for n in seen.covering(number)]
        assert len(spans) <= math.log2(number) + 1
        assert sorted(k for low, high in spans for k in range(low + 1, high + 1)) == list(range(1, number + 1))
        own = [(n - (n & -n), n) for n in seen.parts(number)]
        inside = sorted(k for low, high in own for k in range(low + 1, high + 1))
        assert inside == list(range(number - (number & -number) + 1, number))


@pytest.mark.parametrize("seed", range(5))
def test_an_id_of_any_earlier_window_is_known_and_no_other(seed):
    rng = np.random.default_rng(seed)
    blocks, known = [], np.empty(0, dtype=np.uint64)
    for number in range(1, 40):
        own = some(rng, rng.choice([0, 1, 7, 300]))
        if number == 3:
            own = np.array([0, 1, 2**64 - 1], dtype=np.uint64)
        asked = rng.permutation(np.concatenate([known, own, some(rng, 200)]))
        found = seen.known(lambda n: blocks[n - 1], number - 1, asked)
        assert (found == np.isin(asked, known)).all()
        blocks.append(whole(seen.merged([blocks[n - 1].hashes for n in seen.parts(number)], own)))
        known = np.concatenate([known, own])


def test_a_block_is_the_same_however_it_is_merged(monkeypatch):
    rng = np.random.default_rng(1)
    blocks, own = [some(rng, 5000), some(rng, 1), some(rng, 0), some(rng, 900)], some(rng, 77)
    at_once = whole(seen.merged(blocks, own))
    assert (at_once.hashes == np.sort(np.concatenate([*blocks, own]))).all()
    assert len(at_once.bits) == seen.filter_bytes(len(at_once.hashes))
    for piece in (1, 10, 1000):
        monkeypatch.setattr(seen, "_PIECE", piece)
        pieces = list(seen.merged(blocks, own))
        assert max(len(each.hashes) for each in pieces) < 8 * piece + 20
        assert all((one == other).all() for one, other in zip(whole(pieces), at_once, strict=True))
    assert list(seen.merged([], some(rng, 0))) == []


# -- the file ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path):
    """An index of 5 events, 3 labels and 400 known ids."""
    rng = np.random.default_rng(2)
    events, labels = ((some(rng, n), rng.integers(-5, 2**45, n)) for n in (5, 3))
    block = some(rng, 400)
    path = f"a/{index.NAME}"
    (tmp_path / "a").mkdir()
    digest = index.write(tmp_path / path, events, labels, 400, seen.merged([], block))
    return tmp_path, path, events, labels, block, digest


def test_an_index_gives_back_what_was_written(made):
    root, path, events, labels, block, digest = made
    found = Index(root, path, 400)
    for columns, wanted in ((found.events(), events), (found.labels(), labels)):
        assert all((one == other).all() for one, other in zip(columns, wanted, strict=True))
    assert (found.block().hashes == block).all()
    assert seen.known(lambda _: found.block(), 1, block).all()
    assert digest == hashlib.sha256((root / path).read_bytes()).hexdigest()


def test_an_index_without_rows_and_known_ids_is_one_too(tmp_path):
    nothing = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
    (tmp_path / "a").mkdir()
    index.write(tmp_path / "a" / index.NAME, nothing, nothing, 0, [])
    found = Index(tmp_path, f"a/{index.NAME}", 0)
    assert [len(column) for column in (*found.events(), *found.labels(), *found.block())] == [0] * 6
    assert not seen.known(lambda _: found.block(), 1, np.arange(3, dtype=np.uint64)).any()


@pytest.mark.parametrize("place", [64, 64 + 5 * 8, 64 + 10 * 8, 64 + 13 * 8 + 7])
def test_a_changed_byte_in_the_rows_of_an_index_stops_the_join(made, place):
    root, path, *_ = made
    damaged = bytearray((root / path).read_bytes())
    damaged[place] ^= 64
    (root / path).write_bytes(damaged)
    found = Index(root, path, 400)
    with pytest.raises(StoreDamaged, match=r"their sum differs.*run the window of that folder again"):
        found.events(), found.labels()


@pytest.mark.parametrize("cut", [lambda raw: b"", lambda raw: raw[:-8], lambda raw: raw + b"\0", lambda raw: b"?" + raw[1:]])
def test_an_index_that_is_not_whole_stops_the_join(made, cut):
    root, path, *_ = made
    raw = (root / path).read_bytes()
    (root / path).write_bytes(cut(raw))
    with pytest.raises(StoreDamaged, match=r"learnt from twice"):
        Index(root, path, 400)
    (root / path).write_bytes(raw)
    with pytest.raises(StoreDamaged, match=r"has \d+ words, \d+ are due"):
        Index(root, path, 399)
    (root / path).unlink()
    with pytest.raises(StoreDamaged, match="it is missing"):
        Index(root, path, 400)


def test_the_file_of_an_older_version_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(IndexOutdated, match=r"Headgate 0\.1.*Give the task another name"):
        Index(tmp_path, "a/seen.u64", 400)
