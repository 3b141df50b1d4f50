"""Requests as clients see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session as OrmSession

from service.audit import proofs
from service.compliance import service as compliance
from service.compliance.schemas import ComplianceRead
from service.config import Settings
from service.db import now
from service.models import repository as models
from service.models.schemas import ClassSet, ForgetSet
from service.requests import approvals, repository, schedule
from service.requests.lifecycle import RETRIABLE
from service.requests.repository import Waiting
from service.requests.responses import (
    ApprovalsRead,
    AttemptRead,
    ForgetRead,
    Policy,
    Progress,
    ProxyRead,
    RetainRead,
    RungRead,
    SampleSet,
    StatusReason,
    UnlearnRequestRead,
    UnlearnRequestSummary,
)
from service.requests.retain import Choice
from service.requests.rungs import ladder_of, rung_after
from service.requests.schemas import Resources
from service.requests.wishes import Gone
from service.tables import Attempt, Model, ModelVersion, RequestCompliance, UnlearnRequest
from service.values import sha256_of


@dataclass(frozen=True)
class Around:
    """What is shown of a request and is not in its row: it changes without the row's version."""

    status_reason: StatusReason | None
    superseded_by: str | None
    law: ComplianceRead | None
    approvals: ApprovalsRead
    """An approver's comment can be erased on its own."""
    model: Model | None
    """Of a request that no worker has taken: what its model's current version has forgotten is shown with it."""


@dataclass(frozen=True)
class Told:
    """A request as a client sees it: what is shown, and what was around it."""

    seen: Around
    read: UnlearnRequestRead


@dataclass(frozen=True)
class Beside:
    """What a request is shown with and is not in its row either. Whoever has just made it knows this, and asks nobody."""

    model: Model
    before: Gone
    """What the version that it starts from has forgotten."""
    seq: int | None
    """Of the entry that it begins with; None: it is not written yet."""
    base: ModelVersion | None = None
    """None: no worker has taken it."""


def beside(session: OrmSession, row: UnlearnRequest) -> Beside:
    """As it stands now."""
    model = session.get_one(Model, row.model_id)
    base = repository.base_version(session, row)
    before = models.forgotten_by(session, model) if base is None else models.forgotten_in(base)
    return Beside(model, before, proofs.first_of(session, row.id), base)


def around(session: OrmSession, settings: Settings, row: UnlearnRequest) -> Around:
    """As it stands now."""
    by = repository.successor(session, row.id) if row.status in RETRIABLE else None
    waits = row.status in ("pending_approval", "queued")
    reason = schedule.why_waiting(session, row, schedule.look(session, settings)) if waits else None
    law = compliance.of(session, row.id)
    model = None if row.base_version_id else session.get_one(Model, row.model_id)
    shown = compliance.read(law, now(session)) if law else None
    return Around(reason, by, shown, approvals.read(session, row), model)


def told(session: OrmSession, settings: Settings, row: UnlearnRequest) -> Told:
    """As it stands now."""
    seen = around(session, settings, row)
    return Told(seen, read(session, row, seen))


def around_new(
    session: OrmSession,
    settings: Settings,
    row: UnlearnRequest,
    model: Model,
    waiting: Sequence[Waiting],
    law: RequestCompliance | None,
    at: datetime,
) -> Around:
    """The same of a request that this transaction has made: `waiting` was in front of it, and `at` is now. Its approvals are
    bound to an entry that is not written yet."""
    floor = schedule.look(session, settings, at)
    reason = schedule.reason(row, floor, lambda: schedule.first_of(waiting))
    return Around(reason, None, compliance.read(law, at) if law else None, approvals.read(session, row), model)


def etag(request: UnlearnRequest, seen: Around) -> str:
    """Changes with every change of state, every reading of the progress, and what is around it: where it stands in law, too,
    which changes by what is recorded of it and by the clock."""
    around: dict[str, Any] = {
        "status_reason": seen.status_reason and seen.status_reason.model_dump(mode="json"),
        "superseded_by": seen.superseded_by,
        "law": seen.law and seen.law.model_dump(mode="json"),
        "approvals": seen.approvals.model_dump(mode="json") if seen.approvals.required else None,
        "model_version": seen.model and seen.model.current_version,
    }
    parts = [str(request.version)]
    if request.progress_at is not None:
        parts.append(str(int(request.progress_at.timestamp() * 1e6)))
    return f'"{"-".join([*parts, sha256_of(around)[:16]])}"'


def is_version(if_match: str, request: UnlearnRequest) -> bool:
    """True where an If-Match header names the request's version. What is around it may have changed."""
    given = [tag.strip() for tag in if_match.split(",")]
    return given == ["*"] or any(tag.strip('"').partition("-")[0] == str(request.version) for tag in given)


