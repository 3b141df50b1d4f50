"""The gate in front of all routes: it finds out who calls, and in which project, before a byte of the body is read.

What the caller may do is the route's to ask (`service.auth.allowed`); the gate only lets nobody in without credentials but to
what is public. It wraps the whole answer, so a stream is written in the caller's project, too.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from sqlalchemy.exc import OperationalError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service import tenancy
from service.access import isolation  # noqa: F401 — the rule that the gate's project is kept by
from service.access.authenticate import Authenticator
from service.access.caller import LOCAL_CALLER
from service.access.denials import Denials
from service.access.errors import Refused, Unauthenticated
from service.auth import Public, declared
from service.config import Settings
from service.errors import ServiceError, Unavailable, problem

log = logging.getLogger("expunge.access")

DOCUMENTS = ("/docs", "/docs/oauth2-redirect", "/openapi.json")
DOCUMENT_FILES = "/static-offline-docs/"
"""The API's own description says nothing of anybody's data."""


class Gate:
    """Sets `request.state.caller`; None for what is public."""

    def __init__(self, app: ASGIApp, *, owner: FastAPI, routes: Iterable[APIRoute], settings: Settings) -> None:
        self._app, self._owner = app, owner
        self._local = settings.auth == "local"
        self._contained = settings.bind_in_container
        self._routes = [(route.methods or set(), route.path_regex, _is_public(route)) for route in routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        if self._local:
            if not self._contained and _elsewhere((scope.get("server") or ("",))[0]):
                error = Unauthenticated("this service listens on loopback alone until `auth` is `required`")
                await (await self._refused(scope, error))(scope, receive, send)
                return
            state["caller"] = LOCAL_CALLER
            await self._app(scope, receive, send)
            return
        state["caller"] = None
        if self._public(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._owner.state.authenticator.caller(Headers(scope=scope).get("authorization"))
        except (ServiceError, OperationalError) as error:
            known = error if isinstance(error, ServiceError) else Unavailable()
            await (await self._refused(scope, known))(scope, receive, send)
            return
        state["caller"] = caller
        with tenancy.acting(caller.project):
            await self._app(scope, receive, send)

    async def _refused(self, scope: Scope, error: ServiceError) -> JSONResponse:
        if not isinstance(error, Refused):
            return problem(error, instance=scope["path"])
        return await run_in_threadpool(refuse, self._owner, error, scope["path"])

    def _public(self, method: str, path: str) -> bool:
        """The first route that fits decides, as it will be the one that answers."""
        if path in DOCUMENTS or path.startswith(DOCUMENT_FILES):
            return True
        return next((public for methods, regex, public in self._routes if method in methods and regex.match(path)), False)


def _is_public(route: APIRoute) -> bool:
    return any(isinstance(one, Public) for one in declared(route))


@lru_cache(maxsize=64)
def _elsewhere(address: str | None) -> bool:
    """The connection came in on an address that others can reach. What is no IP address is a socket file, or a test."""
    try:
        return not ipaddress.ip_address(address or "").is_loopback
    except ValueError:
        return False


def refuse(app: FastAPI, error: Refused, path: str) -> JSONResponse:
    """Write the refusal down, and answer. Blocks. What cannot be written down is answered as if nobody were there."""
    if error.attempt is not None:
        try:
            app.state.denials.note(error.attempt)
        except (OperationalError, Unavailable):
            log.exception("denial.not_written")
            return problem(Unavailable(), instance=path)
    response = problem(error, instance=path)
    response.headers["WWW-Authenticate"] = error.challenge
    response.headers["Cache-Control"] = "no-store"
    return response


def install(app: FastAPI, routes: Iterable[APIRoute], settings: Settings) -> None:
    """Put the gate in front of the app's routes."""
    app.state.authenticator = Authenticator(settings)
    app.state.denials = Denials()
    app.add_middleware(Gate, owner=app, routes=list(routes), settings=settings)

    @app.exception_handler(Refused)
    def _refused(request: Request, error: Refused) -> Any:
        return refuse(app, error, request.url.path)
