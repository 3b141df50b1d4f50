"""/audit"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.audit import access, repository, service, shredding
from service.audit.schemas import EntryFilters, EntryQuery, EntryRead
from service.audit.vault import get_keys
from service.auth import CurrentActor, CurrentCaller, allowed
from service.compliance import formats
from service.db import reading
from service.edge import writing
from service.errors import InvalidCursor, PrivateDamaged, PrivateGone, Unprocessable, problems
from service.paging import Page, fetch_page, page
from service.tables import LedgerEntry

router = APIRouter(prefix="/audit", tags=["audit"])

JSONL = "application/jsonl"
COLUMNS = ("seq", "at", "action", "outcome", "actor", "tenant", "request_id", "request_ordinal", "model_id", "redacted_by")


@router.get(
    "/entries",
    dependencies=[allowed("ledger:read")],
    response_model=Page[EntryRead],
    summary="Search the ledger",
    responses=problems(InvalidCursor, PrivateGone, PrivateDamaged, Unprocessable),
)
def list_audit_entries(
    query: Annotated[EntryQuery, Query()], request: Request, response: Response, actor: CurrentActor, caller: CurrentCaller
) -> dict[str, Any]:
    """In order of their sequence numbers; in the whole ledger these have no gaps. Reading is an entry, too: the next page may
    hold it. `include=private` needs the scope `private:read`."""
    if query.include:
        caller.require("private:read")
    with reading() as session:
        found = fetch_page(session, repository.filtered(query), (LedgerEntry.seq,), query, query.order)
    private: dict[int, dict[str, Any]] = {}
    with writing() as session:
        if query.include:
            keys = get_keys(request.app.state.settings)
            private = shredding.opened(session, keys, [row.seq for row in found.rows], actor=actor)
        access.add_read(session, actor, "entries", query, len(found.rows))
    return page(found, lambda row: service.read(row, private.get(row.seq)), request, response)


@router.get(
    "/export",
    dependencies=[allowed("ledger:export")],
    response_class=StreamingResponse,
    summary="All entries as JSON lines, or as a table",
    responses={
        200: {"content": {JSONL: {"schema": {"type": "string"}}, formats.CSV: {"schema": {"type": "string"}}}},
        **problems(Unprocessable),
    },
)
def export_audit_entries(
    filters: Annotated[EntryFilters, Query()], actor: CurrentActor, accept: Annotated[str, Header()] = JSONL
) -> StreamingResponse:
    """Those there are when the export starts. `leaf` holds the exact text whose hash is `leaf_hash`.

    With `Accept: text/csv` the searchable columns alone, for a spreadsheet. The export is an entry, too: the first after it.
    """
    with reading() as session:
        below = repository.size(session)
        count = repository.count(session, filters, below=below)
    access.note_export(actor, "entries", filters, count)
    if formats.preferred(accept, default="jsonl") == "csv":
        rows = ({name: getattr(row, name) for name in COLUMNS} for row in service.entries(filters, below))
        return formats.stream("audit", COLUMNS, rows, "csv")
    headers = {"Content-Disposition": 'attachment; filename="audit.jsonl"', "Cache-Control": "no-store"}
    return StreamingResponse(service.export(filters, below), media_type=JSONL, headers=headers)