def retain_read(choice: Choice | None, class_names: list[str]) -> RetainRead | None:
    if choice is None:
        return None
    kept = ClassSet.of(list(choice.classes), class_names) if choice.classes else None
    aside = ClassSet.of(list(choice.proxy_classes), class_names)
    return RetainRead(
        classes=kept.classes if kept else None,
        class_names=kept.class_names if kept else None,
        real=choice.real,
        proxy=ProxyRead(**aside.model_dump(), dataset_id=choice.proxy_dataset_id) if choice.stands_in else None,
    )


def _fields(row: UnlearnRequest, class_names: list[str], law: ComplianceRead | None) -> dict[str, Any]:
    """All but `forget`, which a page of requests shows in short."""
    return {
        "id": row.id,
        "version": row.version,
        "status": row.status,
        "phase": row.phase,
        "model_id": row.model_id,
        "retain": retain_read(Choice.of(row.retain), class_names),
        "method": row.method,
        "params": row.params,
        "seed": row.seed,
        "resources": Resources(ranks=row.ranks, gpu_class=row.gpu_class),
        "priority": row.priority,
        "latest_start_at": row.latest_start_at,
        "due_at": law.due_at if law else None,
        "overdue": law is not None and law.overdue,
        "expected_run_seconds": row.expected_run_seconds,
        "supersedes": row.supersedes,
        "on_conflict": row.on_conflict,
        "policy": Policy(name=row.policy["name"], sha256=sha256_of(row.policy)),
        "reason": row.reason,
        "external_id": row.external_id,
        "metadata": row.client_metadata,
        "progress": Progress(
            completed=row.progress_completed,
            total=row.progress_total,
            unit=row.progress_unit,
            estimated_remaining_seconds=row.estimated_remaining_seconds,
            updated_at=row.progress_at,
        ),
        "checkpoint_id": row.checkpoint_id,
        "error": row.error,
        "attempt_count": row.attempts_charged,
        "cancel_requested_at": row.cancel_requested_at,
        "created_at": row.created_at,
        "created_by": row.created_by,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
    }


def summaries(session: OrmSession, rows: Sequence[UnlearnRequest]) -> dict[str, UnlearnRequestSummary]:
    """A page of requests by id; their models are read together, and so is their law."""
    found = models.by_id(session, (row.model_id for row in rows))
    samples = repository.sample_counts(session, (row.id for row in rows))
    laws = compliance.by_id(session, (row.id for row in rows))
    return {
        row.id: UnlearnRequestSummary(
            **_fields(row, found[row.model_id].class_names, laws.get(row.id)),
            forget=ForgetSet.of_both(row.forget_classes, found[row.model_id].class_names, samples[row.id]),
        )
        for row in rows
    }


def read(session: OrmSession, row: UnlearnRequest, seen: Around, known: Beside | None = None) -> UnlearnRequestRead:
    """One request with its attempts and findings.

    Args:
        known: of a request that this transaction makes; None: it is read.
    """
    known = known or beside(session, row)
    model, base, before = known.model, known.base, known.before
    wanted = list(row.forget_samples)
    attempts = repository.attempts(session, row.id) if row.fence else []  # no fence, no claim
    report = next((a.report for a in reversed(attempts) if a.report), None)
    return UnlearnRequestRead(
        **_fields(row, model.class_names, seen.law),
        forget=ForgetRead(
            **ClassSet.of(row.forget_classes, model.class_names).model_dump(),
            samples=SampleSet(count=len(wanted), ids=wanted),
        ),
        cumulative_forget=ForgetSet.of_both(
            before.classes.union(row.forget_classes), model.class_names, len(before.samples.union(wanted))
        ),
        status_reason=seen.status_reason,
        superseded_by=seen.superseded_by,
        approvals=seen.approvals,
        base_version=base.number if base else None,
        rung=_rung(row, attempts),
        attempts=[_attempt(n, a) for n, a in enumerate(attempts, start=1)],
        verdict=report["verdict"] if report else None,
        findings=report["findings"] if report else [],
        compliance=seen.law,
        report_url=f"/unlearn-requests/{row.id}/report" if report else None,
        checkpoint_url=f"/checkpoints/{row.checkpoint_id}" if row.checkpoint_id else None,
        ledger_seq=known.seq,
        receipt_url=f"/unlearn-requests/{row.id}/receipt",
    )


def _rung(row: UnlearnRequest, attempts: Sequence[Attempt]) -> RungRead:
    ladder = ladder_of(row.method, row.params, row.policy)
    number = min(rung_after(a.detail for a in attempts), len(ladder))
    return RungRead(number=number, of=len(ladder), method=ladder[number - 1].method)


def _attempt(number: int, row: Attempt) -> AttemptRead:
    detail = row.detail or {}
    return AttemptRead(
        number=number,
        fence=row.fence,
        rung=detail.get("rung", 1),
        method=detail.get("method"),
        started_at=row.started_at,
        ended_at=row.ended_at,
        outcome=row.outcome,
        detail=row.detail,
        verdict=row.report["verdict"] if row.report else None,
    )
