"""The order of one prediction: auth, limit, validate, split, predict, record. It knows no server and no socket.

`admit` looks only at the token, so that a shell can refuse before it reads a body; `predict` does the rest, up to an
answer that may have to wait for the disk; `counted` lets it go; `handle` is all of it. Everything it needs arrives as
values or small parts; the routing it answers from is read once a request, so one request never sees two epochs.
"""

from __future__ import annotations

import json
import logging
import math
import time
import uuid
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from models.split import arm as arm_of
from models.split import bucket
from pipelines.gateway.answer import Answer, Refused, ok
from pipelines.gateway.counts import Counts
from pipelines.gateway.figures import NO_ARM, Figures
from pipelines.gateway.recorder import Recorder
from pipelines.gateway.request import Request, RequestReader
from pipelines.gateway.routing import Follower
from security.journal import stamp
from security.limits import Limiter
from security.tokens import Claims, TokenRefused, Verifier

logger = logging.getLogger("headgate.gateway")

PREDICT = "model:predict"
DURABLE_SECONDS = 5.0  # a disk that takes longer for a flush is as good as gone to the client that waits
RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Instant:
    """When a request came: `wall` seconds since 1970 for tokens and records, `ticks` monotonic for rates and leases."""

    wall: float
    ticks: float

    @classmethod
    def now(cls) -> Instant:
        """This moment; for shells, which are the only ones to look at the clock."""
        return cls(time.time(), time.monotonic())


@dataclass(slots=True)
class Predicted:
    """An answer that is not counted yet. `durable`: it may be sent when this is done; None = at once."""

    answer: Answer
    arm: str
    seconds: float
    durable: Future[None] | None
    split: int | None = None  # the routing epoch, when a canary had its share in it


@dataclass(frozen=True, slots=True)
class Core:
    """The steps, in their order. `recorder` None = predictions are answered and not recorded, by configuration.

    `strict`: no answer without its record on the disk.
    """

    reader: RequestReader
    verifier: Verifier
    limiter: Limiter
    follower: Follower
    recorder: Recorder | None
    figures: Figures
    max_body: int
    strict: bool = False
    counts: Counts | None = None
    drill: float = 0.0  # share of the canary's answers that fail on purpose: see pipelines/drill.py

    def handle(self, authorization: str, body: bytes, now: Instant) -> Answer:
        """One whole request; never raises."""
        try:
            self.admit(authorization, PREDICT, now)
            predicted = self.predict(body, now)
            if predicted.durable is not None:
                try:
                    predicted.durable.result(DURABLE_SECONDS)
                except OSError as error:  # a time-out is one
                    raise self.not_recorded() from error
            return self.counted(predicted)
        except Refused as refused:
            return self.refuse(refused)

    def admit(self, authorization: str, scope: str, now: Instant) -> Claims:
        """Who asks, if the token allows `scope` and its subject is within its rate. Raises Refused 401, 403, 429."""
        try:
            claims = self.verifier.verify(authorization, scope, now.wall)
        except TokenRefused as refused:
            logger.info("token refused: %s", refused.reason)
            code = "forbidden" if refused.status == 403 else "unauthorized"
            raise Refused(refused.status, code, refused.answer) from None
        wait = self.limiter.admit(claims.subject, now.ticks)
        if wait > 0:
            self.figures.rate_limited.inc()
            message = f"subject {claims.subject!r} is over its rate: wait {wait:.3f} s, see Retry-After"
            raise Refused(429, "rate_limited", message, wait=wait)
        return claims

    def predict(self, body: bytes, now: Instant) -> Predicted:
        """Validate, split, predict, record. Raises Refused 400, 413, 422, 503; a model that fails is answered 500."""
        started = time.perf_counter()
        if len(body) > self.max_body:
            raise self.too_large(len(body))
        request = self.reader.read(body)
        serving = self.follower.serving(now.ticks)
        if serving is None:
            raise Refused(503, "not_ready", "no verified version is loaded yet: see /readyz, then try again", wait=1.0)
        routing, predictors = serving
        arm, propensity = arm_of(routing, request.unit)
        version = routing.canary if arm == "canary" and routing.canary else routing.stable
        score, failure = _score(predictors[version], request)
        if self.drill and arm == "canary" and bucket("drill", request.event_id) < self.drill:
            score, failure = None, "a release drill fails it on purpose"
        seconds = time.perf_counter() - started
        prediction = {
            "prediction_id": uuid.uuid4().hex,
            "event_id": request.event_id,
            "score": score,
            "version": version,
            "arm": arm,
            "epoch": routing.epoch,
        }
        durable = self._record(prediction, request.unit, propensity, seconds, now)
        split = routing.epoch if routing.weight > 0.0 else None  # also None while the lease is lost: that is no split
        if failure is None:
            return Predicted(ok(prediction), arm, seconds, durable, split)
        logger.error("prediction %s failed on %s: %s", prediction["prediction_id"], version, failure)
        named = {key: prediction[key] for key in ("prediction_id", "event_id", "version", "arm", "epoch")}
        message = "the model failed on this event; it is recorded without a score under this prediction_id"
        answer = ok({"error": "prediction_failed", "message": message, **named}, 500)
        return Predicted(answer, arm, seconds, durable, split)

    def counted(self, predicted: Predicted) -> Answer:
        """The answer, which is sent now."""
        self.figures.answered(predicted.arm, predicted.answer.status, predicted.seconds)
        if predicted.split is not None and self.counts is not None:
            self.counts.add(predicted.split, predicted.arm, predicted.answer.status == 500, predicted.seconds)
        return predicted.answer

    def refuse(self, refused: Refused) -> Answer:
        """A refusal of /v1/predict as a counted answer."""
        self.figures.answered(NO_ARM, refused.status)
        return refused.answer()

    def too_large(self, size: int) -> Refused:
        """413, with the size as far as it is known."""
        text = f"the body has {size} bytes or more > {self.max_body}: send one event a request"
        return Refused(413, "too_large", text)

    def not_recorded(self) -> Refused:
        """503 for a prediction that must be recorded and is not; the fault of neither arm. /readyz says why."""
        return Refused(503, "not_recorded", "the prediction could not be recorded: see Retry-After", wait=RETRY_SECONDS)

    def _record(
        self, answer: dict[str, Any], unit: str, propensity: float, seconds: float, now: Instant
    ) -> Future[None] | None:
        if self.recorder is None:
            return None
        row = {
            **answer,
            "unit": unit,
            "propensity": propensity,
            "shadow_version": None,
            "shadow_score": None,
            "latency_ms": round(seconds * 1000, 3),
            "at": stamp(datetime.fromtimestamp(now.wall, UTC)),
        }
        value = json.dumps(row, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
        number = self.recorder.put(answer["event_id"].encode(), value, int(now.wall * 1000))
        if not self.strict:
            return None
        if not number:
            raise self.not_recorded()
        return self.recorder.durable(number)


def _score(predictor: Any, request: Request) -> tuple[Any, str | None]:
    """The answer for one event and None, or None and what went wrong."""
    try:
        answers = predictor.answers(request.columns)
        if answers.shape != (1,):
            return None, f"answer has shape {answers.shape}, wanted (1,)"
        score = answers[0].item() if hasattr(answers[0], "item") else answers[0]
        if isinstance(score, float) and not math.isfinite(score):
            return None, f"score {score} is not finite"
        json.dumps(score)
    except Exception as error:  # noqa: BLE001 - a user's model may raise anything; one event must not end the process
        return None, f"{type(error).__name__}: {error}"
    return score, None
