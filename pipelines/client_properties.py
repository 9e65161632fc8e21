"""A Java `client.properties`, which is what platform teams hand out, as the keys of [stream].

Read as Java reads it (java.util.Properties, Kafka's client configuration, JAAS). What concerns other clients, such as
`acks`, is left aside; what concerns security and is not understood is refused. It does not know what [stream] says.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.secret import Secret

# Java's names for what a key of [stream] says in the same words.
_SAME = {
    "bootstrap.servers": "bootstrap_servers",
    "security.protocol": "security_protocol",
    "sasl.mechanism": "sasl_mechanism",
    "ssl.key.password": "ssl_key_password",
}
_STORES = ("ssl.truststore.", "ssl.keystore.")
_OTHERS = {"sasl.jaas.config", "ssl.endpoint.identification.algorithm"}
# Concern security, and change nothing here: PEM stores have no password, and TLS 1.2 or later is certain.
_WITHOUT_EFFECT = re.compile(
    r"ssl\.((truststore|keystore)\.password|protocol|enabled\.protocols|provider|(key|trust)manager\.algorithm"
    r"|secure\.random\.implementation)|sasl\.(kerberos|login\.(refresh|retry|connect|read)|oauthbearer)\..*"
)
_SECURITY = ("ssl.", "sasl.", "security.")
_MODULES = {"ScramLoginModule": "SCRAM-", "PlainLoginModule": "PLAIN"}
_ESCAPED = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_JAAS = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|([^\s=;"']+)|([=;]))""", re.DOTALL)


class UnusableConnection(ValueError):
    """The way to the cluster cannot be used as it is written down; the message says what to write instead."""


@dataclass(frozen=True)
class ClientProperties:
    """values: by key of [stream], and `ssl_check_hostname`. ignored: names of properties that mean nothing here."""

    values: Mapping[str, Any]
    ignored: tuple[str, ...]


def read_client_properties(path: Path) -> ClientProperties:
    """Read the file. Raises UnusableConnection; no message holds a password."""
    try:
        found = dict(_properties(path.read_text("latin-1")))  # Java's encoding of such files
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise UnusableConnection(f"[stream] client_properties: {error}") from error
    secrets = sorted(found.keys() & {"sasl.jaas.config", "ssl.keystore.key", "ssl.key.password"})
    if secrets and mode & 0o077:
        raise UnusableConnection(
            f"{path} holds {secrets[0]} and has mode {mode:04o}, so others may read it; wanted 0400: run chmod 0400 {path}"
        )
    try:
        return _translated(found)
    except UnusableConnection as error:
        raise UnusableConnection(f"{path}: {error}") from None


def _translated(found: dict[str, str]) -> ClientProperties:
    ignored = []
    for name, text in found.items():
        known = name in _SAME or name in _OTHERS or name.startswith(_STORES)
        if not known or _WITHOUT_EFFECT.fullmatch(name):
            if name.startswith(_SECURITY) and not _WITHOUT_EFFECT.fullmatch(name):
                raise UnusableConnection(f"{name} is not supported here, and may matter: use a copy of the file without it")
            ignored.append(name)
        elif "${" in text:
            raise UnusableConnection(f"{name} names a Java configuration provider (${{...}}): write the value itself")
    values: dict[str, Any] = {_SAME[name]: text.strip() for name, text in found.items() if name in _SAME and text.strip()}
    if "security_protocol" in values:
        values["security_protocol"] = values["security_protocol"].upper()
    if "ssl_key_password" in values:
        values["ssl_key_password"] = Secret(found["ssl.key.password"])
    if jaas := found.get("sasl.jaas.config"):
        values |= _login(jaas, values.get("sasl_mechanism", ""))
    values |= _trusted(found) | _own(found)
    if (algorithm := found.get("ssl.endpoint.identification.algorithm", "https").strip().lower()) not in ("https", ""):
        raise UnusableConnection(f"ssl.endpoint.identification.algorithm={algorithm}: https wanted")
    if not algorithm:
        values["ssl_check_hostname"] = False
    return ClientProperties(values, tuple(sorted(ignored)))


