"""Who is asking. Until there are keys and logins, everybody who can reach the service is the one local actor."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from service.audit.leaves import LOCAL, Actor


async def current_actor() -> Actor:
    """The one who makes this HTTP call. Async, so that it costs no hop to another thread."""
    return LOCAL


CurrentActor = Annotated[Actor, Depends(current_actor)]
