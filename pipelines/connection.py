"""What [stream] means for a Kafka client: where the cluster is, who we are there, whom we trust.

What would put records or a password on a network in the clear, or cannot work, is refused here with its cure, before a
client is made: kafka-python 3.0 builds the error for SCRAM without a user, and does not raise it. No connection is opened
here, and what the topics hold is not known.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from assets.stream.tls import is_text
from pipelines.client_properties import UnusableConnection, read_client_properties
from pipelines.pem_files import checked_tls
from pipelines.secret import Secret
from security.listening import is_loopback

if TYPE_CHECKING:
    from pipelines.stream_section import Stream

EMBEDDED = "embedded"
PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN")

logger = logging.getLogger("headgate.stream")


@dataclass(frozen=True)
class Connection:
    """servers: "host:port,...", "" = a local broker, or "embedded". client: settings for each Kafka client; can be pickled.

    warnings: what must be said at every start, because `allow_insecure` allows it.
    """

    servers: str
    client: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Access:
    """What [stream] and a client.properties say together, under the names of [stream]."""

    bootstrap_servers: str
    security_protocol: str
    sasl_mechanism: str
    sasl_username: str
    sasl_password: Secret
    ssl_cafile: str
    ssl_certfile: str
    ssl_keyfile: str
    ssl_key_password: Secret
    allow_insecure: bool
    ssl_check_hostname: bool = True

    @property
    def tls(self) -> bool:
        return self.security_protocol.endswith("SSL")

    @property
    def sasl(self) -> bool:
        return self.security_protocol.startswith("SASL_")

    @property
    def far(self) -> list[str]:
        """The hosts that are not this machine."""
        if self.bootstrap_servers in ("", EMBEDDED):
            return []
        hosts = [_host(server) for server in self.bootstrap_servers.split(",")]
        return [host for host in hosts if not is_loopback(host)]


def connection_of(stream: Stream, now: datetime) -> Connection:
    """What clients need to reach the cluster; reads the files that are named. Raises UnusableConnection."""
    found = _from_java(stream)
    access = _access(stream, found)
    try:
        warnings = _check(access) + registry_warnings(stream)
        return Connection(access.bootstrap_servers, _client(access, now), warnings)
    except UnusableConnection as error:
        if not found:
            raise
        raise UnusableConnection(f"{error} ({stream.client_properties} sets {', '.join(sorted(found))})") from None


def in_effect(stream: Stream) -> dict[str, str]:
    """The keys of [stream] that a client.properties sets, as they are in effect; secrets are stars. Raises as above."""
    found = _from_java(stream)
    access = _access(stream, found)
    return {name: str(getattr(access, name)) for name in found if hasattr(stream, name)}


def _from_java(stream: Stream) -> Mapping[str, Any]:
    if not stream.client_properties:
        return {}
    read = read_client_properties(Path(stream.client_properties))
    logger.debug("%s: ignored %s", stream.client_properties, ", ".join(read.ignored) or "nothing")
    return read.values


def _client(access: _Access, now: datetime) -> dict[str, Any]:
    client: dict[str, Any] = {}
    if access.security_protocol != "PLAINTEXT":
        client["security_protocol"] = access.security_protocol
    if access.sasl:
        client["sasl_mechanism"] = access.sasl_mechanism
        client["sasl_plain_username"] = access.sasl_username
        client["sasl_plain_password"] = access.sasl_password
    if access.tls:
        client["ssl_context"] = checked_tls(
            access.ssl_cafile, access.ssl_certfile, access.ssl_keyfile, access.ssl_key_password,
            access.ssl_check_hostname, now,
        )  # fmt: skip
    return client


def check_access(stream: Stream) -> None:
    """Refuse what can be refused without reading a file. Raises UnusableConnection."""
    registry_warnings(stream)
    if not stream.client_properties:  # which may change all of it
        _check(_access(stream, {}))


def registry_warnings(stream: Stream) -> tuple[str, ...]:
    """What is dangerous about the way to the schema registry, and allowed. Raises UnusableConnection."""
    url, user = stream.schema_registry, stream.schema_registry_username
    if not url:
        for name in ("schema_registry_username", "schema_registry_password", "schema_registry_cafile"):
            if getattr(stream, name):
                raise UnusableConnection(f"[stream] {name} is set, and schema_registry is not: set it, or delete the other")
        return ()
    shown = "schema_registry" if set(url) & set("@?") else f"schema_registry = {url!r}"  # there a password may be in it
    try:
        parts = urlsplit(url)
        _ = parts.port  # it is read here because it may be no number
    except ValueError:  # whose text may hold a piece of the password
        raise UnusableConnection(f"[stream] {shown} is no URL: https://host[:port] wanted (IPv6: https://[::1]:8081)") from None
    if parts.username is not None:
        raise UnusableConnection(
            "[stream] schema_registry holds a user: write schema_registry_username and schema_registry_password_file"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UnusableConnection(f"[stream] {shown}: https://host[:port] wanted")
    if bool(user) != bool(stream.schema_registry_password):
        raise UnusableConnection("[stream] schema_registry_username and schema_registry_password: both or neither wanted")
    if parts.scheme == "https" or is_loopback(parts.hostname):
        return ()
    if user or not stream.allow_insecure:
        cure = "use https" if user else "use https, or set allow_insecure = true"
        risk = "the password travels in the clear" if user else "anybody on the way can change the schemas"
        raise UnusableConnection(f"[stream] {shown}: {risk}; {cure}")
    return (f"schemas come from {parts.hostname} without encryption",)


def _access(stream: Stream, found: Mapping[str, Any]) -> _Access:
    """Both together. A key of [stream] that was changed from its default must agree with the file."""
    defaults = {field.name: field.default for field in dataclasses.fields(stream)}
    said = {field.name: getattr(stream, field.name) for field in dataclasses.fields(_Access) if field.name in defaults}
    for name, value in found.items():
        own = said.get(name, value)
        if name in said and own != defaults[name] and _comparable(name, own) != _comparable(name, value):
            shown = "other text" if is_text(str.__str__(value)) else repr(value)
            raise UnusableConnection(
                f"[stream] {name} = {own!r}, but {stream.client_properties} says {shown}: leave one of them out"
            )
        said[name] = value
    return _Access(**said)


def _comparable(name: str, value: str) -> object:
    return sorted(server.strip() for server in value.split(",")) if name == "bootstrap_servers" else value


def _check(access: _Access) -> tuple[str, ...]:
    """What is dangerous and allowed. Raises UnusableConnection for what is not allowed, or cannot work."""
    protocol, far, warnings = access.security_protocol, access.far, []
    if protocol not in PROTOCOLS:
        raise UnusableConnection(f"[stream] security_protocol = {protocol!r}: one of {', '.join(PROTOCOLS)} wanted")
    if access.bootstrap_servers in ("", EMBEDDED) and protocol != "PLAINTEXT":
        raise UnusableConnection(
            f"[stream] security_protocol = {protocol!r}, but bootstrap_servers = {access.bootstrap_servers!r} is a log on "
            'this machine: name the cluster, "host:port,..."'
        )
    _check_login(access, far)
    _check_names(access)
    if far and not access.tls:
        if not access.allow_insecure:
            raise UnusableConnection(
                f"[stream] security_protocol = {protocol!r} to {far[0]}, which is not this machine: anybody on the way can "
                "read and change records. Use SASL_SSL or SSL (docs/settings.md), or set allow_insecure = true"
            )
        warnings.append(f"records travel to {', '.join(far)} without encryption (security_protocol = {protocol!r})")
    if access.tls and not access.ssl_check_hostname:
        if not access.allow_insecure:
            raise UnusableConnection(
                "ssl.endpoint.identification.algorithm is empty: any host with a certificate of this authority could pose "
                "as the broker. Delete the line, or set [stream] allow_insecure = true"
            )
        warnings.append("the broker's certificate is not compared with its host name (client.properties)")
    return tuple(warnings)


def _check_login(access: _Access, far: list[str]) -> None:
    mechanism, user, password = access.sasl_mechanism, access.sasl_username, access.sasl_password
    if not access.sasl:
        if user or password:
            raise UnusableConnection(
                f"[stream] sasl_username or sasl_password is set, but security_protocol = {access.security_protocol!r} "
                'sends neither: write "SASL_SSL", or delete them'
            )
        return
    if mechanism not in MECHANISMS:
        raise UnusableConnection(
            f"[stream] sasl_mechanism = {mechanism!r} is not supported: ask for a user with one of {', '.join(MECHANISMS)}"
        )
    if not user or not password:
        missing = "sasl_password (or sasl_password_file)" if user else "sasl_username"
        raise UnusableConnection(f"[stream] {access.security_protocol} with {mechanism} needs {missing}: it is empty")
    if mechanism != "PLAIN" and set(user) & set(",="):  # kafka-python sends them unescaped, as another message
        raise UnusableConnection(f"[stream] sasl_username = {user!r}: with {mechanism} no comma and no = can be in it")
    if mechanism == "PLAIN" and "\0" in user + password.reveal():
        raise UnusableConnection("[stream] sasl_username and sasl_password: with PLAIN no zero byte can be in them")
    if mechanism == "PLAIN" and not access.tls and far:
        raise UnusableConnection(
            f"[stream] sasl_mechanism = 'PLAIN' without TLS would send the password to {far[0]} in the clear, which "
            'allow_insecure does not cover: use security_protocol = "SASL_SSL", or SCRAM-SHA-512'
        )


def _check_names(access: _Access) -> None:
    """Files that are named must have a use."""
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_key_password"):
        if not getattr(access, name):
            continue
        if not access.tls:
            wanted = "SASL_SSL" if access.sasl else "SSL"
            raise UnusableConnection(
                f"[stream] {name} is set, but security_protocol = {access.security_protocol!r} has no TLS: write "
                f'"{wanted}", or delete it'
            )
        if name.startswith("ssl_key") and not access.ssl_certfile:
            raise UnusableConnection(f"[stream] {name} without ssl_certfile: name the certificate that belongs to the key")


def _host(server: str) -> str:
    """The host of "host:port" or "[v6]:port"."""
    host, colon, port = server.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    plain = host[1:-1] if bracketed else host
    if not colon or not plain or not port.isdecimal() or not 0 < int(port) < 65536 or (":" in plain) != bracketed:
        raise UnusableConnection(f'[stream] bootstrap_servers: {server.strip()!r} is no "host:port" (IPv6: "[::1]:9092")')
    return plain
