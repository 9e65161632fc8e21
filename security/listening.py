"""Where a server of ours listens: a bound socket or one clear sentence, and whether other machines can reach it.

Knows addresses and ports, no protocol and no server.
"""

from __future__ import annotations

import errno
import ipaddress
import socket

BACKLOG = 2048


class PortInUse(Exception):
    """Nothing can listen there; the message names the port and the setting to change."""


def listen(host: str, port: int, what: str) -> socket.socket:
    """A bound, listening socket (port 0: a free one) for `what`, which is also its section in the settings.

    Bound here, so that a port in use is a sentence and not a server's log line.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} on {host} is in use: another {what} may be running; stop it, or choose another with "
                f"--port or [{what}] port"
            ) from error
        raise PortInUse(f"cannot listen on {host}:{port}: {error.strerror}; set [{what}] host and port") from error
    listener.set_inheritable(False)
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine can mean itself by this name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
