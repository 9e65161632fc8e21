"""Access tokens: issued and verified here, one algorithm, pinned keys, every claim checked.

The profile is RFC 9068 (`typ` at+jwt) narrowed after RFC 8725: EdDSA only, the key is looked up by `kid` in a pinned
map and never taken from the token, the size is checked before anything is decoded, and the clock is passed in. A
verified token is remembered by its sha256; expiry, revocation, key and scope are checked at each use all the same.

A token of scope `release:approve` is one person's word on one version: it names that version in the claim `rollout`, holds
no other scope, and is spent by the approval it makes (`spending`).

It knows no route and no server: the gateway says which scope a route needs, and how a refusal is shown.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from security.journal import Draft, Journal
from security.keys import key_id

APPROVE = "release:approve"
SCOPES = ("model:predict", "metrics:read", "versions:read", "release:read", "release:write", APPROVE)
WRITE_SCOPES = frozenset({"release:write", APPROVE})
ALGORITHMS = ["EdDSA"]
TYPE = "at+jwt"
REQUIRED = ("exp", "iat", "nbf", "iss", "aud", "sub", "jti", "scope")
MAX_TOKEN_BYTES = 4096  # a forged token of 8 MB costs a second of CPU to reject after decoding
LEEWAY = 30.0
MAX_LIFETIME = timedelta(hours=24)
MAX_WRITE_LIFETIME = timedelta(hours=1)  # whoever holds it can move traffic
DECODE_OPTIONS: Any = {
    "require": list(REQUIRED),
    "strict_aud": True,
    # The library would ask the wall clock; `_times` checks these against the `now` it is given.
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
}


class TokenRefused(Exception):
    """A request without a valid token (`status` 401), or whose token is not for this (403): scope, version, spent.

    `reason` is for the log and never holds the token; show the client only `answer`, which is the same for every 401.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason
        self.answer = "a valid bearer token is required" if status == 401 else reason


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says. `expires` in seconds since 1970, without leeway; `rollout` the one version that a
    `release:approve` token is for."""

    subject: str
    scopes: frozenset[str]
    jti: str
    expires: float
    rollout: str | None = None


@dataclass(frozen=True, slots=True)
class _Verified:
    claims: Claims
    kid: str


def issue(
    key: Ed25519PrivateKey,
    *,
    subject: str,
    scopes: Sequence[str],
    issuer: str,
    audience: str,
    lifetime: timedelta,
    now: datetime,
    rollout: str | None = None,
) -> str:
    """A signed token. Raises ValueError for an empty subject, a malformed scope, a lifetime out of bounds, and for
    `release:approve` without the version it is for or together with another scope."""
    if not subject:
        raise ValueError("a token needs a subject: who will use it?")
    if not scopes or any(not scope or scope.split() != [scope] for scope in scopes):
        raise ValueError(f"scopes {list(scopes)!r}: give one or more words of {', '.join(SCOPES)}")
    if not _bound_rightly(frozenset(scopes), rollout):
        raise ValueError(f"scopes {' '.join(scopes)}, rollout {rollout!r}: {APPROVE} stands alone and names one version")
    limit = _lifetime_limit(frozenset(scopes))
    if not timedelta(0) < lifetime <= limit:
        raise ValueError(f"lifetime {lifetime} is not between 0 and {limit} for {' '.join(scopes)}: ask for less")
    start = int(now.timestamp())
    claims = {
        "iss": issuer,
        "aud": audience,
        "sub": subject,
        "jti": secrets.token_hex(16),
        "iat": start,
        "nbf": start,
        "exp": start + int(lifetime.total_seconds()),
        "scope": " ".join(scopes),
    } | ({"rollout": rollout} if rollout else {})
    token = jwt.encode(claims, key, algorithm="EdDSA", headers={"typ": TYPE, "kid": key_id(key.public_key())})
    if len(token) > MAX_TOKEN_BYTES:
        raise ValueError(f"the token has {len(token)} bytes, limit {MAX_TOKEN_BYTES}: shorten subject or scopes")
    return token


def spending(journal: Journal, claims: Claims) -> Draft:
    """The entry that spends a token's `jti`, to be appended in the transaction of the write it pays for.

    Its put-if-absent lets one of all replicas win: the others get Conflict from the journal, and TokenRefused 403 from
    here when they look again. A write that is refused spends nothing. When the journal does not answer the error goes up
    and nothing is written: a write scope fails closed.
    """
    for entry in journal.read(f"auth/{claims.jti}"):
        reason = f"token {claims.jti} was used before, in journal entry {entry.seq}: it is good for one approval"
        raise TokenRefused(403, f"{reason}; ask for another")
    body = {"jti": claims.jti, "subject": claims.subject, "rollout": claims.rollout}
    return Draft(f"auth/{claims.jti}", "token.spent", body, expected=0)


def refuse_revoked(journal: Journal, claims: Claims) -> None:
    """TokenRefused 401 for a token that the journal says is revoked, for writes, which do not wait for a poll."""
    if any(entry.kind == "token.revoked" and entry.body["jti"] == claims.jti for entry in journal.read("auth")):
        raise TokenRefused(401, f"token {claims.jti} is revoked")


class Verifier:
    """Checks bearer tokens against pinned keys (`kid` -> public key) for one issuer and one audience."""

    def __init__(
        self, keys: Mapping[str, Ed25519PublicKey], issuer: str, audience: str, *, cache_size: int = 4096
    ) -> None:
        self._keys = dict(keys)
        self._issuer = issuer
        self._audience = audience
        self._cache_size = cache_size
        self._cache: dict[bytes, _Verified] = {}
        self._revoked: set[str] = set()
        self._lock = threading.Lock()

    def verify(self, authorization: str, scope: str, now: float) -> Claims:
        """The claims of an `Authorization: Bearer ...` value that is valid at `now` and holds `scope`.

        `now` in seconds since 1970. Raises TokenRefused: 401 for no, a bad, an expired or a revoked token, 403 when the
        token is good but lacks the scope.
        """
        token = _bearer(authorization)
        fingerprint = hashlib.sha256(token).digest()
        verified = self._cache.get(fingerprint)
        if verified is None or verified.kid not in self._keys:
            verified = self._decode(token, now)
            self._remember(fingerprint, verified)
        claims = verified.claims
        if now >= claims.expires + LEEWAY:
            self._cache.pop(fingerprint, None)
            raise TokenRefused(401, f"token {claims.jti} expired {now - claims.expires:.0f} s ago")
        if claims.jti in self._revoked:
            raise TokenRefused(401, f"token {claims.jti} is revoked")
        if scope not in claims.scopes:
            raise TokenRefused(403, f"the token lacks the scope {scope}")
        return claims

    def revoke(self, jti: str) -> None:
        """Refuse this token from now on, remembered or not."""
        self._revoked.add(jti)

    def retire_key(self, kid: str) -> None:
        """Refuse every token of this key from now on, remembered or not."""
        self._keys.pop(kid, None)

    def _remember(self, fingerprint: bytes, verified: _Verified) -> None:
        # Only valid tokens get here, so a stranger cannot push others out; the oldest goes first.
        with self._lock:
            self._cache.pop(fingerprint, None)  # two threads may have decoded it at once: it must not push two others out
            while len(self._cache) >= self._cache_size:
                del self._cache[next(iter(self._cache))]
            self._cache[fingerprint] = verified

    def _decode(self, token: bytes, now: float) -> _Verified:
        try:
            kid = self._kid(jwt.get_unverified_header(token))
            claims = jwt.decode(
                token,
                self._keys[kid],
                algorithms=ALGORITHMS,
                issuer=self._issuer,
                audience=self._audience,
                options=DECODE_OPTIONS,
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise TokenRefused(401, f"token refused: {type(error).__name__}: {str(error)[:200]}") from error
        return _Verified(_checked(claims, now), kid)

    def _kid(self, header: Mapping[str, Any]) -> str:
        extra = sorted(set(header) - {"alg", "typ", "kid"})
        if extra:  # jku, x5u, jwk, x5c would bring the attacker's key; crit would change the meaning of the rest
            raise TokenRefused(401, f"header fields {', '.join(extra)[:200]} are not accepted")
        if header.get("alg") not in ALGORITHMS:
            raise TokenRefused(401, f"algorithm {str(header.get('alg'))[:20]!r}: only EdDSA is accepted")
        if str(header.get("typ")).lower() != TYPE:
            raise TokenRefused(401, f"typ {str(header.get('typ'))[:20]!r}: only {TYPE} is accepted")
        kid = header.get("kid")
        if not isinstance(kid, str) or kid not in self._keys:
            raise TokenRefused(401, f"no key has the kid {str(kid)[:40]!r}")
        return kid


def _bearer(authorization: str) -> bytes:
    if len(authorization) > MAX_TOKEN_BYTES + len("Bearer "):
        raise TokenRefused(401, f"authorization of {len(authorization)} characters, limit {MAX_TOKEN_BYTES}")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.isascii() or token.count(".") != 2:
        raise TokenRefused(401, "no bearer token")
    return token.encode("ascii")


def _lifetime_limit(scopes: frozenset[str]) -> timedelta:
    return MAX_WRITE_LIFETIME if scopes & WRITE_SCOPES else MAX_LIFETIME


def _checked(claims: Mapping[str, Any], now: float) -> Claims:
    for name in ("sub", "jti", "scope"):
        if not isinstance(claims[name], str) or not claims[name].strip():
            raise TokenRefused(401, f"claim {name} is not a text")
    scopes = frozenset(claims["scope"].split(" ")) - {""}
    rollout = claims.get("rollout")
    if not _bound_rightly(scopes, rollout):
        raise TokenRefused(401, f"claim rollout {str(rollout)[:80]!r} does not fit the scopes: {APPROVE} names one version")
    expires = _times(claims, now, _lifetime_limit(scopes))
    return Claims(claims["sub"], scopes, claims["jti"], expires, rollout)


def _bound_rightly(scopes: frozenset[str], rollout: Any) -> bool:
    """Whether the token is of one version and for its approval only, or of none and for anything but approvals."""
    if APPROVE in scopes:
        return len(scopes) == 1 and isinstance(rollout, str) and rollout.strip() != ""
    return rollout is None


def _times(claims: Mapping[str, Any], now: float, limit: timedelta) -> float:
    times = {name: claims[name] for name in ("iat", "nbf", "exp")}
    for name, value in times.items():
        # NaN is JSON to this language, and every comparison with it is false: an eternal token
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise TokenRefused(401, f"claim {name} is not a finite number")
    lifetime = times["exp"] - times["iat"]
    if not 0 < lifetime <= limit.total_seconds():
        raise TokenRefused(401, f"lifetime {lifetime:.0f} s is not within 0 and {limit.total_seconds():.0f} s")
    for name in ("iat", "nbf"):
        if times[name] > now + LEEWAY:
            raise TokenRefused(401, f"claim {name} is {times[name] - now:.0f} s in the future, leeway {LEEWAY:.0f} s")
    return float(times["exp"])
