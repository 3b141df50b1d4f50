"""Recording what the law asks of a request. Each function is part of its caller's one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import inspect, select
from sqlalchemy.orm import Session as OrmSession

from service.audit import ledger
from service.audit.leaves import Actor, Fact, rfc3339
from service.audit.legal import DeadlineExtended, RecipientNotified, RequestAnswered, RequestRefused
from service.compliance import rules
from service.compliance.schemas import Answer, ComplianceRead, Extension, Notification, Refusal
from service.config import get_settings
from service.db import now
from service.errors import AlreadyRecorded, ComplianceUnfit
from service.requests import repository as requests
from service.requests import schedule
from service.requests.lifecycle import TERMINAL
from service.tables import RequestCompliance, UnlearnRequest

CLOCKS_APART = timedelta(minutes=5)
"""A client's clock may be this far ahead of the database's."""
MOST_RECIPIENTS = 200


def begin(
    session: OrmSession, request_id: str, *, jurisdiction: str, received_at: datetime | None, recipients: list[str]
) -> RequestCompliance:
    """The law's side of a new request. Its clock runs from the receipt, which may lie before the recording.

    Raises:
        ComplianceUnfit: received in the future.
    """
    received, due_at = clock(session, jurisdiction, received_at)
    row = RequestCompliance(
        request_id=request_id,
        jurisdiction=jurisdiction,
        received_at=received,
        due_at=due_at,
        extension_late=False,
        recipients=sorted(set(recipients)),
        recipients_told=[],
    )
    session.add(row)
    return row


def clock(session: OrmSession, jurisdiction: str, received_at: datetime | None) -> tuple[datetime, datetime | None]:
    """When a request counts as received, and when it is due; None: no law's clock runs. Raises: ComplianceUnfit."""
    at = now(session)
    received = received_at or at
    return _not_ahead(received, at, "/received_at"), rules.due(jurisdiction, received)  # by its offset, which is not kept


def hand_on(session: OrmSession, earlier: RequestCompliance, request_id: str) -> RequestCompliance:
    """The law's side of a request that supersedes another: the person asked once, so the clock is the same and runs on."""
    kept = {c.key for c in inspect(RequestCompliance).column_attrs} - {"request_id"}
    row = RequestCompliance(request_id=request_id, **{name: getattr(earlier, name) for name in kept})
    session.add(row)
    return row


def _not_ahead(moment: datetime, at: datetime, pointer: str) -> datetime:
    if moment > at + CLOCKS_APART:
        raise ComplianceUnfit("expected a time that is not in the future", pointer=pointer)
    return moment.astimezone(UTC)


def record(session: OrmSession, request_id: str, said: Extension | Refusal | Notification | Answer, actor: Actor) -> int:
    """Record one of these events; returns the sequence number of its entry.

    A request that was made without a jurisdiction gets `none`: what was done is recorded, and no clock runs.

    Raises:
        RequestNotFound.
        ComplianceUnfit: the code is none of the jurisdiction's, no clock runs, or the time lies in the future.
        AlreadyRecorded: it can be said once: a law extends once, and an answer is final.
    """
    request = requests.get(session, request_id, lock=True)
    row = of(session, request_id)
    if row is None:
        row = begin(session, request_id, jurisdiction="none", received_at=request.created_at, recipients=[])
    at = now(session)
    match said:
        case Extension():
            fact = _extended(row, said, at)
            if request.status not in TERMINAL:
                schedule.refresh(session, get_settings(), request, row)
                request.version += 1
        case Refusal():
            fact = _refused(row, said, at)
        case Notification():
            fact = _notified(row, said, at)
        case Answer():
            fact = _answered(row, said, at)
            _answer_earlier(session, request, row)
    private: dict[str, Any] | None = None if said.note is None else {"note": said.note}
    return ledger.append(session, fact, actor=actor, request_id=request_id, model_id=request.model_id, private=private)


def of(session: OrmSession, request_id: str) -> RequestCompliance | None:
    """A request's, as it stands now."""
    return session.scalars(select(RequestCompliance).where(RequestCompliance.request_id == request_id)).one_or_none()


