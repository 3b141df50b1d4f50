"""/audit and /unlearn-requests: shredding, legal holds, redactions"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt
from sqlalchemy import select

from service.audit import redaction, shredding
from service.audit.ledger import LOG_ID
from service.auth import CurrentActor, allowed
from service.db import reading
from service.edge import writing
from service.errors import (
    ConcurrentChange,
    InvalidCursor,
    InvalidTransition,
    LegalHold,
    NotFound,
    RequestNotFound,
    SelfApproval,
    Unprocessable,
    problems,
)
from service.paging import Page, PageQuery, fetch_page, page
from service.requests import repository as requests
from service.tables import LedgerEntry, LedgerRedaction
from service.values import LARGEST_INT

router = APIRouter(tags=["privacy"])


class Shred(BaseModel):
    """Why the private data go."""

    model_config = ConfigDict(extra="forbid")

    ground: shredding.Ground


class Hold(BaseModel):
    """Whether the private data must stay."""

    model_config = ConfigDict(extra="forbid")

    hold: StrictBool
    ground: shredding.HoldGround


class SeqList(BaseModel):
    """Entries whose private data changed; none: everything was so already."""

    object: Literal["private_data"] = "private_data"
    seqs: list[int]


class RedactionCreate(BaseModel):
    """Which entry's text is to go, and why."""

    model_config = ConfigDict(extra="forbid")

    seq: StrictInt = Field(ge=0, le=LARGEST_INT)
    reason: redaction.Ground


class RedactionRead(BaseModel):
    """A redaction that waits for a second person, or was carried out."""

    object: Literal["redaction"] = "redaction"
    id: str
    seq: int
    reason: str
    status: Literal["pending", "done"]
    requested_by: str
    requested_at: datetime
    approved_by: str | None
    approved_at: datetime | None
    self_approved: bool
    redacted_by: int | None = Field(description="sequence number of the `entry.redacted` that says so")


@router.post(
    "/audit/entries/{seq}/shred",
    dependencies=[allowed("private:shred")],
    response_model=SeqList,
    summary="Destroy the private data of an entry",
    responses=problems(NotFound, LegalHold, Unprocessable),
)
def shred_audit_entry(seq: int, wanted: Shred, actor: CurrentActor) -> SeqList:
    """For ever, and with the copies in the request's row and events where it is the entry that received them. Repeatable."""
    _require_seq(seq)
    with writing() as session:
        rows = shredding.private_rows(session, seq=seq, lock=True)
        seqs = shredding.shred(session, rows, actor=actor, ground=wanted.ground)
    shredding.forget_pages()
    return SeqList(seqs=seqs)


@router.post(
    "/unlearn-requests/{request_id}/shred",
    dependencies=[allowed("private:shred")],
    response_model=SeqList,
    summary="Destroy the private data of a request",
    responses=problems(RequestNotFound, NotFound, LegalHold, Unprocessable),
)
def shred_unlearn_request(request_id: str, wanted: Shred, actor: CurrentActor) -> SeqList:
    """What its client said and what was noted since, in the ledger's rows and in its own. What is to be forgotten stays: the
    model's later versions depend on it. Safe to repeat."""
    with writing() as session:
        requests.get(session, request_id, lock=True)
        rows = shredding.private_rows(session, request_id=request_id, lock=True)
        seqs = shredding.shred(session, rows, actor=actor, ground=wanted.ground)
    shredding.forget_pages()
    return SeqList(seqs=seqs)


@router.post(
    "/unlearn-requests/{request_id}/legal-hold",
    dependencies=[allowed("private:hold")],
    response_model=SeqList,
    summary="Set or release a legal hold",
    responses=problems(RequestNotFound, NotFound, Unprocessable),
)
def hold_unlearn_request(request_id: str, wanted: Hold, actor: CurrentActor) -> SeqList:
    """While it is held, nothing of the request is shredded, by whomever. Safe to repeat."""
    with writing() as session:
        requests.get(session, request_id, lock=True)
        rows = shredding.private_rows(session, request_id=request_id, lock=True)
        return SeqList(seqs=shredding.hold(session, rows, actor=actor, on=wanted.hold, ground=wanted.ground))


@router.post(
    "/audit/redactions",
    dependencies=[allowed("ledger:redact")],
    status_code=202,
    response_model=RedactionRead,
    summary="Take the text of an entry away",
    responses=problems(NotFound, InvalidTransition, ConcurrentChange, Unprocessable),
)
def create_audit_redaction(wanted: RedactionCreate, request: Request, actor: CurrentActor) -> RedactionRead:
    """Its hash, and so the tree, stays. Under `four_eyes: two` it waits until another person approves. Safe to repeat."""
    four_eyes = request.app.state.settings.four_eyes
    with writing() as session:
        row = redaction.request(session, seq=wanted.seq, ground=wanted.reason, actor=actor, four_eyes=four_eyes)
        return _read(row, session.get_one(LedgerEntry, (LOG_ID, row.seq)))


@router.post(
    "/audit/redactions/{redaction_id}/approve",
    dependencies=[allowed("ledger:approve")],
    response_model=RedactionRead,
    summary="Approve a redaction that somebody else asked for",
    responses=problems(NotFound, SelfApproval),
)
def approve_audit_redaction(redaction_id: str, actor: CurrentActor) -> RedactionRead:
    """Then it is carried out. Safe to repeat."""
    with writing() as session:
        row = redaction.approve(session, redaction_id, actor=actor)
        return _read(row, session.get_one(LedgerEntry, (LOG_ID, row.seq)))


@router.get(
    "/audit/redactions",
    dependencies=[allowed("ledger:read")],
    response_model=Page[RedactionRead],
    summary="Redactions, waiting and done",
    responses=problems(InvalidCursor, Unprocessable),
)
def list_audit_redactions(query: Annotated[PageQuery, Query()], request: Request, response: Response) -> dict[str, Any]:
    """Newest first."""
    with reading() as session:
        keys = (LedgerRedaction.requested_at, LedgerRedaction.id)
        found = fetch_page(session, select(LedgerRedaction), keys, query, "desc")
        entries = {row.seq: session.get_one(LedgerEntry, (LOG_ID, row.seq)) for row in found.rows}
    return page(found, lambda row: _read(row, entries[row.seq]), request, response)


def _require_seq(seq: int) -> None:
    if not 0 <= seq <= LARGEST_INT:
        raise NotFound("no entry has this number")


def _read(row: LedgerRedaction, entry: LedgerEntry) -> RedactionRead:
    return RedactionRead(
        id=row.id,
        seq=row.seq,
        reason=row.ground,
        status="pending" if row.approved_by is None else "done",
        requested_by=row.requested_by,
        requested_at=row.requested_at,
        approved_by=row.approved_by,
        approved_at=row.approved_at,
        self_approved=row.approved_by == row.requested_by,
        redacted_by=entry.redacted_by,
    )
