"""A cluster behind TLS, passwords and rights: who has the least rights gets a window, who lacks one is told which."""

from __future__ import annotations

import json
import pickle
import socket
import struct
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from assets.stream.handshake import trouble
from assets.stream.kafka import KafkaLog
from assets.stream.log import EventLog, Outgoing, Topics
from assets.stream.refusal import StreamRefused
from pipelines.connection import connection_of
from pipelines.secret import Secret
from pipelines.stream_section import Stream as Section
from tests.certificates import Authority
from tests.clusters import Secured, secured
from tests.windows import Stream, event, label

__all__ = ["secured"]
NOW = datetime.now(UTC)
PREDICTION = {
    "prediction_id": "p1", "event_id": "e1", "unit": "u", "epoch": 1, "arm": "stable", "propensity": 1.0, "version": "1",
    "score": 0.5, "shadow_version": None, "shadow_score": None, "latency_ms": 1.0, "at": "2024-01-01T00:01:00Z",
}  # fmt: skip
LIMIT = 1.0  # seconds; a call may take two of them, and asking again by hand two seconds more


@contextmanager
def opened(section: Section, timeout: float = 7.0) -> Iterator[KafkaLog]:
    connection = connection_of(section, NOW)
    log = KafkaLog(connection.servers, timeout=timeout, client=connection.client)
    yield log
    log.close()


def scram(secured: Secured, user: str = "ingest", **keys: Any) -> Section:
    said = {
        "bootstrap_servers": secured.scram, "security_protocol": "SASL_SSL", "sasl_username": user,
        "sasl_password": Secret(secured.passwords.get(user, "hunter2")), "ssl_cafile": str(secured.authority.file),
    }  # fmt: skip
    return Section(**{**said, **keys})


def mutual(secured: Secured, **keys: Any) -> Section:
    said = {
        "bootstrap_servers": secured.mutual, "security_protocol": "SSL", "ssl_cafile": str(secured.authority.file),
        "ssl_certfile": str(secured.client.certificate), "ssl_keyfile": str(secured.client.key),
    }  # fmt: skip
    return Section(**{**said, **keys})


@pytest.fixture(scope="module")
def plain(secured) -> Iterator[EventLog]:
    """The log as its owner sees it."""
    log = KafkaLog(secured.plain)
    yield log
    log.close()


@pytest.fixture(scope="module")
def topics(plain) -> Topics:
    """Three topics with the names that the rights are for, and one window of records."""
    mark = uuid.uuid4().hex[:8]
    made = Topics(f"read-events-{mark}", f"read-labels-{mark}", f"written-predictions-{mark}")
    for topic in made.all:
        plain.create_topic(topic, 2)
    plain.append(made.events, [event(f"e{number}", number) for number in range(100)])
    plain.append(made.labels, [label(f"e{number}", number) for number in range(100)])
    return made


# -- let in --------------------------------------------------------------------------------------------------------------


def properties(secured: Secured, kind: str) -> str:
    trust = f"security.protocol=%s\nssl.truststore.type=PEM\nssl.truststore.location={secured.authority.file}\nacks=all\n"
    if kind == "mutual":
        own = f"ssl.keystore.type=PEM\nssl.keystore.location={secured.client.both}\n"
        return f"bootstrap.servers={secured.mutual}\n{trust % 'SSL'}{own}"
    module = "scram.Scram" if kind.startswith("SCRAM") else "plain.Plain"
    login = f'org.apache.kafka.common.security.{module}LoginModule required username="ingest"'
    return (
        f"bootstrap.servers={secured.scram}\n{trust % 'SASL_SSL'}sasl.mechanism={kind}\n"
        f'sasl.jaas.config={login} \\\n  password="{secured.passwords["ingest"]}";\n'
    )


def sections(secured: Secured, folder: Path) -> Mapping[str, Section]:
    found = {"scram": scram(secured), "mutual": mutual(secured), "plain over TLS": scram(secured, sasl_mechanism="PLAIN")}
    for kind in ("SCRAM-SHA-512", "PLAIN", "mutual"):
        file = folder / f"{kind}.properties"
        file.touch(mode=0o600)
        file.write_text(properties(secured, kind))
        found[file.name] = Section(client_properties=str(file))
    return found


def test_every_way_in_sees_the_same_log(secured, topics, plain, tmp_path):
    with_all_rights = [record for batch in plain.read(topics.events, 0, 0, 40) for record in batch]
    for way, section in sections(secured, tmp_path).items():
        with opened(section) as log:
            assert log.cluster_id() == plain.cluster_id(), way
            assert [record for batch in log.read(topics.events, 0, 0, 40) for record in batch] == with_all_rights, way


def test_the_least_rights_of_the_documentation_are_enough_for_a_window(secured, topics, plain, tmp_path):
    with opened(scram(secured)) as here, closing(pickle.loads(pickle.dumps(here.opener()))()) as log:  # as in a process
        assert log.append(topics.predictions, [Outgoing(b"e1", json.dumps(PREDICTION).encode())]) == 1
        mine, owners = Stream(log, topics, tmp_path / "mine"), Stream(plain, topics, tmp_path / "owner")
        for stream in (mine, owners):
            stream.end(600)
            _, sealed, _ = stream.run(0)
            assert dict(sealed.rows) == dict(zip(topics.all, (60, 60, 1), strict=True))
        assert mine.hashes() == owners.hashes()


