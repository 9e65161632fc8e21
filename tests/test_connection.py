"""[stream] as a Kafka client sees it: what would leak or cannot work is refused before a client is made."""

from __future__ import annotations

import json
import logging
import pickle
import ssl
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import cli
from pipelines.client_properties import UnusableConnection
from pipelines.connection import connection_of
from pipelines.opening import opened
from pipelines.secret import Secret
from pipelines.settings import SettingsError, load_settings, make_settings
from pipelines.stream_section import Stream
from tests.certificates import DAY, Authority

NOW = datetime.now(UTC)
FAR = "kafka.example.org:9093"
USER = {"sasl_username": "ingest", "sasl_password": Secret("hunter2")}
SCRAM = {"bootstrap_servers": FAR, "security_protocol": "SASL_SSL", **USER}


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def client_of(**keys: object) -> dict[str, object]:
    return dict(connection_of(Stream(**keys), NOW).client)


# -- what a client is told -----------------------------------------------------------------------------------------------


def test_without_security_a_client_is_told_nothing():
    for servers in ("", "embedded", "127.0.0.1:9092", "localhost:1,[::1]:2, 127.9.9.9:3"):
        assert client_of(bootstrap_servers=servers) == {}


def test_scram_over_tls_is_user_password_and_a_context_that_checks_certificate_and_host(authority):
    client = client_of(**SCRAM, ssl_cafile=str(authority.file))
    assert client["security_protocol"] == "SASL_SSL" and client["sasl_mechanism"] == "SCRAM-SHA-512"
    assert client["sasl_plain_password"].encode() == b"hunter2"
    context = client["ssl_context"].context()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.check_hostname and context.verify_mode is ssl.CERT_REQUIRED
    assert [found["subject"][0][0][1] for found in context.get_ca_certs()] == ["Test authority"]


def test_without_an_authority_the_systems_own_are_trusted():
    context = client_of(**SCRAM)["ssl_context"].context()
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname


def test_a_client_can_be_sent_to_another_process_and_its_files_are_read_there(authority, monkeypatch, tmp_path):
    signed = authority.sign("worker", password="hunter2")
    monkeypatch.chdir(authority.file.parent)
    client = client_of(
        bootstrap_servers=FAR, security_protocol="SSL", ssl_cafile="ca.pem", ssl_certfile=signed.certificate.name,
        ssl_keyfile=signed.key.name, ssl_key_password=Secret("hunter2"),
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)  # relative names were meant from the folder of the settings
    sent = pickle.dumps(client)
    assert b"BEGIN" not in sent
    assert pickle.loads(sent)["ssl_context"].context().get_ca_certs()


