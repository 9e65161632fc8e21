"""The interface as OpenAPI 3.1, made of the route table and the task's event schema. It describes; it decides
nothing."""

from __future__ import annotations

from typing import Any

from pipelines.gateway.app import ROUTES, Route
from pipelines.gateway.core import PREDICT
from pipelines.gateway.request import UNIT, RequestReader
from pipelines.gateway.rollouts import MAX_REASON, PREFIX
from pipelines.verbs import VERBS

ERRORS = {
    "400": "The body is not one JSON object, or the request can be read in two ways.",
    "401": "No valid bearer token.",
    "403": "The token lacks the scope.",
    "408": "The body did not arrive in time.",
    "413": "The body is larger than the limit.",
    "422": "The object is not an event of this task; `field` names the field.",
    "429": "The token's subject is over its rate; see Retry-After.",
    "500": "The model failed on this event; `prediction_id` names the record.",
    "503": "No verified version is loaded yet, or the prediction could not be recorded; see Retry-After.",
}

RELEASE_ERRORS = {
    "400": ERRORS["400"],
    "401": ERRORS["401"],
    "403": "The token lacks the scope, approves another version, or was used before.",
    "404": "There is no rollout of this version.",
    "409": "The verb does not fit the rollout as it is, or others decided at the same moment.",
    "412": "Something was decided since the revision in If-Match.",
    "422": "A field is missing or wrong; `field` names it.",
    "428": "This verb needs If-Match.",
    "429": ERRORS["429"],
    "503": "The journal does not answer; nothing was decided.",
}
TYPES = {bool: "boolean", str: "string"}


def document(reader: RequestReader, task: str) -> dict[str, Any]:
    """The whole document for one task."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Headgate gateway: {task}", "version": "1"},
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            "schemas": {"Event": _event(reader), "Prediction": _prediction(), "Error": _error()} | _verbs(),
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": route.summary, "responses": {"200": {"description": route.summary}}}
    if route.scope is not None:
        found["security"] = [{"token": [route.scope]}]
    if route.scope == PREDICT:
        found["requestBody"] = {"required": True, **_json("Event")}
        found["responses"] = {"200": {"description": "The prediction.", **_json("Prediction")}}
        found["responses"] |= {status: {"description": text, **_json("Error")} for status, text in ERRORS.items()}
    if route.path.startswith(PREFIX):
        found |= _release(route)
    return found


def _release(route: Route) -> dict[str, Any]:
    """What a route about rollouts has besides; each verb's body is a schema of its own."""
    verb = VERBS.get(route.path.rpartition("/")[2])
    named = [{"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}]
    match = {"name": "If-Match", "in": "header", "schema": {"type": "string"}, "description": "The ETag of the last look."}
    found: dict[str, Any] = {"parameters": named if "{version}" in route.path else []}
    if verb is not None:
        found["parameters"] = [*named, {**match, "required": verb.onward}]
        found["requestBody"] = {"required": True, **_json(_schema_of(route.path.rpartition("/")[2]))}
    etag = {"ETag": {"schema": {"type": "string"}, "description": "The revision, for If-Match."}}
    found["responses"] = {"200": {"description": route.summary, "headers": etag}}
    found["responses"] |= {status: {"description": text, **_json("Error")} for status, text in RELEASE_ERRORS.items()}
    return found


def _schema_of(verb: str) -> str:
    return verb.capitalize()


def _verbs() -> dict[str, Any]:
    reason = {"type": "string", "minLength": 1, "maxLength": MAX_REASON, "description": "Goes into the journal."}
    found = {}
    for name, verb in VERBS.items():
        options = {option: {"type": TYPES[kind]} for option, kind in verb.options.items()}
        properties = {"reason": reason, **options}
        found[_schema_of(name)] = {
            "type": "object", "additionalProperties": False, "required": ["reason"], "properties": properties,
        }  # fmt: skip
    return found


def _json(schema: str) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}


def _event(reader: RequestReader) -> dict[str, Any]:
    properties = {name: {**column.shape, "description": column.wanted} for name, column in reader.columns.items()}
    unit = {} if UNIT in properties else {UNIT: {"type": "string", "description": "Unit of the traffic split."}}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(reader.columns),
        "properties": {**properties, **unit},
    }


def _prediction() -> dict[str, Any]:
    text = {"type": "string"}
    properties = {
        "prediction_id": text,
        "event_id": text,
        "score": {"description": "What the task answers: a number, a class or a truth value."},
        "version": text,
        "arm": {"enum": ["stable", "canary"]},
        "epoch": {"type": "integer"},
    }
    return {"type": "object", "required": list(properties), "properties": properties}


def _error() -> dict[str, Any]:
    properties = {
        "error": {"type": "string", "description": "A code that stays the same."},
        "message": {"type": "string", "description": "Value, limit and cure, for a person."},
        "field": {"type": "string"},
        "prediction_id": {"type": "string"},
    }
    return {"type": "object", "required": ["error", "message"], "properties": properties}
