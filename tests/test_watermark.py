"""The mark is found where it was put, survives what a thief does cheaply, and is found nowhere else."""

import hashlib
import math

import numpy as np
import pytest

from security.watermark import Layer, WatermarkFailed, chips_and_slots, derive_key, read, stamp

SECRET = bytes(range(32))
CLAIM = {"owner": "acme", "model": "flights", "version": "v000001", "recipient": "gateway"}
BIG = {"fc1": (256, 64), "fc2": (256, 256), "fc3": (256, 256)}  # 6,144 carriers at rank 8
SMALL = {"fc1": (64, 20), "fc2": (32, 64)}  # 768
GOLDEN_CHIPS = "++++++-++-+-+---++++--++-+--+-+-+++----+--++------+-+---+-++++--"
GOLDEN_SLOTS = [13, 30, 2, 32, 35, 18, 57, 0, 44, 49, 40, 31, 37, 20, 33, 62]


def adapter(shapes=BIG, *, rank=8, seed=0, base_seed=0):
    """An adapter a tenth the size of its base; `seed` draws the adapter, `base_seed` the frozen base."""
    base, own = np.random.default_rng(base_seed), np.random.default_rng([seed, 1])
    layers = {}
    for name, (out, width) in shapes.items():
        W0 = base.normal(size=(out, width)) / math.sqrt(width)
        A = own.uniform(-1, 1, size=(rank, width)) / math.sqrt(width)
        layers[name] = Layer(W0, A, own.normal(size=(out, rank)) * 0.03, 2.0)
    return layers


def effective(layers, B):
    return {name: layer.W0 + layer.scale * B[name] @ layer.A for name, layer in layers.items()}


def look(layers, suspect, *, claim=CLAIM, secret=SECRET, weights=False):
    return read(layers, suspect, secret=secret, claim=claim, weights=weights)


@pytest.fixture(scope="module")
def clean():
    return adapter()


@pytest.fixture(scope="module")
def stamped(clean):
    return stamp(clean, secret=SECRET, claim=CLAIM)


def test_the_stamped_copy_differs_only_in_b_and_by_eta(clean, stamped):
    before = {name: (layer.W0.copy(), layer.A.copy(), layer.B.copy()) for name, layer in clean.items()}
    again = stamp(clean, secret=SECRET, claim=CLAIM)
    for name, layer in clean.items():
        assert all(np.array_equal(a, b) for a, b in zip(before[name], (layer.W0, layer.A, layer.B), strict=True))
        assert np.array_equal(again.B[name], stamped.B[name]) and again.B[name].shape == layer.B.shape
        moved = layer.scale * (stamped.B[name] - layer.B) @ layer.A
        assert np.linalg.norm(moved) / np.linalg.norm(layer.scale * layer.B @ layer.A) == pytest.approx(0.3, rel=0.1)
    assert stamped.commitment == hashlib.sha256(derive_key(SECRET, CLAIM)).hexdigest()


def test_its_own_key_reads_every_bit_far_above_the_line(clean, stamped):
    reading = look(clean, stamped.B)
    assert reading.z >= 20 and reading.bits_right == reading.bits == 64 and reading.p < 1e-80 and reading.found
    assert (stamped.z, stamped.bits_right) == (reading.z, 64)


def test_a_small_adapter_carries_it_too():
    layers = adapter(SMALL)
    assert sum(layer.B.size for layer in layers.values()) == 768
    assert stamp(layers, secret=SECRET, claim=CLAIM).z >= 6.5


def bf16(weights):
    bits = weights.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def quantised(weights, bits=8):
    step = np.abs(weights).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.round(weights / step) * step


def pruned(weights, share):
    return np.where(np.abs(weights) > np.quantile(np.abs(weights), share), weights, 0.0)


def noisy(weights, size):
    return weights + np.random.default_rng(3).normal(size=weights.shape) * weights.std() * size


