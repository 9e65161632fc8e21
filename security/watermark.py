"""A keyed, closed-form mark on the release copy of an adapter, and its read-out from a suspect copy.

The mark is put on after private training, from the finished adapter and a key alone: post-processing, epsilon does not
change. Only the B matrices of low-rank layers move, so the rank does not grow. Scheme: for a layer with frozen W0 and
clean dW = scale * B A,

    Q = (A A^T)^(-1/2) A                          orthonormal rows, r x in; unique, unlike a singular-value basis
    c = (W - W_ref) Q^T / s,  s = |dW| / sqrt(out r)        the carrier, out * r numbers a layer, concatenated
    key  = HKDF-SHA256(secret, length-prefixed model, version, recipient);  chips +-1 and slots from ChaCha20(key)
    bits = first bits of SHA-256(canonical claim)

The stamp moves the carrier by eta times its own size: half as an equal push on every bit, half where the projection
without the clean copy would be weak. The fit read-out takes W_ref = W0 + alpha dW with alpha by least squares in each
layer, which undoes scaling, soups and forgetting. Chips do not depend on any model, so for a suspect without this mark
P(z > t) <= exp(-t^2 / 2) holds exactly (Hoeffding). Distillation is not survived.

It knows no files and no torch. Keys and chips are never drawn from numpy's generators, whose streams change.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from security.journal import canonical

Array = NDArray[np.floating[Any]]
DOMAIN = "headgate/watermark/v1"
KEYED_BY = ("model", "version", "recipient")
ETA = 0.30
BITS = 64
MAX_BITS = 256  # of one SHA-256
Z_OF_ONE_CANDIDATE = 6.5  # Hoeffding 6.7e-10; take 7.5 when a thousand released versions are compared
CLIP_AT = 3.0  # robust deviations; the few carriers an attack hits hardest must not drown the rest
RANK_TOLERANCE = 1e-9


class WatermarkFailed(Exception):
    """The adapter cannot carry the mark, or the stamped copy does not show it; it must not be released."""


@dataclass(frozen=True)
class Layer:
    """One low-rank layer: W0 (out, in) frozen, A (r, in), B (out, r), effective weight W0 + scale * B A."""

    W0: Array
    A: Array
    B: Array
    scale: float


@dataclass(frozen=True)
class Stamp:
    """New B matrices, sha256 of the version's key (to publish before release), and what the self-test read."""

    B: dict[str, Array]
    commitment: str
    z: float
    bits_right: int


@dataclass(frozen=True)
class Reading:
    """`z` of the mark in a suspect, how many of `bits` came out right, and `p`, the chance that an unmarked suspect
    reaches this z (an upper bound, for one candidate)."""

    z: float
    bits_right: int
    p: float
    bits: int

    @property
    def found(self) -> bool:
        """Whether z reaches the decision line for one candidate."""
        return self.z >= Z_OF_ONE_CANDIDATE


def stamp(
    layers: Mapping[str, Layer],
    *,
    secret: bytes,
    claim: Mapping[str, str],
    eta: float = ETA,
    bits: int = BITS,
) -> Stamp:
    """Mark the clean adapter `layers` for the model, version and recipient of `claim`.

    Returns new B matrices in each B's own dtype; the input is not changed. Raises WatermarkFailed when the adapter is
    empty, too small, or its stamped copy reads z < 6.5; ValueError for malformed arguments.
    """
    carrier = _Carrier(layers)
    host = carrier.of_adapter()
    size = float(np.linalg.norm(host))
    if carrier.n < bits or size == 0.0:
        raise WatermarkFailed(
            f"the adapter has {carrier.n} carriers of total size {size:g}, the mark needs {bits} and a size above 0: "
            "train it, raise [adapter] r, or name more target_modules"
        )
    key = derive_key(secret, claim)
    code = _Code(key, claim, carrier.n, bits)
    push = carrier.onto_rank(_dual(host, code, eta))
    push *= eta * size / np.linalg.norm(push)
    marked = {name: carrier.moved(name, push).astype(layer.B.dtype) for name, layer in layers.items()}
    reading = read(layers, marked, secret=secret, claim=claim, bits=bits)
    if not reading.found:
        raise WatermarkFailed(
            f"self-test: the stamped copy reads z {reading.z:.1f} < {Z_OF_ONE_CANDIDATE} with {reading.bits_right} of "
            f"{bits} bits over {carrier.n} carriers: not released; raise [adapter] r or name more target_modules"
        )
    return Stamp(marked, hashlib.sha256(key).hexdigest(), reading.z, reading.bits_right)


