"""The release verbs over real HTTP: who may, what is refused, what happens to a request that comes twice."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import click
import httpx
import pytest

from pipelines.cli.gateway import _jti
from pipelines.cli.rollout import rollout as commands
from pipelines.gateway.answer import Refused
from pipelines.gateway.app import ROUTES
from pipelines.gateway.rollouts import WAITING, Asked, Rollouts
from pipelines.release_desk import ReleaseDesk, Stale
from pipelines.verbs import VERBS
from security.journal import Conflict, Draft, Journal, JournalUnreachable
from security.tokens import SCOPES, Claims
from tests.gateways import EVENT, SETTINGS, blobs_base, headgate, wait_until, world
from tests.releases import QUICK_POLICY, about, bake, board, caught_up, etag, in_shadow, look, served, steer

__all__ = ["blobs_base", "world"]

RELEASES = [route for route in ROUTES if route.path.startswith("/v1/rollouts")]


@pytest.fixture
def shadow(world):
    """(world, client, version): one version in shadow behind a running gateway."""
    version = in_shadow(world, 1)
    _, client = world.gateway(rollout=QUICK_POLICY)
    return world, client, version


def state(world, version):
    return board(world).rollouts[version].state.value


def test_each_route_opens_to_its_own_scope_and_to_no_other(shadow):
    world, client, version = shadow
    asked = {}
    for route in RELEASES:
        path = route.path.replace("{version}", version)
        body = b"{}" if route.method == "POST" else None  # 422 behind the token check, and nothing is done
        for scope in SCOPES:
            token = world.token(scope, rollout=version if scope == "release:approve" else None)
            headers = {"authorization": f"Bearer {token}"}
            asked[scope, path] = client.request(route.method, path, content=body, headers=headers).status_code
            assert (asked[scope, path] == 403) == (scope != route.scope), (scope, route)
        client.headers.pop("authorization", None)
        assert client.request(route.method, path, content=body).status_code == 401
    opened = {route.path.rpartition("/")[2]: route.scope for route in RELEASES}
    assert {opened[verb] for verb in VERBS} == {"release:write", "release:approve"} and opened["approve"] == "release:approve"
    assert opened["history"] == opened["rollouts"] == "release:read"
    assert set(asked.values()) == {200, 403, 422} and state(world, version) == "SHADOW"


def test_the_command_line_and_http_offer_the_same_verbs_with_the_same_options(shadow):
    posted = {route.path.rpartition("/")[2] for route in RELEASES if route.method == "POST"}
    assert posted == set(VERBS)
    own = {"version", "reason", "actor", "as_json", "token_file"}
    for name, verb in VERBS.items():
        command = commands.commands.get(name)
        assert isinstance(command, click.Command), f"headgate rollout {name}"
        options = {option.name for option in command.params} - own
        assert options == set(verb.options), name


def test_looks_say_what_the_journal_says(shadow):
    world, client, version = shadow
    listed = look(world, client).json()
    assert [one["version"] for one in listed["rollouts"]] == [version]
    assert (listed["task"], listed["stable"], listed["epoch"]) == (world.task.name, world.base_version, 1)
    found = look(world, client, f"/{version}").json()
    assert found["rollout"] == board(world).rollouts[version].to_body()
    assert found["figures"]["blocks"] == 0 and found["limits"]["harm_e"] == QUICK_POLICY.harm_threshold
    assert {"blocks", "evidence"} <= {one["name"] for one in found["unmet"]}
    told = look(world, client, f"/{version}/explain").json()["explain"]
    assert told == found["explain"] and f"{version} is SHADOW" in told and "Waits (blocks): 0 blocks, needs 7" in told
    entries = look(world, client, f"/{version}/history").json()["entries"]
    assert [entry["kind"] for entry in entries] == ["rollout.queued", "rollout.started", "rollout.advanced"]
    assert {entry["actor"] for entry in entries} == {"test"} and entries[0]["seq"] < entries[2]["seq"]


def test_a_verb_is_done_by_the_tokens_subject_for_the_reason_given_and_answers_with_its_entries(shadow):
    world, client, version = shadow
    caught_up(world)
    answer = steer(world, client, version, "promote", subject="ana", reason="looks right to me")
    assert answer.status_code == 200
    made = answer.json()["entries"]
    assert [entry["kind"] for entry in made] == ["rollout.advanced", "routing.set"]
    entry = about(world, version, "rollout.advanced")[-1]
    assert (entry.actor, entry.body["actor"], entry.body["reason"]) == ("ana", "ana", "ana: looks right to me")
    assert made[0]["seq"] == entry.seq and made[0]["body"] == entry.body
    assert answer.json()["rollout"]["weight"] == 0.1
    wait_until(lambda: served(client) == (2, 0.1))


def test_a_whole_release_by_verbs_alone_from_shadow_to_stable_and_back(shadow):
    world, client, version = shadow
    caught_up(world)
    assert steer(world, client, version, "pause").json()["rollout"]["paused"]
    assert "resume it first" in steer(world, client, version, "promote").json()["message"]
    assert not steer(world, client, version, "resume").json()["rollout"]["paused"]
    assert steer(world, client, version, "promote", full=True).json()["rollout"]["state"] == "PROMOTING"
    caught_up(world)
    bake(world, version)
    assert steer(world, client, version, "promote").json()["rollout"]["state"] == "PROMOTED"
    assert board(world).stable == version
    wrong = steer(world, client, version, "undo", to_version="v9")
    assert (wrong.status_code, wrong.json()["error"]) == (409, "refused") and "never was stable" in wrong.json()["message"]
    before = etag(world, client, version)
    assert steer(world, client, version, "undo", match=before).status_code == 200
    assert board(world).stable == world.base_version
    assert steer(world, client, version, "undo", match=before).status_code == 412
    again = steer(world, client, version, "undo")
    assert again.status_code == 409 and "it is not stable" in again.json()["message"]


# -- the same request twice -------------------------------------------------------------------------------------------


def test_a_version_whose_update_was_blocked_is_queued_by_a_person_who_answers_for_it(shadow):
    world, client, version = shadow
    registered = {"version": "v000009-00000009", "number": 9, "parent": world.base_version, "blocked": "loss_change"}
    world.note("lineage", "version.registered", registered)
    assert steer(world, client, "v000009-00000009", "start", match=etag(world, client, version)).status_code == 200
    one = board(world).rollouts["v000009-00000009"]
    assert (one.state.value, one.proposer) == ("QUEUED", "ana")
    assert steer(world, client, "v000010-00000010", "start", match=etag(world, client, version)).status_code == 409


def test_a_client_that_gives_up_and_asks_again_does_not_promote_two_steps(shadow):
    world, client, version = shadow
    caught_up(world)
    match = etag(world, client, version)
    body = json.dumps({"reason": "release drill"}).encode()
    head = (
        f"POST /v1/rollouts/{version}/promote HTTP/1.1\r\nhost: x\r\nif-match: {match}\r\n"
        f"authorization: Bearer {world.token('release:write')}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    url = httpx.URL(client.base_url)
    with socket.create_connection((url.host, url.port)) as raw:  # it hangs up before the answer
        raw.sendall(head.encode() + body)
    wait_until(lambda: state(world, version) == "CANARY")
    caught_up(world)
    again = steer(world, client, version, "promote", match=match)
    assert (again.status_code, again.json()["error"]) == (412, "stale")
    assert board(world).rollouts[version].step == 0 and len(about(world, version, "rollout.advanced")) == 2
    assert steer(world, client, version, "promote").status_code == 200, "who looks again may go on"
    assert board(world).rollouts[version].step == 1


@pytest.mark.parametrize("verb", [name for name, verb in VERBS.items() if verb.onward])
def test_a_verb_that_lets_a_version_go_further_wants_the_revision_it_was_decided_on(shadow, verb):
    world, client, version = shadow
    for match in (None, "", '""'):
        refused = steer(world, client, version, verb, match=match)
        assert (refused.status_code, refused.json()["error"]) == (428, "revision_required")
    stale = steer(world, client, version, verb, match='"0-0"')
    assert stale.status_code == 412 and "look again" in stale.json()["message"]


def test_stopping_needs_no_revision_and_a_second_stop_writes_nothing(shadow):
    world, client, version = shadow
    caught_up(world)
    for _ in range(2):
        assert steer(world, client, version, "pause", match=None).status_code == 200
    assert len(about(world, version, "rollout.paused")) == 1
    steer(world, client, version, "resume")
    steer(world, client, version, "promote")
    first, second = (steer(world, client, version, "abort", match=match) for match in (None, '"0-0"'))  # an old one is no bar
    assert (first.status_code, second.status_code) == (200, 200)
    assert [entry["kind"] for entry in first.json()["entries"]] == ["rollout.advanced", "routing.set"]
    assert second.json()["entries"] == [] and second.json()["rollout"]["state"] == "ROLLING_BACK"


def test_two_clients_that_promote_at_once_through_two_replicas_make_one_transition(shadow):
    world, one, version = shadow
    _, other = world.gateway(rollout=QUICK_POLICY)
    for step in range(2):
        caught_up(world)
        match = etag(world, one, version)
        with ThreadPoolExecutor(4) as threads:
            clients = (one, other, one, other)
            asked = [threads.submit(steer, world, client, version, "promote", match=match) for client in clients]
        statuses = sorted(answer.result().status_code for answer in asked)
        assert statuses[0] == 200 and set(statuses[1:]) <= {409, 412}
        assert board(world).rollouts[version].step == step
    assert len(about(world, version, "rollout.advanced")) == 3


class Crowded(Journal):
    """A journal in which somebody else writes first, the next `others` times."""

    others = 0

    def append_all(self, drafts, *, actor, at, unmoved=None):
        if self.others:
            self.others -= 1
            super().append_all([Draft("rollout/blobs", "noted", {})], actor="somebody", at=at)
        return super().append_all(drafts, actor=actor, at=at, unmoved=unmoved)


def test_a_stop_looks_again_when_others_decide_meanwhile_and_what_goes_further_does_not(shadow):
    world, _, version = shadow
    caught_up(world)
    journal = Crowded(world.journal_url)
    desk = ReleaseDesk(journal, world.task.name, QUICK_POLICY, world.running[0].config.window)
    said = {"actor": "ana", "reason": "drill"}
    journal.others = 4
    assert [entry.kind for entry in desk.write("pause", version, **said)] == ["rollout.paused"]
    desk.write("resume", version, **said)
    journal.others = 1
    with pytest.raises(Conflict, match="another process decided first"):
        desk.write("promote", version, **said)
    journal.others = 1
    with pytest.raises(Stale, match="look again"):
        desk.write("promote", version, revision=desk.revision, **said)
    journal.others = 99
    with pytest.raises(Conflict, match="5 times in a row"):
        desk.write("abort", version, **said)
    journal.close()


# -- what does not answer ---------------------------------------------------------------------------------------------


def test_an_abort_reaches_weight_0_within_5_s_with_the_event_log_away(world):
    version = in_shadow(world, 1)

    def no_log():
        raise ConnectionError("the event log is away")

    _, client = world.gateway(rollout=QUICK_POLICY, log=no_log, poll_seconds=0.5)  # as often as in production
    caught_up(world)
    steer(world, client, version, "promote", full=True)
    wait_until(lambda: served(client) == (2, 0.99))
    began = time.monotonic()
    assert steer(world, client, version, "abort", match=None, reason="users complain").status_code == 200
    wait_until(lambda: served(client)[1] == 0.0)
    assert time.monotonic() - began < 5.0
    assert client.post("/v1/predict", json=EVENT).json()["version"] == world.base_version


def test_without_the_journal_nothing_is_decided_and_predictions_go_on(shadow):
    world, client, version = shadow
    before = world.journal.head()
    with world.without_journal():
        answers = [steer(world, client, version, verb, match='"1-1"') for verb in VERBS]
        answers.append(look(world, client, f"/{version}"))
        assert {(a.status_code, a.json()["error"]) for a in answers} == {(503, "journal_away")}
        assert {a.headers["retry-after"] for a in answers} == {"5"}
        assert client.post("/v1/predict", json=EVENT).status_code == 200
    assert world.journal.head() == before
    assert steer(world, client, version, "abort", match=None).status_code == 200


def test_looks_that_hang_hold_back_neither_stops_nor_predictions_and_do_not_pile_up(shadow):
    world, client, version = shadow
    away = threading.Event()

    def open_desk():
        if "looks" in threading.current_thread().name:
            away.wait(10.0)
        return ReleaseDesk(world.journal, world.task.name, QUICK_POLICY, world.running[0].config.window)

    hanging = world.running[0]._app._rollouts = Rollouts(open_desk)
    with ThreadPoolExecutor(WAITING) as threads:
        looks = [threads.submit(look, world, client) for _ in range(WAITING)]
        wait_until(lambda: hanging._looks._inside == WAITING)
        refused = look(world, client)
        assert (refused.status_code, refused.json()["error"], refused.headers["retry-after"]) == (503, "busy", "1")
        assert client.post("/v1/predict", json=EVENT).status_code == 200
        assert steer(world, client, version, "pause", match=None).status_code == 200
        assert not any(one.done() for one in looks)
        away.set()
    assert {one.result().status_code for one in looks} == {200} and board(world).rollouts[version].paused
    hanging.stop()


def test_a_desk_that_cannot_be_opened_is_asked_for_again(world):
    answers = iter([JournalUnreachable("away"), ReleaseDesk(world.journal, "blobs", QUICK_POLICY, None)])

    def open_desk():
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    rollouts = Rollouts(open_desk)
    asked = Asked("GET", None, "", Claims("ana", frozenset(), "j", 0.0), b"", None)
    with pytest.raises(Refused, match="away"):
        asyncio.run(rollouts.answer(asked))
    assert asyncio.run(rollouts.answer(asked)).status == 200
    rollouts.stop()


# -- what is refused --------------------------------------------------------------------------------------------------

BAD = [
    (b"", 400, None),
    (b"[]", 400, None),
    (b'{"reason": "a", "reason": "b"}', 400, None),
    (b"{}", 422, "reason"),
    (b'{"reason": " "}', 422, "reason"),
    (b'{"reason": 7}', 422, "reason"),
    (b'{"reason": "a\\u001b[2J"}', 422, "reason"),
    (b'{"reason": "a\\ud800"}', 422, "reason"),
    (json.dumps({"reason": "a" * 501}).encode(), 422, "reason"),
    (b'{"reason": "a", "full": 1}', 422, "full"),
    (b'{"reason": "a", "to_version": "v1"}', 422, "to_version"),
    (b'{"reason": "a", "actor": "somebody else"}', 422, "actor"),
    (b'{"reason": "' + b"a" * (65 << 10) + b'"}', 413, None),
]


def test_malformed_requests_are_refused_with_the_field_and_change_nothing(shadow):
    world, client, version = shadow
    before = world.journal.head()
    headers = {"authorization": f"Bearer {world.token('release:write')}", "if-match": etag(world, client, version)}
    for body, status, field in BAD:
        refused = client.post(f"/v1/rollouts/{version}/promote", content=body, headers=headers)
        assert (refused.status_code, refused.json().get("field")) == (status, field), body[:60]
        assert refused.json()["message"]
    twice = [("authorization", headers["authorization"]), ("if-match", '"1"'), ("if-match", '"2"')]
    refused = client.post(f"/v1/rollouts/{version}/promote", content=b'{"reason": "a"}', headers=twice)
    assert (refused.status_code, refused.json()["error"]) == (400, "ambiguous")
    assert world.journal.head() == before


def test_what_is_not_there_is_404_and_what_does_not_fit_is_409_with_the_sentence(shadow):
    world, client, version = shadow
    for path in ("/v9", "/v9/history", "/v9/explain"):
        lost = look(world, client, path)
        assert lost.status_code == 404 and version in lost.json()["message"]
    assert steer(world, client, "v9", "abort", match=None).status_code == 404
    for path in ("/v1/rollouts/", f"/v1/rollouts/{version}/", f"/v1/rollouts/{version}/explain/x", "/v1/rolloutsx"):
        assert client.get(path).json()["error"] == "not_found"
    for method, path, allowed in (("GET", f"/{version}/promote", "POST"), ("POST", "", "GET"), ("PUT", f"/{version}", "GET")):
        wrong = client.request(method, f"/v1/rollouts{path}")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, allowed)
    assert steer(world, client, version, "abort", match=None).status_code == 200
    ended = steer(world, client, version, "promote")
    assert (ended.status_code, ended.json()["error"]) == (409, "refused") and "it is REJECTED since" in ended.json()["message"]


def test_a_revoked_token_decides_nothing_although_this_replica_has_not_heard_of_it(world):
    version = in_shadow(world, 1)
    _, client = world.gateway(rollout=QUICK_POLICY, poll_seconds=30.0)
    text = world.token("release:write")
    world.journal.append(Draft("auth", "token.revoked", {"jti": _jti(text)}), actor="test", at=datetime.now(UTC))
    headers = {"authorization": f"Bearer {text}"}
    refused = client.post(f"/v1/rollouts/{version}/pause", json={"reason": "drill"}, headers=headers)
    assert (refused.status_code, refused.json()["error"]) == (401, "unauthorized")
    assert not board(world).rollouts[version].paused


def test_openapi_has_the_verbs_with_their_bodies_scopes_and_errors(shadow):
    _, client, _ = shadow
    found = client.get("/openapi.json").json()
    promote = found["paths"]["/v1/rollouts/{version}/promote"]["post"]
    assert promote["security"] == [{"token": ["release:write"]}]
    assert [(p["name"], p["required"]) for p in promote["parameters"]] == [("version", True), ("If-Match", True)]
    name = promote["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert found["components"]["schemas"][name]["properties"]["full"] == {"type": "boolean"}
    abort = found["paths"]["/v1/rollouts/{version}/abort"]["post"]
    assert [p["required"] for p in abort["parameters"]] == [True, False]
    assert {"404", "409", "412", "428", "503"} <= set(abort["responses"])


def test_the_command_serves_the_verbs_on_the_clock_of_its_settings(world):
    version = in_shadow(world, 1)
    stream = '[window]\nevery = "1d"\nstart = 2026-01-01T00:00:00Z\nclock = "stream"\n'
    process = headgate(world, "gateway", "--port", "0", "--json", settings=SETTINGS + stream)
    with httpx.Client(base_url=json.loads(process.stdout.readline())["url"]) as client:
        answer = steer(world, client, version, "pause", match=None)
    assert answer.status_code == 200
    assert answer.json()["entries"][0]["body"]["clock"].startswith("2026-01-01T00:00:00"), "no window was scored yet"
    process.terminate()
    assert process.wait(20) == 0
