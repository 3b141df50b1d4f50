"""Making and withdrawing unlearn requests. Each function is part of its caller's one transaction."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session as OrmSession

from service import catalogue, ladders, tenancy
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
from service.datasets.items import Items
from service.db import now
from service.errors import (
    DuplicateRequest,
    IdempotencyKeyReused,
    InvalidTransition,
    LineageBusy,
    PolicyUnfit,
)
from service.models import repository as models
from service.policies import service as policies
from service.requests import approvals, quotas, repository, retain, schedule
from service.requests.leases import announce
from service.requests.lifecycle import after_cancel
from service.requests.places import Known
from service.requests.repository import Waiting
from service.requests.retain import Choice, StandIn
from service.requests.rungs import ladder_of
from service.requests.schemas import Retain, UnlearnRequestCreate
from service.requests.wishes import (
    Gone,
    Wish,
    require_forgettable,
    require_samples_forgettable,
    resolve_classes,
    resolve_samples,
)
from service.tables import IdempotencyKey, Model, RequestCompliance, UnlearnRequest, new_id
from service.telemetry import tracing
from service.values import decimal_string, sha256_of

LARGEST_RANDOM_SEED = 2**31


@dataclass(frozen=True)
class Earlier:
    """A request that ended without a result, whose wish a new one takes up."""

    request: UnlearnRequest
    keep_recipe: bool
    """The new one has its method and parameters, every value of them."""


def create(
    session: OrmSession,
    settings: Settings,
    wanted: UnlearnRequestCreate,
    key: str | None,
    known: Known | None = None,
    actor: Actor = LOCAL,
    earlier: Earlier | None = None,
    key_id: str | None = None,
) -> tuple[UnlearnRequest, bool]:
    """Record a request, its audit entry and its first event; or find the one that answers it already.

    The model's row is locked first: two requests on one lineage are judged one after the other.

    Args:
        known: what `places.read_places` found; None for a repetition.
        earlier: the request that this one supersedes, its row locked.
        key_id: the API key that it is made with.

    Returns:
        The request, and whether it was first made by an earlier call with the same key.

    Raises:
        ModelNotFound, UnknownClass, UnknownSample, HeldOutSample, AlreadyForgotten, NothingToRetain, EmptiedClass,
            UnknownMethod, InvalidParams, SamplesUnverifiable, UnknownPolicy, PolicyUnfit, RetainUnsupported, RetainUnfit,
            ProxyForgotten, ComplianceUnfit: it cannot be meant.
        DuplicateRequest, LineageBusy: another request stands in the way.
        IdempotencyKeyReused: the key was used with another body.
        QuotaExceeded: as many requests wait as may.
    """
    made = prepare(session, settings, wanted, key, known, actor, earlier, key_id)
    record(session, settings, [made], actor)
    return made.request, made.replayed


@dataclass(frozen=True)
class Prepared:
    """A request whose rows are written, but not yet its entries: no row may follow the first entry of a transaction."""

    request: UnlearnRequest
    is_new: bool = False
    replayed: bool = False
    """It was first made by an earlier call with the same key."""
    stand_in: StandIn | None = None
    law: RequestCompliance | None = None


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
    request, is_new = judge(session, settings, wanted, model, known, actor, earlier)
    if is_new:
        request.created_key_id = key_id
    if key is not None:
        first = _insert_with_key(session, request, key, body_sha256)
        if first is not None:
            return Prepared(first, replayed=True)
    if not is_new:
        return Prepared(request)
    session.add(request)
    session.flush()  # the event refers to it
    law = _law(session, wanted, request, earlier)
    if law is not None:
        schedule.refresh(session, settings, request, law)
    announce(session, request.id, "created", {"status": request.status}, request.created_at)
    return Prepared(request, is_new=True, stand_in=known.stand_in, law=law)


def record(session: OrmSession, settings: Settings, prepared: Sequence[Prepared], actor: Actor) -> None:
    """Write the entries of what is new, after all rows of the transaction. Raises: QuotaExceeded."""
    made = [one for one in prepared if one.is_new]
    for one in made:
        _record(session, one.request, one.stand_in, one.law, actor)
    for project in sorted({one.request.project_id for one in made}):
        quotas.require_place(session, settings, project)


def judge(
    session: OrmSession,
    settings: Settings,
    wanted: UnlearnRequestCreate,
    model: Model,
    known: Known,
    actor: Actor,
    earlier: Earlier | None = None,
) -> tuple[UnlearnRequest, bool]:
    """The request as it would be made now, in no session yet; or the pending one that answers it. And whether it is new.

    Raises:
        what `create` raises but for keys, dates and quotas.
    """
    wish = _wish(wanted, model, known.items)
    choice = _choice(wanted.retain, model)
    waiting = repository.pending(session, model.id)
    existing = _judge_conflicts(session, wanted, wish, choice, waiting)
    request = existing or _row(session, settings, wanted, model, wish, choice, waiting, known, actor, earlier)
    return request, existing is None


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


def _wish(wanted: UnlearnRequestCreate, model: Model, known: Items | None) -> Wish:
    if wanted.forget.classes is not None:
        return Wish(classes=frozenset(resolve_classes(wanted.forget.classes, model.class_names)))
    assert wanted.forget.samples is not None, "the schema lets one of the two be missing"
    assert known is not None, "the caller reads the items first, unless the request is a repetition"
    return Wish(samples=resolve_samples(wanted.forget.samples, known.class_of, known.held_out))


def _choice(wanted: Retain | None, model: Model) -> Choice | None:
    """The retain data that are meant. Raises: RetainUnsupported, UnknownClass."""
    if wanted is None:
        return None
    catalogue.require_choice_of_retain_data(model.family)
    proxy = wanted.proxy
    return Choice(
        real=wanted.real_share,
        classes=tuple(resolve_classes(wanted.classes or (), model.class_names, retain.CLASSES_POINTER)),
        proxy_classes=tuple(
            resolve_classes((proxy.classes if proxy else None) or (), model.class_names, retain.PROXY_CLASSES_POINTER)
        ),
        proxy_dataset_id=proxy.dataset_id if proxy else None,
    )


def _require_forgettable(model: Model, wish: Wish, forgotten: Gone, waiting: list[Waiting], known: Items | None) -> None:
    if wish.samples and known is not None:
        pending = [other.gone for other in waiting]
        require_samples_forgettable(
            wish, forgotten=forgotten, pending=pending, class_of=known.class_of, class_names=model.class_names
        )
        return
    held = {k for other in waiting for k in other.gone.classes}
    require_forgettable(wish.classes, forgotten=forgotten.classes, pending=held, class_names=model.class_names)


def _policy(
    settings: Settings, model: Model, gone: Gone, choice: Choice | None, known: Items | None, name: str | None
) -> dict[str, Any]:
    """The policy for all that will have been forgotten when the request is done: what came before must not come back.

    Raises:
        SamplesUnverifiable, UnknownPolicy, PolicyUnfit.
    """
    units: dict[catalogue.Unit, bool] = {"class": bool(gone.classes), "sample": bool(gone.samples)}
    policy = policies.current_policy(settings, model.family, [unit for unit, any_gone in units.items() if any_gone], name)
    if known is not None:
        of_samples = {known.class_of[name] for name in gone.samples if name in known.class_of}
        needed = policies.classes_held_out(
            policy, gone.classes, of_samples, len(model.class_names), set_aside=choice.proxy_classes if choice else ()
        )
        least, there_are = policies.least_held_out(policy), Counter(known.held_out.values())
        few = [model.class_names[k] for k in sorted(needed) if there_are[k] < least]
        if few:
            names = ", ".join(few[:20]) + (", …" if len(few) > 20 else "")
            what = "none" if least == 1 else f"fewer than {least}"
            raise PolicyUnfit(f"the policy {policy['name']!r} looks at held-out images, and the dataset has {what} of: {names}")
    return policy


def _replay(session: OrmSession, key: str, body_sha256: str) -> UnlearnRequest | None:
    used = repository.idempotency_key(session, tenancy.own_tenant(), key)
    if used is None:
        return None
    if used.body_sha256 != body_sha256:
        raise IdempotencyKeyReused(pointer="header:Idempotency-Key")
    return repository.get(session, used.request_id)


def _judge_conflicts(
    session: OrmSession, wanted: UnlearnRequestCreate, wish: Wish, choice: Choice | None, waiting: list[Waiting]
) -> UnlearnRequest | None:
    """The pending request that answers this one, if the caller is content with it. One that chose other retain data is not
    what a caller who chooses some asked for: it may look at images that he forbids."""
    if wanted.on_conflict == "use_existing":
        fitting = (w for w in waiting if w.gone.covers(wish) and w.status != "cancelling")
        covering = next((w for w in fitting if choice is None or w.retain == choice), None)
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
    choice: Choice | None,
    waiting: list[Waiting],
    known: Known,
    actor: Actor,
    earlier: Earlier | None,
) -> UnlearnRequest:
    forgotten = models.forgotten_by(session, model)
    _require_forgettable(model, wish, forgotten, waiting, known.items)
    gone = Gone.together([forgotten, *(w.gone for w in waiting), wish.gone])
    if choice is not None:
        retain.require_usable(choice, gone.classes, model.class_names, known.stand_in)
    unit: catalogue.Unit = "sample" if wish.samples else "class"
    if earlier is not None and earlier.keep_recipe:
        method, params = earlier.request.method, earlier.request.params
    else:
        method, params = ladders.choose(model.family, wanted.method, wanted.params, unit=unit)
    policy = _policy(settings, model, gone, choice, known.items, wanted.policy)
    at = now(session)
    # requests of one model run in this order, and SQLite's clock ticks in milliseconds
    created_at = max([at, *(r.created_at + timedelta(microseconds=1) for r in waiting)])
    needed = approvals.required(session, settings, model.project_id)
    return UnlearnRequest(
        id=new_id("ureq"),
        model_id=model.id,
        forget_classes=sorted(wish.classes),
        forget_samples=sorted(wish.samples),
        retain=choice.row() if choice else None,
        method=method,
        params=params,
        seed=secrets.randbelow(LARGEST_RANDOM_SEED) if wanted.seed is None else wanted.seed,
        ranks=wanted.resources.ranks,
        gpu_class=wanted.resources.gpu_class,
        priority=wanted.priority,
        supersedes=earlier.request.id if earlier else None,
        on_conflict=wanted.on_conflict,
        policy=ladders.charged(policy, len(ladder_of(method, params, policy))),
        reason=wanted.reason,
        external_id=wanted.external_id,
        client_metadata=wanted.metadata,
        status="pending_approval" if needed else "queued",
        approvals_required=needed,
        version=1,
        fence=0,
        attempts_charged=0,
        not_before=at,
        traceparent=tracing.traceparent(),
        created_at=created_at,
        created_by=str(actor),
        project_id=model.project_id,
    )


def _insert_with_key(session: OrmSession, request: UnlearnRequest, key: str, body_sha256: str) -> UnlearnRequest | None:
    """Keep the request under its key. When another transaction took the key in the meantime, its request is the answer.

    That can only be a transaction on another model: this one's row is locked.
    """
    used = IdempotencyKey(
        tenant=tenancy.own_tenant(),
        key=key,
        body_sha256=body_sha256,
        request_id=request.id,
        created_at=now(session),
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
) -> None:
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
    ledger.append(session, fact, actor=actor, request_id=request.id, model_id=request.model_id, private=private)
    if request.supersedes is not None:
        superseded = RequestSuperseded(by=request.id)
        ledger.append(session, superseded, actor=actor, request_id=request.supersedes, model_id=request.model_id)


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
