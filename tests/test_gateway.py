"""The gateway over real HTTP: what it answers, what it refuses, whom it routes where, and what it writes down."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import time
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pyarrow as pa
import pytest

from models.config import AdapterConfig
from models.predictor import Predictor
from pipelines.cli.gateway import _jti
from pipelines.gateway.answer import Refused
from pipelines.gateway.app import ROUTES
from pipelines.gateway.core import Instant
from pipelines.gateway.request import RequestReader, SchemaUnusable
from pipelines.gateway.server import Gateway, GatewayConfig
from security.journal import Draft
from security.listening import PortInUse
from tests.gateways import EVENT, QUICK, blobs_base, wait_until, world
from tests.tasks import columns

__all__ = ["blobs_base", "world"]


def ask(client, /, **fields):
    return client.post("/v1/predict", json={**EVENT, **fields})


def test_a_prediction_is_the_models_own_answer_and_is_recorded_with_every_field(world):
    stable = world.version(1)
    world.route(stable)
    _, client = world.gateway()
    rows = columns(20, seed=7)
    answers = []
    for i in range(20):
        event = {"event_id": f"e{i}", **{name: float(rows[name][i]) for name in ("x0", "x1", "x2", "x3")}}
        answers.append(client.post("/v1/predict", json=event).json())
    served = world.running[0].follower.serving(time.monotonic())[1][stable]
    assert [answer["score"] for answer in answers] == pytest.approx(served.answers(rows), abs=1e-6)
    assert {(a["version"], a["arm"], a["epoch"]) for a in answers} == {(stable, "stable", 1)}
    wait_until(lambda: world.running[0].recorder.recorded == 20)
    written = {row["prediction_id"]: row for row in world.recorded()}
    assert set(next(iter(written.values()))) == {
        "prediction_id", "event_id", "unit", "epoch", "arm", "propensity", "version", "score", "shadow_version",
        "shadow_score", "latency_ms", "at",
    }  # fmt: skip
    for answer in answers:
        row = written[answer["prediction_id"]]
        assert {key: row[key] for key in answer} == answer
        assert (row["unit"], row["propensity"], row["shadow_version"]) == (answer["event_id"], 0.0, None)
        assert row["latency_ms"] > 0


def test_the_registered_base_answers_before_any_version_is_routed(world):
    _, client = world.gateway()
    answer = ask(client).json()
    assert (answer["version"], answer["epoch"]) == (world.base_version, 0)
    frozen = Predictor(world.task, world.base, None, AdapterConfig())
    assert answer["score"] == pytest.approx(frozen.answers({k: np.array([v]) for k, v in EVENT.items()})[0], abs=1e-6)


def test_ready_only_when_a_verified_version_is_loaded(tmp_path, world):
    made = Gateway(GatewayConfig(**QUICK), world.task, world.journal, tmp_path / "empty", world.keys, None)
    world.running.append(made)
    client = httpx.Client(base_url=made.start())
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200
    client.headers["authorization"] = f"Bearer {world.token()}"
    refused = ask(client)
    assert (refused.status_code, refused.json()["error"]) == (503, "not_ready")
    assert refused.headers["retry-after"] == "1"
    _, ready = world.gateway()
    assert ready.get("/readyz").json() == {"ready": True, "epoch": 0, "journal": "ok"}


def test_every_route_refuses_a_stranger_and_a_wrong_scope_unless_the_table_says_open(world):
    _, client = world.gateway(host="127.0.0.1")
    world.running[0]._app._open_metrics = False  # as it is when the gateway listens beyond loopback
    for route in ROUTES:
        if route.path.startswith("/v1/rollouts"):
            continue  # tests/test_rollout_http.py has them
        client.headers.pop("authorization", None)
        body = json.dumps(EVENT) if route.method == "POST" else None
        wrong, right = world.token("release:write"), world.token(*([route.scope] if route.scope else []))
        found = [
            client.request(route.method, route.path, content=body, headers=headers).status_code
            for headers in ({}, {"authorization": f"Bearer {wrong}"}, {"authorization": f"Bearer {right}"})
        ]
        assert found == ([200, 200, 200] if route.scope is None else [401, 403, 200]), route
    opened = {route.path for route in ROUTES if route.scope is None}
    assert opened == {"/healthz", "/readyz", "/openapi.json"}


def test_metrics_are_open_on_loopback_only():
    assert GatewayConfig(host="127.0.0.1").loopback and GatewayConfig(host="localhost").loopback
    assert GatewayConfig(host="::1").loopback
    assert not GatewayConfig(host="0.0.0.0").loopback and not GatewayConfig(host="gateway.internal").loopback


@pytest.mark.parametrize(
    ("header", "status"),
    [(None, 401), ("Bearer x.y.z", 401), ("Basic YTpi", 401), ("expired", 401), ("Bearer " + "a" * 9000, 401)],
)
def test_tokens_that_are_not_valid_get_one_and_the_same_answer(world, header, status):
    _, client = world.gateway()
    client.headers.pop("authorization")
    if header == "expired":
        header = f"Bearer {world.token(ago=timedelta(minutes=11))}"
    refused = ask(httpx.Client(base_url=client.base_url, headers={"authorization": header} if header else {}))
    assert refused.status_code == status
    assert refused.json() == {"error": "unauthorized", "message": "a valid bearer token is required"}
    assert refused.headers["www-authenticate"] == "Bearer"


def test_a_revoked_token_is_refused_within_a_second(world):
    _, client = world.gateway()
    assert ask(client).status_code == 200
    jti = _jti(client.headers["authorization"])
    world.journal.append(Draft("auth", "token.revoked", {"jti": jti}), actor="test", at=datetime.now(UTC))
    wait_until(lambda: ask(client).status_code == 401, seconds=1.0)


BAD = [
    (b"", 400, None),
    (b"{", 400, None),
    (b"[1]", 400, None),
    (b"\xff\xfe", 400, None),
    (b"[" * 30_000, 400, None),
    (b'{"event_id":"e","event_id":"f"}', 400, None),
    (b'{"event_id":"e","x0":NaN,"x1":0,"x2":0,"x3":0}', 400, None),
    (b'{"event_id":"e","x0":-Infinity,"x1":0,"x2":0,"x3":0}', 400, None),
    (b'{"event_id":"e","x0":1e309,"x1":0,"x2":0,"x3":0}', 422, "x0"),
    (b'{"event_id":"e","x0":"1","x1":0,"x2":0,"x3":0}', 422, "x0"),
    (b'{"event_id":"e","x0":true,"x1":0,"x2":0,"x3":0}', 422, "x0"),
    (b'{"event_id":"e","x0":null,"x1":0,"x2":0,"x3":0}', 422, "x0"),
    (b'{"event_id":"e","x0":1,"x1":0,"x2":0}', 422, "x3"),
    (b'{"event_id":"e","x0":1,"x1":0,"x2":0,"x3":0,"x4":0}', 422, "x4"),
    (b'{"event_id":7,"x0":1,"x1":0,"x2":0,"x3":0}', 422, "event_id"),
    (b'{"event_id":"","x0":1,"x1":0,"x2":0,"x3":0}', 422, "event_id"),
    (b'{"event_id":"\\ud800","x0":1,"x1":0,"x2":0,"x3":0}', 422, "event_id"),
    (b'{"event_id":"e","x0":1,"x1":0,"x2":0,"x3":0,"unit":5}', 422, "unit"),
]


def test_bad_bodies_are_refused_with_the_field_and_never_recorded(world):
    _, client = world.gateway()
    for body, status, field in BAD:
        refused = client.post("/v1/predict", content=body)
        assert (refused.status_code, refused.json().get("field")) == (status, field), (body[:60], refused.text)
        assert refused.json()["message"]
    assert ask(client).status_code == 200  # the same connection still works
    wait_until(lambda: world.running[0].recorder.recorded == 1)
    assert [row["event_id"] for row in world.recorded()] == ["e1"]


def test_a_body_over_the_limit_is_refused_declared_or_chunked_and_the_order_is_auth_first(world):
    _, client = world.gateway()
    large = b'{"event_id":"' + b"e" * (65 << 10) + b'"}'
    declared = client.post("/v1/predict", content=large)
    chunked = client.post("/v1/predict", content=(large[i : i + 8192] for i in range(0, len(large), 8192)))
    for refused in (declared, chunked):
        assert (refused.status_code, refused.json()["error"]) == (413, "too_large")
        assert "65536" in refused.json()["message"]
    with httpx.Client(base_url=client.base_url) as stranger:
        assert stranger.post("/v1/predict", content=large).status_code == 401
        assert stranger.post("/v1/predict", content=b"{").status_code == 401


def test_a_body_without_end_is_given_up_at_the_limit(world):
    made, _ = world.gateway()
    taken, sent = [], []

    async def receive():
        taken.append(4096)
        return {"type": "http.request", "body": b"x" * 4096, "more_body": True}

    async def send(message):
        sent.append(message)

    headers = [(b"authorization", f"Bearer {world.token()}".encode()), (b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": headers}
    asyncio.run(made._app(scope, receive, send))
    assert sent[0]["status"] == 413 and sum(taken) <= (64 << 10) + 2 * 4096


def test_the_order_is_auth_limit_validation_and_nothing_refused_is_recorded(world):
    made, _ = world.gateway(rate_per_second=0.001, burst=1)
    good, poor = f"Bearer {world.token()}", f"Bearer {world.token('metrics:read')}"
    asked = [("", b"{"), (poor, b"{"), (good, b"{"), (good, b"{"), (good, json.dumps(EVENT).encode())]
    found = [made.core.handle(authorization, body, Instant.now()).status for authorization, body in asked]
    # the wrong scope spends nothing of the rate, the bad body spends the only permit, then the rate speaks first
    assert found == [401, 403, 400, 429, 429]
    assert made.recorder.waiting == made.recorder.recorded == 0


def test_unknown_paths_and_methods_are_named_with_what_exists(world):
    _, client = world.gateway()
    lost = client.get("/v1/predicts")
    assert lost.status_code == 404 and "/v1/predict" in lost.json()["message"]
    wrong = client.get("/v1/predict")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"


def test_a_request_two_servers_could_read_differently_is_refused(world):
    _, client = world.gateway()
    url = httpx.URL(client.base_url)
    with socket.create_connection((url.host, url.port)) as raw:
        raw.sendall(
            b"POST /v1/predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer a\r\nauthorization: Bearer b\r\n"
            b"content-length: 0\r\n\r\n"
        )
        assert b" 400 " in raw.recv(4096).splitlines()[0]
    with socket.create_connection((url.host, url.port)) as raw:
        raw.sendall(
            b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        assert b" 400 " in raw.recv(4096).splitlines()[0]


def test_more_requests_than_the_rate_are_told_when_to_come_back(world):
    _, client = world.gateway(rate_per_second=0.5, burst=3)
    answers = [ask(client) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert 1 <= int(answers[3].headers["retry-after"]) <= 2
    other = {"authorization": f"Bearer {world.token(subject='other')}"}
    assert client.post("/v1/predict", json=EVENT, headers=other).status_code == 200
    assert "headgate_rate_limited_total 2.0" in client.get("/metrics").text


def test_the_split_follows_the_weight_sticks_to_the_unit_and_never_moves_one_back(world):
    stable, canary = world.version(1), world.version(2)
    world.route(stable, canary, 0.3)
    made, client = world.gateway()
    first = {f"u{i}": ask(client, event_id=f"e{i}", unit=f"u{i}").json() for i in range(2000)}
    share = sum(answer["arm"] == "canary" for answer in first.values()) / 2000
    # 5 standard deviations of a fair split: a right one fails once in 1.7 million salts; this salt is fixed
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 2000)
    assert all(a["version"] == (canary if a["arm"] == "canary" else stable) for a in first.values())
    again = [ask(client, event_id=f"later{i}", unit=f"u{i}").json()["arm"] for i in range(200)]
    assert again == [first[f"u{i}"]["arm"] for i in range(200)]
    world.route(stable, canary, 0.6)
    wait_until(lambda: ask(client).json()["epoch"] == 2)
    raised = [ask(client, unit=f"u{i}").json()["arm"] for i in range(400)]
    moved = [(first[f"u{i}"]["arm"], arm) for i, arm in enumerate(raised)]
    assert ("canary", "stable") not in moved and ("stable", "canary") in moved
    wait_until(lambda: made.recorder.waiting == 0)
    propensity = {(row["epoch"], row["propensity"]) for row in world.recorded()}
    assert propensity == {(1, 0.3), (2, 0.6)}


def test_a_new_epoch_is_served_and_acknowledged_within_a_second(world):
    first, second = world.version(1), world.version(2)
    world.route(first)
    made, client = world.gateway(poll_seconds=0.5)
    assert ask(client).json()["epoch"] == 1
    world.route(second)
    assert wait_until(lambda: ask(client).json()["version"] == second, seconds=1.0) < 1.0
    wait_until(lambda: world.acknowledged(made) == 2, seconds=1.0)
    shown = client.get("/v1/versions").json()
    assert (shown["epoch"], shown["stable"], shown["leased"], shown["refused"]) == (2, second, True, {})


def test_a_model_that_fails_is_answered_500_and_recorded_without_a_score(world):
    made, client = world.gateway()
    kept, world.task.answer = world.task.answer, lambda output: np.array([math.nan])
    refused = ask(client)
    world.task.answer = kept
    assert (refused.status_code, refused.json()["error"]) == (500, "prediction_failed")
    assert ask(client, event_id="e2").status_code == 200
    wait_until(lambda: made.recorder.recorded == 2)
    rows = {row["event_id"]: row for row in world.recorded()}
    assert rows["e1"]["score"] is None and rows["e1"]["prediction_id"] == refused.json()["prediction_id"]
    assert rows["e2"]["score"] is not None


def test_metrics_count_by_arm_and_status(world):
    stable, canary = world.version(1), world.version(2)
    world.route(stable, canary, 1.0)
    made, client = world.gateway()
    for i in range(3):
        ask(client, event_id=f"e{i}")
    client.post("/v1/predict", content=b"{")
    wait_until(lambda: made.recorder.waiting == 0)
    text = client.get("/metrics").text
    for line in (
        'headgate_requests_total{arm="canary",status="200"} 3.0',
        'headgate_requests_total{arm="none",status="400"} 1.0',
        'headgate_predict_seconds_count{arm="canary"} 3.0',
        "headgate_routing_epoch 1.0",
        "headgate_canary_weight 1.0",
        "headgate_recorder_recorded 3.0",
        "headgate_recorder_dropped 0.0",
    ):
        assert line in text
    assert 0 <= float(text.split("\nheadgate_journal_age_seconds ")[1].split()[0]) < 5


def test_openapi_describes_every_route_and_the_tasks_event(world):
    _, client = world.gateway()
    found = client.get("/openapi.json").json()
    assert {(method.upper(), path) for path, ways in found["paths"].items() for method in ways} == {
        (route.method, route.path) for route in ROUTES
    }
    assert found["paths"]["/v1/predict"]["post"]["security"] == [{"token": ["model:predict"]}]
    assert found["components"]["schemas"]["Event"]["required"] == list(EVENT)


def test_a_port_in_use_names_the_port_and_the_cure(world):
    _, client = world.gateway()
    port = httpx.URL(client.base_url).port
    second = Gateway(GatewayConfig(**QUICK), world.task, world.journal, world.store, world.keys, None)
    with pytest.raises(PortInUse, match=rf"port {port} on 127\.0\.0\.1 is in use.*--port"):
        second.start(port)


def test_columns_come_out_with_the_types_training_saw():
    schema = pa.schema(
        [
            ("event_id", pa.string()),
            ("n", pa.int8()),
            ("f", pa.float32()),
            ("flag", pa.bool_()),
            ("when", pa.timestamp("ms", tz="UTC")),
            ("day", pa.date32()),
            ("v", pa.list_(pa.float64(), 2)),
        ]
    )
    good = {"event_id": "e", "n": -3, "f": 1, "flag": True, "day": "2013-06-03", "v": [1, 2]}
    good["when"] = "2013-06-03T10:00:00+02:00"
    read = RequestReader(schema).read(json.dumps(good).encode())
    kinds = {name: (str(array.dtype), array.shape) for name, array in read.columns.items()}
    assert kinds == {
        "event_id": ("object", (1,)), "n": ("int8", (1,)), "f": ("float32", (1,)), "flag": ("bool", (1,)),
        "when": ("datetime64[ms]", (1,)), "day": ("datetime64[D]", (1,)), "v": ("float64", (1, 2)),
    }  # fmt: skip
    assert str(read.columns["when"][0]) == "2013-06-03T08:00:00.000"
    wrong = {"n": [128, 1.5, True], "f": [1e39], "flag": [1], "day": [3], "v": [[1], [1, "2"]]}
    wrong["when"] = ["2013-06-03T10:00:00", "soon", 7]
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(Refused, match=name) as refused:
                RequestReader(schema).read(json.dumps({**good, name: value}).encode())
            assert refused.value.status == 422
    assert np.isnan(RequestReader(schema).read(json.dumps({**good, "f": None}).encode()).columns["f"][0])
    with pytest.raises(Refused, match="'n': wrong type: found null"):
        RequestReader(schema).read(json.dumps({**good, "n": None}).encode())
    with pytest.raises(SchemaUnusable, match="'blob' has type binary"):
        RequestReader(pa.schema([("event_id", pa.string()), ("blob", pa.binary())]), None)


def test_a_tasks_subject_is_the_unit_and_no_client_may_choose_another():
    schema = pa.schema([("event_id", pa.string()), ("account", pa.string())])
    reader = RequestReader(schema, "account")
    assert reader.read(b'{"event_id":"e","account":"a7"}').unit == "a7"
    with pytest.raises(Refused, match="subject"):
        reader.read(b'{"event_id":"e","account":"a7","unit":"a8"}')
