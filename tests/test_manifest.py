"""Only the exact bytes that every required role signed with its own pinned key are accepted."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from security.keys import key_id
from security.manifest import ManifestRefused, check, digest, encode, envelope, sign, signatures_of

TRAINER, APPROVER, STRANGER = (Ed25519PrivateKey.generate() for _ in range(3))
TRUSTED = {"trainer": TRAINER.public_key(), "approver": APPROVER.public_key()}
PAYLOAD = encode({"version": 123, "task": "flights", "epsilon": 0.5})


def sealed(*signers, payload=PAYLOAD):
    return envelope(payload, [sign(payload, key, role) for key, role in signers])


def changed(raw, **fields):
    return json.dumps({**json.loads(raw), **fields}).encode()


def refused(raw, roles=("trainer",), payload=PAYLOAD, trusted=TRUSTED):
    with pytest.raises(ManifestRefused) as caught:
        check(payload, raw, trusted, roles)
    return str(caught.value)


def test_one_role_or_two_may_be_required():
    both = sealed((TRAINER, "trainer"), (APPROVER, "approver"))
    check(PAYLOAD, both, TRUSTED, ["trainer", "approver"])
    check(PAYLOAD, both, TRUSTED, ["trainer"])
    check(PAYLOAD, sealed((TRAINER, "trainer")), TRUSTED, ["trainer"])


def test_the_second_signature_can_be_added_later():
    first = sealed((TRAINER, "trainer"))
    second = envelope(PAYLOAD, [*signatures_of(first), sign(PAYLOAD, APPROVER, "approver")])
    check(PAYLOAD, second, TRUSTED, ["trainer", "approver"])


def test_the_envelope_is_dsse_over_an_in_toto_statement_about_the_exact_bytes():
    opened = json.loads(sealed((TRAINER, "trainer")))
    assert opened["payloadType"] == "application/vnd.in-toto+json"
    body = base64.b64decode(opened["payload"])
    assert json.loads(body)["subject"] == [{"name": "manifest.json", "digest": {"sha256": digest(PAYLOAD)}}]
    signed = b"DSSEv1 28 application/vnd.in-toto+json " + str(len(body)).encode() + b" " + body
    TRAINER.public_key().verify(base64.b64decode(opened["signatures"][0]["sig"]), signed)
    assert opened["signatures"][0]["keyid"] == key_id(TRAINER.public_key())


def test_every_single_changed_byte_of_the_manifest_is_noticed():
    raw = sealed((TRAINER, "trainer"))
    for place in range(len(PAYLOAD)):
        other = PAYLOAD[:place] + bytes([PAYLOAD[place] ^ 1]) + PAYLOAD[place + 1 :]
        assert "not about this manifest" in refused(raw, payload=other)


def test_no_byte_of_the_envelope_can_be_changed_to_another_accepted_meaning():
    raw = sealed((TRAINER, "trainer"))
    for place in range(len(raw)):
        other = raw[:place] + bytes([raw[place] ^ 2]) + raw[place + 1 :]
        refused(other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sealed((TRAINER, "trainer")), "no signature by approver; signed by trainer"),
        (lambda: sealed((STRANGER, "trainer"), (APPROVER, "approver")), "no signature by trainer; signed by approver"),
        (lambda: sealed((TRAINER, "trainer"), (TRAINER, "trainer")), "signature 2 repeats role trainer"),
        (lambda: sealed((TRAINER, "trainer"), (TRAINER, "approver")), "claims role 'approver', its key is pinned to"),
        (lambda: envelope(PAYLOAD, []), "signed by no pinned key"),
    ],
)
def test_two_roles_need_two_keys_each_pinned_to_its_own(make, message):
    assert message in refused(make(), roles=["trainer", "approver"])


def test_a_signature_over_another_manifest_does_not_carry_over():
    other = sign(encode({"version": 1}), TRAINER, "trainer")
    assert "signature 1 by trainer" in refused(envelope(PAYLOAD, [other]))
    assert "not about this manifest" in refused(sealed((TRAINER, "trainer"), payload=encode({"version": 1})))


def test_a_key_id_copied_from_the_trainer_does_not_help_a_stranger():
    forged = {**sign(PAYLOAD, STRANGER, "trainer"), "keyid": key_id(TRAINER.public_key())}
    assert "does not fit these bytes" in refused(envelope(PAYLOAD, [forged]))


def test_roles_must_be_required_pinned_and_not_share_a_key():
    raw = sealed((TRAINER, "trainer"))
    assert "accept anything" in refused(raw, roles=[])
    assert "no key is pinned for auditor" in refused(raw, roles=["auditor"])
    assert "share one key" in refused(raw, trusted={"trainer": TRAINER.public_key(), "approver": TRAINER.public_key()})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda raw: b"", "no JSON"),
        (lambda raw: b"\xff" + raw, "no JSON"),
        (lambda raw: b"[" * 5000, "no JSON"),
        (lambda raw: b"[]", "not DSSE"),
        (lambda raw: changed(raw, extra=1), "not DSSE"),
        (lambda raw: changed(raw, payloadType="text/plain"), "payload type 'text/plain'"),
        (lambda raw: changed(raw, payload="!!!"), "not base64"),
        (lambda raw: changed(raw, payload=7), "not text"),
        (lambda raw: changed(raw, signatures={}), "not a list"),
        (lambda raw: changed(raw, signatures=[{"sig": "AAAA"}]), "must hold keyid and sig"),
        (lambda raw: changed(raw, signatures=["AAAA"]), "not a list of objects"),
        (lambda raw: raw[:-1] + b',"payload":"AAAA"}', "twice"),
        (lambda raw: raw + b" " * 20_000, "limit 16384"),
    ],
)
def test_a_malformed_envelope_is_refused_with_what_is_wrong(make, message):
    assert message in refused(make(sealed((TRAINER, "trainer"))))


def test_an_oversized_manifest_is_refused():
    assert "limit 262144" in refused(sealed((TRAINER, "trainer")), payload=b"x" * 262_145)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"), (-0.0, "0"), (1.0, "1"), (1e-6, "0.000001"), (1e-7, "1e-7"), (1e-5, "0.00001"), (0.5, "0.5"),
        (1e20, "100000000000000000000"), (1e21, "1e+21"), (1.5e300, "1.5e+300"), (-12.34, "-12.34"), (5e-324, "5e-324"),
        (333333333.33333329, "333333333.3333333"), (4.50, "4.5"), (2e-3, "0.002"),
        (9007199254740991, "9007199254740991"), (1.7976931348623157e308, "1.7976931348623157e+308"),
        (123456.0, "123456"), (True, "true"),
        (None, "null"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_the_standard_says(number, text):
    assert encode({"x": number}) == f'{{"x":{text}}}'.encode()
    assert json.loads(text) == number


def test_the_standards_own_examples_come_out_byte_for_byte():
    # RFC 8785, sections 3.2.2 and 3.2.3
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": '€$\x0f\nA\'B"\\\\"/',
        "literals": [None, True, False],
    }
    text = r"""{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"""
    assert encode(value) == (text + r'''"string":"€$\u000f\nA'B\"\\\\\"/"}''').encode()
    names = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\xf6": 7}
    assert list(json.loads(encode(names)).values()) == [2, 4, 6, 7, 1, 5, 3]


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"a": {"b": [0, float("nan")]}}, r"manifest\.a\.b\[1\]: nan is not a finite number"),
        ({"a": float("inf")}, "not a finite number"),
        ({"a": 2**53}, "2\\^53"),
        ({1: "a"}, "key 1 is not text"),
        ({"a": b"bytes"}, r"manifest\.a: bytes"),
        ({"a": "\ud800"}, "not valid Unicode"),
    ],
)
def test_a_value_without_canonical_form_is_refused_with_its_place(manifest, message):
    with pytest.raises(ValueError, match=message):
        encode(manifest)
