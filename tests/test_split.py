"""The split: stable under replay, uniform, and monotone in the weight."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.split import Routing, arm, bucket

weights = st.floats(0.0, 1.0)


def routed(weight: float, salt: str = "v000002-aa") -> Routing:
    return Routing(3, "base-1", "v000002-aa", weight, salt)


def test_a_bucket_is_the_hash_of_salt_and_unit() -> None:
    head = int.from_bytes(hashlib.sha256(b"saltunit").digest()[:8], "big")
    assert bucket("salt", "unit") == pytest.approx(head / 2**64, abs=2**-52)


@given(st.text(), st.text())
def test_a_bucket_is_never_one(salt: str, unit: str) -> None:
    assert 0.0 <= bucket(salt, unit) < 1.0


@given(st.text(), weights, weights)
def test_no_unit_leaves_the_canary_while_the_weight_rises(unit: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    if arm(routed(low), unit)[0] == "canary":
        assert arm(routed(high), unit)[0] == "canary"


def test_each_weight_gets_its_share() -> None:
    # 4 standard errors of a share over 20,000 units: wrong once in 16,000 salts, and the salt is fixed
    for weight in (0.01, 0.1, 0.5):
        share = sum(arm(routed(weight), f"flight-{k}")[0] == "canary" for k in range(20_000)) / 20_000
        assert abs(share - weight) < 4 * (weight * (1 - weight) / 20_000) ** 0.5


def test_two_rollouts_do_not_share_their_first_units() -> None:
    units = [f"flight-{k}" for k in range(4000)]
    first = {u for u in units if bucket("v000001-aa", u) < 0.1}
    second = {u for u in units if bucket("v000002-bb", u) < 0.1}
    assert len(first & second) < 0.2 * len(first)  # expected 0.1; the same salt would give 1.0


def test_the_propensity_is_that_of_the_canary_in_both_arms() -> None:
    assert {arm(routed(0.25), f"u{k}") for k in range(100)} == {("canary", 0.25), ("stable", 0.25)}


@pytest.mark.parametrize("routing", [Routing(1, "base-1"), routed(0.0)])
def test_without_weight_everyone_is_stable(routing: Routing) -> None:
    assert {arm(routing, f"u{k}") for k in range(50)} == {("stable", 0.0)}


def test_full_weight_leaves_nobody_on_stable() -> None:
    assert {arm(routed(1.0), f"u{k}")[0] for k in range(2000)} == {"canary"}


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_outside_its_range_is_refused_with_its_value(weight: float) -> None:
    with pytest.raises(ValueError, match=f"{weight}"):
        routed(weight)


def test_a_weight_without_a_canary_is_refused() -> None:
    with pytest.raises(ValueError, match="without a canary"):
        Routing(1, "base-1", None, 0.1)
