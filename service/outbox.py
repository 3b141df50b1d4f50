"""What waits for a worker, and what has lost one. Queries only: the rows are the queue, so there is no second table to agree.

Whoever asks decides what to do about it: the sweeper rings for what is due (`worker.conductor.control`), and hands what is
lost to `service.requests.endings.reap`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, case, exists, func, or_, select
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.orm import aliased

from service.db import now
from service.requests.lifecycle import HOLDS_LINEAGE, KEEPS_PLACE, PRIORITIES
from service.tables import UnlearnRequest


@dataclass(frozen=True)
class Due:
    """A request that a worker may take now. `fence` tells one wait from the next: it rises with every claim."""

    request_id: str
    fence: int
    gpu_class: str = "default"


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
    the younger would start from weights that the older is about to replace. So does a paused one (`requests.lifecycle`).
    """
    other = aliased(UnlearnRequest)
    in_the_way = exists().where(blocks(other, UnlearnRequest))
    return and_(
        UnlearnRequest.status == "queued",
        UnlearnRequest.not_before <= at,
        UnlearnRequest.cancel_requested_at.is_(None),
        ~in_the_way,
    )


def blocks(other: Any, request: Any) -> ColumnElement[bool]:
    """True where `other` must end, or be taken up, before `request` of the same model may be claimed. Both are requests."""
    older = or_(
        other.created_at < request.created_at,
        and_(other.created_at == request.created_at, other.id < request.id),
    )
    waits_in_front = and_(other.status.in_(sorted(KEEPS_PLACE)), older)
    return and_(other.model_id == request.model_id, or_(other.status.in_(sorted(HOLDS_LINEAGE)), waits_in_front))


def rank(priority: Any) -> ColumnElement[int]:
    """A column of priorities as numbers, the most urgent first."""
    return case({name: number for number, name in enumerate(PRIORITIES)}, value=priority, else_=len(PRIORITIES))


def order() -> tuple[Any, ...]:
    """Who comes first: the earliest latest start, then the class, then the oldest. No law's clock: after those that have one.

    A request inherits latest start and class of the most urgent one that waits behind it on its model: else an urgent request
    would wait for a bulk one that in turn waits for everybody's.
    """
    behind = aliased(UnlearnRequest)
    same_or_younger = or_(
        behind.created_at > UnlearnRequest.created_at,
        and_(behind.created_at == UnlearnRequest.created_at, behind.id >= UnlearnRequest.id),
    )

    def inherited(column: Any) -> ColumnElement[Any]:
        chosen = select(func.min(column)).where(
            behind.model_id == UnlearnRequest.model_id, behind.status.in_(sorted(KEEPS_PLACE)), same_or_younger
        )
        return chosen.correlate(UnlearnRequest).scalar_subquery()

    latest = inherited(behind.latest_start_at)
    return (latest.is_(None), latest, inherited(rank(behind.priority)), UnlearnRequest.created_at, UnlearnRequest.id)


def due(session: OrmSession, *, limit: int, classes: Collection[str] | None = None, most_active: int = 0) -> list[Due]:
    """At most `limit` claimable requests, in `order`.

    Args:
        classes: GPU classes that the asker serves; None: all.
        most_active: requests of a project that may run at once, those of one with so many are left out; 0: any number.
    """
    query = select(UnlearnRequest.id, UnlearnRequest.fence, UnlearnRequest.gpu_class).where(claimable(now(session)))
    if classes is not None:
        query = query.where(UnlearnRequest.gpu_class.in_(sorted(classes)))
    if most_active:
        running = aliased(UnlearnRequest)
        held_now = select(func.count()).where(
            running.project_id == UnlearnRequest.project_id, running.status.in_(sorted(HOLDS_LINEAGE))
        )
        query = query.where(held_now.correlate(UnlearnRequest).scalar_subquery() < most_active)
    rows = session.execute(query.order_by(*order()).limit(limit))
    return [Due(request_id, fence, gpu_class) for request_id, fence, gpu_class in rows]


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
