"""Making and withdrawing unlearn requests. Each function is part of its caller's one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session as OrmSession

from service import tenancy
from service.audit import ledger
from service.audit.leaves import (
    LOCAL,
    Actor,
    RequestClosed,
    RequestReceived,
    RequestSuperseded,
    RequestWithdrawn,
    RetainChosen,
    rfc3339,
    sample_count,
    sample_digest,
)
from service.compliance import service as compliance
from service.config import Settings
from service.db import now
from service.errors import (
    IdempotencyKeyReused,
    InvalidTransition,
)
from service.models import repository as models
from service.requests import approvals, judging, quotas, repository, schedule, views
from service.requests.judging import Earlier, Standing
from service.requests.leases import announce
from service.requests.lifecycle import after_cancel
from service.requests.places import Known
from service.requests.repository import Waiting
from service.requests.retain import Choice, StandIn
from service.requests.schemas import UnlearnRequestCreate
from service.tables import IdempotencyKey, Model, RequestCompliance, UnlearnRequest
from service.values import decimal_string, sha256_of


def create(
    session: OrmSession,
    settings: Settings,
    wanted: UnlearnRequestCreate,
    key: str | None,
    known: Known | None = None,
    actor: Actor = LOCAL,
    earlier: Earlier | None = None,
    key_id: str | None = None,
) -> Made:
    """Record a request, its audit entry and its first event; or find the one that answers it already.

    The model's row is locked first: two requests on one lineage are judged one after the other.

    Args:
        known: what `places.read_places` found; None for a repetition.
        earlier: the request that this one supersedes, its row locked.
        key_id: the API key that it is made with.

    Raises:
        ModelNotFound, UnknownClass, UnknownSample, HeldOutSample, AlreadyForgotten, NothingToRetain, EmptiedClass,
            UnknownMethod, InvalidParams, SamplesUnverifiable, UnknownPolicy, PolicyUnfit, RetainUnsupported, RetainUnfit,
            ProxyForgotten, ComplianceUnfit: it cannot be meant.
        DuplicateRequest, LineageBusy: another request stands in the way.
        IdempotencyKeyReused: the key was used with another body.
        QuotaExceeded: as many requests wait as may.
    """
    made = prepare(session, settings, wanted, key, known, actor, earlier, key_id)
    return record(session, settings, [made], actor)[0]


@dataclass(frozen=True)
class Prepared:
    """A request whose rows are written, but not yet its entries: no row may follow the first entry of a transaction."""

    request: UnlearnRequest
    is_new: bool = False
    replayed: bool = False
    """It was first made by an earlier call with the same key."""
    stand_in: StandIn | None = None
    law: RequestCompliance | None = None
    model: Model | None = None
    """Held, for a session forgets rows that nobody holds: it would be read again for the entry, and for the answer."""
    waiting: Sequence[Waiting] = ()
    standing: Standing | None = None


@dataclass(frozen=True)
class Made:
    """A request, and what is known of it because it was made just now."""

    request: UnlearnRequest
    replayed: bool
    """It was first made by an earlier call with the same key."""
    told: views.Told | None = None
    """None: it was made before, or nothing was."""


def body_digest(wanted: UnlearnRequestCreate, earlier: Earlier | None = None) -> str:
    """What an Idempotency-Key is bound to."""
    body = wanted.model_dump(mode="json", exclude_unset=True)
    return sha256_of({**body, "supersedes": earlier.request.id} if earlier else body)


def prepare(
    session: OrmSession,
    settings: Settings,
    wanted: UnlearnRequestCreate,
    key: str | None,
    known: Known | None,
    actor: Actor,
    earlier: Earlier | None = None,
    key_id: str | None = None,
) -> Prepared:
    """The first half of `create`, with its arguments and errors; `record` is the other one."""
    body_sha256 = body_digest(wanted, earlier)
    model = models.get(session, wanted.model_id, lock=True)
    if key is not None and (first := _replay(session, key, body_sha256)):
        return Prepared(first, replayed=True)
    known = known or Known()
    judged = judging.judge(session, settings, wanted, model, known, actor, earlier)
    request, standing = judged.request, judged.standing
    if standing is not None:
        request.created_key_id = key_id
    if key is not None:
        first = _insert_with_key(session, request, key, body_sha256, standing.at if standing else now(session))
        if first is not None:
            return Prepared(first, replayed=True)
    if standing is None:
        return Prepared(request)
    session.add(request)
    session.flush()  # the event refers to it
    law = _law(session, wanted, request, earlier)
    if law is not None:
        schedule.refresh(session, settings, request, law)
    announce(session, request.id, "created", {"status": request.status}, request.created_at)
    if request.status == "pending_approval":
        announce(session, request.id, "pending_approval", {"required": request.approvals_required}, request.created_at)
    return Prepared(request, True, False, known.stand_in, law, model, judged.waiting, standing)


def record(session: OrmSession, settings: Settings, prepared: Sequence[Prepared], actor: Actor) -> list[Made]:
    """Write the entries of what is new, after all rows of the transaction. Raises: QuotaExceeded."""
    told = [_told(session, settings, one) for one in prepared]  # first: nobody else appends while the head is held
    seqs = [_record(session, one.request, one.stand_in, one.law, actor) if one.is_new else None for one in prepared]
    for project in sorted({one.request.project_id for one in prepared if one.is_new}):
        quotas.require_place(session, settings, project)
    return [_made(session, *each) for each in zip(prepared, told, seqs, strict=True)]


def _told(session: OrmSession, settings: Settings, one: Prepared) -> views.Told | None:
    if one.model is None or one.standing is None:
        return None
    seen = views.around_new(session, settings, one.request, one.model, one.waiting, one.law, one.standing.at)
    known = views.Beside(one.model, one.standing.forgotten, seq=None)
    return views.Told(seen, views.read(session, one.request, seen, known))


def _made(session: OrmSession, one: Prepared, told: views.Told | None, seq: int | None) -> Made:
    if told is not None:
        seen = told.seen
        if one.request.approvals_required:
            seen = replace(seen, approvals=approvals.read(session, one.request))  # their digest is of the entry
        told = views.Told(seen, told.read.model_copy(update={"ledger_seq": seq, "approvals": seen.approvals}))
    return Made(one.request, one.replayed, told)


def _law(
    session: OrmSession, wanted: UnlearnRequestCreate, request: UnlearnRequest, earlier: Earlier | None
) -> RequestCompliance | None:
    if earlier is not None:
        before = compliance.of(session, earlier.request.id)
        return compliance.hand_on(session, before, request.id) if before else None
    if not wanted.legal:
        return None
    given = wanted.jurisdiction or "none"
    received, recipients = wanted.received_at, wanted.recipients
    return compliance.begin(session, request.id, jurisdiction=given, received_at=received, recipients=recipients)


def _replay(session: OrmSession, key: str, body_sha256: str) -> UnlearnRequest | None:
    used = repository.idempotency_key(session, tenancy.own_tenant(), key)
    if used is None:
        return None
    if used.body_sha256 != body_sha256:
        raise IdempotencyKeyReused(pointer="header:Idempotency-Key")
    return repository.get(session, used.request_id)


def _insert_with_key(
    session: OrmSession, request: UnlearnRequest, key: str, body_sha256: str, at: datetime
) -> UnlearnRequest | None:
    """Keep the request under its key. When another transaction took the key in the meantime, its request is the answer.

    That can only be a transaction on another model: this one's row is locked.
    """
    used = IdempotencyKey(
        tenant=tenancy.own_tenant(),
        key=key,
        body_sha256=body_sha256,
        request_id=request.id,
        created_at=at,
    )
    try:
        with session.begin_nested():
            session.add(request)
            session.flush()  # the key refers to it
            session.add(used)
    except IntegrityError:
        first = _replay(session, key, body_sha256)
        if first is None:
            raise
        return first
    return None


def _record(
    session: OrmSession, request: UnlearnRequest, stand_in: StandIn | None, law: RequestCompliance | None, actor: Actor
) -> int:
    """Returns the sequence number of the request's first entry."""
    fact = RequestReceived(
        classes=tuple(request.forget_classes),
        samples=sample_count(request.forget_samples),
        retain=_chosen(Choice.of(request.retain), stand_in),
        method=request.method,
        params_sha256=sha256_of(request.params),
        seed=request.seed,
        policy_sha256=sha256_of(request.policy),
        jurisdiction=law.jurisdiction if law else None,
        received_at=rfc3339(law.received_at) if law else None,
        due_at=rfc3339(law.due_at) if law and law.due_at else None,
        recipients=tuple(law.recipients) if law and law.recipients else None,
        supersedes=request.supersedes,
        priority=request.priority if request.priority != "standard" else None,
        gpu_class=request.gpu_class if request.gpu_class != "default" else None,
        approvals=request.approvals_required or None,
    )
    private = {
        "reason": request.reason,
        "external_id": request.external_id,
        "metadata": request.client_metadata,
    }
    if ids := request.forget_samples:  # which ones the entry commits to under its salt
        private["samples_sha256"] = sample_digest(request.id, ids).sha256
    seq = ledger.append(session, fact, actor=actor, request_id=request.id, model_id=request.model_id, private=private)
    if request.supersedes is not None:
        superseded = RequestSuperseded(by=request.id)
        ledger.append(session, superseded, actor=actor, request_id=request.supersedes, model_id=request.model_id)
    return seq


