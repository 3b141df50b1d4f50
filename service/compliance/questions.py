"""What auditors ask, as saved questions: each a name, a sentence, columns, and rows that are read a batch at a time.

Answers are of the moment when they are asked; those from the ledger end where it ended then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, or_, select
from sqlalchemy.orm import InstrumentedAttribute, aliased

from service import tenancy
from service.audit import checkpoints
from service.audit.ledger import LOG_ID
from service.certificates.dsse import payload_of
from service.db import reading
from service.requests import repository as requests
from service.tables import (
    Checkpoint,
    LedgerCheckpoint,
    LedgerEntry,
    ModelVersion,
    RequestCompliance,
    UnlearnRequest,
    VersionDisposition,
)

BATCH = 500
LONGEST_GAP = timedelta(hours=24)
ACCESS = ("audit.read", "export.made", "private.opened")
TAKEN_AWAY = (
    "entry.redacted", "private.shredded", "kek.destroyed", "redaction.requested", "legal-hold.set", "legal-hold.released",
)  # fmt: skip

Row = dict[str, Any]


@dataclass(frozen=True)
class Asking:
    """When something is asked, and of what."""

    at: datetime
    """The database's clock."""
    size: int
    """Of the ledger."""
    request_id: str = ""
    model_id: str = ""
    jurisdiction: str = ""
    year: int = 0


@dataclass(frozen=True)
class Question:
    """One that can be asked by its name."""

    text: str
    columns: tuple[str, ...]
    rows: Callable[[Asking], Iterator[Row]]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


def batches(statement: Select[*tuple[Any, ...]], key: InstrumentedAttribute[Any]) -> Iterator[Any]:
    """Rows in the order of `key`, which is unique and their first column; no connection is held between two batches."""
    last: Any = None
    while True:
        chosen = statement if last is None else statement.where(key > last)
        with reading() as session:
            rows = session.execute(chosen.order_by(key).limit(BATCH)).all()
        yield from rows
        if len(rows) < BATCH:
            return
        last = rows[-1][0]


def entries(asked: Asking, *conditions: ColumnElement[bool]) -> Iterator[tuple[LedgerEntry, Row]]:
    """Entries that meet the conditions, and what each says; nothing, where it was redacted."""
    chosen = select(LedgerEntry.seq, LedgerEntry).where(LedgerEntry.log_id == LOG_ID, LedgerEntry.seq < asked.size, *conditions)
    for _, entry in batches(chosen, LedgerEntry.seq):
        yield entry, json.loads(entry.leaf)["public"] if entry.leaf else {}


def law(*conditions: ColumnElement[bool]) -> Iterator[tuple[RequestCompliance, UnlearnRequest]]:
    """Requests with a law's side."""
    chosen = (
        select(RequestCompliance.request_id, RequestCompliance, UnlearnRequest)
        .join(UnlearnRequest, UnlearnRequest.id == RequestCompliance.request_id)
        .where(*conditions)
    )
    for _, row, request in batches(chosen, RequestCompliance.request_id):
        yield row, request


def _days(span: timedelta) -> int:
    """Whole days, rounded down: a day is late once it is over."""
    return span // timedelta(days=1)


# --------------------------------------------------------------------------------------------------------- the questions


def _overdue(asked: Asking) -> Iterator[Row]:
    later = aliased(UnlearnRequest)
    handed_on = exists().where(later.supersedes == RequestCompliance.request_id)  # the later request is the one that is late
    for row, request in law(RequestCompliance.due_at < asked.at, RequestCompliance.answered_at.is_(None), ~handed_on):
        assert row.due_at is not None
        yield {
            "request_id": row.request_id,
            "model_id": request.model_id,
            "status": request.status,
            "jurisdiction": row.jurisdiction,
            "received_at": row.received_at,
            "due_at": row.due_at,
            "days_late": _days(asked.at - row.due_at),
        }


def _history(asked: Asking) -> Iterator[Row]:
    for entry, public in entries(asked, LedgerEntry.request_id == asked.request_id):
        yield {
            "seq": entry.seq,
            "ordinal": entry.request_ordinal,
            "at": entry.at,
            "action": entry.action,
            "outcome": entry.outcome,
            "actor": entry.actor,
            "said": public,
            "redacted_by": entry.redacted_by,
        }


