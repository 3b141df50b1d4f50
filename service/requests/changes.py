"""What may still be done to a request once it is made: pause it, resume it, change what is said of it, take it up anew.

Each function is part of its caller's one transaction; business rows first, the ledger last.
"""

from __future__ import annotations

from sqlalchemy.orm import Session as OrmSession

from service import tenancy
from service.audit import ledger
from service.audit.leaves import LOCAL, Actor, RequestAmended, RequestPaused, RequestResumed
from service.compliance import service as compliance
from service.config import Settings
from service.db import now
from service.errors import AlreadySuperseded, InvalidTransition, VersionMismatch
from service.policies import service as policies
from service.requests import approvals, repository, schedule, service, views
from service.requests.judging import Earlier
from service.requests.leases import announce
from service.requests.lifecycle import MOVES, RETRIABLE, TERMINAL, after_pause, after_resume
from service.requests.places import Known
from service.requests.retain import Choice
from service.requests.rungs import AUTO
from service.requests.schemas import (
    Amendment,
    Forget,
    ProxyData,
    Resources,
    Retain,
    Retry,
    UnlearnRequestCreate,
)
from service.tables import UnlearnRequest


def _illegal(request: UnlearnRequest, detail: str) -> InvalidTransition:
    allowed = sorted(MOVES[request.status])  # type: ignore[index]  # the database holds it to the same values
    return InvalidTransition(detail, current_status=request.status, allowed=allowed)


def pause(session: OrmSession, request_id: str, actor: Actor = LOCAL) -> UnlearnRequest:
    """Keep a request from running until it is resumed. Asking again changes nothing; no law's clock stops.

    Raises:
        RequestNotFound.
        InvalidTransition: it has ended, or is being cancelled.
    """
    request = repository.get(session, request_id, lock=True)
    target = after_pause(request.status)  # type: ignore[arg-type]
    if target is None:
        raise _illegal(request, "only a request that waits or runs can be paused")
    if target != request.status:
        request.status = target
        request.version += 1
        announce(session, request.id, target if target == "paused" else "pause_requested", {"phase": request.phase})
        fact = RequestPaused(status="paused" if target == "paused" else "pausing")
        ledger.append(session, fact, actor=actor, request_id=request.id, model_id=request.model_id)
    return request


def resume(session: OrmSession, settings: Settings, request_id: str, actor: Actor = LOCAL) -> UnlearnRequest:
    """Put a paused request back into the queue, where it has kept its place. Asking again changes nothing.

    Raises:
        RequestNotFound.
        InvalidTransition: it is none that was paused, or its worker has not let go of it yet.
    """
    request = repository.get(session, request_id, lock=True)
    target = after_resume(request.status)  # type: ignore[arg-type]
    if target is None:
        raise _illegal(request, "only a paused request can be resumed")
    if target == "queued" and request.status == "paused" and not approvals.is_approved(session, request):
        target = "pending_approval"
    if target != request.status:
        request.status = target
        request.not_before = now(session)
        request.version += 1
        schedule.refresh(session, settings, request, compliance.of(session, request.id))
        announce(session, request.id, "resumed" if target == "queued" else target, {})
        ledger.append(session, RequestResumed(), actor=actor, request_id=request.id, model_id=request.model_id)
    return request


