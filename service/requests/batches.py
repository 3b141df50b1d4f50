"""/unlearn-requests/batch: several requests in one call."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy.orm import Session

from service import tenancy
from service.access.caller import Caller
from service.auth import CurrentCaller, allowed
from service.config import Settings
from service.db import reading
from service.edge import writing
from service.errors import BadRequest, IdempotencyKeyReused, ServiceError, Unprocessable, problem_body, problems
from service.models import repository as models
from service.requests import places, repository, service, views
from service.requests.endpoints import IdempotencyHeader
from service.requests.responses import BatchRead, BatchResult, UnlearnRequestRead
from service.requests.schemas import Batch, UnlearnRequestCreate

router = APIRouter(prefix="/unlearn-requests", tags=["unlearn requests"])


@router.post(
    "/batch",
    dependencies=[allowed("requests:create")],
    status_code=202,
    response_model=BatchRead,
    summary="Ask for up to 100 at once",
    responses=problems(BadRequest, IdempotencyKeyReused, Unprocessable),
)
def create_unlearn_requests(
    wanted: Batch, request: Request, caller: CurrentCaller, idempotency_key: IdempotencyHeader = None
) -> BatchRead:
    """Each as `POST /unlearn-requests` would make it, one after the other; those that cannot be made do not hinder the rest.

    With `atomic`, all or none: the answer is the first problem, with the item's `index`, under any status of a single request.
    Safe to repeat with an `Idempotency-Key`: what was made is not made again, and what failed is tried again.
    """
    settings: Settings = request.app.state.settings
    keys = _keys(wanted, idempotency_key)
    if wanted.atomic:
        return BatchRead(data=_together(settings, wanted.items, keys, caller), failed=0)
    data = [
        _by_itself(settings, index, item, key, caller, request.url.path)
        for index, (item, key) in enumerate(zip(wanted.items, keys, strict=True))
    ]
    return BatchRead(data=data, failed=sum(one.problem is not None for one in data))


def _keys(wanted: Batch, key: str | None) -> list[str | None]:
    """Of each item one that follows from the batch's. Raises: IdempotencyKeyReused: an item was another one."""
    if key is None:
        return [None] * len(wanted.items)
    stem = hashlib.sha256(key.encode()).hexdigest()
    keys = [f"batch:{stem}:{index}" for index in range(len(wanted.items))]
    with reading() as session:
        for item, one in zip(wanted.items, keys, strict=True):
            used = repository.idempotency_key(session, tenancy.own_tenant(), one)
            if used is not None and used.body_sha256 != service.body_digest(item):
                raise IdempotencyKeyReused(pointer="header:Idempotency-Key")
    return [*keys]


def _by_itself(
    settings: Settings, index: int, item: UnlearnRequestCreate, key: str | None, caller: Caller, path: str
) -> BatchResult:
    try:
        known = places.look(item, key)
        with writing() as session:
            made = service.create(session, settings, item, key, known, caller.actor, key_id=caller.key_id)
            shown = _shown(session, settings, made)
    except ServiceError as error:
        said = problem_body(error, instance=path)
        return BatchResult(index=index, status=error.status, replayed=False, request=None, problem=said)
    return BatchResult(index=index, status=202, replayed=made.replayed, request=shown, problem=None)


def _together(
    settings: Settings, items: list[UnlearnRequestCreate], keys: list[str | None], caller: Caller
) -> list[BatchResult]:
    """One transaction. The models are locked first, in the order of their ids: no two batches wait for each other."""
    known, made = [], []
    for index, (item, key) in enumerate(zip(items, keys, strict=True)):
        with _of_item(index):
            known.append(places.look(item, key))
    first_of = {item.model_id: index for index, item in reversed([*enumerate(items)])}
    with writing() as session:
        for model_id, index in sorted(first_of.items()):
            with _of_item(index):
                models.get(session, model_id, lock=True)
        for index, (item, key, found) in enumerate(zip(items, keys, known, strict=True)):
            with _of_item(index):
                made.append(service.prepare(session, settings, item, key, found, caller.actor, key_id=caller.key_id))
        recorded = service.record(session, settings, made, caller.actor)
        shown = [_shown(session, settings, one) for one in recorded]
    return [
        BatchResult(index=index, status=202, replayed=one.replayed, request=read, problem=None)
        for index, (one, read) in enumerate(zip(made, shown, strict=True))
    ]


@contextmanager
def _of_item(index: int) -> Iterator[None]:
    """An error in it says where in the batch it is."""
    try:
        yield
    except ServiceError as error:
        extra: dict[str, Any] = {**error.extra, "index": index}
        raise type(error)(error.detail, pointer=f"/items/{index}{error.pointer or ''}", **extra) from error


def _shown(session: Session, settings: Settings, made: service.Made) -> UnlearnRequestRead:
    return (made.told or views.told(session, settings, made.request)).read
