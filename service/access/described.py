"""What the OpenAPI document says about access: how to show who one is, and which scope each operation asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi.routing import APIRoute

from service.access.errors import Forbidden, Unauthenticated
from service.auth import Allowed, declared
from service.errors import problems

SCHEMES: dict[str, dict[str, str]] = {
    "apiKey": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer expk_…`, see `POST /api-keys`"},
    "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "a token of the identity provider"},
}
SCOPE = "x-required-scope"


def add_access(document: dict[str, Any], routes: Iterable[APIRoute]) -> None:
    """In place: schemes, and of each operation its security, its scope and the two refusals."""
    document["components"]["securitySchemes"] = SCHEMES
    scopes = {route.name: one.scope for route in routes for one in declared(route) if isinstance(one, Allowed)}
    for operations in document["paths"].values():
        for operation in operations.values():
            scope = scopes.get(operation["operationId"])
            if scope is None:
                operation["security"] = []
                continue
            operation["security"] = [{name: []} for name in SCHEMES]
            operation[SCOPE] = scope
            for status, answer in problems(Unauthenticated, Forbidden).items():
                known = operation["responses"].setdefault(str(status), answer)
                if known is not answer and answer["description"] not in known["description"]:
                    known["description"] += " · " + answer["description"]
