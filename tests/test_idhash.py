"""Event ids as hashes: the same id always the same, different ones never, and nothing to be guessed without the secret."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from assets.stream.decode import SchemaRefused
from assets.windows import idhash
from assets.windows.idhash import LONGEST, IdHash

AWKWARD = ["", "\0", "\0\0", "a", "a\0", "a\0\0\0", "\0a", "ab", "ba", "aaaa", "aaaab", "é", "e\u0301", "ключ", "日本",
           "x" * 63, "x" * LONGEST, "x" * (LONGEST + 1), "x" * LONGEST + "y", "é" * 129, "z" * 5000]  # fmt: skip


def hashes(ids, secret=b"a", kind=None):
    return IdHash(secret)(pa.chunked_array([pa.array(ids, kind)])).tolist()


def test_different_ids_have_different_hashes_whatever_they_are_made_of():
    numbered = [f"order-{n}" for n in range(200_000)]
    assert len(set(hashes(AWKWARD + numbered))) == len(AWKWARD) + len(numbered)


def test_an_id_has_one_hash_in_any_company_and_any_chunk(monkeypatch):
    ids = AWKWARD * 3 + [f"order-{n}" for n in range(500)]
    alone = [hashes([each])[0] for each in ids]
    assert hashes(ids) == alone == hashes(ids, kind=pa.large_string())
    whole = pa.array(["before", *ids, "after"])
    chunks = pa.chunked_array([whole.slice(1, 7), whole.slice(8, 0), whole.slice(8, len(ids) - 7)])
    assert IdHash(b"a")(chunks).tolist() == alone
    monkeypatch.setattr(idhash, "_ROWS", 16)
    assert IdHash(b"a")(chunks).tolist() == alone
    assert hashes([each.encode() for each in ids], kind=pa.binary()) == alone
    assert IdHash(b"a")(pa.chunked_array([], pa.string())).tolist() == []


def test_numbers_and_times_are_ids_too_and_a_type_that_cannot_be_compared_is_refused():
    numbers = [0, 1, -1, 2**31, -(2**63), 2**63 - 1]
    assert len(set(hashes(numbers, kind=pa.int64()))) == len(numbers)
    assert hashes([1, 2], kind=pa.int32()) == hashes([1, 2], kind=pa.int64()) == hashes([1, 2], kind=pa.uint8())
    assert len(set(hashes([0, 2**64 - 1, 2**63], kind=pa.uint64()))) == 3
    assert len(set(hashes([False, True]))) == 2
    moments = [datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 2, tzinfo=UTC)]
    assert len(set(hashes(moments, kind=pa.timestamp("us", tz="UTC")))) == 2
    with pytest.raises(SchemaRefused, match="event_id has type double"):
        hashes([0.5])


def test_what_collides_under_one_secret_does_not_under_another():
    """The sum is linear, so with the factors known, ids that collide can be solved for; without them they cannot."""
    ids = [f"{n:08d}" for n in range(5000)]
    assert not set(hashes(ids, b"a")) & set(hashes(ids, b"b"))
    assert not set(hashes(["z" * 300], b"a")) & set(hashes(["z" * 300], b"b"))


def test_every_bit_of_a_hash_is_set_for_half_of_the_ids():
    """10^5 ids that differ in a few digits: each of 64 bits within 6 standard deviations of a half; by accident 1e-7."""
    n = 100_000
    found = np.array(hashes([f"2024-01-01-{k}" for k in range(n)]), dtype="<u8")
    bits = np.unpackbits(found.view(np.uint8).reshape(n, 8), axis=1)
    assert abs(bits.mean(axis=0) - 0.5).max() < 6 * 0.5 / np.sqrt(n)
