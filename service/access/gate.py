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
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import tenancy
from service.access import isolation  # noqa: F401 — the rule that the gate's project is kept by
from service.access.authenticate import Authenticator
from service.access.caller import LOCAL_CALLER, Caller
from service.access.denials import Denials
from service.access.errors import Refused, Unauthenticated
from service.access.limiting import READING, Kind, Limits, RateLimited, Standing, place_of
from service.access.nearby import require_nearby
from service.auth import Public, declared
from service.config import Settings
from service.errors import ServiceError, Unavailable, problem
from service.telemetry.http import PROBES

log = logging.getLogger("expunge.access")

DOCUMENTS = ("/docs", "/docs/oauth2-redirect", "/openapi.json")
STANDING = "standing"
"""The key of the request's state."""
DOCUMENT_FILES = "/static-offline-docs/"
"""The API's own description says nothing of anybody's data."""


class Gate:
    """Sets `request.state.caller`; None for what is public. Counts the call, where calls are limited."""

    def __init__(self, app: ASGIApp, *, owner: FastAPI, routes: Iterable[APIRoute], settings: Settings) -> None:
        self._app, self._owner = app, owner
        self._local = settings.auth == "local"
        self._contained = settings.bind_in_container
        self._names = frozenset(settings.local_hosts)
        self._limits: Limits = owner.state.limits
        self._routes = [(route.methods or set(), route.path_regex, _is_public(route)) for route in routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["caller"] = None
        told = _telling(scope, send)
        try:
            state["caller"] = caller = await self._caller(scope)
            await self._count(scope, caller)
        except (ServiceError, OperationalError) as error:
            known = error if isinstance(error, ServiceError) else Unavailable()
            await (await self._refused(scope, known))(scope, receive, told)
            return
        if caller is None or caller is LOCAL_CALLER:
            await self._app(scope, receive, told)
            return
        with tenancy.acting(caller.project):
            await self._app(scope, receive, told)

    async def _caller(self, scope: Scope) -> Caller | None:
        """None: what is asked for is public. Raises: Unauthenticated, RateLimited, Unavailable, ForeignHost, ForeignOrigin."""
        if self._local:
            if not self._contained and _elsewhere((scope.get("server") or ("",))[0]):
                raise Unauthenticated("this service listens on loopback alone until `auth` is `required`")
            require_nearby(scope["method"], Headers(scope=scope), self._names)
            return LOCAL_CALLER
        if self._public(scope["method"], scope["path"]):
            return None
        shown = Headers(scope=scope).get("authorization")
        if not self._authenticator.has_seen(shown):  # who was good before is not kept out by others at their address
            self._require_within(scope, await self._limits.look("denied", _place(scope)))
        try:
            return await self._authenticator.caller(shown)
        except Unauthenticated:
            self._require_within(scope, await self._limits.count("denied", _place(scope)))
            raise

    async def _count(self, scope: Scope, caller: Caller | None) -> None:
        """Raises: RateLimited."""
        if scope["path"] in PROBES:
            return
        kind: Kind = "reads" if scope["method"] in READING else "writes"
        who = _place(scope) if caller is None else str(caller.actor)
        self._require_within(scope, await self._limits.count(kind, who))

    @staticmethod
    def _require_within(scope: Scope, standing: Standing | None) -> None:
        """Keep what the answer is to say of the limit. Raises: RateLimited."""
        scope["state"][STANDING] = standing
        if standing is not None and not standing.within:
            raise RateLimited

    @property
    def _authenticator(self) -> Authenticator:
        known: Authenticator = self._owner.state.authenticator
        return known

    async def _refused(self, scope: Scope, error: ServiceError) -> JSONResponse:
        if not isinstance(error, Refused):
            return problem(error, instance=scope["path"])
        return await run_in_threadpool(refuse, self._owner, error, scope["path"])

    def _public(self, method: str, path: str) -> bool:
        """The first route that fits decides, as it will be the one that answers; a line break fits no route's pattern."""
        path = path.replace("\n", " ")  # below a public path it is not found, for whoever asks
        if path in DOCUMENTS or path.startswith(DOCUMENT_FILES):
            return True
        return next((public for methods, regex, public in self._routes if method in methods and regex.match(path)), False)


def _place(scope: Scope) -> str:
    return place_of((scope.get("client") or (None,))[0])


def _telling(scope: Scope, send: Send) -> Send:
    """`send`, with the headers of the limit that the call was counted by."""

    async def told(message: Message) -> None:
        standing: Standing | None = scope["state"].get(STANDING)
        if standing is not None and message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(standing.headers())
        await send(message)

    return told


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
    app.state.limits = Limits(settings)
    app.add_middleware(Gate, owner=app, routes=list(routes), settings=settings)

    @app.exception_handler(Refused)
    def _refused(request: Request, error: Refused) -> Any:
        return refuse(app, error, request.url.path)
