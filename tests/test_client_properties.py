"""A Java client.properties means here what it means in Java, or it is refused."""

from __future__ import annotations

import pytest

from assets.stream.tls import Tls
from pipelines.client_properties import UnusableConnection, read_client_properties
from tests.certificates import Authority

SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule"
PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"


@pytest.fixture
def read(tmp_path):
    """read(text) -> what the file says."""

    def write(text: str, mode: int = 0o600):
        file = tmp_path / "client.properties"
        file.touch()
        file.chmod(mode)
        file.write_text(text, "latin-1")
        return read_client_properties(file)

    return write


def test_the_file_platform_teams_hand_out(read):
    found = read(
        f"""# Required connection configs
bootstrap.servers=kafka.example.org:9092
security.protocol=SASL_SSL
sasl.jaas.config={PLAIN} required username='KEY' password='s3cr=t;,"';
sasl.mechanism=PLAIN
ssl.endpoint.identification.algorithm=https
ssl.enabled.protocols=TLSv1.2,TLSv1.3
client.dns.lookup=use_all_dns_ips
acks=all
"""
    )
    assert found.values == {
        "bootstrap_servers": "kafka.example.org:9092", "security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN",
        "sasl_username": "KEY", "sasl_password": 's3cr=t;,"',
    }  # fmt: skip
    assert found.ignored == ("acks", "client.dns.lookup", "ssl.enabled.protocols")
    assert "s3cr" not in repr(found)


def test_lines_continue_names_end_where_java_ends_them_and_escapes_mean_what_they_mean_in_java(read):
    found = read(
        "! a comment\n   \n  bootstrap.servers : a:1,\\\n     b:2\r\nsecurity.protocol   sasl_ssl\n"
        "sasl.mech\\u0061nism = SCRAM-SHA-256\n"
        f'sasl.jaas.config={SCRAM} \\\n  required \\\n  username="in\\\\"gest" \\\n  password="p\\u00e4\\\\\\\\ss";\n'
    )
    assert found.values["bootstrap_servers"] == "a:1,b:2" and found.values["security_protocol"] == "SASL_SSL"
    assert found.values["sasl_username"] == 'in"gest' and found.values["sasl_password"].reveal() == "pä\\ss"


def test_certificates_come_as_files_or_as_text_on_one_line(read, tmp_path):
    authority = Authority(tmp_path / "certificates")
    signed = authority.sign("ingest", password="hunter2")
    by_file = read(
        f"ssl.truststore.type=PEM\nssl.truststore.location={authority.file}\nssl.keystore.type=PEM\n"
        f"ssl.keystore.location={signed.both}\nssl.key.password=hunter2\n"
    ).values
    one_line = {path: " ".join(path.read_text().split("\n")) for path in (authority.file, signed.certificate, signed.key)}
    by_text = read(
        f"ssl.truststore.type=PEM\nssl.truststore.certificates={one_line[authority.file]}\nssl.keystore.type=pem\n"
        f"ssl.keystore.certificate.chain={one_line[signed.certificate]}\nssl.keystore.key={one_line[signed.key]}\n"
        "ssl.key.password=hunter2\n"
    ).values
    contexts = [
        Tls(found["ssl_cafile"], found["ssl_certfile"], found.get("ssl_keyfile", ""), found["ssl_key_password"]).context()
        for found in (by_file, by_text)
    ]
    assert contexts[0].get_ca_certs() == contexts[1].get_ca_certs() != []
    assert "PRIVATE" not in repr(by_text) and "hunter2" not in repr(by_text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ssl.truststore.location=/x.jks", "ssl.truststore.type=JKS cannot be read here: export it .keytool -exportcert -rfc"),
        ("ssl.keystore.type=PKCS12\nssl.keystore.location=/x.p12", "ssl.keystore.type=PKCS12.*openssl pkcs12 -in FILE"),
        ("ssl.keystore.type=PEM\nssl.keystore.key=x", "without ssl.keystore.certificate.chain"),
        ("ssl.truststore.type=PEM\nssl.truststore.certificates=x", "is no PEM text"),
        ("ssl.cipher.suites=TLS_AES_256_GCM_SHA384", "ssl.cipher.suites is not supported here, and may matter"),
        ("sasl.client.callback.handler.class=x", "sasl.client.callback.handler.class is not supported here"),
        ("security.providers=x", "security.providers is not supported here"),
        ("ssl.endpoint.identification.algorithm=ldaps", "=ldaps: https wanted"),
        ("bootstrap.servers=${file:/etc/kafka:servers}", "names a Java configuration provider"),
        (f"sasl.jaas.config={SCRAM} required username=a password=b;", "sasl.mechanism=GSSAPI .the default. does not go with"),
        (f"sasl.mechanism=PLAIN\nsasl.jaas.config={SCRAM} required username=a password=b;", "=PLAIN does not go with Scram"),
        ("sasl.mechanism=OAUTHBEARER\nsasl.jaas.config=x.OAuthBearerLoginModule required;", "ScramLoginModule or Plain"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_what_to_do(read, text, message):
    with pytest.raises(UnusableConnection, match=f"client.properties: .*{message}"):
        read(text)


@pytest.mark.parametrize(
    "jaas",
    [
        "required username=a;", 'required username="a" password="hunter2', 'required username="a" password="hunter2"',
        'required username="a" password=hunter2=2;', "required username password;", "username=a password=hunter2;",
        'required tokenauth=true username="a" password="hunter2";', "", "required username=a ; password=hunter2;",
    ],
)  # fmt: skip
def test_a_login_that_java_would_not_take_is_refused_and_not_guessed(read, jaas):
    with pytest.raises(UnusableConnection) as caught:
        read(f"sasl.mechanism=SCRAM-SHA-512\nsasl.jaas.config={SCRAM} {jaas}")
    assert "sasl.jaas.config" in str(caught.value) and "hunter2" not in str(caught.value)


def test_a_file_with_a_password_that_others_may_read_is_refused(read):
    assert read("acks=all", mode=0o644).ignored == ("acks",)
    with pytest.raises(UnusableConnection, match=r"holds sasl\.jaas\.config and has mode 0644.*run chmod 0400"):
        read(f"sasl.mechanism=PLAIN\nsasl.jaas.config={PLAIN} required username=a password=b;", mode=0o644)