def _models_of(asked: Asking) -> Iterator[Row]:
    with reading() as session:
        request = requests.get(session, asked.request_id)
    result = aliased(ModelVersion)
    made = select(result.number).where(result.checkpoint_id == (request.checkpoint_id or "")).scalar_subquery()
    chosen = select(ModelVersion.id, ModelVersion, made).where(
        ModelVersion.model_id == request.model_id,
        or_(ModelVersion.id == (request.base_version_id or ""), ModelVersion.number >= made),
    )
    for _, version, number in batches(chosen, ModelVersion.id):
        role = "result" if version.number == number else "base" if version.id == request.base_version_id else "successor"
        yield {
            "model_id": version.model_id,
            "version_id": version.id,
            "number": version.number,
            "role": role,
            "digest": version.digest,
            "checkpoint_id": version.checkpoint_id,
        }


def _requests_in(asked: Asking) -> Iterator[Row]:
    chosen = (
        select(UnlearnRequest.id, UnlearnRequest, RequestCompliance)
        .outerjoin(RequestCompliance, RequestCompliance.request_id == UnlearnRequest.id)
        .where(UnlearnRequest.model_id == asked.model_id)
    )
    for _, request, row in batches(chosen, UnlearnRequest.id):
        yield {
            "request_id": request.id,
            "created_at": request.created_at,
            "status": request.status,
            "method": request.method,
            "jurisdiction": row.jurisdiction if row else None,
            "checkpoint_id": request.checkpoint_id,
            "finished_at": request.finished_at,
        }


def _self_attested(_asked: Asking) -> Iterator[Row]:
    for _, made in batches(select(Checkpoint.id, Checkpoint), Checkpoint.id):
        predicate = json.loads(payload_of(made.certificate)).get("predicate", {})
        evidence = [e for e in predicate.get("evidence", []) if isinstance(e, dict)]
        if any(e.get("assuranceLevel") == "third_party" and e.get("passed") is True for e in evidence):
            continue
        yield {
            "checkpoint_id": made.id,
            "request_id": made.request_id,
            "model_id": made.model_id,
            "issued_at": made.created_at,
            "evidence": len(evidence),
        }


def _parents_served(_asked: Asking) -> Iterator[Row]:
    parent = aliased(ModelVersion)
    gone = VersionDisposition.version_id == parent.id, VersionDisposition.state.in_(("withdrawn", "destroyed"))
    chosen = select(ModelVersion.id, ModelVersion, parent).join(parent, parent.id == ModelVersion.parent_id)
    # by the rows and not by the entries: the text of one of these may have been redacted
    for _, version, before in batches(chosen.where(~exists().where(*gone)), ModelVersion.id):
        yield {
            "model_id": version.model_id,
            "parent_version_id": before.id,
            "parent_number": before.number,
            "parent_digest": before.digest,
            "checkpoint_id": version.checkpoint_id,
            "published_at": version.created_at,
        }


def _not_told(_asked: Asking) -> Iterator[Row]:
    for row, request in law(UnlearnRequest.status == "succeeded"):
        for recipient in sorted(set(row.recipients) - set(row.recipients_told)):
            yield {"request_id": row.request_id, "recipient": recipient, "finished_at": request.finished_at}


def _access(asked: Asking) -> Iterator[Row]:
    for entry, public in entries(asked, LedgerEntry.action.in_(ACCESS)):
        seqs = public.get("seqs")
        yield {
            "seq": entry.seq,
            "at": entry.at,
            "actor": entry.actor,
            "action": entry.action,
            "what": public.get("what"),
            "count": public.get("count") if seqs is None else len(seqs),
            "opened": seqs,
        }


def _extensions(_asked: Asking) -> Iterator[Row]:
    for row, _ in law(RequestCompliance.extended_at.is_not(None)):
        yield {
            "request_id": row.request_id,
            "jurisdiction": row.jurisdiction,
            "received_at": row.received_at,
            "informed_at": row.extended_at,
            "reason": row.extension_reason,
            "due_at": row.due_at,
            "told_late": row.extension_late,
        }


def _refusals(_asked: Asking) -> Iterator[Row]:
    for row, _ in law(RequestCompliance.ground.is_not(None)):
        yield {
            "request_id": row.request_id,
            "jurisdiction": row.jurisdiction,
            "ground": row.ground,
            "refused_at": row.refused_at,
            "due_at": row.due_at,
        }


