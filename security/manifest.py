"""Signed manifests: canonical bytes, a DSSE envelope over an in-toto statement, and the check before loading.

The statement names the sha256 of the exact manifest bytes; each role's signature must come from the one key pinned for
that role. The check does not interpret the manifest, it says whose bytes they are. It does not know what a version is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from security.keys import key_id

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:headgate:manifest:v1"
SUBJECT = "manifest.json"
MAX_MANIFEST_BYTES = 256 * 1024
MAX_ENVELOPE_BYTES = 16 * 1024
LARGEST_EXACT = 2**53 - 1  # RFC 8785: beyond it a JSON number is not the same number everywhere


class ManifestRefused(Exception):
    """The bytes are not what the required roles signed. The message names the role or the signature that failed."""


def encode(manifest: Mapping[str, Any]) -> bytes:
    """Canonical JSON (RFC 8785): UTF-8, sorted keys, no spaces, numbers as ECMAScript prints them.

    Raises ValueError with the place of a value that has no such form: NaN, infinity, an integer beyond 2^53, a key that
    is not text, any other type.
    """
    return _canonical(manifest, "manifest").encode("utf-8")


def digest(payload: bytes) -> str:
    """sha256 in hex."""
    return hashlib.sha256(payload).hexdigest()


def sign(payload: bytes, key: Ed25519PrivateKey, role: str) -> dict[str, str]:
    """One signature over the manifest bytes `payload`. `role` is a label: what counts is the key pinned for it."""
    signature = key.sign(_pae(PAYLOAD_TYPE, _statement(payload)))
    return {"keyid": key_id(key.public_key()), "role": role, "sig": base64.b64encode(signature).decode()}


def envelope(payload: bytes, signatures: Sequence[Mapping[str, str]]) -> bytes:
    """The DSSE envelope of the statement about `payload` with one or more signatures."""
    statement = base64.b64encode(_statement(payload)).decode()
    return encode({"payloadType": PAYLOAD_TYPE, "payload": statement, "signatures": [dict(one) for one in signatures]})


def signatures_of(sealed: bytes) -> list[dict[str, str]]:
    """The signatures in an envelope, unchecked, to add another one. Raises ManifestRefused when it is malformed."""
    return list(_opened(sealed)["signatures"])


def check(
    payload: bytes, sealed: bytes, trusted: Mapping[str, Ed25519PublicKey], required_roles: Iterable[str]
) -> None:
    """Return when every required role's pinned key signed exactly these manifest bytes, else raise ManifestRefused.

    A signature by a key that is not pinned counts for nothing; a wrong or repeated one by a pinned key refuses all.
    """
    roles = list(required_roles)
    if not roles:
        raise ManifestRefused("no role is required: that would accept anything; require at least the trainer")
    if len(payload) > MAX_MANIFEST_BYTES:
        raise ManifestRefused(f"manifest of {len(payload)} bytes, limit {MAX_MANIFEST_BYTES}")
    pinned = _pinned(trusted, roles)
    opened = _opened(sealed)
    if opened["payloadType"] != PAYLOAD_TYPE:
        raise ManifestRefused(f"payload type {opened['payloadType'][:80]!r}, wanted {PAYLOAD_TYPE}")
    statement = _decoded(opened["payload"], "the payload")
    if statement != _statement(payload):
        raise ManifestRefused(
            f"the envelope is not about this manifest (sha256 {digest(payload)}): a byte was changed, or manifest and "
            "envelope belong to different versions; take both again from the release that made them"
        )
    signed = _signed_roles(opened["signatures"], statement, pinned)
    missing = [role for role in roles if role not in signed]
    if missing:
        raise ManifestRefused(
            f"no signature by {', '.join(missing)}; signed by {', '.join(sorted(signed)) or 'no pinned key'}, required "
            f"{', '.join(roles)}: let the missing role sign, or check which public keys are pinned"
        )


def _pinned(trusted: Mapping[str, Ed25519PublicKey], roles: Sequence[str]) -> dict[str, tuple[str, Ed25519PublicKey]]:
    """Key id -> (role, key)."""
    absent = [role for role in roles if role not in trusted]
    if absent:
        raise ManifestRefused(f"no key is pinned for {', '.join(absent)}: add its public key to [keys] directory")
    pinned: dict[str, tuple[str, Ed25519PublicKey]] = {}
    for role, key in trusted.items():
        other, _ = pinned.setdefault(key_id(key), (role, key))
        if other != role:
            raise ManifestRefused(f"roles {other} and {role} share one key: a second signature would prove nothing")
    return pinned


def _signed_roles(
    signatures: Sequence[Mapping[str, str]], statement: bytes, pinned: Mapping[str, tuple[str, Ed25519PublicKey]]
) -> set[str]:
    signed: set[str] = set()
    message = _pae(PAYLOAD_TYPE, statement)
    for number, signature in enumerate(signatures, start=1):
        if signature["keyid"] not in pinned:
            continue
        role, key = pinned[signature["keyid"]]
        if signature.get("role", role) != role:
            claimed = signature["role"][:40]
            raise ManifestRefused(f"signature {number} claims role {claimed!r}, its key is pinned to {role}")
        if role in signed:
            raise ManifestRefused(f"signature {number} repeats role {role}: one signature for each role")
        try:
            key.verify(_decoded(signature["sig"], f"signature {number}"), message)
        except InvalidSignature as error:
            raise ManifestRefused(
                f"signature {number} by {role} (key {signature['keyid']}) does not fit these bytes: the manifest or "
                "the signature was changed; take both again from the release that made them"
            ) from error
        signed.add(role)
    return signed


def _statement(payload: bytes) -> bytes:
    subject = {"name": SUBJECT, "digest": {"sha256": digest(payload)}}
    return encode({"_type": STATEMENT_TYPE, "subject": [subject], "predicateType": PREDICATE_TYPE, "predicate": {}})


def _pae(payload_type: str, body: bytes) -> bytes:
    """DSSE v1 pre-authentication encoding: lengths before parts, so that no two (type, body) give the same bytes."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)