def amend(session: OrmSession, request_id: str, wanted: Amendment, if_match: str, actor: Actor = LOCAL) -> UnlearnRequest:
    """Change how urgent a request is, or what its client says of it. What changes nothing leaves no entry.

    Args:
        if_match: the header: ETags of which one must be of the request's version, or `*`.

    Raises:
        RequestNotFound.
        VersionMismatch: it changed since.
        InvalidTransition: it has ended, or a worker is at work on what was approved.
    """
    request = repository.get(session, request_id, lock=True)
    if not views.is_version(if_match, request):
        raise VersionMismatch
    if request.status in TERMINAL:
        raise _illegal(request, "a request that has ended never changes")
    before = {"priority": request.priority, "external_id": request.external_id, "metadata": request.client_metadata}
    given = {name: getattr(wanted, name) for name in wanted.model_fields_set}
    changed = {name: value for name, value in given.items() if value != before[name]}
    if not changed:
        return request
    void = changed.keys() != {"priority"} and approvals.reopen(session, request)
    request.priority = changed.get("priority", request.priority)
    request.external_id = changed.get("external_id", request.external_id)
    request.client_metadata = changed.get("metadata", request.client_metadata)
    request.version += 1
    announce(session, request.id, "amended", {"changed": sorted(changed), "priority": request.priority})
    names = tuple(sorted(changed))
    fact = RequestAmended(priority=changed.pop("priority", None), changed=names)
    private = changed or None
    ledger.append(session, fact, actor=actor, request_id=request.id, model_id=request.model_id, private=private)
    if void:
        approvals.record_void(session, request, actor)
    return request


# ------------------------------------------------------------------------------------------------------------- once more


def wanted_again(settings: Settings, ended: UnlearnRequest, different: Retry) -> UnlearnRequestCreate:
    """What the request asked for, as somebody would ask for it today, with what is to be different.

    The law's side is not part of it: the earlier request's clock is handed on. A policy that no request may name any more is
    replaced by the one that fits.
    """
    forget = Forget(samples=list(ended.forget_samples)) if ended.forget_samples else Forget(classes=list(ended.forget_classes))
    policy = ended.policy["name"] if ended.policy["name"] in policies.known(settings) else None
    method = different.method or ended.method
    as_it_was = method == ended.method and method != AUTO
    return UnlearnRequestCreate(
        model_id=ended.model_id,
        forget=forget,
        retain=_retain(Choice.of(ended.retain)),
        method=method,
        params=different.params if different.params is not None else ended.params if as_it_was else {},
        seed=ended.seed if different.seed is None else different.seed,
        policy=different.policy or policy,
        resources=Resources(ranks=ended.ranks, gpu_class=ended.gpu_class),
        priority=ended.priority,
        reason=ended.reason,
        external_id=ended.external_id,
        metadata=ended.client_metadata,
    )


def _retain(choice: Choice | None) -> Retain | None:
    if choice is None:
        return None
    proxy = (
        ProxyData(classes=list(choice.proxy_classes) or None, dataset_id=choice.proxy_dataset_id) if choice.stands_in else None
    )
    return Retain(classes=list(choice.classes) or None, real=choice.real, proxy=proxy)


def retry(
    session: OrmSession,
    settings: Settings,
    request_id: str,
    different: Retry,
    key: str | None = None,
    known: Known | None = None,
    actor: Actor = LOCAL,
    key_id: str | None = None,
) -> service.Made:
    """Take up the wish of a request that ended without a result: a new request, with the same law's clock.

    Args:
        known: what `places.read_places` found for `wanted_again`; None for a repetition with the same key.

    Raises:
        RequestNotFound.
        InvalidTransition: it has not ended, or it has a result.
        AlreadySuperseded: `superseded_by` has taken it up.
        whatever `service.create` raises.
    """
    ended = repository.get(session, request_id, lock=True)
    if key is None or repository.idempotency_key(session, tenancy.own_tenant(), key) is None:
        require_retriable(session, ended)
    wanted = wanted_again(settings, ended, different)
    # spelled out already: what a preset or a default meant then is what is meant now
    kept = different.method is None and different.params is None
    return service.create(session, settings, wanted, key, known, actor, Earlier(ended, kept), key_id)


def require_retriable(session: OrmSession, ended: UnlearnRequest) -> None:
    """Raises: InvalidTransition, AlreadySuperseded."""
    if ended.status not in RETRIABLE:
        raise _illegal(ended, "only a request that ended without a result can be taken up anew")
    if by := repository.successor(session, ended.id):
        raise AlreadySuperseded(superseded_by=by)