def read(
    layers: Mapping[str, Layer],
    suspect: Mapping[str, Array],
    *,
    secret: bytes,
    claim: Mapping[str, str],
    bits: int = BITS,
    weights: bool = False,
) -> Reading:
    """Look for the mark of `claim` in a suspect, given the clean adapter `layers` from the vault (fit read-out).

    `suspect` holds for each layer its B matrix (out, r), taken with the clean A, or with `weights` its effective weight
    (out, in) as in a merged model. Raises ValueError when a layer is missing or has another shape.
    """
    carrier = _Carrier(layers)
    code = _Code(derive_key(secret, claim), claim, carrier.n, bits)
    found = carrier.of_suspect(suspect, weights)
    length = float(np.linalg.norm(found))
    if length == 0.0:  # the clean copy itself
        return Reading(0.0, int(np.sum(code.bits > 0)), 1.0, bits)
    z = float(np.sum(code.signs * found) / length)
    right = int(np.sum(code.projections(found) * code.bits > 0))
    return Reading(z, right, math.exp(-(max(z, 0.0) ** 2) / 2), bits)


def derive_key(secret: bytes, claim: Mapping[str, str]) -> bytes:
    """The 32-byte key of one model, version and recipient; parts carry their length ("a", "bc" is not "ab", "c")."""
    missing = [name for name in KEYED_BY if not claim.get(name)]
    if missing:
        raise ValueError(f"watermark claim lacks {', '.join(missing)}: it needs {', '.join(KEYED_BY)}")
    parts = [part.encode() for part in (DOMAIN, *(claim[name] for name in KEYED_BY))]
    info = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)


