"""Four eyes: a request that needs approvals waits until as many others as its project wants have looked at it.

Each function is part of its caller's one transaction. The database refuses on its own whoever approves what they asked for, and
a request that is queued without its approvals (migrations 0015 and 0017).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, exists, select
from sqlalchemy.orm import Session as OrmSession

from service.access.tables import ApiKey
from service.audit import decisions, ledger
from service.audit.decisions import ApprovalsVoided, RequestApproved, RequestRejected
from service.audit.leaves import Actor, RequestAmended, RequestClosed, RequestReceived, rfc3339
from service.config import Settings
from service.db import now
from service.errors import InvalidTransition, RequestChanged, SelfApproval
from service.requests import repository
from service.requests.leases import announce
from service.requests.lifecycle import HOLDS_LINEAGE, MOVES
from service.requests.responses import ApprovalsRead, DecisionRead
from service.requests.schemas import Approval, Rejection
from service.tables import LedgerEntry, LedgerPrivate, RequestApproval, UnlearnRequest


def required(settings: Settings, own: int | None) -> int:
    """How many others must approve what is asked for in a project: the installation's number, or the project's own if more."""
    return max(settings.approvals_required, own or 0)


def digest(session: OrmSession, request_id: str) -> str:
    """What an approval is bound to: `decisions.request_digest` of the entries that say what is asked for."""
    private = exists().where(and_(LedgerPrivate.log_id == LedgerEntry.log_id, LedgerPrivate.seq == LedgerEntry.seq))
    told = select(LedgerEntry.leaf_hash).where(
        LedgerEntry.log_id == ledger.LOG_ID,
        LedgerEntry.request_id == request_id,
        LedgerEntry.action.in_([RequestReceived.action, RequestAmended.action]),
        private,  # an entry without changes priority alone
    )
    return decisions.request_digest(request_id, session.scalars(told.order_by(LedgerEntry.request_ordinal)))


def granted(session: OrmSession, request_id: str, request_digest: str) -> list[RequestApproval]:
    """Approvals of this very digest, oldest first."""
    chosen = select(RequestApproval).where(
        RequestApproval.request_id == request_id,
        RequestApproval.request_digest == request_digest,
        RequestApproval.decision == "approved",
    )
    return list(session.scalars(chosen.order_by(RequestApproval.at, RequestApproval.approver)))


def is_approved(session: OrmSession, request: UnlearnRequest) -> bool:
    """As it reads now, it has the approvals that it needs."""
    if not request.approvals_required:
        return True
    return len(granted(session, request.id, digest(session, request.id))) >= request.approvals_required


def approve(session: OrmSession, request_id: str, said: Approval, actor: Actor, key_id: str | None = None) -> UnlearnRequest:
    """Approve a request; the last approval that it needs queues it. Approving twice changes nothing.

    Raises:
        RequestNotFound.
        InvalidTransition: it does not wait for approval.
        RequestChanged: what is said of it was changed since it was read.
        SelfApproval: the approver asked for it, made the key that it was asked with, or shows one that an asker made.
    """
    request = _waiting(session, request_id)
    current = digest(session, request.id)
    if said.request_digest != current:
        raise RequestChanged(pointer="/request_digest", request_digest=current)
    if _is_own(session, request, actor, key_id):
        raise SelfApproval
    before = granted(session, request.id, current)
    if str(actor) in {row.approver for row in before}:
        return request
    _decide(session, request, "approved", current, said.comment, actor, key_id)
    count, at = len(before) + 1, now(session)
    request.version += 1
    if count >= request.approvals_required:
        request.status = "queued"
        request.not_before = at
    announce(session, request.id, "approved", {"granted": count, "required": request.approvals_required})
    if request.status == "queued":
        announce(session, request.id, "queued", {})
    fact = RequestApproved(request_digest=current, granted=count, required=request.approvals_required)
    _append(session, request, fact, actor, {"comment": said.comment} if said.comment else None)
    return request


def reject(session: OrmSession, request_id: str, said: Rejection, actor: Actor, key_id: str | None = None) -> UnlearnRequest:
    """End a request that waits for approval. One approver is enough, and it may be one's own: it grants nothing.

    Raises:
        RequestNotFound.
        InvalidTransition: it does not wait for approval.
    """
    request = repository.get(session, request_id, lock=True)
    if request.status == "rejected":
        return request
    request = _waiting(session, request_id)
    current = digest(session, request.id)
    if str(actor) not in {row.approver for row in granted(session, request.id, current)}:
        _decide(session, request, "rejected", current, said.reason, actor, key_id)
    at = now(session)  # a query writes what is changed, and what has ended is written once
    request.status = "rejected"
    request.finished_at = at
    request.version += 1
    announce(session, request.id, "rejected", {})
    _append(session, request, RequestRejected(request_digest=current), actor, {"reason": said.reason})
    _append(session, request, RequestClosed(status="rejected"), actor, None)
    return request


def reopen(session: OrmSession, request: UnlearnRequest) -> bool:
    """What is said of a request is about to change: a queued one waits for approval again; a paused one, once resumed.

    Returns:
        Whether approvals become void, which `record_void` tells the ledger after the change.

    Raises:
        InvalidTransition: a worker is at work on what was approved.
    """
    if not request.approvals_required:
        return False
    if request.status in HOLDS_LINEAGE:
        said = "a worker is at work on what was approved: only its priority can be changed"
        raise InvalidTransition(said, current_status=request.status, allowed=[])
    if request.status == "queued":
        request.status = "pending_approval"
        announce(session, request.id, "pending_approval", {})
    return bool(granted(session, request.id, digest(session, request.id)))


def record_void(session: OrmSession, request: UnlearnRequest, actor: Actor) -> None:
    """After the entry of the change."""
    _append(session, request, ApprovalsVoided(request_digest=digest(session, request.id)), actor, None)


def certified(session: OrmSession, request_id: str) -> dict[str, Any]:
    """What a certificate says of who looked at its request: ids, never names."""
    request = repository.get(session, request_id)
    if not request.approvals_required:
        return {"policy": "solo"}
    current = digest(session, request.id)
    who = [{"id": row.approver, "at": rfc3339(row.at)} for row in granted(session, request.id, current)]
    return {"policy": "four-eyes", "required": request.approvals_required, "requestDigest": current, "approvers": who}


def read(session: OrmSession, request: UnlearnRequest) -> ApprovalsRead:
    """As clients see them."""
    if not request.approvals_required:
        return ApprovalsRead(required=0, granted=0, request_digest=None, decisions=[])
    current = digest(session, request.id)
    chosen = select(RequestApproval).where(RequestApproval.request_id == request.id)
    rows = session.scalars(chosen.order_by(RequestApproval.at, RequestApproval.approver)).all()
    return ApprovalsRead(
        required=request.approvals_required,
        granted=sum(row.decision == "approved" and row.request_digest == current for row in rows),
        request_digest=current,
        decisions=[
            DecisionRead(
                approver=row.approver,
                decision=row.decision,
                comment=row.comment,
                at=row.at,
                void=row.request_digest != current,
            )
            for row in rows
        ],
    )


def _waiting(session: OrmSession, request_id: str) -> UnlearnRequest:
    """Locked. Raises: RequestNotFound, InvalidTransition."""
    request = repository.get(session, request_id, lock=True)
    if request.status != "pending_approval":
        allowed = sorted(MOVES[request.status])  # type: ignore[index]  # the database holds it to the same values
        said = "only a request that waits for approval can be decided about"
        raise InvalidTransition(said, current_status=request.status, allowed=allowed)
    return request


def _is_own(session: OrmSession, request: UnlearnRequest, actor: Actor, key_id: str | None) -> bool:
    """Whether the approver asked for it, or one of the two holds a key that the other has made: who makes a key has seen it.

    Whoever takes a wish up anew makes it no less the wish of who had it first.
    """
    people, keys, before = {request.created_by}, {request.created_key_id}, request.supersedes
    while before is not None:
        earlier = repository.get(session, before)
        people.add(earlier.created_by)
        keys.add(earlier.created_key_id)
        before = earlier.supersedes
    makers = session.scalars(select(ApiKey.created_by).where(ApiKey.id.in_(sorted(key for key in keys if key))))
    made_by = session.scalars(select(ApiKey.created_by).where(ApiKey.id == key_id)).one_or_none() if key_id else None
    return str(actor) in {*people, *makers} or made_by in people


def _decide(
    session: OrmSession,
    request: UnlearnRequest,
    decision: str,
    current: str,
    said: str | None,
    actor: Actor,
    key_id: str | None,
) -> None:
    session.add(
        RequestApproval(
            request_id=request.id,
            approver=str(actor),
            request_digest=current,
            decision=decision,
            comment=said,
            key_id=key_id,
            at=now(session),
        )
    )
    session.flush()  # the database counts it before it lets the request go on


def _append(
    session: OrmSession,
    request: UnlearnRequest,
    fact: RequestApproved | RequestRejected | ApprovalsVoided | RequestClosed,
    actor: Actor,
    private: dict[str, str] | None,
) -> None:
    ledger.append(session, fact, actor=actor, request_id=request.id, model_id=request.model_id, private=private)
