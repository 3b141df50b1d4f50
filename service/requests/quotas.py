"""How many requests a project may have waiting, and how many of them may run at once. Counted from the rows, never kept beside
them: a counter that drifts from what it counts stops a queue for good.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session as OrmSession

from service.config import Settings
from service.errors import QuotaExceeded
from service.requests.lifecycle import HOLDS_LINEAGE, KEEPS_PLACE
from service.tables import UnlearnRequest


@dataclass(frozen=True)
class Usage:
    """Requests of one project."""

    active: int
    """That some worker holds."""
    queued: int
    """That wait for one, the paused ones included."""


def usage(session: OrmSession, project_id: str) -> Usage:
    """As committed now."""
    counted = select(UnlearnRequest.status, func.count()).group_by(UnlearnRequest.status)
    pending = counted.where(
        UnlearnRequest.project_id == project_id, UnlearnRequest.status.in_(sorted(HOLDS_LINEAGE | KEEPS_PLACE))
    )
    by_status = {status: int(count) for status, count in session.execute(pending)}
    return Usage(
        active=sum(by_status.get(status, 0) for status in HOLDS_LINEAGE),
        queued=sum(by_status.get(status, 0) for status in KEEPS_PLACE),
    )


def require_place(session: OrmSession, settings: Settings, project_id: str, *, more: int = 0) -> None:
    """Call it last, under the ledger's lock: then no two that are made at once both take the last place.

    Args:
        more: so many that are not made, but might be.

    Raises:
        QuotaExceeded: more wait than may.
    """
    most = settings.max_queued_requests
    if most and usage(session, project_id).queued + more > most:
        raise QuotaExceeded(f"{most} requests wait already, and no more may", quota="max_queued_requests", limit=most)


def active(session: OrmSession) -> dict[str, int]:
    """How many run now, by project; one of which none runs is left out."""
    held = select(UnlearnRequest.project_id, func.count()).where(UnlearnRequest.status.in_(sorted(HOLDS_LINEAGE)))
    return dict(session.execute(held.group_by(UnlearnRequest.project_id)).tuples().all())
