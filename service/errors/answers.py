"""Errors as answers: RFC 9457 problem+json, its schema, and the one handler."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError, OperationalError
from starlette.exceptions import HTTPException

from service.errors.kinds import BadRequest, BodyTooLarge, MethodNotAllowed, NotFound, ServiceError, Unavailable, Unprocessable
from service.hardening import harden
from service.telemetry.http import DATABASE_ERRORS, route_of

log = logging.getLogger("expunge.errors")

PROBLEM_JSON = "application/problem+json"
PROBLEM_URN = "urn:expunge:problem:"


def problem(error: ServiceError, *, instance: str, errors: Sequence[dict[str, str]] = ()) -> JSONResponse:
    """An error as an answer."""
    headers = {"Retry-After": str(error.retry_after)} if error.retryable else None
    body = problem_body(error, instance=instance, errors=errors)
    return JSONResponse(body, status_code=error.status, media_type=PROBLEM_JSON, headers=headers)


def problem_body(error: ServiceError, *, instance: str, errors: Sequence[dict[str, str]] = ()) -> dict[str, Any]:
    """RFC 9457 body of an error."""
    body: dict[str, Any] = {
        "type": PROBLEM_URN + error.code,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": instance,
        "code": error.code,
        "retryable": error.retryable,
    }
    if error.pointer and not errors:
        errors = ({"pointer": error.pointer, "code": error.code, "detail": error.detail},)
    if errors:
        body["errors"] = list(errors)
    body.update(error.extra)
    return body


def problems(*kinds: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses` of a route that may raise these."""
    by_status: dict[int | str, list[type[ServiceError]]] = {}
    for kind in kinds:
        by_status.setdefault(kind.status, []).append(kind)
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": " · ".join(f"`{k.code}` {k.title}" for k in group),
            "content": {PROBLEM_JSON: {"schema": schema}},
        }
        for status, group in by_status.items()
    }


def add_body_refusals(document: dict[str, Any]) -> None:
    """In place: whatever takes a body may find that it is no JSON, or too long (OpenAPI document)."""
    for operations in document["paths"].values():
        for operation in operations.values():
            if "requestBody" in operation:
                for status, answer in problems(BadRequest, BodyTooLarge).items():
                    operation["responses"].setdefault(str(status), answer)


PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457 problem details. `code` is stable; never contains input values.",
    "required": ["type", "title", "status", "detail", "instance", "code", "retryable"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "code": {"type": "string"},
        "retryable": {"type": "boolean"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"pointer": {"type": "string"}, "code": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}


FREE_KEYED = frozenset({"metadata", "params", "prompts"})
"""Objects whose keys the client chooses: a pointer into them would echo input."""


def _plain(error: dict[str, Any]) -> dict[str, str]:
    """One validation error without the value that caused it.

    pydantic's messages of type value_error are ours; of the others we keep only messages that quote our own schema.
    """
    where = [str(part) for part in error["loc"]]
    unknown = error["type"] == "extra_forbidden"
    if unknown:  # the unknown key is input too, and the pointer would repeat it
        where = where[:-1]
    if len(where) > 2 and where[1] in FREE_KEYED:
        where = where[:2]
    pointer = "/" + "/".join(where[1:])
    if where and where[0] != "body":
        pointer = f"{where[0]}:{'/'.join(where[1:])}"
    if unknown:
        return {"pointer": pointer, "code": "unknown_field", "detail": "unknown field"}
    return {"pointer": pointer, "code": str(error["type"]), "detail": str(error["msg"])}


def install(app: FastAPI) -> None:
    """Make every error of the app a problem."""

    @app.exception_handler(ServiceError)
    def _service_error(request: Request, error: ServiceError) -> JSONResponse:
        return problem(error, instance=request.url.path)

    @app.exception_handler(RequestValidationError)
    def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        details = error.errors()
        if any(d["type"] == "json_invalid" for d in details):
            return problem(BadRequest("the body is not valid JSON"), instance=request.url.path)
        return problem(Unprocessable(), instance=request.url.path, errors=[_plain(dict(d)) for d in details])

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> JSONResponse:
        known = {400: BadRequest, 404: NotFound, 405: MethodNotAllowed, 413: BodyTooLarge}
        kind = known.get(error.status_code)
        if kind is None:
            wrapped = ServiceError(str(error.detail))
            response = problem(wrapped, instance=request.url.path)
            response.status_code = error.status_code
            return response
        response = problem(kind(), instance=request.url.path)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(DBAPIError)
    def _database(request: Request, error: DBAPIError) -> JSONResponse:
        if not (isinstance(error, OperationalError) or error.connection_invalidated):
            raise error  # a violated rule: a bug, and it will be one the next time
        DATABASE_ERRORS.inc()
        log.error("database.unavailable", extra={"route": route_of(request.scope), "kind": type(error.orig).__name__})
        return problem(Unavailable(), instance=request.url.path)

    @app.exception_handler(Exception)
    def _bug(request: Request, error: Exception) -> JSONResponse:
        # Starlette asks this one outside of every middleware, so it names the request itself.
        told = {"route": route_of(request.scope), "x_request_id": request.state.request_id}
        log.exception("request.crashed", extra=told, exc_info=error)
        response = problem(ServiceError("an unexpected error; it is in the service's log"), instance=request.url.path)
        response.headers["X-Request-Id"] = request.state.request_id
        harden(response.headers, request.scope, response.status_code)
        return response