def _taken_away(asked: Asking) -> Iterator[Row]:
    for entry, public in entries(asked, LedgerEntry.action.in_(TAKEN_AWAY)):
        yield {
            "seq": entry.seq,
            "at": entry.at,
            "actor": entry.actor,
            "action": entry.action,
            "ground": public.get("ground"),
            "concerns": public.get("seqs") or [public[k] for k in ("seq", "kek_id", "kekId") if k in public],
            "self_approved": public.get("selfApproved"),
        }


def _gaps(asked: Asking) -> Iterator[Row]:
    """Between two signed trees, before the first, and since the last: what happened there was unprotected for so long."""
    with tenancy.acting(None), reading() as session:  # the ledger is one, and its first entry may be another project's
        began = session.scalars(select(LedgerEntry.at).where(LedgerEntry.log_id == LOG_ID, LedgerEntry.seq == 0)).first()
    if began is None:
        return
    chosen = select(LedgerCheckpoint.created_at, LedgerCheckpoint).where(LedgerCheckpoint.log_id == LOG_ID)
    rows = batches(chosen, LedgerCheckpoint.created_at)
    # when a checkpoint was stored is the database's word alone: its signature does not cover that, and would prove nothing here
    found = [(at, row.size) for at, row in rows if checkpoints.sound(row, asked.size, None)]
    before, size = began, 0
    for at, signed in [*found, (asked.at, None)]:
        if at - before > LONGEST_GAP:
            hours = (at - before) // timedelta(hours=1)
            yield {"signed_at": before, "size": size, "next_at": None if signed is None else at, "hours": hours}
        before, size = at, signed or 0


QUESTIONS: dict[str, Question] = {
    "overdue": Question(
        "Which requests are past their deadline and not answered?",
        ("request_id", "model_id", "status", "jurisdiction", "received_at", "due_at", "days_late"),
        _overdue,
    ),
    "request-history": Question(
        "What happened to one request?",
        ("seq", "ordinal", "at", "action", "outcome", "actor", "said", "redacted_by"),
        _history,
        needs=("request_id",),
    ),
    "models-of-request": Question(
        "Which models did one request touch: what it began with, what it made, and what was made of that?",
        ("model_id", "version_id", "number", "role", "digest", "checkpoint_id"),
        _models_of,
        needs=("request_id",),
    ),
    "requests-of-model": Question(
        "Which requests were made of one model?",
        ("request_id", "created_at", "status", "method", "jurisdiction", "checkpoint_id", "finished_at"),
        _requests_in,
        needs=("model_id",),
    ),
    "without-third-party-evidence": Question(
        "Which certificates rest on no passing evidence of a third party?",
        ("checkpoint_id", "request_id", "model_id", "issued_at", "evidence"),
        _self_attested,
    ),
    "parents-still-served": Question(
        "Which versions were succeeded by a certified one, and are not on record as withdrawn or destroyed?",
        ("model_id", "parent_version_id", "parent_number", "parent_digest", "checkpoint_id", "published_at"),
        _parents_served,
    ),
    "recipients-not-told": Question(
        "Who was given data that were forgotten, and has not been told?", ("request_id", "recipient", "finished_at"), _not_told
    ),
    "access": Question(
        "Who read what?", ("seq", "at", "actor", "action", "what", "count", "opened"), _access
    ),
    "extensions": Question(
        "Which deadlines were extended, why, and was the person told in time?",
        ("request_id", "jurisdiction", "received_at", "informed_at", "reason", "due_at", "told_late"),
        _extensions,
    ),
    "refusals": Question(
        "Which requests were refused, and on what ground?",
        ("request_id", "jurisdiction", "ground", "refused_at", "due_at"),
        _refusals,
    ),
    "redactions-and-shreds": Question(
        "What was taken away, by whom, and why?",
        ("seq", "at", "actor", "action", "ground", "concerns", "self_approved"),
        _taken_away,
    ),
    "checkpoint-gaps": Question(
        "When was the ledger without a new signature for more than 24 hours?",
        ("signed_at", "size", "next_at", "hours"),
        _gaps,
    ),
}  # fmt: skip
"""By name: the twelve."""