# -- not let in ----------------------------------------------------------------------------------------------------------


def refused(section: Section, message: str, call: Any = KafkaLog.cluster_id) -> None:
    begun = time.monotonic()
    with opened(section, LIMIT) as log, pytest.raises(StreamRefused, match=message) as caught:
        call(log)
    assert time.monotonic() - begun < 2 * LIMIT + 3
    assert not section.sasl_password or section.sasl_password.reveal() not in str(caught.value)


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SASL_SSL"])
def test_a_peer_that_sends_a_byte_now_and_then_is_given_up_at_the_limit(protocol):
    def drip(server: socket.socket) -> None:
        peer, _ = server.accept()
        try:
            peer.recv(999)
            peer.sendall(b"\x16\x03\x03\x3f\x00" if protocol == "SASL_SSL" else struct.pack(">i", 60_000))
            for _ in range(40):
                time.sleep(0.1)
                peer.sendall(b"x")
        except OSError:
            pass
        finally:
            peer.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        begun = time.monotonic()
        assert trouble(f"127.0.0.1:{server.getsockname()[1]}", {"security_protocol": protocol}, 0.5) == ""
        assert time.monotonic() - begun < 1.5
        thread.join()


def test_a_wrong_password_and_an_unknown_user_are_told_as_that(secured):
    refused(scram(secured, sasl_password=Secret("hunter2")), "user 'ingest' is refused .*SCRAM-SHA-512.: no such user, or")
    refused(scram(secured, user="nobody"), "user 'nobody' is refused")
    refused(scram(secured, sasl_mechanism="PLAIN", sasl_password=Secret("hunter2")), "user 'ingest' is refused")


def test_an_authority_that_did_not_sign_the_broker_is_told(secured, tmp_path):
    other = Authority(tmp_path, "Somebody else")
    refused(scram(secured, ssl_cafile=str(other.file)), "not signed by anybody we trust .*ssl_cafile")
    refused(scram(secured, ssl_cafile=""), "not signed by anybody we trust .*ssl_cafile")


def test_an_expired_broker_is_told(secured):
    refused(mutual(secured, bootstrap_servers=secured.expired), "certificate has expired .*renew it on the broker")


def test_a_broker_with_a_certificate_for_another_name_is_told(secured):
    address = secured.mutual.replace("localhost", "127.0.0.1")
    refused(mutual(secured, bootstrap_servers=address), "was not made for this address .*use a name that is in it")


def test_without_a_certificate_of_ours_or_with_one_of_somebody_else_it_is_told(secured, tmp_path):
    refused(mutual(secured, ssl_certfile="", ssl_keyfile=""), "wants another certificate of ours .*ssl_certfile")
    foreign = Authority(tmp_path, "Somebody else").sign("ingest")
    stranger = mutual(secured, ssl_certfile=str(foreign.certificate), ssl_keyfile=str(foreign.key))
    refused(stranger, "wants another certificate of ours .*ssl_certfile")


def test_the_wrong_protocol_or_mechanism_is_told_with_the_right_one(secured):
    bare = Section(bootstrap_servers=secured.scram)
    refused(bare, 'this listener speaks TLS: set .*"SASL_SSL"')
    refused(mutual(secured, bootstrap_servers=secured.scram), "wants a user .SCRAM-SHA-512, PLAIN.*set \"SASL_SSL\"")
    refused(scram(secured, bootstrap_servers=secured.plain), "speaks no TLS .*security_protocol")
    refused(scram(secured, bootstrap_servers=secured.expired, ssl_cafile=str(secured.authority.file)), "expired")
    refused(scram(secured, sasl_mechanism="SCRAM-SHA-256"), "offers SCRAM-SHA-512, PLAIN, not SCRAM-SHA-256")
    local = Section(
        bootstrap_servers=secured.plain, security_protocol="SASL_PLAINTEXT", sasl_username="u",
        sasl_password=Secret("hunter2"),
    )  # fmt: skip
    refused(local, 'knows no users: set .*"PLAINTEXT"')


@pytest.mark.parametrize("way", [scram, mutual])
def test_a_missing_right_is_named_with_its_topic_and_its_cure(secured, topics, plain, way):
    secret = f"secret-{uuid.uuid4().hex[:8]}"
    plain.create_topic(secret, 1)
    me = "user 'ingest'" if way is scram else "the owner of our certificate"
    for right, topic, call in (
        ("Create", "read-new", lambda log: log.create_topic("read-new", 1)),
        ("Describe", secret, lambda log: log.bounds(secret, NOW)),
        ("Describe", secret, lambda log: list(log.read(secret, 0, 0, 1))),
        ("Write", topics.events, lambda log: log.append(topics.events, [Outgoing(b"k", b"v")])),
    ):
        refused(way(secured), f"{topic}.*{me} lacks the right {right}: add the ACL {right} on .*docs/settings.md", call)


def test_without_describe_configs_the_cut_says_what_to_add(secured, topics):
    blind = scram(secured, user="blind")
    message = "settings of topic.*user 'blind' lacks the right DescribeConfigs"
    refused(blind, message, lambda log: log.bounds(topics.events, NOW))
    with opened(blind) as log:
        assert sum(len(batch) for batch in log.read(topics.events, 0, 0, 10)) == 10