def chips_and_slots(key: bytes, n: int, bits: int) -> tuple[Array, NDArray[np.int64]]:
    """n chips of +-1 and, for each, the bit it carries: slots of equal size in an order shuffled by the key."""
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(-(-n // 8) + 8 * n))
    chips = np.unpackbits(np.frombuffer(stream[: -(-n // 8)], np.uint8), bitorder="big")[:n] * 2.0 - 1.0
    order = np.argsort(np.frombuffer(stream[-(-n // 8) :], "<u8"), kind="stable")
    slots = np.empty(n, np.int64)
    slots[order] = np.arange(n) % bits
    return chips, slots


class _Code:
    """The key's chips joined with the claim's bits."""

    def __init__(self, key: bytes, claim: Mapping[str, str], n: int, bits: int) -> None:
        if not 8 <= bits <= MAX_BITS:
            raise ValueError(f"bits {bits}: give 8 to {MAX_BITS}")
        digest = hashlib.sha256(canonical(dict(claim)).encode()).digest()
        self.bits = np.unpackbits(np.frombuffer(digest, np.uint8), bitorder="big")[:bits] * 2.0 - 1.0
        self.chips, self.slots = chips_and_slots(key, n, bits)
        self.signs = self.chips * self.bits[self.slots]
        self._lengths = np.sqrt(np.maximum(np.bincount(self.slots, minlength=bits), 1))

    def projections(self, carrier: Array) -> Array:
        """The carrier along each bit's unit vector, (bits,)."""
        return np.bincount(self.slots, weights=self.chips * carrier, minlength=len(self.bits)) / self._lengths

    def spread(self, pushes: Array) -> Array:
        """The shortest carrier whose projections are `pushes`."""
        return self.chips * (pushes / self._lengths)[self.slots]


def _dual(host: Array, code: _Code, eta: float) -> Array:
    """An equal push on every bit, then an extra one where host and push together leave a bit's projection weak."""
    share = eta * float(np.linalg.norm(host)) / math.sqrt(2)
    even = code.spread(code.bits * share / math.sqrt(len(code.bits)))
    margins = code.projections(host + even) * code.bits
    extra = np.maximum(0.0, _common_margin(margins, share) - margins)
    return even + code.spread(code.bits * extra)


def _common_margin(margins: Array, length: float) -> float:
    """The level to which pushing all lower margins up takes a vector of this length (water filling)."""
    low, high = float(np.min(margins)), float(np.max(margins)) + length
    for _ in range(100):
        middle = (low + high) / 2
        if np.linalg.norm(np.maximum(0.0, middle - margins)) > length:
            high = middle
        else:
            low = middle
    return low


class _Carrier:
    """The numbers of the clean adapter that carry the mark, layer after layer in the order of the names."""

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self._layers = {name: _checked(name, layers[name]) for name in sorted(layers)}
        self._roots = {name: _inverse_root(layer.A) for name, layer in self._layers.items()}
        self._units = {name: _unit(layer) for name, layer in self._layers.items()}
        self._spans: dict[str, slice] = {}
        self.n = 0
        for name, layer in self._layers.items():
            self._spans[name] = slice(self.n, self.n + layer.B.size)
            self.n += layer.B.size

    def of_adapter(self) -> Array:
        """The carrier of the clean adapter against the base, (n,)."""
        return self._joined({name: layer.scale * layer.B @ layer.A for name, layer in self._layers.items()})

    def of_suspect(self, suspect: Mapping[str, Array], weights: bool) -> Array:
        """What a suspect adds to the best multiple of the clean adapter, conditioned on the suspect alone, (n,)."""
        residuals = {}
        for name, layer in self._layers.items():
            clean = layer.scale * layer.B @ layer.A
            change = _change(name, layer, suspect, weights)
            power = float(np.sum(clean * clean))
            alpha = float(np.sum(change * clean)) / power if power > 0 else 0.0
            residuals[name] = change - alpha * clean
        carrier = self._joined(residuals)
        for span in self._spans.values():
            carrier[span] = _conditioned(carrier[span])
        return carrier

    def onto_rank(self, carrier: Array) -> Array:
        """The part of a carrier that a change of B can make; all of it where A has full rank."""
        out = np.empty_like(carrier)
        for name, layer in self._layers.items():
            basis = self._roots[name] @ layer.A
            part = carrier[self._spans[name]].reshape(layer.B.shape)
            out[self._spans[name]] = (part @ (basis @ basis.T)).ravel()
        return out

    def moved(self, name: str, push: Array) -> Array:
        """B after the carrier has moved by `push`."""
        layer = self._layers[name]
        part = push[self._spans[name]].reshape(layer.B.shape)
        return layer.B + self._units[name] / layer.scale * part @ self._roots[name]

    def _joined(self, changes: Mapping[str, Array]) -> Array:
        parts = [
            changes[name] @ (self._roots[name] @ layer.A).T / self._units[name] for name, layer in self._layers.items()
        ]
        return np.concatenate([part.ravel() for part in parts]) if parts else np.zeros(0)


def _inverse_root(A: Array) -> Array:
    """(A A^T)^(-1/2), zero on directions that A does not have (more rows than inputs)."""
    values, vectors = np.linalg.eigh(A @ A.T)
    kept = values > RANK_TOLERANCE * max(float(values[-1]), 1e-300)
    inverse = np.where(kept, 1 / np.sqrt(np.where(kept, values, 1.0)), 0.0)
    return (vectors * inverse) @ vectors.T


def _unit(layer: Layer) -> float:
    """The scale in which a layer's carrier is measured; a hundredth of the base's deviation for an empty layer."""
    size = float(np.linalg.norm(layer.scale * layer.B @ layer.A)) / math.sqrt(layer.B.size)
    return max(size, 0.01 * float(np.std(layer.W0)), 1e-12)


def _conditioned(part: Array) -> Array:
    """Clipped at three robust deviations and divided by its power: noisy layers count less. Never sees the key."""
    limit = CLIP_AT * 1.4826 * float(np.median(np.abs(part)))
    clipped = np.clip(part, -limit, limit) if limit > 0 else part
    power = float(np.mean(clipped * clipped))
    return clipped / power if power > 0 else clipped


def _change(name: str, layer: Layer, suspect: Mapping[str, Array], weights: bool) -> Array:
    """The suspect's effective weight minus the base, (out, in)."""
    expected = layer.W0.shape if weights else layer.B.shape
    if name not in suspect or suspect[name].shape != expected:
        found = suspect[name].shape if name in suspect else "nothing"
        what = "effective weight" if weights else "B matrix"
        raise ValueError(f"suspect layer {name}: {what} of shape {expected} wanted, found {found}")
    given = suspect[name].astype(np.float64)
    if not np.all(np.isfinite(given)):
        raise ValueError(f"suspect layer {name} holds numbers that are not finite: nothing can be read from it")
    return given - layer.W0 if weights else layer.scale * given @ layer.A


def _checked(name: str, layer: Layer) -> Layer:
    out_features, in_features = layer.W0.shape
    rank = layer.A.shape[0]
    if layer.A.shape != (rank, in_features) or layer.B.shape != (out_features, rank):
        raise ValueError(
            f"layer {name}: W0 {layer.W0.shape}, A {layer.A.shape}, B {layer.B.shape} do not fit (out, in), (r, in), "
            "(out, r)"
        )
    W0, A, B = (array.astype(np.float64) for array in (layer.W0, layer.A, layer.B))
    if not (all(np.all(np.isfinite(array)) for array in (W0, A, B, layer.scale)) and layer.scale != 0):
        raise ValueError(f"layer {name} holds numbers that are not finite, or scale {layer.scale} is 0")
    return Layer(W0, A, B, layer.scale)