def _login(jaas: str, mechanism: str) -> dict[str, Any]:
    """User and password of `...ScramLoginModule required username="..." password="...";`."""
    words = list(_words(jaas))
    module = words[0][0].rpartition(".")[2] if words else ""
    if module not in _MODULES:
        raise UnusableConnection(f"sasl.jaas.config: login module {module!r}; {' or '.join(_MODULES)} wanted")
    if not mechanism.startswith(_MODULES[module]):
        raise UnusableConnection(f"sasl.mechanism={mechanism or 'GSSAPI (the default)'} does not go with {module}")
    body, shape = words[2:-1], "".join(text if sign else "w" for text, sign in words)
    if shape != "ww" + "w=w" * (len(body) // 3) + ";":
        raise UnusableConnection('sasl.jaas.config: MODULE required username="..." password="..."; wanted')
    options = {body[at][0]: body[at + 2][0] for at in range(0, len(body), 3)}
    if options.get("tokenauth") == "true":
        raise UnusableConnection("sasl.jaas.config: delegation tokens (tokenauth) are not supported: use a user of its own")
    if missing := {"username", "password"} - options.keys():
        raise UnusableConnection(f'sasl.jaas.config: no {max(missing)}="..." in it')
    return {"sasl_username": options["username"], "sasl_password": Secret(options["password"])}


def _words(jaas: str) -> Iterator[tuple[str, bool]]:
    """Words, and whether each is a sign (= or ;) of the grammar."""
    position, end = 0, len(jaas.rstrip())
    while position < end:
        if (match := _JAAS.match(jaas, position)) is None:
            raise UnusableConnection("sasl.jaas.config: a quote is not closed")
        double, single, bare, sign = match.groups()
        quoted = double if double is not None else single
        yield (sign, True) if sign else (bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted), False)
        position = match.end()


def _trusted(found: Mapping[str, str]) -> dict[str, Any]:
    location, text = found.get("ssl.truststore.location"), found.get("ssl.truststore.certificates")
    if not location and not text:
        return {}
    cure = "keytool -exportcert -rfc -keystore FILE -alias NAME > ca.pem"
    _check_type("ssl.truststore", found, cure, "ssl.truststore.location or [stream] ssl_cafile")
    return {"ssl_cafile": _lines(text) if text else str(location).strip()}


def _own(found: Mapping[str, str]) -> dict[str, Any]:
    location, key = found.get("ssl.keystore.location"), found.get("ssl.keystore.key")
    if not location and not key:
        return {}
    cure = "openssl pkcs12 -in FILE -out client.pem (a JKS first: keytool -importkeystore -deststoretype PKCS12)"
    _check_type("ssl.keystore", found, cure, "ssl.keystore.location or [stream] ssl_certfile")
    if location:  # one file holds both
        return {"ssl_certfile": location.strip()}
    if not (chain := found.get("ssl.keystore.certificate.chain")):
        raise UnusableConnection("ssl.keystore.key without ssl.keystore.certificate.chain: give both")
    return {"ssl_certfile": _lines(chain), "ssl_keyfile": Secret(_lines(str(key)))}


def _lines(pem: str) -> str:
    """PEM text with its line ends back: in a property they may be blanks, which Java accepts and OpenSSL does not."""
    blocks = re.findall(r"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", pem, re.DOTALL)
    if not blocks:
        raise UnusableConnection("a certificate or key in the file is no PEM text (-----BEGIN ...-----)")
    return "".join(
        "\n".join([f"-----BEGIN {kind}-----", *re.findall(".{1,64}", "".join(body.split())), f"-----END {kind}-----\n"])
        for kind, body in blocks
    )


def _check_type(store: str, found: Mapping[str, str], cure: str, place: str) -> None:
    kind = found.get(f"{store}.type", "JKS").strip().upper() or "JKS"
    if kind != "PEM":
        raise UnusableConnection(
            f"{store}.type={kind} cannot be read here: export it ({cure}), name the PEM file in {place}, and say "
            f"{store}.type=PEM"
        )


# -- java.util.Properties ----------------------------------------------------------------------------------------------


def _properties(text: str) -> Iterator[tuple[str, str]]:
    for line in _logical_lines(text):
        if (match := re.match(r"((?:\\.|[^\\=:\s])*)(?:\s*[=:]\s*|\s+|$)", line, re.DOTALL)) is not None:
            yield _unescaped(match[1]), _unescaped(line[match.end() :])


def _logical_lines(text: str) -> Iterator[str]:
    """Lines without comments; a backslash at the end of one, itself not escaped, goes on with the next."""
    whole = ""
    for line in re.split(r"\r\n|\n|\r", text):
        part = line.lstrip(" \t\f")
        if not whole and (not part or part[0] in "#!"):
            continue
        whole += part
        if (len(whole) - len(whole.rstrip("\\"))) % 2:
            whole = whole[:-1]
            continue
        yield whole
        whole = ""
    if whole:
        yield whole


def _unescaped(text: str) -> str:
    def plain(match: re.Match[str]) -> str:
        return chr(int(match[1], 16)) if match[1] else _ESCAPED.get(match[2], match[2])

    return re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.))", plain, text, flags=re.DOTALL)
