"""Is the process there, and can it do its work."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import lru_cache
from typing import Literal
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from service.access import names
from service.auth import PUBLIC
from service.config import Settings
from service.errors import Unavailable, problems

router = APIRouter(tags=["health"])

PATIENCE_SECONDS = 1.0
"""A probe must answer before whoever probes gives up."""
Part = Literal["broker", "signer"]


class Health(BaseModel):
    """An answer is the message."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether requests can be served, and what is missing meanwhile."""

    status: Literal["ok", "degraded"] = Field(description="degraded: requests are taken, and some of the work has to wait")
    missing: list[Part] = Field(description="what does not answer")


@lru_cache(maxsize=1)
def _head() -> str:
    from service import migrate  # Alembic takes a quarter of a second to import

    return migrate.head()


@router.get("/healthz", dependencies=[PUBLIC], response_model=Health, summary="The process answers")
async def healthz() -> Health:
    """Asks nothing of the database: a liveness probe must not restart a healthy process."""
    return Health()  # async: while the database hangs, every thread for requests may be waiting for it


@router.get(
    "/readyz",
    dependencies=[PUBLIC],
    response_model=Readiness,
    summary="Requests can be served",
    responses=problems(Unavailable),
)
def readyz(request: Request) -> Readiness:
    """The database answers, and its schema is the one this code knows. A broker or a signer that is away is no reason to send
    clients elsewhere: what is accepted now is rung for, and signed, when they are back.
    """
    from service import migrate

    try:
        if migrate.current() != _head():
            raise Unavailable("the database's schema is not this code's; run `expunge migrate`")
        names.require_own()
    except SQLAlchemyError as error:
        raise Unavailable("the database does not answer") from error
    except names.NameTaken as error:
        raise Unavailable(str(error)) from error
    looks: dict[Part, Callable[[Settings], bool]] = {"broker": broker_answers, "signer": signer_answers}
    missing = [part for part, answers in looks.items() if not answers(request.app.state.settings)]
    return Readiness(status="degraded" if missing else "ok", missing=missing)


def broker_answers(settings: Settings) -> bool:
    """Redis is asked; of any other broker it has to do that somebody listens. The embedded one is in the worker's memory."""
    if settings.embedded:
        return True
    url = settings.broker_url.get_secret_value()
    if urlsplit(url).scheme not in ("redis", "rediss"):
        return _listens(url)
    try:
        with Redis.from_url(url, socket_timeout=PATIENCE_SECONDS, socket_connect_timeout=PATIENCE_SECONDS) as broker:
            return bool(broker.ping())
    except RedisError:
        return False


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "localhost", parts.port or 5672), PATIENCE_SECONDS):
            return True
    except OSError:
        return False


def signer_answers(settings: Settings) -> bool:
    """Somebody accepts connections at the signer's socket; it is asked nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PATIENCE_SECONDS)
        try:
            probe.connect(settings.socket_path)
        except OSError:
            return False
    return True
