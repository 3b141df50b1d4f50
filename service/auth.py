"""Who is asking, and what a route asks of them.

Every route says it in its decorator, in one of two ways; a test walks over all of them:

    @router.get("/{model_id}", dependencies=[allowed("models:read")], …)
    @router.get("/healthz", dependencies=[PUBLIC], …)

`service.access.gate` has checked the credentials before; an endpoint that wants to know who it is takes `CurrentActor`, or
`CurrentCaller`.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from sqlalchemy.exc import OperationalError

from service.access.caller import Caller
from service.access.errors import Unauthenticated
from service.access.scopes import SCOPES, Scope
from service.audit.leaves import Actor
from service.errors import Unavailable


async def current_caller(request: Request) -> Caller:
    """The one who makes this HTTP call. Async, so that it costs no hop to another thread. Raises: Unauthenticated."""
    caller: Caller | None = getattr(request.state, "caller", None)
    if caller is None:
        raise Unauthenticated
    return caller


async def current_actor(request: Request) -> Actor:
    """The same, as the ledger names them. Raises: Unauthenticated."""
    return (await current_caller(request)).actor


CurrentCaller = Annotated[Caller, Depends(current_caller)]
CurrentActor = Annotated[Actor, Depends(current_actor)]


class Allowed:
    """A route for those who have a scope."""

    def __init__(self, scope: Scope) -> None:
        if scope not in SCOPES:
            raise ValueError(f"no such scope: {scope}")
        self.scope = scope

    async def __call__(self, request: Request) -> None:
        """Raises: Unauthenticated, Forbidden."""
        (await current_caller(request)).require(self.scope)


async def still_allowed(request: Request, scope: Scope) -> bool:
    """Whether who made a call that is not over yet could make it again. That nobody can say so just now ends nothing."""
    caller = await current_caller(request)
    if caller.project is None:
        return True
    try:
        found: Caller = await request.app.state.authenticator.caller(request.headers.get("authorization"))
    except Unauthenticated:
        return False
    except (Unavailable, OperationalError):
        return True
    return found.project == caller.project and found.may(scope)


class Public:
    """A route for everybody, wherever they come from."""

    async def __call__(self) -> None:
        return


def allowed(scope: Scope) -> Any:
    """What a route says in its `dependencies`."""
    return Depends(Allowed(scope))


PUBLIC: Any = Depends(Public())


def declared(route: APIRoute) -> list[Allowed | Public]:
    """What a route has said; one, in a route that is as it should be."""
    return [one.dependency for one in route.dependencies if isinstance(one.dependency, Allowed | Public)]
