"""/unlearn-requests/{id}: what may be done to a request that is made, beside cancelling it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from service.auth import CurrentActor, CurrentCaller, allowed
from service.db import reading
from service.edge import writing
from service.errors import (
    AlreadyForgotten,
    AlreadySuperseded,
    BadLocation,
    BadRequest,
    DuplicateRequest,
    IdempotencyKeyReused,
    InvalidParams,
    InvalidTransition,
    NothingToRetain,
    PolicyUnfit,
    PreconditionRequired,
    QuotaExceeded,
    RequestChanged,
    RequestNotFound,
    SelfApproval,
    UnknownMethod,
    UnknownPolicy,
    Unprocessable,
    VersionMismatch,
    problems,
)
from service.requests import approvals, changes, places, repository, views
from service.requests.endpoints import IdempotencyHeader, answer, at_its_address, shown
from service.requests.responses import UnlearnRequestRead
from service.requests.schemas import Amendment, Approval, Rejection, Retry

router = APIRouter(prefix="/unlearn-requests", tags=["unlearn requests"])


@router.patch(
    "/{request_id}",
    dependencies=[allowed("requests:operate")],
    response_model=UnlearnRequestRead,
    summary="Change how urgent a request is, or what is said of it",
    responses=problems(
        BadRequest, RequestNotFound, InvalidTransition, VersionMismatch, PreconditionRequired, Unprocessable
    ),
)  # fmt: skip
def amend_unlearn_request(
    request_id: str,
    wanted: Amendment,
    request: Request,
    actor: CurrentActor,
    if_match: Annotated[str | None, Header(description="the ETag of what was read; needed")] = None,
) -> Response:
    """Priority, `external_id` and `metadata`, until it has ended; everything else is fixed when it is made."""
    if if_match is None:
        raise PreconditionRequired
    settings = request.app.state.settings
    with writing() as session:
        row = changes.amend(session, request_id, wanted, if_match, actor)
        return answer(session, settings, row, 200)


@router.post(
    "/{request_id}/pause",
    dependencies=[allowed("requests:operate")],
    status_code=202,
    response_model=UnlearnRequestRead,
    summary="Keep a request from running",
    responses=problems(RequestNotFound, InvalidTransition),
)
def pause_unlearn_request(request_id: str, request: Request, actor: CurrentActor) -> Response:
    """A queued request is paused at once; a running one is `pausing` until it has left a step checkpoint and the GPU is free.

    It keeps its place in its lineage, and no law's clock stops. Safe to repeat.
    """
    with writing() as session:
        row = changes.pause(session, request_id, actor)
        return answer(session, request.app.state.settings, row, 202)


@router.post(
    "/{request_id}/resume",
    dependencies=[allowed("requests:operate")],
    status_code=202,
    response_model=UnlearnRequestRead,
    summary="Put a paused request back into the queue",
    responses=problems(RequestNotFound, InvalidTransition),
)
def resume_unlearn_request(request_id: str, request: Request, actor: CurrentActor) -> Response:
    """It goes on from its step checkpoint where one fits. Safe to repeat."""
    settings = request.app.state.settings
    with writing() as session:
        row = changes.resume(session, settings, request_id, actor)
        return answer(session, settings, row, 202)


@router.post(
    "/{request_id}/retry",
    dependencies=[allowed("requests:create")],
    status_code=202,
    response_model=UnlearnRequestRead,
    summary="Take up a request that ended without a result",
    responses=problems(
        BadRequest, RequestNotFound, InvalidTransition, AlreadySuperseded, DuplicateRequest, AlreadyForgotten, NothingToRetain,
        UnknownMethod, InvalidParams, UnknownPolicy, PolicyUnfit, BadLocation, IdempotencyKeyReused, QuotaExceeded,
        Unprocessable,
    ),
)  # fmt: skip
def retry_unlearn_request(
    request_id: str,
    request: Request,
    caller: CurrentCaller,
    different: Retry | None = None,
    idempotency_key: IdempotencyHeader = None,
) -> Response:
    """A new request for the same, which `supersedes` this one, under the same law's clock. The old one does not change."""
    settings, different = request.app.state.settings, different or Retry()
    with reading() as session:
        ended = repository.get(session, request_id)
        if idempotency_key is None:
            changes.require_retriable(session, ended)
        wanted = changes.wanted_again(settings, ended, different)
        where = places.places_for(session, wanted, idempotency_key)
    known = None if where is None else places.read_places(where, wanted)
    with writing() as session:
        made = changes.retry(session, settings, request_id, different, idempotency_key, known, caller.actor, caller.key_id)
        told = made.told or views.told(session, settings, made.request)
    return at_its_address(shown(made.request, told, 202), made.request, replayed=made.replayed)


@router.post(
    "/{request_id}/approve",
    dependencies=[allowed("requests:approve")],
    response_model=UnlearnRequestRead,
    summary="Approve a request that waits for it",
    responses=problems(BadRequest, RequestNotFound, InvalidTransition, RequestChanged, SelfApproval, Unprocessable),
)
def approve_unlearn_request(request_id: str, said: Approval, request: Request, caller: CurrentCaller) -> Response:
    """For the request as it was read, by its digest. The last approval that it needs queues it. Safe to repeat."""
    with writing() as session:
        row = approvals.approve(session, request_id, said, caller.actor, caller.key_id)
        return answer(session, request.app.state.settings, row, 200)


@router.post(
    "/{request_id}/reject",
    dependencies=[allowed("requests:approve")],
    response_model=UnlearnRequestRead,
    summary="Reject a request that waits for approval",
    responses=problems(BadRequest, RequestNotFound, InvalidTransition, Unprocessable),
)
def reject_unlearn_request(request_id: str, said: Rejection, request: Request, caller: CurrentCaller) -> Response:
    """One approver is enough. It has ended then; `retry` takes it up anew, under the same law's clock. Safe to repeat."""
    with writing() as session:
        row = approvals.reject(session, request_id, said, caller.actor, caller.key_id)
        return answer(session, request.app.state.settings, row, 200)
