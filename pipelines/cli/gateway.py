"""`headgate gateway` serves predictions; `headgate token issue|revoke` decides who may ask for them.

It turns settings into a `Gateway`, waits for a signal and lets it drain; it knows nothing of how a prediction is
made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.cli import settings_from

if TYPE_CHECKING:
    from assets.stream.log import EventLog
    from pipelines.connection import Connection
    from pipelines.gateway.server import Gateway

SPOOL = Path("var/spool")


class NoBroker(Exception):
    """No local broker runs, and none is configured."""


@click.command()
@click.option("--port", type=int, default=None, help="Port instead of [gateway] port; 0 = a free one.")
@click.option("--lease", type=float, default=None, help="Seconds without the journal until a canary gets nothing.")
@click.option("--servers", default=None, help="Event log instead of [stream] bootstrap_servers.")
@click.option("--json", "as_json", is_flag=True, help="Print the address as one JSON object.")
@click.pass_context
def gateway(ctx: click.Context, port: int | None, lease: float | None, servers: str | None, as_json: bool) -> None:
    """Serve predictions until Ctrl-C or SIGTERM; then finish what is in flight and record what waits.

    Exit code 0 when every prediction is in the log, 1 when some stay in var/spool for the next start.
    """
    import logging

    from models.task import load_task
    from pipelines.gateway.server import Gateway, GatewayConfig
    from pipelines.opening import announced
    from security.journal import Journal

    settings = settings_from(ctx, **({"stream": {"bootstrap_servers": servers}} if servers else {}))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    own, stream, connection = settings.gateway, settings.stream, announced(settings)
    config = GatewayConfig(
        host=own.host,
        issuer=own.issuer,
        audience=own.audience,
        recording=own.recording,
        spool=SPOOL,
        topic=stream.predictions,
        partitions=stream.partitions,
        timestamp_type="CreateTime" if settings.window.clock == "stream" else "LogAppendTime",
        lease_seconds=settings.rollout.lease.total_seconds() if lease is None else lease,
        rollout=settings.rollout,
        window=settings.window,
    )
    made = Gateway(
        config,
        load_task(settings.task),
        lambda: Journal(settings.journal.url, busy_seconds=2.0),
        Path(settings.store.url),
        Path(settings.keys.directory),
        lambda: _open_log(connection),
    )
    ctx.exit(1 if _serve(made, own.port if port is None else port, as_json) else 0)


def _serve(made: Gateway, port: int, as_json: bool) -> int:
    """Run until a signal; how many predictions stay in the spool."""
    import signal
    import threading

    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    address = made.start(port)
    click.echo(json.dumps({"url": address}) if as_json else f"serving {made.task.name} on {address}")
    while not asked.wait(1.0):  # a wait without a limit would hold back signals on some systems
        pass
    return made.stop()


def _open_log(connection: Connection) -> EventLog:
    """The log that is configured; a gateway never starts a broker of its own, whose data nobody else would read."""
    from pipelines.broker import open_log
    from pipelines.broker_folder import running
    from pipelines.opening import BROKER

    servers = connection.servers or running(BROKER, wait=2.0)
    if not servers:
        raise NoBroker(f"no broker runs on {BROKER}: `headgate broker start`, or set [stream] bootstrap_servers")
    return open_log(servers, BROKER, client=connection.client)[0]


@click.group()
def token() -> None:
    """Issue and revoke access tokens."""


@token.command()
@click.option("--subject", required=True, help="Who will use it; the rate limit counts by subject.")
@click.option("--scope", "scopes", multiple=True, default=("model:predict",), show_default=True, help="Repeatable.")
@click.option("--lifetime", default="1h", show_default=True, help="At most 24h, 1h for a token that can move traffic.")
@click.option("--rollout", default=None, help='The one version that a token of scope "release:approve" approves, once.')
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with the jti that `revoke` takes.")
@click.pass_context
def issue(
    ctx: click.Context, subject: str, scopes: tuple[str, ...], lifetime: str, rollout: str | None, as_json: bool
) -> None:
    """Print a signed token."""
    from datetime import UTC, datetime

    from models.duration import parse_duration
    from security.keys import private_key
    from security.tokens import SCOPES
    from security.tokens import issue as issue_token

    settings = settings_from(ctx)
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown:
        raise click.UsageError(f"scope {unknown[0]!r} is none of {', '.join(SCOPES)}")
    try:
        text = issue_token(
            private_key(Path(settings.keys.directory), "token"),
            subject=subject,
            scopes=scopes,
            issuer=settings.gateway.issuer,
            audience=settings.gateway.audience,
            lifetime=parse_duration(lifetime),
            now=datetime.now(UTC),
            rollout=rollout,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    shown = {"token": text, "jti": _jti(text), "subject": subject, "scopes": scopes}
    click.echo(json.dumps(shown) if as_json else text)


@token.command()
@click.argument("jti")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def revoke(ctx: click.Context, jti: str, as_json: bool) -> None:
    """Refuse the token with this JTI (or this whole token) from now on; gateways learn it within a second."""
    from datetime import UTC, datetime

    from security.journal import Draft, Journal

    named = _jti(jti) if jti.count(".") == 2 else jti
    journal = Journal(settings_from(ctx).journal.url)
    entry = journal.append(Draft("auth", "token.revoked", {"jti": named}), actor="cli", at=datetime.now(UTC))
    click.echo(json.dumps({"revoked": named, "seq": entry.seq}) if as_json else f"revoked {named}")


def _jti(text: str) -> str:
    """The jti of a token we were given; nothing is decided by it, so the signature is not checked."""
    import base64

    try:
        body = text.split(".")[1]
        return str(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["jti"])
    except (ValueError, KeyError, TypeError) as error:
        raise click.UsageError("this is no token: give its jti, see `token issue --json`") from error
