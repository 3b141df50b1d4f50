"""Making and withdrawing unlearn requests. Each function is part of its caller's one transaction."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session as OrmSession

from service import catalogue
from service.audit import ledger
from service.audit.leaves import LOCAL, RequestClosed, RequestReceived, RequestWithdrawn, sample_digest
from service.config import Settings
from service.datasets import items
from service.datasets.items import Items, Source
from service.db import now
from service.errors import (
    BadLocation,
    DuplicateRequest,
    IdempotencyKeyReused,
    InvalidTransition,
    LineageBusy,
    PolicyUnfit,
)
from service.models import repository as models
from service.requests import repository
from service.requests.leases import announce
from service.requests.lifecycle import after_cancel
from service.requests.repository import Waiting
from service.requests.schemas import UnlearnRequestCreate
from service.requests.wishes import (
    Gone,
    Wish,
    require_forgettable,
    require_samples_forgettable,
    resolve_classes,
    resolve_samples,
)
from service.tables import IdempotencyKey, Model, UnlearnRequest, new_id
from service.values import sorted_json

LARGEST_RANDOM_SEED = 2**31


def sha256_of(document: Any) -> str:
    """SHA-256 of a document's JSON with sorted keys."""
    return hashlib.sha256(sorted_json(document)).hexdigest()


def items_for(session: OrmSession, settings: Settings, wanted: UnlearnRequestCreate, key: str | None) -> Source | None:
    """Where to read the items that a wish is about, or is verified with; None for one that is a repetition.

    Read them before the transaction of `create` begins: it holds the model's row.

    Raises:
        ModelNotFound.
    """
    if key is not None and repository.idempotency_key(session, settings.tenant, key):
        return None
    return items.source(session, models.get(session, wanted.model_id).dataset_id)


def read_items(where: Source, wanted: UnlearnRequestCreate) -> Items | None:
    """The items at a place; None if they cannot be read just now and the wish can be understood without them.

    Raises:
        BadLocation: they are needed and cannot be read.
    """
    try:
        return items.read(where)
    except BadLocation:
        if wanted.forget.samples is None:
            return None  # the worker reads them again, and hashes them: it will say what is wrong
        raise


def create(
    session: OrmSession, settings: Settings, wanted: UnlearnRequestCreate, key: str | None, known: Items | None = None
) -> tuple[UnlearnRequest, bool]:
    """Record a request, its audit entry and its first event; or find the one that answers it already.

    The model's row is locked first: two requests on one lineage are judged one after the other.

    Args:
        known: the dataset's items, where they could be read.

    Returns:
        The request, and whether it was first made by an earlier call with the same key.

    Raises:
        ModelNotFound, UnknownClass, UnknownSample, HeldOutSample, AlreadyForgotten, NothingToRetain, EmptiedClass,
            UnknownMethod, InvalidParams, SamplesUnverifiable, PolicyUnfit: it cannot be meant.
        DuplicateRequest, LineageBusy: another request stands in the way.
        IdempotencyKeyReused: the key was used with another body.
    """
    body_sha256 = sha256_of(wanted.model_dump(mode="json", exclude_unset=True))
    model = models.get(session, wanted.model_id, lock=True)
    if key is not None and (first := _replay(session, settings, key, body_sha256)):
        return first, True
    wish = _wish(wanted, model, known)
    waiting = repository.pending(session, model.id)
    existing = _judge_conflicts(session, wanted, wish, waiting)
    request = existing or _row(session, settings, wanted, model, wish, waiting, known)
    if key is not None:
        first = _insert_with_key(session, settings, request, key, body_sha256)
        if first is not None:
            return first, True
    if existing is None:
        session.add(request)
        session.flush()  # the event refers to it
        _record(session, request)
    return request, False


def _wish(wanted: UnlearnRequestCreate, model: Model, known: Items | None) -> Wish:
    if wanted.forget.classes is not None:
        return Wish(classes=frozenset(resolve_classes(wanted.forget.classes, model.class_names)))
    assert wanted.forget.samples is not None, "the schema lets one of the two be missing"
    assert known is not None, "the caller reads the items first, unless the request is a repetition"
    return Wish(samples=resolve_samples(wanted.forget.samples, known.class_of, known.held_out))


def _require_forgettable(model: Model, wish: Wish, forgotten: Gone, waiting: list[Waiting], known: Items | None) -> None:
    if wish.samples and known is not None:
        pending = [other.gone for other in waiting]
        require_samples_forgettable(
            wish, forgotten=forgotten, pending=pending, class_of=known.class_of, class_names=model.class_names
        )
        return
    held = {k for other in waiting for k in other.gone.classes}
    require_forgettable(wish.classes, forgotten=forgotten.classes, pending=held, class_names=model.class_names)


def _policy(settings: Settings, model: Model, gone: Gone, known: Items | None) -> dict[str, Any]:
    """The policy for all that will have been forgotten when the request is done: what came before must not come back.

    Raises:
        SamplesUnverifiable, PolicyUnfit.
    """
    units: dict[catalogue.Unit, bool] = {"class": bool(gone.classes), "sample": bool(gone.samples)}
    policy = catalogue.current_policy(settings, model.family, [unit for unit, any_gone in units.items() if any_gone])
    if known is not None:
        of_samples = {known.class_of[name] for name in gone.samples if name in known.class_of}
        needed = catalogue.classes_held_out(policy, gone.classes, of_samples, len(model.class_names))
        without = [model.class_names[k] for k in sorted(needed - set(known.held_out.values()))]
        if without:
            names = ", ".join(without[:20]) + (", …" if len(without) > 20 else "")
            raise PolicyUnfit(f"the policy {policy['name']!r} looks at held-out images, and the dataset has none of: {names}")
    return policy