ATTACKS = {
    "merged": lambda W, W0: W,
    "float32": lambda W, W0: W.astype(np.float32),
    "bf16": lambda W, W0: bf16(W),
    "int8": lambda W, W0: quantised(W),
    "int4": lambda W, W0: quantised(W, 4),
    "30 % pruned": lambda W, W0: pruned(W, 0.3),
    "50 % pruned": lambda W, W0: pruned(W, 0.5),
    "10 % noise": lambda W, W0: noisy(W, 0.1),
    "delta halved": lambda W, W0: W0 + 0.5 * (W - W0),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_mark_survives_what_costs_a_thief_nothing(clean, stamped, name):
    suspect = {layer: ATTACKS[name](W, clean[layer].W0) for layer, W in effective(clean, stamped.B).items()}
    reading = look(clean, suspect, weights=True)
    assert reading.z >= 20 and reading.bits_right == 64


def test_it_survives_a_soup_with_the_clean_copy_and_with_another_adapter(clean, stamped):
    half = {name: (stamped.B[name] + clean[name].B) / 2 for name in clean}
    assert look(clean, half).z >= 20
    ours, other = effective(clean, stamped.B), adapter(seed=9)
    theirs = effective(other, {name: layer.B for name, layer in other.items()})
    assert look(clean, {name: (ours[name] + theirs[name]) / 2 for name in ours}, weights=True).z >= 6.5


def test_it_survives_another_owners_mark_on_top(clean, stamped):
    on_top = {name: Layer(layer.W0, layer.A, stamped.B[name], layer.scale) for name, layer in clean.items()}
    twice = stamp(on_top, secret=b"\x01" * 32, claim={**CLAIM, "owner": "thief"})
    assert look(clean, twice.B).z >= 20


def test_a_refactored_adapter_has_the_same_weights_and_the_same_mark(clean, stamped):
    turn = np.random.default_rng(5).normal(size=(8, 8))
    weights = {
        name: layer.W0 + layer.scale * (stamped.B[name] @ turn) @ (np.linalg.inv(turn) @ layer.A)
        for name, layer in clean.items()
    }
    assert look(clean, weights, weights=True).z == pytest.approx(stamped.z, rel=1e-6)


def test_200_foreign_keys_find_nothing_and_their_z_is_standard_normal(clean, stamped):
    """Hoeffding: P(any of 400 |z| >= 6) <= 400 x 2 exp(-18) = 1.2e-5; the deviation's own error is 0.05."""
    found = []
    for number in range(200):
        claim = {**CLAIM, "version": f"v{number + 2:06d}"}
        found.append(look(clean, stamped.B, claim=claim).z)
        found.append(look(clean, stamped.B, secret=number.to_bytes(32, "big")).z)
    assert max(abs(z) for z in found) < 6
    assert np.std(found) == pytest.approx(1.0, abs=0.2) and abs(np.mean(found)) < 0.25


def test_independent_adapters_on_the_same_base_show_no_mark(clean):
    """20 adapters, Hoeffding: P(any |z| >= 6) <= 20 x 2 exp(-18) = 6e-7."""
    for seed in range(1, 21):
        other = adapter(seed=seed)
        weights = effective(other, {name: layer.B for name, layer in other.items()})
        assert abs(look(clean, weights, weights=True).z) < 6


def test_the_unstamped_copy_shows_no_mark(clean):
    reading = look(clean, {name: layer.B.astype(np.float32) for name, layer in clean.items()})
    assert abs(reading.z) < 6 and not reading.found and reading.p > 1e-8


def test_the_chips_of_a_fixed_secret_never_change():
    key = derive_key(SECRET, CLAIM)
    chips, slots = chips_and_slots(key, 768, 64)
    assert "".join("+" if chip > 0 else "-" for chip in chips[:64]) == GOLDEN_CHIPS
    assert slots[:16].tolist() == GOLDEN_SLOTS
    assert np.bincount(slots).tolist() == [12] * 64


def test_parts_of_the_claim_cannot_run_into_each_other():
    ab = derive_key(SECRET, {"model": "a", "version": "bc", "recipient": "r"})
    assert ab != derive_key(SECRET, {"model": "ab", "version": "c", "recipient": "r"})
    assert ab != derive_key(SECRET, {"model": "a", "version": "bc", "recipient": "s"})
    assert ab == derive_key(SECRET, {"model": "a", "version": "bc", "recipient": "r", "owner": "x"})


def drifted_classes(seed, n=4000, classes=24, width=64, rank=8):
    """A linear classifier fitted before a drift, and the rank-8 adapter that least squares fits after it."""
    draw = np.random.default_rng(seed)
    means, drift = draw.normal(size=(2, classes, width))
    labels = draw.integers(classes, size=2 * n)
    old, new = np.split(means[labels] + 1.5 * draw.normal(size=(2 * n, width)), 2)
    new += 0.7 * drift[labels[n:]]
    one_hot = np.eye(classes)[labels]
    W0 = np.linalg.lstsq(old, one_hot[:n], rcond=None)[0].T
    left, sizes, right = np.linalg.svd(np.linalg.lstsq(new, one_hot[n:] - new @ W0.T, rcond=None)[0].T)
    return {"head": Layer(W0, right[:rank], left[:, :rank] * sizes[:rank], 1.0)}, new, labels[n:]


def test_the_stamped_copy_answers_like_the_clean_one():
    """Five drifted tasks of 24 classes, 4,000 inputs each: 99 % of the answers agree, accuracy moves by 0.1 point."""
    agreed, gained = [], []
    for seed in range(5):
        layers, inputs, labels = drifted_classes(seed)
        marked = stamp(layers, secret=SECRET, claim={**CLAIM, "version": str(seed)})
        before, after = (
            np.argmax(inputs @ effective(layers, B)["head"].T, axis=1) for B in ({"head": layers["head"].B}, marked.B)
        )
        agreed.append(np.mean(before == after))
        gained.append(np.mean(after == labels) - np.mean(before == labels))
    assert np.mean(agreed) >= 0.99 and abs(np.mean(gained)) <= 0.001


def test_more_rows_than_inputs_still_carry_a_mark():
    layers = adapter({"fc1": (48, 10), "fc2": (32, 48)}, rank=16)
    marked = stamp(layers, secret=SECRET, claim=CLAIM)
    assert marked.z >= 6.5 and look(layers, effective(layers, marked.B), weights=True).z >= 6.5


def test_an_adapter_that_learnt_nothing_or_is_too_small_is_not_stamped():
    empty = {name: Layer(x.W0, x.A, np.zeros_like(x.B), x.scale) for name, x in adapter(SMALL).items()}
    for layers in (empty, {}, adapter({"fc": (4, 8)}, rank=2)):
        with pytest.raises(WatermarkFailed, match="carriers"):
            stamp(layers, secret=SECRET, claim=CLAIM)


def test_a_layer_that_learnt_nothing_beside_one_that_did_is_no_obstacle():
    layers = adapter()
    layers["fc1"] = Layer(layers["fc1"].W0, layers["fc1"].A, np.zeros_like(layers["fc1"].B), 2.0)
    assert stamp(layers, secret=SECRET, claim=CLAIM).z >= 20


def test_a_copy_that_cannot_reach_the_line_fails_its_self_test():
    """z is at most the root of the number of carriers: 32 of them give 5.7."""
    with pytest.raises(WatermarkFailed, match=r"self-test: .* reads z 5\.\d < 6\.5 .* 32 carriers"):
        stamp(adapter({"fc": (8, 16)}, rank=4), secret=SECRET, claim=CLAIM, bits=8)


def test_a_mark_lost_in_rounding_fails_its_self_test():
    layers = adapter(SMALL)
    coarse = {name: Layer(x.W0, x.A, x.B.astype(np.float16), x.scale) for name, x in layers.items()}
    with pytest.raises(WatermarkFailed, match="self-test"):
        stamp(coarse, secret=SECRET, claim=CLAIM, eta=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda B: B.pop("fc2"), "fc2: B matrix .* found nothing"),
        (lambda B: B.update(fc2=B["fc2"].T), "fc2: B matrix"),
        (lambda B: B.update(fc2=B["fc2"] * np.nan), "not finite"),
    ],
)
def test_a_suspect_that_does_not_fit_is_refused(clean, stamped, change, message):
    suspect = dict(stamped.B)
    change(suspect)
    with pytest.raises(ValueError, match=message):
        look(clean, suspect)


def test_malformed_arguments_are_refused(clean):
    with pytest.raises(ValueError, match="lacks recipient"):
        stamp(clean, secret=SECRET, claim={"model": "m", "version": "v"})
    with pytest.raises(ValueError, match="bits 512"):
        stamp(clean, secret=SECRET, claim=CLAIM, bits=512)
    with pytest.raises(ValueError, match="do not fit"):
        stamp({"fc": Layer(np.zeros((4, 4)), np.zeros((2, 3)), np.zeros((4, 2)), 1.0)}, secret=SECRET, claim=CLAIM)
    broken = {"fc": Layer(np.zeros((64, 4)), np.full((2, 4), np.inf), np.zeros((64, 2)), 1.0)}
    with pytest.raises(ValueError, match="not finite"):
        stamp(broken, secret=SECRET, claim=CLAIM)
