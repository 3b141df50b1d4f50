"""What waits for a worker, and what has lost one. Queries only: the rows are the queue, so there is no second table to agree.

Whoever asks decides what to do about it: the sweeper rings for what is due (`worker.conductor.control`), and hands what is
lost to `service.requests.endings.reap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, exists, or_, select
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.orm import aliased

from service.db import now
from service.requests.lifecycle import HOLDS_LINEAGE
from service.tables import UnlearnRequest


@dataclass(frozen=True)
class Due:
    """A request that a worker may take now. `fence` tells one wait from the next: it rises with every claim."""

    request_id: str
    fence: int


@dataclass(frozen=True)
class Held:
    """A request that some worker holds, or held until it fell silent."""

    request_id: str
    fence: int
    owner: str
    expired: bool


def claimable(at: datetime) -> ColumnElement[bool]:
    """True for a row of `unlearn_request` that may be claimed at this time of the database's clock.

    Requests of one model run one after the other, oldest first: an older one that waits out a pause still comes first, or
    the younger would start from weights that the older is about to replace.
    """
    other = aliased(UnlearnRequest)
    older = or_(
        other.created_at < UnlearnRequest.created_at,
        and_(other.created_at == UnlearnRequest.created_at, other.id < UnlearnRequest.id),
    )
    in_the_way = exists().where(
        other.model_id == UnlearnRequest.model_id,
        or_(other.status.in_(sorted(HOLDS_LINEAGE)), and_(other.status == "queued", older)),
    )
    return and_(
        UnlearnRequest.status == "queued",
        UnlearnRequest.not_before <= at,
        UnlearnRequest.cancel_requested_at.is_(None),
        ~in_the_way,
    )


def due(session: OrmSession, *, limit: int) -> list[Due]:
    """At most `limit` claimable requests, oldest first."""
    rows = session.execute(
        select(UnlearnRequest.id, UnlearnRequest.fence)
        .where(claimable(now(session)))
        .order_by(UnlearnRequest.created_at, UnlearnRequest.id)
        .limit(limit)
    )
    return [Due(request_id, fence) for request_id, fence in rows]


def held(session: OrmSession) -> list[Held]:
    """Every request with a lease, and whether that lease has run out by the database's clock."""
    at = now(session)
    rows = session.execute(
        select(UnlearnRequest.id, UnlearnRequest.fence, UnlearnRequest.lease_owner, UnlearnRequest.lease_expires_at).where(
            UnlearnRequest.status.in_(sorted(HOLDS_LINEAGE))
        )
    )
    return [
        Held(request_id, fence, owner or "", expires_at is None or expires_at < at)
        for request_id, fence, owner, expires_at in rows
    ]


def standing(session: OrmSession, request_ids: list[str]) -> dict[str, tuple[str, int]]:
    """Status and fence of each of these requests that exists: what a sweep of job directories needs to know."""
    rows = session.execute(
        select(UnlearnRequest.id, UnlearnRequest.status, UnlearnRequest.fence).where(UnlearnRequest.id.in_(request_ids))
    )
    return {request_id: (status, fence) for request_id, status, fence in rows}
