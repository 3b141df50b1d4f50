"""Deadlines that come near or pass: said once of each deadline, by whichever worker's sweeper sees it first.

A deadline ends nothing: a legal duty does not go away because it was missed. The request goes on, and its people are told.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ScalarSelect, exists, select
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
        select(
            RequestCompliance.request_id,
            RequestCompliance.received_at,
            RequestCompliance.due_at,
            UnlearnRequest.status,
            UnlearnRequest.latest_start_at,
            _last_said(AT_RISK),
            _last_said(MISSED),
        )
        .join(UnlearnRequest, UnlearnRequest.id == RequestCompliance.request_id)
        .where(
            RequestCompliance.answered_at.is_(None),
            RequestCompliance.due_at.is_not(None),
            ~exists().where(later.supersedes == UnlearnRequest.id),  # the clock was handed on
        )
    )
    found = []
    for request_id, received, due, status, latest, risk, missed in session.execute(chosen):
        assert due is not None, "the query asked for it"
        of_this = rfc3339(due)
        if missed == of_this:
            continue
        earned = judge(at, received_at=received, due_at=due, latest_start_at=latest, waits=status in KEEPS_PLACE)
        if earned == MISSED or (earned == AT_RISK and risk != of_this):
            found.append((request_id, earned))
    return found


def say(session: OrmSession, request_id: str, kind: str) -> bool:
    """Write the event, unless another sweeper has, or the request was answered meanwhile. One short transaction."""
    law = session.scalars(
        select(RequestCompliance)
        .where(RequestCompliance.request_id == request_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one()
    if law.answered_at is not None or law.due_at is None:
        return False
    if session.scalars(select(_last_said(kind)).where(RequestCompliance.request_id == request_id)).one() == rfc3339(law.due_at):
        return False
    tell(session, request_id, kind, {"due_at": rfc3339(law.due_at)})
    return True


def _last_said(kind: str) -> ScalarSelect[str]:
    """Of which deadline, as the event has it: an extension gives a request another one. NULL: of none."""
    return (
        select(RequestEvent.data["due_at"].as_string())
        .where(RequestEvent.request_id == RequestCompliance.request_id, RequestEvent.type == kind)
        .order_by(RequestEvent.id.desc())
        .limit(1)
        .scalar_subquery()
    )
