"""A token opens a route only when every part of it is right; each forgery of the list is refused."""

import base64
import hashlib
import hmac
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from security.journal import Conflict, Draft, Journal
from security.keys import key_id
from security.tokens import MAX_TOKEN_BYTES, TokenRefused, Verifier, issue, refuse_revoked, spending

KEY, FOREIGN = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
KID = key_id(KEY.public_key())
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
T = NOW.timestamp()
HOUR = timedelta(hours=1)
PREDICT = "model:predict"


@pytest.fixture
def verifier():
    return Verifier({KID: KEY.public_key()}, "headgate", "gateway")


def token(scopes=(PREDICT,), lifetime=HOUR, now=NOW, rollout=None):
    named = {"subject": "acme", "scopes": scopes, "issuer": "headgate", "audience": "gateway"}
    return issue(KEY, **named, lifetime=lifetime, now=now, rollout=rollout)


def forged(key=KEY, header=(), without=(), **claims):
    """A token signed with `key` whose claims or header fields were changed or left out."""
    body = {
        "iss": "headgate", "aud": "gateway", "sub": "acme", "jti": "j", "scope": PREDICT,
        "iat": T, "nbf": T, "exp": T + 3600, **claims,
    }  # fmt: skip
    body = {name: value for name, value in body.items() if name not in without}
    return jwt.encode(body, key, "EdDSA", headers={"typ": "at+jwt", "kid": KID, **dict(header)})


