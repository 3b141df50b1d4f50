"""What would become of a request: judged as it would be made, and written nowhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session as OrmSession

from service.audit.leaves import Actor
from service.compliance import service as compliance
from service.config import Settings
from service.db import now
from service.models import repository as models
from service.models.schemas import ForgetSet
from service.requests import judging, quotas, repository, schedule, views
from service.requests.lifecycle import HOLDS_LINEAGE, PRIORITIES
from service.requests.places import Known
from service.requests.responses import PlanRead, Policy, RecipeRead
from service.requests.retain import Choice
from service.requests.rungs import ladder_of
from service.requests.schemas import UnlearnRequestCreate
from service.requests.wishes import Gone
from service.tables import Model, UnlearnRequest
from service.values import sha256_of
from service.workers import repository as workers


def plan(session: OrmSession, settings: Settings, wanted: UnlearnRequestCreate, known: Known | None, actor: Actor) -> PlanRead:
    """What `service.create` would make of it now, in a session that reads alone.

    Raises:
        what `service.create` raises, but for what a key can be wrong with.
    """
    model = models.get(session, wanted.model_id)
    judged = judging.judge(session, settings, wanted, model, known or Known(), actor)
    request, is_new = judged.request, judged.is_new
    if is_new:
        quotas.require_place(session, settings, model.project_id, more=1)
    waiting = [one for one in repository.pending(session, model.id) if (one.created_at, one.id) < _place(request)]
    gone = Gone.together(
        [models.forgotten_by(session, model), *(w.gone for w in waiting), Gone(frozenset(request.forget_classes))]
    )
    samples = gone.samples.union(request.forget_samples)
    due_at = compliance.clock(session, wanted.jurisdiction or "none", wanted.received_at)[1] if wanted.legal else None
    expected = schedule.expected_run_seconds(session, settings, family=model.family, method=request.method)
    margin = settings.deadline_margin_seconds
    latest = schedule.latest_start(due_at, expected_seconds=expected, margin_seconds=margin) if due_at else None
    in_front = _in_front(session, request, latest)
    serving = sum(request.gpu_class in one.gpu_classes for one in workers.taking(session, settings, now(session)))
    busy = sum(_seconds(session, settings, one) for one in in_front)
    finish = now(session) + timedelta(seconds=busy / serving + expected) if serving else None
    return PlanRead(
        model_id=model.id,
        status=request.status,
        answered_by=None if is_new else request.id,
        forget=ForgetSet.of_both(request.forget_classes, model.class_names, len(request.forget_samples)),
        cumulative_forget=ForgetSet.of_both(gone.classes, model.class_names, len(samples)),
        retain=views.retain_read(Choice.of(request.retain), model.class_names),
        method=request.method,
        recipes=[
            RecipeRead(method=one.method, params=dict(one.params))
            for one in ladder_of(request.method, request.params, request.policy)
        ],
        policy=Policy(name=request.policy["name"], sha256=sha256_of(request.policy)),
        approvals_required=request.approvals_required,
        behind=[one.id for one in waiting],
        expected_run_seconds=expected,
        requests_in_front=len(in_front),
        workers=serving,
        estimated_finish_at=finish,
        due_at=due_at,
        latest_start_at=latest,
        late=None if finish is None or due_at is None else finish > due_at,
    )


def _in_front(session: OrmSession, request: UnlearnRequest, latest: datetime | None) -> list[UnlearnRequest]:
    """Of the same GPU class: at work already, older of the same model, or sooner by its own urgency (`outbox.order`)."""
    pending = (*HOLDS_LINEAGE, "queued")
    chosen = select(UnlearnRequest).where(UnlearnRequest.gpu_class == request.gpu_class, UnlearnRequest.status.in_(pending))
    mine = _urgency(latest, request.priority, request.created_at)

    def comes_first(row: UnlearnRequest) -> bool:
        if row.status in HOLDS_LINEAGE:
            return True
        if row.model_id == request.model_id:
            return _place(row) < _place(request)
        return _urgency(row.latest_start_at, row.priority, row.created_at) < mine

    return [row for row in session.scalars(chosen) if row.id != request.id and comes_first(row)]


def _place(request: UnlearnRequest) -> tuple[datetime, str]:
    """In its model's queue; a new one's is after all that wait."""
    return request.created_at, request.id


def _urgency(latest: datetime | None, priority: str, created_at: datetime) -> tuple[datetime, int, datetime]:
    """Least first; no law's clock: after those that have one."""
    return latest or datetime.max.replace(tzinfo=UTC), PRIORITIES.index(priority), created_at


def _seconds(session: OrmSession, settings: Settings, row: UnlearnRequest) -> float:
    """What is left to do of another request."""
    if row.estimated_remaining_seconds is not None:
        return row.estimated_remaining_seconds
    family = session.get_one(Model, row.model_id).family
    return row.expected_run_seconds or schedule.expected_run_seconds(session, settings, family=family, method=row.method)
