"""Deadlines that come near or pass: said once a request, by whichever worker's sweeper sees it first.

A deadline ends nothing: a legal duty does not go away because it was missed. The request goes on, and its people are told.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Exists, exists, select
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.orm import aliased

from service.audit.leaves import rfc3339
from service.db import now
from service.requests.events import tell
from service.requests.lifecycle import KEEPS_PLACE
from service.tables import RequestCompliance, RequestEvent, UnlearnRequest

AT_RISK = "unlearning_request.deadline_at_risk"
MISSED = "unlearning_request.deadline_missed"
LEFT = 0.2
"""Of the time between receipt and deadline: less than this is a risk."""


def judge(
    at: datetime, *, received_at: datetime, due_at: datetime, latest_start_at: datetime | None, waits: bool
) -> str | None:
    """Which event an unanswered request has earned at a moment. Pure.

    Args:
        latest_start_at: see `requests.schedule`; None: not known.
        waits: no worker is at it, and it has not ended.
    """
    if at > due_at:
        return MISSED
    if waits and latest_start_at is not None and at >= latest_start_at:
        return AT_RISK
    return AT_RISK if due_at - at <= LEFT * max(due_at - received_at, timedelta(0)) else None


def candidates(session: OrmSession) -> list[tuple[str, str]]:
    """Requests that have earned an event which nobody has written: id and type. A read, without a lock."""
    at = now(session)
    later = aliased(UnlearnRequest)
    chosen = (
        select(RequestCompliance, UnlearnRequest.status, UnlearnRequest.latest_start_at, _said(AT_RISK))
        .join(UnlearnRequest, UnlearnRequest.id == RequestCompliance.request_id)
        .where(
            RequestCompliance.answered_at.is_(None),
            RequestCompliance.due_at.is_not(None),
            ~_said(MISSED),
            ~exists().where(later.supersedes == UnlearnRequest.id),  # the clock was handed on
        )
    )
    found = []
    for law, status, latest, risk_said in session.execute(chosen):
        waits = status in KEEPS_PLACE
        assert law.due_at is not None, "the query asked for it"
        earned = judge(at, received_at=law.received_at, due_at=law.due_at, latest_start_at=latest, waits=waits)
        if earned == MISSED or (earned == AT_RISK and not risk_said):
            found.append((law.request_id, earned))
    return found


def say(session: OrmSession, request_id: str, kind: str) -> bool:
    """Write the event, unless another sweeper has, or the request was answered meanwhile. One short transaction."""
    law = session.scalars(
        select(RequestCompliance)
        .where(RequestCompliance.request_id == request_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one()
    already = select(RequestEvent.id).where(RequestEvent.request_id == request_id, RequestEvent.type == kind)
    if law.answered_at is not None or law.due_at is None or session.scalars(already).first() is not None:
        return False
    tell(session, request_id, kind, {"due_at": rfc3339(law.due_at)})
    return True


def _said(kind: str) -> Exists:
    return exists().where(RequestEvent.request_id == RequestCompliance.request_id, RequestEvent.type == kind)