def encoded(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def unsigned(alg):
    payload = token().split(".")[1]
    return f"{encoded({'alg': alg, 'typ': 'at+jwt', 'kid': KID})}.{payload}."


def keyed_with_the_public_half(encoding, form):
    """The classic confusion: HMAC with the public key, which everybody has, as the shared secret."""
    head = f"{encoded({'alg': 'HS256', 'typ': 'at+jwt', 'kid': KID})}.{token().split('.')[1]}"
    mac = hmac.new(KEY.public_key().public_bytes(encoding, form), head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def refusal(verifier, bearer, scope=PREDICT, now=T, prefix="Bearer "):
    with pytest.raises(TokenRefused) as caught:
        verifier.verify(f"{prefix}{bearer}", scope, now)
    return caught.value


def test_an_issued_token_verifies_and_gives_its_claims(verifier):
    claims = verifier.verify(f"Bearer {token((PREDICT, 'metrics:read'))}", "metrics:read", T)
    assert (claims.subject, claims.scopes) == ("acme", {PREDICT, "metrics:read"})
    assert claims.expires == T + 3600 and len(claims.jti) == 32
    assert verifier.verify(f"bearer {token()}", PREDICT, T).jti != claims.jti


FORGERIES = {
    "alg none": (lambda: unsigned("none"), "algorithm"),
    "alg nOnE": (lambda: unsigned("nOnE"), "algorithm"),
    "HS256 with the public PEM": (
        lambda: keyed_with_the_public_half(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "algorithm",
    ),
    "HS256 with the raw public key": (
        lambda: keyed_with_the_public_half(Encoding.Raw, PublicFormat.Raw),
        "algorithm",
    ),
    "foreign key": (lambda: forged(FOREIGN), "Signature"),
    "embedded jwk": (lambda: forged(FOREIGN, {"jwk": {"kty": "OKP"}}), "jwk"),
    "jku": (lambda: forged(FOREIGN, {"jku": "https://evil.example/keys"}), "jku"),
    "x5u": (lambda: forged(FOREIGN, {"x5u": "https://evil.example/chain"}), "x5u"),
    "unknown crit": (lambda: forged(header={"crit": ["x"], "x": 1}), "crit"),
    "unknown kid": (lambda: forged(header={"kid": "0" * 16}), "kid"),
    "kid is a path": (lambda: forged(header={"kid": "../../trainer"}), "kid"),
    "id token": (lambda: forged(header={"typ": "JWT"}), "typ"),
    "expired": (lambda: forged(iat=T - 100, nbf=T - 100, exp=T - 31), "expired"),
    "nbf in the future": (lambda: forged(nbf=T + 31), "nbf"),
    "iat in the future": (lambda: forged(iat=T + 31), "iat"),
    "wrong aud": (lambda: forged(aud="admin"), "audience"),
    "aud a list": (lambda: forged(aud=["gateway", "admin"]), "audience"),
    "wrong iss": (lambda: forged(iss="evil"), "issuer"),
    "iss a prefix": (lambda: forged(iss="head"), "issuer"),
    "lives too long": (lambda: forged(exp=T + 86401), "lifetime"),
    "lives backwards": (lambda: forged(exp=T - 1), "lifetime"),
    "writes for too long": (lambda: forged(scope="release:write", exp=T + 3601), "lifetime"),
    "approves for too long": (lambda: forged(scope="release:approve", rollout="v1", exp=T + 3601), "lifetime"),
    "approves anything": (lambda: forged(scope="release:approve"), "rollout"),
    "approves a list": (lambda: forged(scope="release:approve", rollout=["v1", "v2"]), "rollout"),
    "approves a blank": (lambda: forged(scope="release:approve", rollout=" "), "rollout"),
    "approves and writes": (lambda: forged(scope="release:approve release:write", rollout="v1"), "rollout"),
    "bound without approving": (lambda: forged(scope="release:write", rollout="v1"), "rollout"),
    "exp is NaN": (lambda: forged(exp=float("nan")), "finite"),
    "exp is infinite": (lambda: forged(exp=float("inf")), "finite"),
    "exp is a text": (lambda: forged(exp=str(T + 60)), "finite"),
    "sub is empty": (lambda: forged(sub=""), "sub"),
    "scope is a list": (lambda: forged(scope=[PREDICT]), "scope"),
    "a letter more": (lambda: token() + "A", "token refused"),
    "deep JSON": (lambda: f"{encoded({'alg': 'EdDSA', 'typ': 'at+jwt', 'kid': KID})}.{'W1tb' * 300}.AAAA", "token"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_or_stale_token_gets_401_for_its_own_reason_and_the_same_answer(verifier, name):
    make, reason = FORGERIES[name]
    error = refusal(verifier, make())
    assert error.status == 401 and reason.lower() in error.reason.lower()
    assert error.answer == "a valid bearer token is required"
    assert make()[:30] not in error.reason


@pytest.mark.parametrize("name", ["exp", "iat", "nbf", "iss", "aud", "sub", "jti", "scope"])
def test_every_claim_is_required(verifier, name):
    assert f'"{name}"' in refusal(verifier, forged(without=(name,))).reason


def test_clocks_may_differ_by_the_leeway_and_not_a_second_more(verifier):
    for late in (forged(iat=T - 100, nbf=T - 100, exp=T - 29), forged(nbf=T + 29), forged(iat=T + 29)):
        assert verifier.verify(f"Bearer {late}", PREDICT, T).subject == "acme"


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic YWJj", "Bearer a.b", "Bearer é.é.é", "a.b.c"])
def test_anything_that_is_no_bearer_token_gets_401(verifier, value):
    assert refusal(verifier, value, prefix="").status == 401


def test_an_oversized_token_is_refused_before_it_is_decoded(verifier, monkeypatch):
    monkeypatch.setattr(jwt, "get_unverified_header", lambda _token: pytest.fail("decoded"))
    padded = forged(pad="x" * MAX_TOKEN_BYTES)
    assert "limit 4096" in refusal(verifier, padded).reason


@pytest.mark.parametrize("held", ["model:predict2", "xmodel:predict", "model", "predict", "model:predict,metrics:read"])
def test_a_scope_counts_as_a_whole_word_only(verifier, held):
    error = refusal(verifier, forged(scope=held))
    assert (error.status, error.answer) == (403, "the token lacks the scope model:predict")


def test_a_prediction_token_cannot_release(verifier):
    assert refusal(verifier, token(), scope="release:write").status == 403


def test_a_remembered_token_is_refused_once_expired_revoked_or_its_key_retired(verifier):
    first, second = token(), token()
    claims = verifier.verify(f"Bearer {first}", PREDICT, T)
    verifier.verify(f"Bearer {second}", PREDICT, T)
    assert refusal(verifier, first, scope="metrics:read").status == 403
    assert "expired" in refusal(verifier, first, now=claims.expires + 30).reason
    verifier.revoke(claims.jti)
    assert "revoked" in refusal(verifier, first).reason
    assert verifier.verify(f"Bearer {second}", PREDICT, T)
    verifier.retire_key(KID)
    assert "kid" in refusal(verifier, second).reason


def test_the_memory_of_verified_tokens_is_used_and_bounded():
    verifier = Verifier({KID: KEY.public_key()}, "headgate", "gateway", cache_size=3)
    tokens = [token() for _ in range(5)]
    for one in tokens:
        verifier.verify(f"Bearer {one}", PREDICT, T)
    assert len(verifier._cache) == 3
    verifier.retire_key("unknown")
    remembered = hashlib.sha256(tokens[-1].encode()).digest()
    assert remembered in verifier._cache and hashlib.sha256(tokens[0].encode()).digest() not in verifier._cache
    refusal(verifier, forged(FOREIGN))
    assert len(verifier._cache) == 3 and remembered in verifier._cache


def test_several_threads_share_one_verifier(verifier):
    tokens = [token() for _ in range(40)]
    verifier._cache_size = 8
    with ThreadPoolExecutor(4) as threads:
        claims = list(threads.map(lambda one: verifier.verify(f"Bearer {one}", PREDICT, T), tokens * 12))
    assert len({one.jti for one in claims}) == 40 and len(verifier._cache) == 8


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lifetime": timedelta(hours=25)}, "not between 0 and 1 day"),
        ({"lifetime": timedelta(0)}, "not between"),
        ({"scopes": ("release:write",), "lifetime": timedelta(hours=2)}, "1:00:00 for release:write"),
        ({"scopes": ("release:approve",), "lifetime": timedelta(hours=2), "rollout": "v1"}, "1:00:00 for release:approve"),
        ({"scopes": ("release:approve",)}, "stands alone and names one version"),
        ({"scopes": ("release:approve", "release:write"), "rollout": "v1"}, "stands alone"),
        ({"rollout": "v1"}, "model:predict, rollout 'v1'"),
        ({"scopes": ()}, "model:predict"),
        ({"scopes": ("model:predict metrics:read",)}, "words"),
    ],
)
def test_a_token_nobody_would_accept_is_not_issued(changed, message):
    with pytest.raises(ValueError, match=message):
        token(**changed)


@pytest.mark.parametrize("scopes", [("release:write",), ("release:read",), (PREDICT, "versions:read", "metrics:read")])
def test_no_other_scope_approves(verifier, scopes):
    assert refusal(verifier, token(scopes), scope="release:approve").status == 403


def test_an_approval_token_is_spent_with_the_write_it_pays_for_by_one_of_all_replicas(journal_url, verifier):
    claims = verifier.verify(f"Bearer {token(('release:approve',), rollout='v1')}", "release:approve", T)
    assert claims.rollout == "v1"

    def spend(replica):
        try:
            replica.append_all([Draft("rollout/x", "said", {}), spending(replica, claims)], actor="acme", at=NOW)
        except Conflict:
            return "late"
        except TokenRefused as error:
            return error.status
        return "spent"

    journals = [Journal(journal_url) for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        outcomes = list(threads.map(spend, journals))
    assert outcomes.count("spent") == 1 and set(outcomes) <= {"spent", "late", 403}
    assert journals[0].length("rollout/x") == 1, "who could not spend it wrote nothing else either"
    with pytest.raises(TokenRefused, match=r"used before, in journal entry 2.*ask for another"):
        spending(journals[0], claims)


def test_a_write_asks_the_journal_whether_its_token_is_revoked(journal_url, verifier):
    journal = Journal(journal_url)
    held, gone = (verifier.verify(f"Bearer {token(('release:write',))}", "release:write", T) for _ in range(2))
    journal.append(Draft("auth", "token.revoked", {"jti": gone.jti}), actor="cli", at=NOW)
    refuse_revoked(journal, held)
    with pytest.raises(TokenRefused, match="revoked"):
        refuse_revoked(journal, gone)
