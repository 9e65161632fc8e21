"""Approval by a second person: one token, one version, one time, over HTTP and on the command line alike."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models import release_verbs
from models.release import enqueue
from models.release_policy import Verdict
from models.rollout_conditions import conditions
from monitoring.approval_audit import blame_unproven
from monitoring.rollout_audit import Audit
from pipelines.cli import main
from pipelines.cli.gateway import _jti
from security.journal import Draft
from security.tokens import issue
from tests.gateways import SETTINGS, blobs_base, world
from tests.releases import QUICK_POLICY, READY, about, board, caught_up, in_shadow, steer, step, written

__all__ = ["blobs_base", "world"]

POLICY = replace(QUICK_POLICY, approval="two-person")
TWO_PERSONS = SETTINGS + '[rollout]\nsteps = ["shadow", 10, 50, 100]\napproval = "two-person"\n'


@pytest.fixture
def proposed(world):
    """(world, client, version): proposed by bob, under a policy that wants a second person."""
    version = in_shadow(world, 1, POLICY, proposer="bob")
    _, client = world.gateway(rollout=POLICY)
    return world, client, version


@pytest.fixture
def type_in(world, monkeypatch, capsys):
    """The command line in the world's folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(world.folder)
    (world.folder / "headgate.toml").write_text(TWO_PERSONS)

    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(list(words))
        return int(left.value.code or 0), *capsys.readouterr()

    return run


def approve(client, version, token, reason="read the figures"):
    headers = {"authorization": f"Bearer {token}"}
    return client.post(f"/v1/rollouts/{version}/approve", json={"reason": reason}, headers=headers)


def token_of(world, version, subject="ana", **more):
    return world.token("release:approve", subject=subject, rollout=version, **more)


def spent(world, token):
    return [entry.body for entry in world.journal.read(f"auth/{_jti(token)}")]


def waits_for_a_person(world, version):
    """Whether the gate still wants an approver, all evidence being there."""
    good = replace(READY, promote=Verdict.BETTER, promote_e=90.0, mean=0.04, blocks=9, samples=900)
    found = conditions(board(world).rollouts[version], good, POLICY, datetime.now(UTC))
    return "human" in [condition.name for condition in found if not condition.met]


def test_an_approval_over_http_spends_its_token_in_the_same_transaction_and_lets_the_gate_go_on(proposed):
    world, client, version = proposed
    token = token_of(world, version)
    assert waits_for_a_person(world, version)
    answer = approve(client, version, token)
    assert answer.status_code == 200 and answer.json()["rollout"]["approvers"] == ["ana"]
    (entry,) = about(world, version, "rollout.approved")
    assert (entry.actor, entry.body["actor"], entry.body["reason"]) == ("ana", "ana", "read the figures")
    assert spent(world, token) == [{"jti": _jti(token), "subject": "ana", "rollout": version}]
    (paid,) = world.journal.read(f"auth/{_jti(token)}")
    assert (paid.seq, paid.at) == (entry.seq + 1, entry.at)
    assert not waits_for_a_person(world, version)


def test_a_token_counts_once_however_often_and_wherever_it_is_shown(proposed, type_in):
    world, client, version = proposed
    token = token_of(world, version)
    (world.folder / "token").write_text(token + "\n")
    typed = ("rollout", "approve", version, "--reason", "fine", "--token-file", "token")
    code, out, _ = type_in(*typed)
    assert code == 0 and out == f"{version}: approved (fine)\n"
    assert about(world, version, "rollout.approved")[0].actor == "ana"
    for _ in range(2):
        again = approve(client, version, token)
        assert (again.status_code, again.json()["error"]) == (403, "forbidden")
        assert "was used before, in journal entry" in again.json()["message"]
    code, _, err = type_in(*typed)
    assert code == 1 and "used before" in err and "ask for another" in err
    assert len(about(world, version, "rollout.approved")) == len(spent(world, token)) == 1


def test_two_replicas_shown_one_token_at_once_count_it_once(proposed):
    world, one, version = proposed
    _, other = world.gateway(rollout=POLICY)
    for number in range(5):
        token = token_of(world, version, subject=f"person-{number}")
        with ThreadPoolExecutor(4) as threads:
            asked = [threads.submit(approve, client, version, token) for client in (one, other, one, other)]
        assert sorted(answer.result().status_code for answer in asked) == [200, 403, 403, 403]
    assert len(about(world, version, "rollout.approved")) == 5


def foreign(world, version):
    return issue(
        Ed25519PrivateKey.generate(), subject="ana", scopes=("release:approve",), issuer="headgate",
        audience="headgate-gateway", lifetime=timedelta(minutes=5), now=datetime.now(UTC), rollout=version,
    )  # fmt: skip


def revoked(world, version):
    token = token_of(world, version)
    world.journal.append(Draft("auth", "token.revoked", {"jti": _jti(token)}), actor="test", at=datetime.now(UTC))
    return token