def by_id(session: OrmSession, ids: Iterable[str]) -> dict[str, ComplianceRead]:
    """Those of these requests that have one, as clients see them now."""
    rows = session.scalars(select(RequestCompliance).where(RequestCompliance.request_id.in_(list(ids)))).all()
    at = now(session) if rows else None
    return {row.request_id: read(row, at) for row in rows if at is not None}


def _extended(row: RequestCompliance, said: Extension, at: datetime) -> Fact:
    if said.reason not in rules.rules_of(row.jurisdiction).extension_reasons:
        raise ComplianceUnfit("the request's jurisdiction knows no such reason for an extension", pointer="/reason")
    if row.extended_at is not None or row.answered_at is not None:
        raise AlreadyRecorded("a deadline is extended once, and before the answer")
    informed = _not_ahead(said.informed_at, at, "/informed_at")
    if informed < row.received_at:
        raise ComplianceUnfit("expected a time after the receipt", pointer="/informed_at")
    found = rules.extend(row.jurisdiction, row.received_at, row.due_at, informed)
    row.extended_at, row.extension_reason, row.extension_late = informed, said.reason, found.late
    row.due_at = found.due_at
    return DeadlineExtended(reason=said.reason, informed_at=rfc3339(informed), due_at=rfc3339(found.due_at), late=found.late)


def _refused(row: RequestCompliance, said: Refusal, at: datetime) -> Fact:
    if said.ground not in rules.rules_of(row.jurisdiction).grounds:
        raise ComplianceUnfit("the request's jurisdiction knows no such ground", pointer="/ground")
    if row.refused_at is not None:
        raise AlreadyRecorded
    row.refused_at, row.ground = _not_ahead(said.informed_at, at, "/informed_at"), said.ground
    return RequestRefused(ground=said.ground, informed_at=rfc3339(said.informed_at), remedy_notice=said.remedy_notice)


def _notified(row: RequestCompliance, said: Notification, at: datetime) -> Fact:
    moment = _not_ahead(said.at, at, "/at")
    if said.recipient not in row.recipients:
        if len(row.recipients) >= MOST_RECIPIENTS:
            raise ComplianceUnfit(f"expected at most {MOST_RECIPIENTS} recipients", pointer="/recipient")
        row.recipients = sorted([*row.recipients, said.recipient])
    row.recipients_told = sorted({*row.recipients_told, said.recipient})
    return RecipientNotified(recipient=said.recipient, result=said.result, at=rfc3339(moment))


def _answered(row: RequestCompliance, said: Answer, at: datetime) -> Fact:
    if row.answered_at is not None:
        raise AlreadyRecorded
    moment = _not_ahead(said.answered_at, at, "/answered_at")
    if moment < row.received_at:
        raise ComplianceUnfit("expected a time after the receipt", pointer="/answered_at")
    row.answered_at = moment
    late = None if row.due_at is None else moment > row.due_at
    return RequestAnswered(answered_at=rfc3339(moment), result=said.result, late=late)


def _answer_earlier(session: OrmSession, request: UnlearnRequest, answered: RequestCompliance) -> None:
    """An answer is an answer to the person: the requests that this one supersedes are answered, too, and their data may go."""
    before = request.supersedes
    while before is not None:
        row = of(session, before)
        if row is not None and row.answered_at is None:
            row.answered_at = answered.answered_at
        before = session.scalars(select(UnlearnRequest.supersedes).where(UnlearnRequest.id == before)).one()


def read(row: RequestCompliance, at: datetime) -> ComplianceRead:
    """As clients see it at a moment of the database's clock."""
    return ComplianceRead(
        jurisdiction=row.jurisdiction,
        received_at=row.received_at,
        due_at=row.due_at,
        overdue=row.answered_at is None and row.due_at is not None and row.due_at < at,
        extended_at=row.extended_at,
        extension_reason=row.extension_reason,
        extension_late=row.extension_late,
        ground=row.ground,
        refused_at=row.refused_at,
        answered_at=row.answered_at,
        recipients=row.recipients,
        recipients_told=row.recipients_told,
    )
