"""What the OpenAPI document says about access: how to show who one is, and which scope each operation asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi.routing import APIRoute

from service.access.errors import Forbidden, Unauthenticated
from service.access.limiting import RateLimited
from service.access.nearby import ForeignHost, ForeignOrigin
from service.auth import Allowed, declared
from service.errors import ServiceError, problems
from service.telemetry.http import PROBES

SCHEMES: dict[str, dict[str, str]] = {
    "apiKey": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer expk_…`, see `POST /api-keys`"},
    "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "a token of the identity provider"},
}
SCOPE = "x-required-scope"
LIMIT_HEADERS: dict[str, Any] = {
    "Retry-After": {"description": "seconds until the next call may be taken", "schema": {"type": "integer"}},
    "RateLimit-Policy": {
        "description": "the limits, on every answer to a call that one counts: `q` calls in `w` seconds",
        "schema": {"type": "string"},
    },
    "RateLimit": {
        "description": "how the caller stands: `r` calls are left, in `t` seconds there will be more",
        "schema": {"type": "string"},
    },
}


def add_access(document: dict[str, Any], routes: Iterable[APIRoute]) -> None:
    """In place: schemes, and of each operation its security, its scope, the refusals and the limit of calls."""
    document["components"]["securitySchemes"] = SCHEMES
    scopes = {route.name: one.scope for route in routes for one in declared(route) if isinstance(one, Allowed)}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _refuses(operation, ForeignHost, ForeignOrigin)
            if path not in PROBES:
                _refuses(operation, RateLimited)
                operation["responses"][str(RateLimited.status)]["headers"] = LIMIT_HEADERS
            scope = scopes.get(operation["operationId"])
            if scope is None:
                operation["security"] = []
                continue
            operation["security"] = [{name: []} for name in SCHEMES]
            operation[SCOPE] = scope
            _refuses(operation, Unauthenticated, Forbidden)


def _refuses(operation: dict[str, Any], *kinds: type[ServiceError]) -> None:
    for status, answer in problems(*kinds).items():
        known = operation["responses"].setdefault(str(status), answer)
        if known is not answer and answer["description"] not in known["description"]:
            known["description"] += " · " + answer["description"]
