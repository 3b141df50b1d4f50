"""/workers and /queue: who works, and what waits."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from sqlalchemy import select

from service import outbox
from service.auth import allowed
from service.db import now, reading
from service.errors import Unprocessable, problems
from service.requests import schedule
from service.requests.lifecycle import KEEPS_PLACE
from service.tables import UnlearnRequest
from service.workers import repository
from service.workers.schemas import Queue, QueueEntry, WorkerList, WorkerRead

router = APIRouter(tags=["operations"])
MOST_SHOWN = 500


@router.get("/workers", response_model=WorkerList, summary="Who works", dependencies=[allowed("requests:read")])
def list_workers(request: Request) -> WorkerList:
    """Workers say at every sweep that they are there. One that is not alive may still hold a request: its lease decides.

    They work for all projects; what one works on is told to that request's project alone.
    """
    with reading() as session:
        since = repository.silent_since(now(session), request.app.state.settings)
        workers = repository.everyone(session)
        held = [row.request_id for row in workers if row.request_id]
        mine = set(session.scalars(select(UnlearnRequest.id).where(UnlearnRequest.id.in_(held))))
        found = [
            WorkerRead(
                id=row.id,
                host=row.host,
                gpu_classes=row.gpu_classes,
                state=row.state,
                alive=row.seen_at >= since,
                request_id=row.request_id if row.request_id in mine else None,
                started_at=row.started_at,
                seen_at=row.seen_at,
            )
            for row in workers
        ]
    return WorkerList(data=found)


@router.get(
    "/queue",
    response_model=Queue,
    summary="What waits, in order",
    responses=problems(Unprocessable),
    dependencies=[allowed("requests:read")],
)
def read_queue(request: Request, limit: Annotated[int, Query(ge=1, le=MOST_SHOWN)] = 100) -> Queue:
    """Earliest latest start first, then priority, then age; a request is as urgent as those behind it on its model."""
    settings = request.app.state.settings
    with reading() as session:
        waiting = select(UnlearnRequest).where(UnlearnRequest.status.in_(sorted(KEEPS_PLACE)))
        rows = session.scalars(waiting.order_by(*outbox.order()).limit(limit + 1)).all()
        floor = schedule.look(session, settings)
        shown = [
            QueueEntry(
                position=position,
                request_id=row.id,
                model_id=row.model_id,
                status=row.status,
                priority=row.priority,
                gpu_class=row.gpu_class,
                latest_start_at=row.latest_start_at,
                waiting_seconds=max((floor.at - row.created_at).total_seconds(), 0.0),
                status_reason=schedule.why_waiting(session, row, floor),
            )
            for position, row in enumerate(rows[:limit], start=1)
        ]
    return Queue(data=shown, has_more=len(rows) > limit)