# -- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"bootstrap_servers": FAR}, "'PLAINTEXT' to kafka.example.org, which is not this machine.*allow_insecure = true"),
        ({"bootstrap_servers": "127.0.0.1:9092,10.0.0.7:9092"}, "to 10.0.0.7, which is not this machine"),
        ({"bootstrap_servers": "127.1:9092"}, "to 127.1, which is not"),
        ({"bootstrap_servers": "localhost.evil.org:9092"}, "to localhost.evil.org, which is not"),
        ({**SCRAM, "security_protocol": "SASL_PLAINTEXT"}, "'SASL_PLAINTEXT' to kafka.example.org, which is not"),
        ({**SCRAM, "security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "allow_insecure": True},
         "'PLAIN' without TLS would send the password to kafka.example.org in the clear"),
        ({**SCRAM, "sasl_username": ""}, "SASL_SSL with SCRAM-SHA-512 needs sasl_username"),
        ({**SCRAM, "sasl_password": Secret("")}, "needs sasl_password .or sasl_password_file"),
        ({**SCRAM, "sasl_username": "a,b"}, "no comma and no = can be in it"),
        ({**SCRAM, "sasl_username": "a=b"}, "no comma and no = can be in it"),
        ({**SCRAM, "sasl_mechanism": "PLAIN", "sasl_username": "a\0b"}, "no zero byte"),
        ({**SCRAM, "sasl_mechanism": "OAUTHBEARER"}, "'OAUTHBEARER' is not supported: ask for a user with one of SCRAM"),
        ({**SCRAM, "security_protocol": "TLS"}, "'TLS': one of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL wanted"),
        ({"bootstrap_servers": "127.0.0.1:9092", **USER}, "'PLAINTEXT' sends neither: write \"SASL_SSL\""),
        ({"bootstrap_servers": "127.0.0.1:9092", "ssl_cafile": "ca.pem"}, "ssl_cafile is set, but .* has no TLS"),
        ({**SCRAM, "ssl_keyfile": "key.pem"}, "ssl_keyfile without ssl_certfile"),
        ({"security_protocol": "SSL"}, "'SSL', but bootstrap_servers = '' is a log on this machine"),
        ({**SCRAM, "bootstrap_servers": "embedded"}, "bootstrap_servers = 'embedded' is a log on this machine"),
        ({"bootstrap_servers": "localhost"}, "'localhost' is no \"host:port\""),
        ({"bootstrap_servers": "SSL://localhost:9092"}, "'SSL://localhost:9092' is no"),
        ({"bootstrap_servers": "::1:9092"}, "'::1:9092' is no"),
        ({"bootstrap_servers": "localhost:9092,"}, "'' is no"),
        ({"schema_registry": "http://registry.example.org"}, "anybody on the way can change the schemas; use https, or"),
        ({"schema_registry": "http://registry.example.org", "schema_registry_username": "me", "allow_insecure": True,
          "schema_registry_password": Secret("hunter2")}, "the password travels in the clear; use https"),
        ({"schema_registry": "https://me:hunter2@registry.example.org"}, "schema_registry holds a user"),
        ({"schema_registry": "https://registry.example.org", "schema_registry_username": "me"}, "both or neither"),
        ({"schema_registry": "registry.example.org"}, "https://host"),
        ({"schema_registry": "me:hunter2@registry.example.org"}, "schema_registry: https://host"),
        ({"schema_registry": "ftp://registry.example.org?token=hunter2"}, "schema_registry: https://host"),
        ({"schema_registry": "http://registry.example.org?token=hunter2"}, "schema_registry: anybody on the way"),
        ({"schema_registry": "https://me:hunter2@[registry"}, "schema_registry is no URL: https://host"),
        ({"schema_registry": "https://me:hunter2#@registry.example.org"}, "schema_registry is no URL: https://host"),
        ({"schema_registry": "https://[registry"}, "schema_registry = 'https://.registry' is no URL: https://host"),
        ({"schema_registry_username": "me"}, "schema_registry is not"),
    ],
)  # fmt: skip
def test_what_would_leak_or_cannot_work_is_refused_when_settings_are_loaded(keys, message):
    with pytest.raises(SettingsError, match=message) as caught:
        make_settings({"task": "t", "stream": keys})
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_what_is_allowed_though_insecure_is_said_at_every_start(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = {"bootstrap_servers": "192.0.2.1:9092", "schema_registry": "http://192.0.2.1", "allow_insecure": True}
    settings = make_settings({"task": "no.such:Task", "stream": keys, "journal": {"url": f"sqlite:///{tmp_path}/j.db"}})
    for _ in range(2):
        with pytest.raises(Exception, match=r"no\.such"), opened(settings):
            pass
        first, second = capsys.readouterr().err.splitlines()
        assert first.startswith("headgate: INSECURE") and "records travel to 192.0.2.1 without encryption" in first
        assert "schemas come from 192.0.2.1 without encryption" in second


def test_a_password_in_the_clear_stays_on_this_machine():
    client = client_of(
        bootstrap_servers="localhost:9092", security_protocol="SASL_PLAINTEXT", sasl_mechanism="PLAIN", **USER
    )
    assert client["sasl_mechanism"] == "PLAIN"


# -- files ---------------------------------------------------------------------------------------------------------------


def refused(message: str, **keys: object) -> None:
    stream = Stream(bootstrap_servers=FAR, security_protocol="SSL", **{name: str(path) for name, path in keys.items()})
    with pytest.raises(UnusableConnection, match=message):
        connection_of(stream, NOW)


def test_a_file_that_is_missing_or_no_certificate_is_named(authority, tmp_path):
    refused("ssl_cafile: .*No such file.*none.pem", ssl_cafile=tmp_path / "none.pem")
    (tmp_path / "empty.pem").write_text("no PEM")
    refused("ssl_cafile = .*empty.pem holds no PEM certificate", ssl_cafile=tmp_path / "empty.pem")
    signed = authority.sign("one")
    refused("ssl_certfile = .*PEM files wanted", ssl_certfile=signed.certificate)
    refused("the key must belong to the certificate", ssl_certfile=signed.certificate, ssl_keyfile=authority.sign("two").key)


def test_an_expired_certificate_is_named_with_its_date(authority):
    late = authority.sign("late", lasts=-DAY)
    refused("ssl_certfile = .*CN=late expired at .*: get a new one", ssl_certfile=late.certificate, ssl_keyfile=late.key)
    stream = Stream(bootstrap_servers=FAR, security_protocol="SSL", ssl_cafile=str(authority.file))
    with pytest.raises(UnusableConnection, match=r"ssl_cafile = .*CN=Test authority expired at"):
        connection_of(stream, NOW + timedelta(days=400))
    with pytest.raises(UnusableConnection, match="is not valid before"):
        connection_of(stream, NOW - timedelta(days=400))


def test_one_authority_in_force_is_enough(authority, tmp_path):
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(authority.sign("late", lasts=-DAY).certificate.read_bytes() + authority.file.read_bytes())
    assert connection_of(Stream(bootstrap_servers=FAR, security_protocol="SSL", ssl_cafile=str(bundle)), NOW)


def test_a_key_that_others_may_read_is_refused_wherever_it_lies(authority):
    signed = authority.sign("open")
    for path in (signed.key, signed.both):
        path.chmod(0o640)
    refused("private key and has mode 0640.*chmod 0400", ssl_certfile=signed.certificate, ssl_keyfile=signed.key)
    refused("private key and has mode 0640.*chmod 0400", ssl_certfile=signed.both)
    signed.both.chmod(0o400)
    assert client_of(bootstrap_servers=FAR, security_protocol="SSL", ssl_certfile=str(signed.both))


@pytest.mark.parametrize("password", ["", "wrong"])
def test_an_encrypted_key_without_its_password_is_an_error_and_no_question_on_the_terminal(authority, password):
    signed = authority.sign("locked", password="hunter2")
    stream = Stream(
        bootstrap_servers=FAR, security_protocol="SSL", ssl_certfile=str(signed.both), ssl_key_password=Secret(password)
    )
    with pytest.raises(UnusableConnection, match="needs ssl_key_password_file"):
        connection_of(stream, NOW)


# -- secrets stay secret -------------------------------------------------------------------------------------------------


def test_passwords_appear_in_no_output_and_in_no_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    password = tmp_path / "password"
    password.write_text("hunter2\n")
    password.chmod(0o400)
    lines = [
        'task = "t"', "[stream]", f'bootstrap_servers = "{FAR}"', 'security_protocol = "SASL_SSL"',
        'sasl_username = "ingest"', 'sasl_password_file = "password"', 'ssl_key_password = ""',
    ]  # fmt: skip
    (tmp_path / "headgate.toml").write_text("\n".join(lines))
    settings = load_settings(tmp_path / "headgate.toml", {})
    connection = connection_of(settings.stream, NOW)
    shown = CliRunner().invoke(cli, ["config", "show"])
    assert shown.exit_code == 0 and 'sasl_password = "********"' in shown.output
    for text in (shown.output, repr(settings), str(connection), json.dumps(settings.shown()), settings.as_toml()):
        assert "hunter2" not in text and "ingest" in text
    assert f"{settings.stream.sasl_password:>20}|{settings.stream.sasl_password!s}" == f"{'********':>20}|********"


def test_a_password_of_digits_is_text_in_the_environment_and_an_error_without_itself_in_the_file(tmp_path):
    file = tmp_path / "headgate.toml"
    file.write_text(f'task = "t"\n[stream]\nbootstrap_servers = "{FAR}"\nsecurity_protocol = "SASL_SSL"\nsasl_username = "u"')
    settings = load_settings(file, {"HEADGATE_STREAM__SASL_PASSWORD": "31415926"})
    assert settings.stream.sasl_password.reveal() == "31415926"
    for value, message in (("31415926", "is no text: write it in quotes"), ("'********'", "as `headgate config show` prints")):
        file.write_text(f'task = "t"\n[stream]\nsasl_password = {value}')
        with pytest.raises(SettingsError, match=message) as caught:
            load_settings(file, {})
        assert "31415926" not in str(caught.value)


def test_a_private_key_written_into_the_settings_is_refused_without_showing_it():
    key = "-----BEGIN PRIVATE KEY-----\n" + "MIGH" * 4
    with pytest.raises(SettingsError, match="name a file with mode 0400") as caught:
        make_settings({"task": "t", "stream": {"ssl_keyfile": key}})
    assert "MIGH" * 2 not in "".join(traceback.format_exception(caught.value))


def test_a_java_file_and_the_section_must_not_contradict_each_other(tmp_path, caplog):
    file = tmp_path / "client.properties"
    file.write_text(f"bootstrap.servers=b.example.org:2, {FAR}\nsecurity.protocol=SSL\nacks=all\nlinger.ms=5\n")
    with caplog.at_level(logging.DEBUG, "headgate.stream"):
        found = connection_of(Stream(client_properties=str(file)), NOW)
    assert found.servers == f"b.example.org:2, {FAR}" and found.client["security_protocol"] == "SSL"
    told = [record.getMessage() for record in caplog.records if record.name == "headgate.stream"]
    assert told == [f"{file}: ignored acks, linger.ms"]
    same = Stream(client_properties=str(file), bootstrap_servers=f"{FAR},b.example.org:2", security_protocol="SSL")
    assert connection_of(same, NOW).client.keys() == found.client.keys()
    for keys in ({"bootstrap_servers": "embedded"}, {"security_protocol": "SASL_SSL"}):
        with pytest.raises(UnusableConnection, match=r"but .*client\.properties says .*: leave one of them out"):
            connection_of(Stream(client_properties=str(file), **keys), NOW)


def test_a_java_file_cannot_switch_off_what_the_section_did_not_allow(tmp_path):
    file = tmp_path / "client.properties"
    file.write_text(f"bootstrap.servers={FAR}\nsecurity.protocol=PLAINTEXT\n")
    told = r"which is not this machine.*client\.properties sets bootstrap_servers, security_protocol\)$"
    with pytest.raises(UnusableConnection, match=told):
        connection_of(Stream(client_properties=str(file)), NOW)
    file.write_text(f"bootstrap.servers={FAR}\nsecurity.protocol=SSL\nssl.endpoint.identification.algorithm=\n")
    with pytest.raises(UnusableConnection, match=r"could pose as the broker.*allow_insecure = true"):
        connection_of(Stream(client_properties=str(file)), NOW)
    allowed = connection_of(Stream(client_properties=str(file), allow_insecure=True), NOW)
    context = allowed.client["ssl_context"].context()
    assert not context.check_hostname and context.verify_mode is ssl.CERT_REQUIRED
    assert allowed.warnings == ("the broker's certificate is not compared with its host name (client.properties)",)


def test_a_missing_java_file_is_named():
    with pytest.raises(UnusableConnection, match=r"client_properties: .*No such file.*/no/client\.properties"):
        connection_of(Stream(client_properties=str(Path("/no/client.properties"))), NOW)
