"""The registry's client: one question for each id, patience with what is down, none with what is wrong, no secret told."""

from __future__ import annotations

import json
import pickle
import secrets
import time
import traceback

import pytest

from assets.stream import registry as module
from assets.stream.registry import RegisteredSchema, Registry, RegistryRefused, RegistryUnreachable, SchemaUnusable
from tests.registries import LocalRegistry, serving

WRITER = {"type": "record", "name": "Event", "fields": [{"name": "x", "type": "long"}]}


@pytest.fixture
def server():
    with serving() as found:
        yield found


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)


def answering(server: LocalRegistry, status: int, body: object, **headers: str) -> Registry:
    server.answer = status, headers, body if isinstance(body, bytes) else json.dumps(body).encode()
    return Registry(server.url)


def test_a_schema_is_asked_for_once_and_avro_is_what_is_meant_without_a_type(server):
    avro, schema = server.register(WRITER), server.register({"type": "object"}, "JSON")
    registry = Registry(server.url + "/")
    for _ in range(3):
        assert registry.schema(avro) == RegisteredSchema("AVRO", json.dumps(WRITER))
        assert registry.schema(schema).kind == "JSON"
    assert server.asked == [f"/schemas/ids/{avro}", f"/schemas/ids/{schema}"]


def test_the_address_may_have_a_path(server):
    with pytest.raises(RegistryRefused):
        Registry(f"{server.url}/behind/a/gateway").schema(1)
    assert server.asked == ["/behind/a/gateway/schemas/ids/1"]


def test_an_unknown_id_is_asked_for_twice_and_may_be_known_later(server):
    registry = Registry(server.url)
    with pytest.raises(SchemaUnusable, match="schema id 1 is unknown"):
        registry.schema(1)
    assert server.asked == ["/schemas/ids/1"] * 2
    assert [headers.get("Cache-Control") for headers in server.headers] == [None, "no-cache"]
    assert server.register(WRITER) == 1
    assert registry.schema(1).kind == "AVRO"


def test_a_registry_that_fails_for_a_while_is_asked_again(server):
    server.register(WRITER)
    server.failing = 3
    assert Registry(server.url, retries=3).schema(1).kind == "AVRO"
    assert len(server.asked) == 4


@pytest.mark.parametrize("trouble", ["down", "failing", "slow", "dripping", "busy"])
def test_a_registry_that_gives_no_answer_is_unreachable_and_nobodys_poison(server, trouble):
    server.register(WRITER)
    url = server.url
    if trouble == "busy":
        server.answer = 429, {}, b"{}"
    elif trouble != "down":
        setattr(server, trouble, {"failing": 99, "slow": 0.5, "dripping": True}[trouble])
    else:
        with serving() as gone:
            url = gone.url
    began = time.monotonic()
    with pytest.raises(RegistryUnreachable, match=r"schemas/ids/1 was asked 2 times.*tried again\s+later"):
        Registry(url, timeout=0.2, retries=1).schema(1)
    assert time.monotonic() - began < 3
    if trouble != "down":
        server.failing, server.slow, server.dripping, server.answer = 0, 0, False, None
        assert Registry(url).schema(1).kind == "AVRO"


def test_each_pause_is_twice_the_one_before(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    server.failing = 99
    with pytest.raises(RegistryUnreachable, match="HTTP 500"):
        Registry(server.url, retries=3).schema(1)
    assert [pause for pause in pauses if pause] == [0.01, 0.02, 0.04]  # the server's own pauses are 0


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (404, {"error_code": 404, "message": "HTTP 404 Not Found"}, "HTTP 404 and no schema: is it a registry's address"),
        (404, b"<html>not here</html>", "HTTP 404 and no schema"),
        (200, b"<html>log in</html>", "HTTP 200 and no schema"),
        (200, [1], "HTTP 200 and no schema"),
        (200, b"[" * 100_000, "HTTP 200 and no schema"),
        (200, {"id": 1}, "something that is no schema"),
        (422, {"error_code": 42201}, "HTTP 422"),
        (403, {}, "lets nobody in like this"),
        (200, b" " * (module.LARGEST_ANSWER + 1), "more than 4194304 bytes"),
    ],
)
def test_an_answer_that_is_none_stops_and_rejects_nothing(server, status, body, why):
    with pytest.raises(RegistryRefused, match=why):
        answering(server, status, body).schema(1)
    assert len(server.asked) == 1


def test_nobody_is_sent_to_another_host(server):
    with serving() as other:
        other.register(WRITER)
        with pytest.raises(RegistryRefused, match=r"sends us elsewhere \(HTTP 302\)"):
            answering(server, 302, b"", Location=f"{other.url}/schemas/ids/1").schema(1)
        assert other.asked == []


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"schema": "x", "schemaType": "PROTOBUF"}, "schema id 7 is of type 'PROTOBUF', only AVRO and JSON can be read"),
        ({"schema": "x", "references": [{"name": "a"}]}, "schema id 7 refers to other schemas, .* register it whole"),
    ],
)
def test_a_schema_that_cannot_be_read_has_a_reason_with_its_id(server, answer, why):
    with pytest.raises(SchemaUnusable, match=why):
        answering(server, 200, answer).schema(7)


def test_a_json_schema_may_refer_to_others_for_nobody_reads_it(server):
    assert answering(server, 200, {"schema": "{}", "schemaType": "JSON", "references": [{}]}).schema(1).kind == "JSON"


def test_user_and_password_open_the_door_and_appear_in_no_error():
    right, wrong = secrets.token_hex(8), secrets.token_hex(8)
    with serving(LocalRegistry(user=("ingest", right))) as server:
        server.register(WRITER)
        assert Registry(server.url, username="ingest", password=right).schema(1).kind == "AVRO"
        with pytest.raises(RegistryRefused, match="set the user and the password"):
            Registry(server.url).schema(1)
        with pytest.raises(RegistryRefused, match="see that user and password are right") as refused:
            Registry(server.url, username="ingest", password=wrong).schema(1)
        server.failing = 99
        with pytest.raises(RegistryUnreachable) as unreachable:
            Registry(server.url, username="ingest", password=wrong, retries=0).schema(1)
        for error in (refused, unreachable):
            assert wrong not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://registry.example:8081", "plain HTTP to another machine.*allow_insecure"),
        ("https://ingest:s3cret@registry.example", "give user and password apart"),
        ("https://registry.example/?token=s3cret", "give user and password apart"),
        ("registry.example:8081", "write it as https://HOST:PORT"),
        ("ftp://registry.example", "write it as https://HOST:PORT"),
        ("https://", "write it as https://HOST:PORT"),
        ("", "write it as https://HOST:PORT"),
        ("http://[::1", "write it as https://HOST:PORT"),
    ],
)
def test_an_address_that_is_wrong_or_not_safe_is_refused_without_its_secrets(url, why):
    with pytest.raises(RegistryRefused, match=why) as stopped:
        Registry(url)
    assert "s3cret" not in str(stopped.value)


def test_plain_http_to_another_machine_may_be_allowed():
    Registry("http://registry.example:8081", allow_insecure=True)


def test_it_can_be_taken_into_another_process(server):
    server.register(WRITER)
    registry = pickle.loads(pickle.dumps(Registry(server.url)))
    assert registry.schema(1).kind == "AVRO"
