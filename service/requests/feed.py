"""/events: what happens to all requests."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from service.auth import allowed, still_allowed
from service.db import reading
from service.errors import InvalidCursor, Unprocessable, problems
from service.paging import Page, PageQuery, fetch_page, page
from service.requests import stream, tailer
from service.requests.responses import ProjectEventRead
from service.tables import RequestEvent

router = APIRouter(tags=["unlearn requests"])


@router.get(
    "/events",
    dependencies=[allowed("requests:read")],
    response_model=Page[ProjectEventRead],
    summary="What has happened to all requests, or what happens",
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        **problems(InvalidCursor, Unprocessable),
    },
)
async def list_events(
    query: Annotated[PageQuery, Query()],
    request: Request,
    response: Response,
    accept: Annotated[str, Header()] = "application/json",
    last_event_id: Annotated[str | None, Header(pattern=r"^[0-9]{1,15}$")] = None,
) -> Any:
    """A JSON list, newest first. With `Accept: text/event-stream` a stream that does not end: it begins with what happens from
    now on, or after `Last-Event-ID`."""
    if "text/event-stream" in accept.lower():
        since = None if last_event_id is None else int(last_event_id)
        welcome = partial(still_allowed, request, "requests:read")
        return stream.response(stream.follow(request.app.state.tailer, None, since, welcome))
    return await run_in_threadpool(_listed, query, request, response)


def _listed(query: PageQuery, request: Request, response: Response) -> dict[str, Any]:
    with reading() as session:
        found = fetch_page(session, select(RequestEvent), (RequestEvent.id,), query, "desc")
    return page(found, tailer.shown, request, response)