def _opened(sealed: bytes) -> dict[str, Any]:
    if len(sealed) > MAX_ENVELOPE_BYTES:
        raise ManifestRefused(f"envelope of {len(sealed)} bytes, limit {MAX_ENVELOPE_BYTES}")
    try:
        opened = json.loads(sealed.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ManifestRefused(f"the envelope is no JSON: {str(error)[:120]}") from error
    if not isinstance(opened, dict) or set(opened) != {"payloadType", "payload", "signatures"}:
        raise ManifestRefused("the envelope is not DSSE: it must hold payloadType, payload and signatures, only these")
    signatures = opened["signatures"]
    texts = [opened["payloadType"], opened["payload"]]
    if not isinstance(signatures, list) or not all(isinstance(one, dict) for one in signatures):
        raise ManifestRefused("the envelope's signatures are not a list of objects")
    if not all({"keyid", "sig"} <= set(one) <= {"keyid", "sig", "role"} for one in signatures):
        raise ManifestRefused("a signature of the envelope must hold keyid and sig, at most a role beside them")
    if not all(isinstance(text, str) for text in (*texts, *(text for one in signatures for text in one.values()))):
        raise ManifestRefused("a field of the envelope is not text")
    return opened


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a key appears twice")
    return dict(pairs)


def _decoded(text: str, what: str) -> bytes:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ManifestRefused(f"{what} of the envelope is not base64") from error
    if base64.b64encode(content).decode() != text:  # stray bits after the last byte: another text, the same bytes
        raise ManifestRefused(f"{what} of the envelope is not base64 in its one canonical form")
    return content


def _canonical(value: Any, place: str) -> str:
    if value is None or isinstance(value, bool | str):
        return _text(value, place)
    if isinstance(value, int):
        if abs(value) > LARGEST_EXACT:
            raise ValueError(f"{place}: {value} is beyond 2^53 - 1 and no exact JSON number; write it as text")
        return str(value)
    if isinstance(value, float):
        return _number(value, place)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{place}: key {key!r} is not text")
        # RFC 8785 sorts by UTF-16 code units, which differs from code points above U+FFFF
        keys = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{_text(k, place)}:{_canonical(value[k], f'{place}.{k}')}" for k in keys) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_canonical(item, f"{place}[{i}]") for i, item in enumerate(value)) + "]"
    raise ValueError(f"{place}: {type(value).__name__} has no JSON form; convert it to text, number, list or object")


def _text(value: str | bool | None, place: str) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: {value!r} is not valid Unicode text") from error
    return text


def _number(value: float, place: str) -> str:
    """A float as ECMAScript's Number::toString prints it: shortest digits, plain from 1e-6 to below 1e21."""
    if not math.isfinite(value):
        raise ValueError(f"{place}: {value} is not a finite number; leave it out or write null")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = f"{abs(value)!r}e0".partition("e")
    whole, _, fraction = mantissa.partition(".")
    point = len(whole) + int(exponent.partition("e")[0])
    digits = whole + fraction
    stripped = digits.lstrip("0")
    point -= len(digits) - len(stripped)
    digits = stripped.rstrip("0")
    if 0 < point <= 21:
        padded = digits.ljust(point, "0")
        return sign + padded[:point] + (f".{padded[point:]}" if len(padded) > point else "")
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    tail = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{tail}e{point - 1:+d}"
