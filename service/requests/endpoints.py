"""/unlearn-requests"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from sqlalchemy.orm import Session

from service.audit import proofs, receipts
from service.auth import CurrentActor, CurrentCaller, allowed, still_allowed
from service.config import Settings
from service.db import reading
from service.downloads import StoredFile, StoredFileDamaged, require_plain_address, send_file, unchanged
from service.edge import writing
from service.errors import (
    AlreadyForgotten,
    BadLocation,
    BadRequest,
    ComplianceUnfit,
    DatasetNotFound,
    DuplicateRequest,
    EmptiedClass,
    FileNotFound,
    HeldOutSample,
    IdempotencyKeyReused,
    InvalidCursor,
    InvalidParams,
    InvalidTransition,
    LineageBusy,
    ModelNotFound,
    NothingToRetain,
    NotYetSigned,
    PolicyUnfit,
    ProxyForgotten,
    QuotaExceeded,
    ReceiptNotFound,
    ReportNotFound,
    RequestNotFound,
    RetainUnfit,
    RetainUnsupported,
    SamplesUnverifiable,
    UnknownClass,
    UnknownMethod,
    UnknownPolicy,
    UnknownSample,
    Unprocessable,
    problems,
)
from service.paging import Page, fetch_page, page
from service.requests import places, planning, reporting, repository, service, stream, views
from service.requests.reporting import Format
from service.requests.responses import EventList, PlanRead, UnlearnRequestRead, UnlearnRequestSummary
from service.requests.schemas import IDEMPOTENCY_KEY, RequestQuery, UnlearnRequestCreate
from service.storage import get_store
from service.tables import UnlearnRequest

router = APIRouter(prefix="/unlearn-requests", tags=["unlearn requests"])

IdempotencyHeader = Annotated[
    str | None, Header(pattern=IDEMPOTENCY_KEY, description="the same key and body return the first request")
]
POLL_AFTER_SECONDS = "2"


@router.post(
    "", dependencies=[allowed("requests:create")],
    status_code=202,
    response_model=UnlearnRequestRead,
    summary="Ask a model to forget classes, or single samples",
    responses=problems(
        BadRequest, ModelNotFound, DatasetNotFound, DuplicateRequest, LineageBusy, UnknownClass, UnknownSample, HeldOutSample,
        NothingToRetain, EmptiedClass, AlreadyForgotten, RetainUnsupported, RetainUnfit, ProxyForgotten, UnknownMethod,
        InvalidParams, SamplesUnverifiable, UnknownPolicy, PolicyUnfit, BadLocation, ComplianceUnfit, IdempotencyKeyReused,
        QuotaExceeded, Unprocessable,
    ),
)  # fmt: skip
def create_unlearn_request(
    wanted: UnlearnRequestCreate, request: Request, caller: CurrentCaller, idempotency_key: IdempotencyHeader = None
) -> Response:
    """Record the request and queue it, or have it wait for approval. It runs on a worker; follow `Location` for its progress.

    Safe to repeat with an `Idempotency-Key`.
    """
    settings = request.app.state.settings
    known = places.look(wanted, idempotency_key)
    with writing() as session:
        made = service.create(session, settings, wanted, idempotency_key, known, caller.actor, key_id=caller.key_id)
        told = made.told or views.told(session, settings, made.request)
    return at_its_address(shown(made.request, told, 202), made.request, replayed=made.replayed)


@router.post(
    "/validate", dependencies=[allowed("requests:create")],
    response_model=PlanRead,
    summary="Say what would be made of a request, and make nothing",
    responses=problems(
        BadRequest, ModelNotFound, DatasetNotFound, DuplicateRequest, LineageBusy, UnknownClass, UnknownSample, HeldOutSample,
        NothingToRetain, EmptiedClass, AlreadyForgotten, RetainUnsupported, RetainUnfit, ProxyForgotten, UnknownMethod,
        InvalidParams, SamplesUnverifiable, UnknownPolicy, PolicyUnfit, BadLocation, ComplianceUnfit, QuotaExceeded,
        Unprocessable,
    ),
)  # fmt: skip
def validate_unlearn_request(wanted: UnlearnRequestCreate, request: Request, actor: CurrentActor) -> PlanRead:
    """The same errors as the request itself would meet now. Nothing is written, and no place in the queue is kept."""
    known = places.look(wanted, None)
    with reading() as session:
        return planning.plan(session, request.app.state.settings, wanted, known, actor)


@router.get(
    "",
    dependencies=[allowed("requests:read")],
    response_model=Page[UnlearnRequestSummary],
    summary="List unlearn requests",
    responses=problems(InvalidCursor, Unprocessable),
)
def list_unlearn_requests(query: Annotated[RequestQuery, Query()], request: Request, response: Response) -> dict[str, Any]:
    """Newest first, unless `order=asc`."""
    keys = (UnlearnRequest.created_at, UnlearnRequest.id)
    with reading() as session:
        found = fetch_page(session, repository.filtered(query), keys, query, query.order)
        shown = views.summaries(session, found.rows)
    return page(found, lambda row: shown[row.id], request, response)


@router.get(
    "/{request_id}",
    dependencies=[allowed("requests:read")],
    response_model=UnlearnRequestRead,
    summary="Read an unlearn request",
    responses={304: {"description": "Unchanged since the ETag was given"}, **problems(RequestNotFound)},
)
def read_unlearn_request(request_id: str, request: Request, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """Status, phase, progress, attempts and findings."""
    with reading() as session:
        settings, row = request.app.state.settings, repository.get(session, request_id)
        seen = views.around(session, settings, row)
        if unchanged(if_none_match, tag := views.etag(row, seen)):
            return Response(status_code=304, headers={"ETag": tag})
        return answer(session, settings, row, 200, seen)


def answer(
    session: Session, settings: Settings, row: UnlearnRequest, status: int, seen: views.Around | None = None
) -> Response:
    """The request as JSON, when to look again, and the tag of what was seen."""
    seen = seen or views.around(session, settings, row)
    return shown(row, views.Told(seen, views.read(session, row, seen)), status)


def shown(row: UnlearnRequest, told: views.Told, status: int) -> Response:
    """The same of what is told already: after the transaction, which others wait for."""
    headers = {"ETag": views.etag(row, told.seen), "Cache-Control": "no-cache"}
    if row.finished_at is None:
        headers["Retry-After"] = POLL_AFTER_SECONDS
    return Response(told.read.model_dump_json(), status, headers, "application/json")


def at_its_address(response: Response, row: UnlearnRequest, *, replayed: bool) -> Response:
    """The answer to a call that makes a request, or made it before under the same key."""
    response.headers["Location"] = f"/unlearn-requests/{row.id}"
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response


@router.post(
    "/{request_id}/cancel",
    dependencies=[allowed("requests:cancel")],
    status_code=202,
    response_model=UnlearnRequestRead,
    summary="Withdraw an unlearn request",
    responses=problems(RequestNotFound, InvalidTransition),
)
def cancel_unlearn_request(request_id: str, request: Request, actor: CurrentActor, caller: CurrentCaller) -> Response:
    """A queued or paused request is cancelled at once; a running one is `cancelling` until its worker has stopped.

    A requester withdraws what they asked for; what others asked for, an operator. Safe to repeat.
    """
    with writing() as session:
        caller.require_own(repository.get(session, request_id).created_by, "requests:operate")
        row = service.cancel(session, request_id, actor)
        return answer(session, request.app.state.settings, row, 202)


@router.get(
    "/{request_id}/events",
    dependencies=[allowed("requests:read")],
    response_model=EventList,
    summary="What has happened, or what happens",
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        204: {"description": "An event stream that was resumed after its last event: nothing will follow"},
        **problems(RequestNotFound, Unprocessable),
    },
)
def read_unlearn_request_events(
    request_id: str,
    request: Request,
    accept: Annotated[str, Header()] = "application/json",
    last_event_id: Annotated[str | None, Header(pattern=r"^[0-9]{1,15}$")] = None,
) -> Any:
    """A JSON list, or with `Accept: text/event-stream` a stream that ends with the request and resumes by `Last-Event-ID`."""
    since = int(last_event_id) if last_event_id else 0
    events, ended = stream.read_events(request_id, since)
    if "text/event-stream" not in accept.lower():
        while more := stream.read_events(request_id, events[-1].id)[0] if events else []:
            events.extend(more)
        return EventList(data=events)
    if ended and not events:
        return Response(status_code=204)  # tells a browser's EventSource to stop reconnecting
    welcome = partial(still_allowed, request, "requests:read")
    return stream.response(stream.follow(request.app.state.tailer, request_id, since, welcome))


@router.get(
    "/{request_id}/receipt",
    dependencies=[allowed("requests:read")],
    response_class=Response,
    summary="Proof that the request is in the ledger",
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems(RequestNotFound, ReceiptNotFound, NotYetSigned),
    },
)
def read_unlearn_request_receipt(request_id: str) -> Response:
    """A C2SP tlog-proof of the entry that records the request. 503 until a signed checkpoint covers it: a minute as a rule.

    Keep it: it can be checked without this service, and shows that a ledger which lacks the entry was tampered with.
    """
    with reading() as session:
        repository.get(session, request_id)
        return receipts.receipt(session, proofs.first_of(session, request_id), request_id)


@router.get(
    "/{request_id}/report",
    dependencies=[allowed("requests:read")],
    response_model=dict[str, Any],
    summary="The last verification report",
    responses={
        200: {"content": {"text/html": {"schema": {"type": "string"}}, "image/png": {}}},
        304: {"description": "Unchanged since the ETag was given; HTML and PNG alone"},
        **problems(RequestNotFound, ReportNotFound),
    },
)
def read_unlearn_request_report(
    request_id: str,
    request: Request,
    format: Annotated[Format | None, Query(description="wins over `Accept`; JSON by default")] = None,
    accept: Annotated[str, Header()] = "application/json",
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Every finding with its threshold, pass or fail, as the verification stage wrote it.

    With `Accept: text/html` or `?format=html` one page for people that needs nothing else, with `image/png` or `?format=png` a
    picture of it.
    """
    with reading() as session:
        told = reporting.read(session, request_id)
    wanted = format or reporting.preferred(accept)
    return reporting.answer(told, wanted, get_store(request.app.state.settings), if_none_match)


@router.get(
    "/{request_id}/report/{file:path}",
    dependencies=[allowed("requests:read")],
    summary="A picture of the report",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}, **problems(FileNotFound, RequestNotFound, StoredFileDamaged)},
)
def read_unlearn_request_evidence(request_id: str, file: str, request: Request) -> Response:
    """By its name in the report's `evidence`, such as `before_after.png`."""
    require_plain_address(request)
    with reading() as session:
        repository.get(session, request_id)
        attempt = repository.last_reported(session, request_id)
        evidence = (attempt.evidence if attempt else None) or []
    found = next((e for e in evidence if file in (e["path"], e["path"].removeprefix("evidence/"))), None)
    if found is None:
        raise FileNotFound
    stored = StoredFile(found["path"], found["size"], found["sha256"])
    return send_file(get_store(request.app.state.settings), stored, request)
