"""The release desk over HTTP: requests become its calls, what it says and what it refuses become answers.

Each of its three lanes is one thread with a desk of its own, so that a look or a verb never runs on the loop that
predicts, and a stop never waits behind a look. It knows no rule of a release, no socket and no route table.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from assets.stream.document import Poison, document
from models.release_board import Board
from models.release_verbs import VerbRefused
from models.rollout_state import Rollout
from pipelines.gateway.answer import Answer, Refused, ok
from pipelines.release_desk import ReleaseDesk, Stale
from pipelines.verbs import VERBS, Verb
from security.journal import Conflict, Entry, JournalError, stamp
from security.tokens import APPROVE, Claims, TokenRefused

logger = logging.getLogger("headgate.gateway")

PREFIX = "/v1/rollouts"
READ, WRITE = "release:read", "release:write"
WAITING = 8  # requests in one lane; a look takes milliseconds, so the ninth means that the journal hangs
MAX_REASON = 500
RETRY_SECONDS = 5.0
LOOKS = {
    "": "State, figures, what the next step waits for, and all of it in words.",
    "history": "Every decision about it, with who, why and the figures.",
    "explain": "Why it is where it is, and what the next step waits for.",
}


def scope_of(verb: str) -> str:
    """The scope a verb needs. Consent is a scope of its own: who may move traffic may not approve by that."""
    return APPROVE if verb == "approve" else WRITE


@dataclass(frozen=True, slots=True)
class Asked:
    """One request behind the token check: `claims` of the token, `match` the If-Match header as it came, None = none."""

    method: str
    version: str | None
    word: str
    claims: Claims
    body: bytes
    match: str | None


def split(path: str) -> tuple[str, str | None, str] | None:
    """(route, version, last word) of a path under `/v1/rollouts`, None for any other path."""
    parts = path.removeprefix(PREFIX).split("/")
    if not path.startswith(PREFIX) or parts[0] or len(parts) > 3 or not all(parts[1:]):
        return None
    version, word = [*parts[1:], "", ""][:2]
    route = PREFIX + ("/{version}" if version else "") + (f"/{word}" if word else "")
    return route, version or None, word


class Rollouts:
    """The routes under `/v1/rollouts`. `open_desk` is called in a lane until it succeeds."""

    def __init__(self, open_desk: Callable[[], ReleaseDesk]) -> None:
        self._looks, self._verbs, self._stops = (_Lane(name, open_desk) for name in ("looks", "verbs", "stops"))

    async def answer(self, asked: Asked) -> Answer:
        """The answer to one request. Raises Refused."""
        if asked.method == "GET":
            return await self._looks.run(lambda desk: _look(desk, asked))
        lane = self._verbs if VERBS[asked.word].onward else self._stops
        return await lane.run(lambda desk: _act(desk, asked))

    def stop(self) -> None:
        """Let what runs end, drop what waits."""
        for lane in (self._looks, self._verbs, self._stops):
            lane.stop()


class _Lane:
    def __init__(self, name: str, open_desk: Callable[[], ReleaseDesk]) -> None:
        self._open_desk = open_desk
        self._desk: ReleaseDesk | None = None
        self._thread = ThreadPoolExecutor(1, f"rollouts-{name}")
        self._inside = 0

    async def run(self, work: Callable[[ReleaseDesk], Answer]) -> Answer:
        if self._inside >= WAITING:
            raise Refused(503, "busy", f"{WAITING} requests about rollouts wait already: see Retry-After", wait=1.0)
        self._inside += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)
        finally:
            self._inside -= 1

    def _run(self, work: Callable[[ReleaseDesk], Answer]) -> Answer:
        try:
            self._desk = self._desk or self._open_desk()
            return work(self._desk)
        except VerbRefused as error:
            raise Refused(409, "refused", str(error)) from error
        except Stale as error:
            raise Refused(412, "stale", str(error)) from error
        except Conflict as error:
            raise Refused(409, "conflict", str(error)) from error
        except TokenRefused as error:
            raise Refused(error.status, "forbidden" if error.status == 403 else "unauthorized", error.answer) from error
        except JournalError as error:
            raise Refused(503, "journal_away", str(error), wait=RETRY_SECONDS) from error

    def stop(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def _look(desk: ReleaseDesk, asked: Asked) -> Answer:
    board = desk.board()
    revision = desk.revision
    if asked.version is None:
        every = sorted(board.rollouts.values(), key=lambda one: one.number)
        body = {"rollouts": [one.to_body() for one in every], "stable": board.stable, "epoch": board.epoch}
        return _tagged({"task": desk.task, **body}, revision)
    one = board.rollouts.get(asked.version)
    if one is None:
        raise _unknown(asked.version, board)
    if asked.word == "history":
        return _tagged({"version": one.version, "entries": [_shown(entry) for entry in desk.history(one.version)]}, revision)
    found = desk.verdicts(one, board)
    told = desk.explain(one, board, found)
    if asked.word == "explain":
        return _tagged({"version": one.version, "explain": told}, revision)
    unmet = [{"name": c.name, "text": c.text, "hold": c.hold} for c in desk.unmet(one, board, found)]
    more = {"figures": found.figures(), "limits": _limits(desk, one, board), "unmet": unmet, "explain": told}
    return _tagged({"rollout": one.to_body(), "stable": board.stable, **more}, revision)


def _act(desk: ReleaseDesk, asked: Asked) -> Answer:
    version, verb, actor = asked.version or "", asked.word, asked.claims.subject
    said = _said(asked.body, VERBS[verb])
    revision = asked.match.strip().strip('"') if asked.match and VERBS[verb].onward else None
    if VERBS[verb].onward and not revision:
        raise Refused(
            428, "revision_required", f"{verb} needs the header If-Match with the ETag of GET {PREFIX}/{version}: then a "
            "request that comes twice, or late, is not carried out twice"
        )  # fmt: skip
    board = desk.board()
    if verb != "start" and version not in board.rollouts and version not in dict(board.stables):
        raise _unknown(version, board)
    made = desk.write(verb, version, actor=actor, token=asked.claims, revision=revision, **said)
    logger.info("%s %s by %s: %d entries", verb, version, actor, len(made))
    after = desk.board().rollouts.get(version)
    body = {"entries": [_shown(entry) for entry in made], "rollout": after.to_body() if after else None}
    return _tagged({"version": version, "verb": verb, **body}, desk.revision)


def _said(body: bytes, verb: Verb) -> dict[str, Any]:
    """The reason and the options of a verb's body. Refused 400 for what is no JSON object, 422 for a field."""
    try:
        found = document(body)
    except Poison as poison:
        raise Refused(400, "invalid_json", f'the body is refused: {poison}; send {{"reason": ...}}') from None
    kinds: Mapping[str, type] = {"reason": str, **verb.options}
    for name, value in found.items():
        if name not in kinds:
            raise _field(name, f"field {name[:80]!r} is unknown; this verb has {', '.join(kinds)}")
        if type(value) is not kinds[name]:
            raise _field(name, f"field {name!r} is not a {'truth value' if kinds[name] is bool else 'text'}")
    reason = found.get("reason", "")
    if not reason.strip() or len(reason) > MAX_REASON or not reason.isprintable():
        raise _field("reason", f"field 'reason' is wanted: one line of 1 to {MAX_REASON} characters for the journal")
    return found


def _field(name: str, message: str) -> Refused:
    return Refused(422, "invalid_field", message, field=name[:80])


def _unknown(version: str, board: Board) -> Refused:
    known = ", ".join(sorted(board.rollouts)[-5:]) or "none yet"
    return Refused(404, "not_found", f"there is no rollout of {version[:80]!r}; the last are: {known}")


def _limits(desk: ReleaseDesk, one: Rollout, board: Board) -> dict[str, float]:
    policy = desk.policy_of(one, board)
    return {"promote_e": policy.promote_limit(one.test), "harm_e": policy.harm_threshold, "guard_e": policy.guard_threshold}


def _shown(entry: Entry) -> dict[str, Any]:
    return {"seq": entry.seq, "kind": entry.kind, "actor": entry.actor, "at": stamp(entry.at), "body": entry.body}


def _tagged(body: Mapping[str, Any], revision: str) -> Answer:
    return replace(ok({**body, "revision": revision}), headers=((b"etag", f'"{revision}"'.encode()),))
