"""Is the process there, and can it do its work."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from service.auth import PUBLIC
from service.errors import Unavailable, problems

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """An answer is the message."""

    status: Literal["ok"] = "ok"


@lru_cache(maxsize=1)
def _head() -> str:
    from service import migrate  # Alembic takes a quarter of a second to import

    return migrate.head()


@router.get("/healthz", dependencies=[PUBLIC], response_model=Health, summary="The process answers")
def healthz() -> Health:
    """Asks nothing of the database: a liveness probe must not restart a healthy process."""
    return Health()


@router.get(
    "/readyz", dependencies=[PUBLIC], response_model=Health, summary="Requests can be served", responses=problems(Unavailable)
)
def readyz() -> Health:
    """The database answers, and its schema is the one this code knows."""
    from service import migrate

    try:
        current = migrate.current()
    except SQLAlchemyError as error:
        raise Unavailable("the database does not answer") from error
    if current != _head():
        raise Unavailable("the database's schema is not this code's; run `expunge migrate`")
    return Health()
