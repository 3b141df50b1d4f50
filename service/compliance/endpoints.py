"""/audit/questions, /audit/reports, and the law's side of /unlearn-requests"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from service.audit import access, repository
from service.auth import CurrentActor, allowed
from service.compliance import dossier, formats, service
from service.compliance.questions import QUESTIONS, Asking, Question
from service.compliance.reports import REPORTS
from service.compliance.schemas import Asked, ComplianceEvent, ComplianceEventRead, QuestionRead, Rows
from service.db import now, reading
from service.edge import writing
from service.errors import (
    AlreadyRecorded,
    ComplianceUnfit,
    NotYetSigned,
    QuestionNotFound,
    RequestNotFound,
    Unprocessable,
    problems,
)
from service.requests import repository as requests

router = APIRouter(tags=["compliance"])
TEXT = {"schema": {"type": "string"}}
ROWS: dict[int | str, dict[str, Any]] = {
    200: {"model": Rows, "content": {formats.CSV: TEXT, formats.MEDIA_TYPES["jsonl"]: TEXT}}
}


@router.post(
    "/unlearn-requests/{request_id}/compliance-events",
    dependencies=[allowed("compliance:record")],
    status_code=201,
    response_model=ComplianceEventRead,
    summary="Record what the law asks of a request",
    responses=problems(RequestNotFound, AlreadyRecorded, ComplianceUnfit, Unprocessable),
)
def create_compliance_event(request_id: str, said: ComplianceEvent, actor: CurrentActor) -> ComplianceEventRead:
    """An extension, a refusal, a recipient who was told, or the answer. It moves no worker: a refused request that is still
    queued is cancelled by `/cancel`."""
    with writing() as session:
        seq = service.record(session, request_id, said, actor)
        row = service.of(session, request_id)
        assert row is not None, "recorded above"
        return ComplianceEventRead(seq=seq, request_id=request_id, compliance=service.read(row, now(session)))


@router.get(
    "/unlearn-requests/{request_id}/dossier",
    dependencies=[allowed("ledger:export")],
    response_class=Response,
    summary="Everything that the ledger says of a request, as a zip",
    responses={200: {"content": {"application/zip": {}}}, **problems(RequestNotFound, NotYetSigned)},
)
def read_dossier(request_id: str, request: Request, actor: CurrentActor) -> Response:
    """Entries, proofs and certificates, to be checked offline; no private data. Taking one is an entry, too."""
    with reading() as session:
        requests.get(session, request_id)
        archive, count = dossier.build(session, request.app.state.settings, request_id)
    access.note_export(actor, "dossier", {"request_id": request_id}, count)
    headers = {"Content-Disposition": f'attachment; filename="{request_id}.zip"', "Cache-Control": "no-store"}
    return Response(archive, media_type="application/zip", headers=headers)


@router.get(
    "/audit/questions", dependencies=[allowed("ledger:read")], response_model=list[QuestionRead], summary="What can be asked"
)
def list_audit_questions() -> list[QuestionRead]:
    """The questions that auditors ask."""
    return [_shown(name, question, "questions") for name, question in QUESTIONS.items()]


@router.get(
    "/audit/reports",
    dependencies=[allowed("ledger:read")],
    response_model=list[QuestionRead],
    summary="Which reports there are",
)
def list_audit_reports() -> list[QuestionRead]:
    """Reports over all requests, or a year."""
    return [_shown(name, question, "reports") for name, question in REPORTS.items()]


def _shown(name: str, question: Question, where: str) -> QuestionRead:
    return QuestionRead(
        name=name,
        question=question.text,
        columns=list(question.columns),
        needs=list(question.needs),
        takes=list(question.takes),
        url=f"/audit/{where}/{name}",
    )


@router.get(
    "/audit/questions/{name}",
    dependencies=[allowed("ledger:read")],
    response_model=None,
    summary="Ask one of them",
    responses={**ROWS, **problems(QuestionNotFound, RequestNotFound, Unprocessable)},
)
def ask_audit_question(
    name: str, asked: Annotated[Asked, Query()], actor: CurrentActor, accept: Annotated[str, Header()] = "application/json"
) -> Response:
    """As JSON, or with `Accept` or `format` as CSV or JSON lines. The asking is an entry."""
    return _answer("questions", QUESTIONS, name, asked, actor, accept)


@router.get(
    "/audit/reports/{name}",
    dependencies=[allowed("ledger:read")],
    response_model=None,
    summary="Draw up one of them",
    responses={**ROWS, **problems(QuestionNotFound, Unprocessable)},
)
def read_audit_report(
    name: str, asked: Annotated[Asked, Query()], actor: CurrentActor, accept: Annotated[str, Header()] = "application/json"
) -> Response:
    """As JSON, or with `Accept` or `format` as CSV or JSON lines. The drawing up is an entry."""
    return _answer("reports", REPORTS, name, asked, actor, accept)


def _answer(where: str, known: dict[str, Question], name: str, asked: Asked, actor: CurrentActor, accept: str) -> Response:
    question = known.get(name)
    if question is None:
        raise QuestionNotFound
    given = asked.model_dump(exclude={"format"}, exclude_none=True)
    for parameter in question.needs:
        if parameter not in given:
            raise Unprocessable(f"expected {parameter}", pointer=f"query:{parameter}")
    if unknown := sorted(set(given) - {*question.needs, *question.takes}):
        raise Unprocessable("expected no such parameter here", pointer=f"query:{unknown[0]}")
    with reading() as session:
        moment = Asking(at=now(session), size=repository.size(session), **given)
    kind = asked.format or formats.preferred(accept)
    # read twice: the ledger says how much was seen before anybody sees it, and no answer has to fit into memory
    count = sum(1 for _ in question.rows(moment))
    note = access.note_read if kind == "json" else access.note_export
    note(actor, f"{where}/{name}", given, count)
    return formats.stream(name, question.columns, question.rows(moment), kind)
