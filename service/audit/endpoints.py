"""/audit"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.audit import repository, service
from service.audit.schemas import EntryFilters, EntryQuery, EntryRead
from service.db import reading
from service.errors import InvalidCursor, Unprocessable, problems
from service.paging import Page, fetch_page, page
from service.tables import LedgerEntry

router = APIRouter(prefix="/audit", tags=["audit"])

JSONL = "application/jsonl"


@router.get(
    "/entries",
    response_model=Page[EntryRead],
    summary="Search the ledger",
    responses=problems(InvalidCursor, Unprocessable),
)
def list_audit_entries(query: Annotated[EntryQuery, Query()], request: Request, response: Response) -> dict[str, Any]:
    """In order of their sequence numbers, which have no gaps."""
    with reading() as session:
        found = fetch_page(session, repository.filtered(query), (LedgerEntry.seq,), query, query.order)
    return page(found, service.read, request, response)


@router.get(
    "/export",
    response_class=StreamingResponse,
    summary="All entries as JSON lines",
    responses={200: {"content": {JSONL: {"schema": {"type": "string"}}}}, **problems(Unprocessable)},
)
def export_audit_entries(filters: Annotated[EntryFilters, Query()]) -> StreamingResponse:
    """Those there are when the export starts. `leaf` holds the exact text whose hash is `leaf_hash`."""
    headers = {"Content-Disposition": 'attachment; filename="audit.jsonl"', "Cache-Control": "no-store"}
    return StreamingResponse(service.export(filters), media_type=JSONL, headers=headers)
