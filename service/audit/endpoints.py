"""/audit"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from service.audit import access, repository, service, shredding
from service.audit.schemas import EntryFilters, EntryQuery, EntryRead
from service.audit.vault import get_keys
from service.auth import CurrentActor, CurrentCaller, allowed
from service.compliance import formats
from service.db import reading
from service.edge import writing
from service.errors import InvalidCursor, Unprocessable, problems
from service.paging import Page, fetch_page, page
from service.tables import LedgerEntry

router = APIRouter(prefix="/audit", tags=["audit"])

JSONL = "application/jsonl"


@router.get(
    "/entries",
    dependencies=[allowed("ledger:read")],
    response_model=Page[EntryRead],
    summary="Search the ledger",
    responses=problems(InvalidCursor, Unprocessable),
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
    private: dict[int, shredding.Opened] = {}
    with writing() as session:
        if query.include:
            keys = get_keys(request.app.state.settings)
            private = shredding.opened(session, keys, [row.seq for row in found.rows], actor=actor)
        access.add_read(session, actor, "entries", query, len(found.rows))
    return page(found, lambda row: service.read(row, private.get(row.seq, shredding.NOTHING)), request, response)


@router.get(
    "/export",
    dependencies=[allowed("ledger:export")],
    response_class=FileResponse,
    summary="All entries as JSON lines, or as a table",
    responses={
        200: {"content": {JSONL: {"schema": {"type": "string"}}, formats.CSV: {"schema": {"type": "string"}}}},
        **problems(Unprocessable),
    },
)
def export_audit_entries(
    filters: Annotated[EntryFilters, Query()], actor: CurrentActor, accept: Annotated[str, Header()] = JSONL
) -> FileResponse:
    """Those there are at one moment. `leaf` holds the exact text whose hash is `leaf_hash`.

    With `Accept: text/csv` the searchable columns alone, for a spreadsheet. The export is an entry, too, of a later moment.
    """
    csv = formats.preferred(accept, default="jsonl") == "csv"
    path, count = service.export(filters, "csv" if csv else "jsonl")
    gone = BackgroundTask(path.unlink, missing_ok=True)
    try:
        access.note_export(actor, "entries", filters, count)
    except BaseException:  # nothing is shown that is not on record
        path.unlink()
        raise
    kind, name = (formats.CSV, "audit.csv") if csv else (JSONL, "audit.jsonl")
    return FileResponse(path, media_type=kind, filename=name, headers={"Cache-Control": "no-store"}, background=gone)
