"""The cluster said no: to our certificate, our password, or what we asked for. Told with what would make it say yes.

It knows kafka-python's errors and the names of Kafka's rights; it does not know who asked, or what for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from kafka import errors as kafka_errors

from assets.stream.handshake import trouble
from assets.stream.log import StreamUnreachable

Right = Literal["Read", "Write", "Create", "Describe", "DescribeConfigs"]

HANDSHAKE_SECONDS = 2.0  # of asking again by hand, after a call has failed and taken its own time


class StreamRefused(StreamUnreachable):
    """The cluster answered, and does not let us in. Trying again helps when somebody has changed something, there or here."""


def refusal(
    error: BaseException, what: str, right: Right, servers: str, client: Mapping[str, Any], seconds: float
) -> StreamRefused | None:
    """Why a call failed, if the cluster refused it; None for anything else.

    what: the call, as a part of a sentence. right: the one it needs. client: the settings the clients have.
    """
    if isinstance(error, kafka_errors.AuthorizationError):
        return missing_right(what, right, servers, client)
    if found := trouble(servers, client, min(HANDSHAKE_SECONDS, seconds)):
        return StreamRefused(f"Kafka at {servers}: {what}; {found}")
    return None


def missing_right(what: str, right: Right, servers: str, client: Mapping[str, Any]) -> StreamRefused:
    """The error for a right that the user does not have."""
    scope = "the cluster or this topic" if right == "Create" else "this topic"
    return StreamRefused(
        f"Kafka at {servers}: {what}; {_user(client)} lacks the right {right}: add the ACL {right} on {scope} "
        f"(kafka-acls.sh --add --operation {right}); docs/settings.md lists all that are needed"
    )


def _user(client: Mapping[str, Any]) -> str:
    name = client.get("sasl_plain_username")
    return f"user {name!r}" if name else "the owner of our certificate" if client.get("ssl_context") else "an unnamed user"