def _chosen(choice: Choice | None, stand_in: StandIn | None) -> RetainChosen | None:
    if choice is None:
        return None
    return RetainChosen(
        real=decimal_string(choice.real),
        classes=choice.classes or None,
        proxy_classes=choice.proxy_classes,
        proxy_dataset_id=stand_in.id if stand_in else None,
        proxy_dataset_digest=stand_in.digest if stand_in else None,
    )


def cancel(session: OrmSession, request_id: str, actor: Actor = LOCAL) -> UnlearnRequest:
    """Withdraw a request. Asking again changes nothing; a running one ends when its worker says that it has stopped.

    Raises:
        RequestNotFound.
        InvalidTransition: it has ended otherwise.
    """
    request = repository.get(session, request_id, lock=True)
    target = after_cancel(request.status)  # type: ignore[arg-type]  # the database holds it to the same values
    if target is None:
        raise InvalidTransition("the request has ended", current_status=request.status, allowed=[])
    if target == request.status:
        return request
    at = now(session)
    request.status = target
    request.cancel_requested_at = at
    request.version += 1
    withdrawn = RequestWithdrawn(status=target)
    announce(session, request.id, "cancel_requested" if target == "cancelling" else target, {"phase": request.phase}, at)
    if target == "cancelled":
        request.finished_at = at
    ledger.append(session, withdrawn, actor=actor, request_id=request.id, model_id=request.model_id)
    if target == "cancelled":
        closed = RequestClosed(status=target)
        ledger.append(session, closed, actor=actor, request_id=request.id, model_id=request.model_id)
    return request