def _replay(session: OrmSession, settings: Settings, key: str, body_sha256: str) -> UnlearnRequest | None:
    used = repository.idempotency_key(session, settings.tenant, key)
    if used is None:
        return None
    if used.body_sha256 != body_sha256:
        raise IdempotencyKeyReused(pointer="header:Idempotency-Key")
    return repository.get(session, used.request_id)


def _judge_conflicts(
    session: OrmSession, wanted: UnlearnRequestCreate, wish: Wish, waiting: list[Waiting]
) -> UnlearnRequest | None:
    """The pending request that answers this one, if the caller is content with it."""
    if wanted.on_conflict == "use_existing":
        covering = next((w for w in waiting if w.gone.covers(wish) and w.status != "cancelling"), None)
        if covering is not None:
            return repository.get(session, covering.id)
    for other in waiting:
        if other.gone.overlaps(wish):
            what = "a sample" if wish.samples else "a class"
            raise DuplicateRequest(f"{what} is asked for by a pending request", pointer=wish.pointer, request_id=other.id)
    if waiting and wanted.on_conflict == "reject":
        raise LineageBusy(request_id=waiting[0].id)
    return None


def _row(
    session: OrmSession,
    settings: Settings,
    wanted: UnlearnRequestCreate,
    model: Model,
    wish: Wish,
    waiting: list[Waiting],
    known: Items | None,
) -> UnlearnRequest:
    forgotten = models.forgotten_by(session, model)
    _require_forgettable(model, wish, forgotten, waiting, known)
    method = catalogue.choose_method(model.family, wanted.method)
    unit: catalogue.Unit = "sample" if wish.samples else "class"
    at = now(session)
    # requests of one model run in this order, and SQLite's clock ticks in milliseconds
    created_at = max([at, *(r.created_at + timedelta(microseconds=1) for r in waiting)])
    return UnlearnRequest(
        id=new_id("ureq"),
        model_id=model.id,
        forget_classes=sorted(wish.classes),
        forget_samples=sorted(wish.samples),
        method=method,
        params=catalogue.effective_params(method, model.family, wanted.params, unit=unit),
        seed=secrets.randbelow(LARGEST_RANDOM_SEED) if wanted.seed is None else wanted.seed,
        ranks=wanted.resources.ranks,
        on_conflict=wanted.on_conflict,
        policy=_policy(settings, model, Gone.together([forgotten, *(w.gone for w in waiting), wish.gone]), known),
        reason=wanted.reason,
        external_id=wanted.external_id,
        client_metadata=wanted.metadata,
        status="queued",
        version=1,
        fence=0,
        attempts_charged=0,
        not_before=at,
        created_at=created_at,
        created_by=str(LOCAL),
    )


def _insert_with_key(
    session: OrmSession, settings: Settings, request: UnlearnRequest, key: str, body_sha256: str
) -> UnlearnRequest | None:
    """Keep the request under its key. When another transaction took the key in the meantime, its request is the answer.

    That can only be a transaction on another model: this one's row is locked.
    """
    used = IdempotencyKey(
        tenant=settings.tenant, key=key, body_sha256=body_sha256, request_id=request.id, created_at=now(session)
    )
    try:
        with session.begin_nested():
            session.add(request)
            session.flush()  # the key refers to it
            session.add(used)
    except IntegrityError:
        first = _replay(session, settings, key, body_sha256)
        if first is None:
            raise
        return first
    return None


def _record(session: OrmSession, request: UnlearnRequest) -> None:
    announce(session, request.id, "created", {"status": request.status}, request.created_at)
    fact = RequestReceived(
        classes=tuple(request.forget_classes),
        samples=sample_digest(request.id, request.forget_samples) if request.forget_samples else None,
        method=request.method,
        params_sha256=sha256_of(request.params),
        seed=request.seed,
        policy_sha256=sha256_of(request.policy),
    )
    private = {
        "reason": request.reason,
        "external_id": request.external_id,
        "metadata": request.client_metadata,
    }
    ledger.append(session, fact, actor=LOCAL, request_id=request.id, model_id=request.model_id, private=private)


def cancel(session: OrmSession, request_id: str) -> UnlearnRequest:
    """Withdraw a request. Asking again changes nothing; a running one ends when its worker says that it has stopped.

    Raises:
        RequestNotFound.
        InvalidTransition: it has ended otherwise.
    """
    request = repository.get(session, request_id, lock=True)
    target = after_cancel(request.status)  # type: ignore[arg-type]  # the database holds it to the same values
    if target is None:
        raise InvalidTransition("the request has ended", current_status=request.status)
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
    ledger.append(session, withdrawn, actor=LOCAL, request_id=request.id, model_id=request.model_id)
    if target == "cancelled":
        closed = RequestClosed(status=target)
        ledger.append(session, closed, actor=LOCAL, request_id=request.id, model_id=request.model_id)
    return request