WRONG = {
    "of another version": (lambda w, v: token_of(w, "v000002-00000000"), 403, "approves v000002-00000000, not v000001"),
    "expired": (lambda w, v: token_of(w, v, ago=timedelta(minutes=11)), 401, "expired"),
    "revoked": (revoked, 401, "is revoked"),
    "of another key": (foreign, 401, "no key has the kid"),
    "of the proposer": (lambda w, v: token_of(w, v, subject="bob"), 409, "bob proposed it; another person has to approve"),
    "to write": (lambda w, v: w.token("release:write"), 403, "lacks the scope release:approve"),
    "no token": (lambda w, v: "abc", 401, "no bearer token"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_token_that_is_wrong_approves_nothing_and_is_not_spent(proposed, type_in, name):
    make, status, sentence = WRONG[name]
    world, client, version = proposed
    token = make(world, version)
    refused = approve(client, version, token)
    assert refused.status_code == status
    assert refused.json()["message"] == "a valid bearer token is required" if status == 401 else sentence in refused.text
    (world.folder / "token").write_text(token)
    code, _, err = type_in("rollout", "approve", version, "--reason", "fine", "--token-file", "token")
    assert code == 1 and sentence in err
    assert not about(world, version, "rollout.approved") and waits_for_a_person(world, version)
    assert token.count(".") < 2 or spent(world, token) == []


def test_a_refused_approval_spends_nothing_so_that_the_token_is_good_for_the_right_moment(proposed):
    world, client, version = proposed
    token = token_of(world, version)
    assert approve(client, version, token, reason=" ").status_code == 422
    with world.without_journal():
        assert approve(client, version, token).status_code == 503
    assert spent(world, token) == []
    assert approve(client, version, token).status_code == 200
    second = token_of(world, version)
    assert approve(client, version, second).json()["entries"] == [] and spent(world, second) == [], "ana has approved"
    assert steer(world, client, version, "abort", match=None).status_code == 200
    late = token_of(world, version, subject="eve")
    assert approve(client, version, late).status_code == 409 and spent(world, late) == []


def test_a_name_typed_by_hand_is_no_proof_where_two_persons_are_wanted(proposed, type_in):
    world, _, version = proposed
    for words in ((), ("--actor", "ana")):
        code, _, err = type_in("rollout", "approve", version, "--reason", "fine", *words)
        assert code == 1 and f"headgate token issue --subject APPROVER --scope release:approve --rollout {version}" in err
    # what counts is the policy it was started under, or will be, not what the settings of this folder say now
    (world.folder / "headgate.toml").write_text(SETTINGS)
    waiting = world.version(2)
    written(world, enqueue(board(world), waiting, 2, world.base_version, datetime.now(UTC)))
    for one in (version, waiting):
        assert type_in("rollout", "approve", one, "--reason", "fine", "--actor", "ana")[0] == 1
        assert not about(world, one, "rollout.approved")


def test_the_command_the_refusal_names_makes_a_token_that_approves(proposed, type_in):
    _, client, version = proposed
    words = ("token", "issue", "--subject", "ana", "--scope", "release:approve", "--rollout", version)
    code, out, _ = type_in(*words)
    assert code == 0
    assert approve(client, version, out.strip()).json()["rollout"]["approvers"] == ["ana"]
    for wrong, sentence in (
        (words[:-2], "stands alone and names one version"),
        ((*words, "--scope", "release:write"), "stands alone"),
        ((*words, "--lifetime", "2h"), "1:00:00"),
    ):
        code, _, err = type_in(*wrong)
        assert code == 2 and sentence in err


def test_where_one_person_decides_a_name_is_enough_and_a_token_still_counts_once(world, type_in):
    (world.folder / "headgate.toml").write_text(SETTINGS)
    version = in_shadow(world, 1)
    code, out, _ = type_in("rollout", "approve", version, "--reason", "fine", "--actor", "ana", "--json")
    assert code == 0 and json.loads(out)[0]["body"]["actor"] == "ana"
    (world.folder / "token").write_text(token_of(world, version, subject="eve"))
    typed = ("rollout", "approve", version, "--reason", "fine", "--token-file", "token")
    assert [type_in(*typed)[0] for _ in range(2)] == [0, 1]
    assert board(world).rollouts[version].approvers == ("ana", "eve")
    code, _, err = type_in(*typed, "--actor", "ana")
    assert code == 2 and "the token says who" in err


def test_decisions_made_over_http_are_derived_again_by_verify(proposed, type_in):
    world, client, version = proposed
    caught_up(world)
    assert approve(client, version, token_of(world, version)).status_code == 200
    for verb in ("pause", "resume", "promote", "abort", "retry"):
        assert steer(world, client, version, verb).status_code == 200, verb
        caught_up(world)
        if verb == "abort":
            step(world, POLICY)
    code, out, _ = type_in("rollout", "verify")
    assert code == 0, out


def test_an_approval_that_was_written_past_the_desk_is_found_by_the_audit(proposed):
    world, client, version = proposed

    def faults(policy):
        found = Audit()
        blame_unproven(found, world.journal, world.task.name, policy)
        return [fault.text for fault in found.faults.values()]

    assert approve(client, version, token_of(world, version)).status_code == 200
    assert faults(QUICK_POLICY) == []
    said = {"actor": "eve", "reason": "fine"}
    written(world, release_verbs.approve(board(world), version, datetime.now(UTC), **said))
    assert faults(QUICK_POLICY) == ["rollout.approved: no token of eve was spent for it"]


def test_where_one_person_decides_the_audit_wants_no_token(world):
    version, said = in_shadow(world, 1), {"actor": "ana", "reason": "fine"}
    written(world, release_verbs.approve(board(world), version, datetime.now(UTC), **said))
    found = Audit()
    blame_unproven(found, world.journal, world.task.name, POLICY)
    assert found.sound, "it is the policy in the journal that counts"
