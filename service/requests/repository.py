"""Request rows: queries only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, bindparam, exists, func, select
from sqlalchemy.orm import Session as OrmSession

from service.db import Clock
from service.errors import RequestNotFound
from service.requests.lifecycle import PENDING
from service.requests.retain import Choice
from service.requests.rungs import REJECTED
from service.requests.schemas import RequestQuery
from service.requests.wishes import Gone
from service.tables import Attempt, IdempotencyKey, ModelVersion, RequestCompliance, RequestEvent, UnlearnRequest
from service.values import is_id


def get(session: OrmSession, request_id: str, *, lock: bool = False) -> UnlearnRequest:
    """One request. `lock` holds it until the transaction ends. Raises: RequestNotFound."""
    query = select(UnlearnRequest).where(UnlearnRequest.id == request_id)
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    found = session.scalars(query).one_or_none() if is_id(request_id) else None
    if found is None:
        raise RequestNotFound
    return found


def filtered(query: RequestQuery) -> Select[Any]:
    """Requests that pass the filters, in no order yet."""
    statement = select(UnlearnRequest)
    if query.status:
        statement = statement.where(UnlearnRequest.status.in_(query.status))
    if query.model_id is not None:
        statement = statement.where(UnlearnRequest.model_id == query.model_id)
    if query.external_id is not None:
        statement = statement.where(UnlearnRequest.external_id == query.external_id)
    if query.created_from is not None:
        statement = statement.where(UnlearnRequest.created_at >= query.created_from)
    if query.created_before is not None:
        statement = statement.where(UnlearnRequest.created_at < query.created_before)
    law = RequestCompliance.__table__.c  # of the table, not the class: the request's own rule of its project is enough, and one
    if query.overdue is not None:
        late = exists().where(law.request_id == UnlearnRequest.id, law.answered_at.is_(None), law.due_at < Clock())
        statement = statement.where(late if query.overdue else ~late)
    if query.due_before is not None:
        statement = statement.where(exists().where(law.request_id == UnlearnRequest.id, law.due_at < query.due_before))
    return statement


@dataclass(frozen=True)
class Waiting:
    """As much of a pending request as the next one needs to know."""

    id: str
    gone: Gone
    retain: Choice | None
    status: str
    created_at: datetime


def pending(session: OrmSession, model_id: str) -> list[Waiting]:
    """Requests of a model that have not ended, oldest first."""
    return [
        Waiting(request_id, Gone(frozenset(classes), frozenset(samples)), Choice.of(retain), status, at)
        for request_id, classes, samples, retain, status, at in session.execute(_PENDING, {"model": model_id})
    ]


_PENDING = (
    select(
        UnlearnRequest.id,
        UnlearnRequest.forget_classes,
        UnlearnRequest.forget_samples,
        UnlearnRequest.retain,
        UnlearnRequest.status,
        UnlearnRequest.created_at,
    )
    .where(UnlearnRequest.model_id == bindparam("model"), UnlearnRequest.status.in_(sorted(PENDING)))
    .order_by(UnlearnRequest.created_at, UnlearnRequest.id)
)
"""Built once: building a statement costs as much as half of running it."""


def successor(session: OrmSession, request_id: str) -> str | None:
    """The request that supersedes this one."""
    return session.scalars(select(UnlearnRequest.id).where(UnlearnRequest.supersedes == request_id)).one_or_none()


def sample_counts(session: OrmSession, ids: Iterable[str]) -> dict[str, int]:
    """How many single samples each of these requests asks for, counted by the database."""
    counted = select(UnlearnRequest.id, func.json_array_length(UnlearnRequest.forget_samples))
    return {row[0]: row[1] for row in session.execute(counted.where(UnlearnRequest.id.in_(list(ids))))}


def idempotency_key(session: OrmSession, tenant: str, key: str) -> IdempotencyKey | None:
    """What the key was first used for, as committed now."""
    return session.get(IdempotencyKey, (tenant, key), populate_existing=True)


def attempts(session: OrmSession, request_id: str) -> list[Attempt]:
    """Attempts of a request, oldest first."""
    return list(session.scalars(select(Attempt).where(Attempt.request_id == request_id).order_by(Attempt.fence)))


def last_reported(session: OrmSession, request_id: str) -> Attempt | None:
    """The last attempt that left a verification report."""
    query = select(Attempt).where(Attempt.request_id == request_id).order_by(Attempt.fence.desc())
    return next((a for a in session.scalars(query) if a.report), None)


def rejected_alike(session: OrmSession, request: UnlearnRequest) -> int:
    """How many other requests wanted the same to be forgotten of the same weights, and had a result that was rejected.

    However they ended, and of whichever registered model: the same files are the same chance to be lucky.
    """
    same = select(ModelVersion.digest).where(ModelVersion.id == request.base_version_id).scalar_subquery()
    verdict = Attempt.report["verdict"].as_string()
    query = (
        select(UnlearnRequest.forget_classes, UnlearnRequest.forget_samples)
        .join(ModelVersion, ModelVersion.id == UnlearnRequest.base_version_id)
        .where(
            ModelVersion.digest == same,
            UnlearnRequest.id != request.id,
            select(Attempt.fence).where(Attempt.request_id == UnlearnRequest.id, verdict.in_(sorted(REJECTED))).exists(),
        )
    )
    wanted = (set(request.forget_classes), set(request.forget_samples))
    return sum((set(classes), set(samples)) == wanted for classes, samples in session.execute(query))


def base_version(session: OrmSession, request: UnlearnRequest) -> ModelVersion | None:
    """The version that the request starts from; None until a worker has taken it."""
    return session.get(ModelVersion, request.base_version_id) if request.base_version_id else None


def events_after(session: OrmSession, request_id: str | None, last_id: int, limit: int) -> list[RequestEvent]:
    """Events of a request, or of all (None), with a larger id, oldest first."""
    query = select(RequestEvent).where(RequestEvent.id > last_id).order_by(RequestEvent.id).limit(limit)
    return list(session.scalars(query if request_id is None else query.where(RequestEvent.request_id == request_id)))
