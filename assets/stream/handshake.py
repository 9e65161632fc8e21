"""Why a broker cannot be used: one connection of our own, as far as it gets, told as a sentence with its cure.

kafka-python 3.0 keeps trying and ends with "unable to bootstrap", also after a wrong password: what TLS or the broker
said is lost. So, after a failure, the same steps are taken once more by hand: connect, TLS, and Kafka's log-in, with the
same certificates and to the same listener. This file knows sockets, two of Kafka's messages, and kafka-python's SASL.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from typing import Any

from kafka.net.sasl import get_sasl_mechanism

from assets.stream.tls import Tls

_SASL_HANDSHAKE, _SASL_AUTHENTICATE = 17, 36  # numbers of Kafka's messages
_SASL_WANTED, _NO_SASL_HERE = (0, 33), 34  # error codes: it is possible, by this mechanism or by others; it is not
_ANSWER_BYTES = 64 << 10
# X509_V_ERR_* of OpenSSL.
_VERIFY = {9: "is not valid yet", 10: "has expired", 62: "was not made for this host name", 64: "was not made for this address"}
# What a Java client.properties calls the keys of [stream]: which of both is used is not known here.
_JAVA = {
    "bootstrap_servers": "bootstrap.servers", "security_protocol": "security.protocol", "sasl_mechanism": "sasl.mechanism",
    "sasl_username and sasl_password": "sasl.jaas.config", "ssl_cafile": "ssl.truststore.location",
    "ssl_certfile and ssl_keyfile": "ssl.keystore.location",
}  # fmt: skip
_CLOSED = ("EOF", "WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")


def trouble(servers: str, client: Mapping[str, Any], seconds: float) -> str:
    """What keeps `client` (kafka-python's settings) from `servers`; "" when nobody answers, or nothing is wrong so far."""
    deadline = time.monotonic() + seconds
    for server in servers.split(","):
        host, _, port = server.strip().rpartition(":")
        if time.monotonic() < deadline and port.isdecimal() and (found := _one(host.strip("[]"), int(port), client, deadline)):
            return f"{server.strip()}: {found}"
    return ""


def _one(host: str, port: int, client: Mapping[str, Any], deadline: float) -> str:
    secured = str(client.get("security_protocol")).endswith("SSL")
    try:
        plain = _connect(host, port, deadline)
    except OSError:
        return ""
    with closing(plain):
        try:
            if secured:
                _limit(plain, deadline)
                with (client.get("ssl_context") or Tls()).wrap_socket(plain, server_hostname=host) as sock:
                    return _login(sock, client, deadline) or ""
            found = _login(plain, client, deadline)
            return _speaks_tls(host, port, deadline) if found is None else found
        except TimeoutError:
            return ""
        except OSError as error:  # ssl.SSLError is one
            return _refused_by_tls(error, client) if secured else ""


def _connect(host: str, port: int, deadline: float) -> socket.socket:
    """As socket.create_connection, which gives every address of the host the whole limit. Raises OSError."""
    failed = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            _limit(sock, deadline)
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            failed = error
    raise failed


def _limit(sock: socket.socket, deadline: float) -> None:
    """The next call may take what is left. Without this a peer that sends a byte now and then would be heard for ever."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    sock.settimeout(left)


def _login(sock: socket.socket, client: Mapping[str, Any], deadline: float) -> str | None:
    """Log in as the client would; "" when that works, None when the connection is closed at once. Raises OSError."""
    name = _mechanism(client).encode()
    answer = _ask(sock, _SASL_HANDSHAKE, struct.pack(">h", len(name)) + name, deadline)
    if len(answer) < 6:
        return None
    code, count = struct.unpack_from(">hi", answer)
    offered, at = [], 6
    for _ in range(min(count, 20)):
        one, at = _text(answer, at)
        offered.append(one)
    return _compare(client, code, offered) or (_authenticate(sock, client, deadline) if code == 0 else "")


def _authenticate(sock: socket.socket, client: Mapping[str, Any], deadline: float) -> str:
    """The exchange in which the broker refuses a password; over the connection that the client would use for it."""
    if not str(client.get("security_protocol")).startswith("SASL_"):
        return ""
    mechanism = get_sasl_mechanism(_mechanism(client))(**client)
    while not mechanism.is_done():
        token = mechanism.auth_bytes()
        answer = _ask(sock, _SASL_AUTHENTICATE, struct.pack(">i", len(token)) + token, deadline)
        if len(answer) < 4:
            return ""
        said, at = _text(answer, 2)
        if struct.unpack_from(">h", answer)[0]:
            return (
                f"user {client.get('sasl_plain_username')!r} is refused ({said}): no such user, or another password; check "
                f"{_key('sasl_username and sasl_password')}"
            )
        try:
            mechanism.receive(answer[at + 4 :])
        except (ValueError, KeyError) as error:
            return f"the broker does not prove that it knows the password ({error}): is this the right cluster?"
    return ""


def _mechanism(client: Mapping[str, Any]) -> str:
    return str(client.get("sasl_mechanism") or "SCRAM-SHA-512")


def _ask(sock: socket.socket, number: int, body: bytes, deadline: float) -> bytes:
    """The body of the answer to one request of Kafka's protocol; b"" when the connection is closed. Raises OSError."""
    version = 1 if number == _SASL_HANDSHAKE else 0
    request = struct.pack(">hhih", number, version, 1, -1) + body
    _limit(sock, deadline)
    sock.sendall(struct.pack(">i", len(request)) + request)
    found = b""
    while len(found) < 4 or len(found) < 4 + min(struct.unpack_from(">i", found)[0], _ANSWER_BYTES):
        _limit(sock, deadline)
        try:
            more = sock.recv(4096)
        except ConnectionResetError:
            return b""
        if not more:
            return b""
        found += more
    return found[8:]


def _text(answer: bytes, at: int) -> tuple[str, int]:
    """A string with its length before it, -1 = none, and where what follows begins."""
    (length,) = struct.unpack_from(">h", answer, at)
    end = at + 2 + max(length, 0)
    return answer[at + 2 : end].decode(errors="replace"), end


def _compare(client: Mapping[str, Any], code: int, offered: list[str]) -> str:
    """The listener's way to log in against ours; "" when they agree."""
    protocol, mechanism = str(client.get("security_protocol", "PLAINTEXT")), _mechanism(client)
    secured = protocol.endswith("SSL")
    if not protocol.startswith("SASL_"):
        right = "SASL_SSL" if secured else "SASL_PLAINTEXT"
        return (
            f"this listener wants a user ({', '.join(offered)}), and security_protocol = {protocol!r} names none: "
            f'set "{right}" as {_key("security_protocol")}, and name one in {_key("sasl_username and sasl_password")}'
            if code in _SASL_WANTED
            else ""
        )
    if code == _NO_SASL_HERE:
        right = "SSL" if secured else "PLAINTEXT"
        return f'this listener knows no users: set {_key("security_protocol")} = "{right}", or name the port that does'
    if mechanism not in offered:
        return f"this listener offers {', '.join(offered)}, not {mechanism}: change {_key('sasl_mechanism')}"
    return ""


def _key(name: str) -> str:
    return f"[stream] {name} (client.properties: {_JAVA[name]})"


def _refused_by_tls(error: OSError, client: Mapping[str, Any]) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        flaw = _VERIFY.get(error.verify_code)
        if flaw is None:
            return (
                f"the broker's certificate is not signed by anybody we trust ({error.verify_message}): name the right "
                f"authority in {_key('ssl_cafile')}"
            )
        dated = error.verify_code in (9, 10)
        cure = "renew it on the broker" if dated else f"use a name that is in it under {_key('bootstrap_servers')}"
        return f"the broker's certificate {flaw} ({error.verify_message}): {cure}"
    reason = getattr(error, "reason", None) or str(error)
    if "CERT" in reason or "UNKNOWN_CA" in reason:
        return (
            f"the broker wants another certificate of ours ({reason}): name one it trusts in "
            f"{_key('ssl_certfile and ssl_keyfile')}, and see that it has not expired"
        )
    if isinstance(error, ssl.SSLEOFError | ConnectionResetError) or any(word in reason for word in _CLOSED):
        right = "SASL_PLAINTEXT" if client.get("security_protocol") == "SASL_SSL" else "PLAINTEXT"
        cure = f'name the port that does, or set {_key("security_protocol")} = "{right}"'
        return f"this listener speaks no TLS ({reason}): {cure}"
    return f"TLS failed ({reason}): see which TLS versions and certificates the broker accepts"


def _speaks_tls(host: str, port: int, deadline: float) -> str:
    """Whether TLS is what is missing. Nothing is sent by this connection, so no certificate has to be believed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with suppress(OSError), _connect(host, port, deadline) as plain:
        _limit(plain, deadline)
        with context.wrap_socket(plain):
            return f'this listener speaks TLS: set {_key("security_protocol")} = "SASL_SSL" or "SSL"'
    return ""
