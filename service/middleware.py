"""What wraps every request: a limit on the body, an id to find it again in the log, and what browsers are told."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.errors import BadRequest, BodyTooLarge, ServiceError, problem
from service.hardening import DOCS_PAGES, docs_policy, harden

REQUEST_ID = re.compile(r"[\w.-]{1,128}", re.ASCII)


class BodyLimit:
    """Refuses bodies over the limit: at once when they say their length, else as soon as they pass it."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        error: ServiceError | None = None
        if not (declared.isascii() and declared.isdigit()):
            error = BadRequest("Content-Length is not a number")
        elif len(declared) > 18 or int(declared) > self._max_bytes:
            error = BodyTooLarge(f"the body may be at most {self._max_bytes} bytes")
        if error is not None:
            response = problem(error, instance=scope["path"])
            response.headers["Connection"] = "close"  # the body was not read: the connection cannot be used again
            await response(scope, receive, send)
            return
        await self._app(scope, self._counting(receive), send)

    def _counting(self, receive: Receive) -> Receive:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                # an HTTPException is the one error that FastAPI passes on while it reads a body
                raise HTTPException(413)
            return message

        return counted


class RequestId:
    """Takes `X-Request-Id` from the client, or makes one, and answers with it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        with logs.bind(x_request_id=request_id):
            await self._app(scope, receive, tagged)


class SecurityHeaders:
    """Tells browsers to guess nothing, frame nothing, run nothing and keep nothing, unless a route says otherwise."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held: list[Message] = []

        async def hardened(message: Message) -> None:
            if message["type"] != "http.response.start":
                for before in held:  # a page of /docs: one body, whose scripts make the policy
                    harden(MutableHeaders(scope=before), scope, before["status"], docs_policy(message.get("body", b"")))
                    await send(before)
                held.clear()
                await send(message)
            elif scope["path"] in DOCS_PAGES:
                held.append(message)
            else:
                harden(MutableHeaders(scope=message), scope, message["status"])
                await send(message)

        await self._app(scope, receive, hardened)
