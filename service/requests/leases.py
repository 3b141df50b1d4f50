"""Holding a request: claim, renew, report, and every way an attempt can end but one (`service.checkpoints.publish`).

A lease is (request, fence, owner). The claim raises the fence, and every later write names all three, so a worker that was
thought dead and comes back changes nothing. Times are the database's. Each function is one short transaction of its caller;
business rows first, the ledger last.

    claim -> renew* -> publish | fail | retry | give_back | cancelled          reap: for owners that fell silent
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session as OrmSession

from service.audit import ledger
from service.audit.leaves import (
    Actor,
    EvaluationFinished,
    EvaluationRejected,
    Fact,
    RequestClosed,
    RunFailed,
    RunLost,
    RunStarted,
    RunStopped,
)
from service.db import now
from service.outbox import claimable
from service.requests.lifecycle import HOLDS_LINEAGE, TERMINAL, Phase, Status, after_lost_lease
from service.tables import Attempt, Model, ModelVersion, RequestEvent, UnlearnRequest

LONGEST_PAUSE_SECONDS = 300.0
SWEEPER = Actor(kind="service", id="sweeper")


@dataclass(frozen=True)
class Lease:
    """The right to work on a request until somebody else raises its fence."""

    request_id: str
    fence: int
    owner: str

    @property
    def actor(self) -> Actor:
        """The worker as audit entries name it: a digest, since an owner's name holds that of its machine."""
        return Actor(kind="worker", id=hashlib.sha256(self.owner.encode()).hexdigest()[:16])


@dataclass(frozen=True)
class Progress:
    """How far a phase has come. `unit` is the engine's word (iteration, image); the estimate is in seconds."""

    completed: int | None = None
    total: int | None = None
    unit: str | None = None
    estimated_remaining_seconds: float | None = None

    @property
    def percent(self) -> int | None:
        return None if self.completed is None or not self.total else 100 * self.completed // self.total


@dataclass(frozen=True)
class Problem:
    """Why an attempt ended without a result. `code` is stable, `message` is one plain sentence, `extra` is JSON."""

    code: str
    category: str
    message: str
    extra: tuple[tuple[str, Any], ...] = ()
    log_tail: str = ""

    def shown(self, attempt: int) -> dict[str, Any]:
        """The request's `error`."""
        return {
            "code": self.code,
            "category": self.category,
            "message": self.message,
            "attempt": attempt,
            **dict(self.extra),
        }


class LeaseLost(Exception):
    """Somebody else holds the request, or it has ended: stop at once and write nothing."""


def pause_after(attempts: int) -> timedelta:
    """How long a request rests after its n-th dead attempt: 2, 4, 8, … seconds, 5 minutes at most."""
    return timedelta(seconds=min(2.0 ** min(attempts, 16), LONGEST_PAUSE_SECONDS))


# --------------------------------------------------------------------------------------------------- taking and keeping


def claim(session: OrmSession, request_id: str, *, owner: str, lease_seconds: float) -> Lease | None:
    """Take a queued request. None: it is not due, or another worker was quicker.

    One conditional UPDATE decides. Two requests of one model that both pass the condition (PostgreSQL, two snapshots) meet
    at the unique index, and the second one waits.
    """
    at = now(session)
    base = (
        select(ModelVersion.id)
        .join(Model, Model.id == ModelVersion.model_id)
        .where(Model.id == UnlearnRequest.model_id, ModelVersion.number == Model.current_version)
        .scalar_subquery()
    )
    statement = (
        update(UnlearnRequest)
        .where(UnlearnRequest.id == request_id, claimable(at))
        .values(
            status="running",
            phase="staging",
            fence=UnlearnRequest.fence + 1,
            attempts_charged=UnlearnRequest.attempts_charged + 1,
            version=UnlearnRequest.version + 1,
            lease_owner=owner,
            lease_expires_at=at + timedelta(seconds=lease_seconds),
            base_version_id=base,
        )
        .returning(UnlearnRequest.id)
        .execution_options(synchronize_session=False)
    )
    try:
        with session.begin_nested():
            if session.execute(statement).scalar_one_or_none() is None:
                return None
    except IntegrityError:
        return None
    row = session.get_one(UnlearnRequest, request_id, populate_existing=True)
    row.started_at = row.started_at or at
    lease = Lease(request_id, row.fence, owner)
    session.add(Attempt(request_id=request_id, fence=lease.fence, worker=owner, started_at=at))
    announce(session, request_id, "started", {"fence": lease.fence, "attempt": row.attempts_charged}, at)
    fact = RunStarted(fence=lease.fence, base_version_id=str(row.base_version_id))
    ledger.append(session, fact, actor=lease.actor, request_id=request_id, model_id=row.model_id)
    return lease


def locked(session: OrmSession, lease: Lease) -> UnlearnRequest:
    """The request's row, locked, while the lease holds.

    Raises:
        LeaseLost: the fence has moved on, the owner has changed, or the request has ended.
    """
    row = session.execute(
        select(UnlearnRequest)
        .where(
            UnlearnRequest.id == lease.request_id,
            UnlearnRequest.fence == lease.fence,
            UnlearnRequest.lease_owner == lease.owner,
            UnlearnRequest.status.in_(sorted(HOLDS_LINEAGE)),
        )
        .with_for_update()
        .execution_options(populate_existing=True)
    ).scalar_one_or_none()
    if row is None:
        raise LeaseLost(f"request {lease.request_id} is no longer held under fence {lease.fence}")
    return row


def renew(
    session: OrmSession,
    lease: Lease,
    *,
    lease_seconds: float,
    progress: Progress | None = None,
    phase: Phase | None = None,
) -> bool:
    """Extend the lease; write what has changed. Returns True when somebody asked to cancel.

    Args:
        progress: written when it differs from the row's; followers hear of whole percents.
        phase: entering a phase; it starts without progress.

    Raises:
        LeaseLost: stop, and write nothing.
    """
    row = locked(session, lease)
    at = now(session)
    row.lease_expires_at = at + timedelta(seconds=lease_seconds)
    before = _progress_of(row)
    if phase is not None and phase != row.phase:
        row.phase = phase
        _set_progress(row, progress or Progress(), at)
        row.version += 1
        announce(session, row.id, "progress", _shown(row), at)
    elif progress is not None and progress != before:
        _set_progress(row, progress, at)
        row.version += 1
        if progress.percent != before.percent:
            announce(session, row.id, "progress", _shown(row), at)
    return row.cancel_requested_at is not None


def is_cancelled(session: OrmSession, lease: Lease) -> bool:
    """True when somebody asked to cancel; a read, without a lock. Raises: LeaseLost."""
    found = session.execute(
        select(UnlearnRequest.cancel_requested_at).where(
            UnlearnRequest.id == lease.request_id,
            UnlearnRequest.fence == lease.fence,
            UnlearnRequest.lease_owner == lease.owner,
            UnlearnRequest.status.in_(sorted(HOLDS_LINEAGE)),
        )
    ).one_or_none()
    if found is None:
        raise LeaseLost(f"request {lease.request_id} is no longer held under fence {lease.fence}")
    return found[0] is not None


def record(session: OrmSession, lease: Lease, fact: Fact, *, detail: dict[str, Any] | None = None) -> None:
    """Write a fact about the running attempt, and remember `detail` with it. Raises: LeaseLost."""
    row = locked(session, lease)
    if detail:
        attempt = session.get_one(Attempt, (lease.request_id, lease.fence))
        attempt.detail = {**(attempt.detail or {}), **detail}
    ledger.append(session, fact, actor=lease.actor, request_id=row.id, model_id=row.model_id)


def keep_report(
    session: OrmSession, lease: Lease, *, report: dict[str, Any], report_sha256: str, evidence: list[dict[str, Any]]
) -> None:
    """Keep what verification saw with the attempt, pass or fail, and say so in the ledger. Raises: LeaseLost."""
    row = locked(session, lease)
    attempt = session.get_one(Attempt, (lease.request_id, lease.fence))
    attempt.report = report
    attempt.evidence = evidence
    row.version += 1
    verdict = str(report["verdict"])
    kind = EvaluationFinished if verdict == "PASS" else EvaluationRejected
    fact = kind(fence=lease.fence, verdict=verdict, report_sha256=report_sha256)
    ledger.append(session, fact, actor=lease.actor, request_id=row.id, model_id=row.model_id)


# ------------------------------------------------------------------------------------------------------------- the ends


def fail(session: OrmSession, lease: Lease, problem: Problem) -> Status:
    """End the request: another attempt would end the same way. Raises: LeaseLost."""
    row = locked(session, lease)
    if row.status == "cancelling":
        return _end_cancelled(session, row, lease, problem)
    shown = problem.shown(row.attempts_charged)
    _close(session, row, "failed", error=shown)
    _end_attempt(session, lease, "failed", {**shown, "log_tail": problem.log_tail})
    announce(session, row.id, "failed", {"error": shown})
    facts = (RunFailed(fence=lease.fence, code=problem.code), RequestClosed(status="failed"))
    return _written(session, row, lease.actor, facts)


def retry(session: OrmSession, lease: Lease, problem: Problem, *, max_attempts: int) -> Status:
    """Put a request back whose attempt died, after a pause; fail it once its attempts are used up. Raises: LeaseLost."""
    row = locked(session, lease)
    if row.status == "cancelling":
        return _end_cancelled(session, row, lease, problem)
    shown = problem.shown(row.attempts_charged)
    _end_attempt(session, lease, "failed", {**shown, "log_tail": problem.log_tail})
    facts: list[Fact] = [RunFailed(fence=lease.fence, code=problem.code)]
    if row.attempts_charged >= max_attempts:
        error = _exhausted(row.attempts_charged, problem)
        _close(session, row, "failed", error=error)
        announce(session, row.id, "failed", {"error": error})
        facts.append(RequestClosed(status="failed"))
    else:
        pause = pause_after(row.attempts_charged)
        _requeue(session, row, pause=pause)
        announce(session, row.id, "requeued", {"reason": shown, "pause_seconds": pause.total_seconds()})
    return _written(session, row, lease.actor, facts)


def give_back(session: OrmSession, lease: Lease, *, reason: str) -> Status:
    """Put a request back unharmed: its worker stops. The attempt is not charged. Raises: LeaseLost."""
    row = locked(session, lease)
    if row.status == "cancelling":
        return _end_cancelled(session, row, lease, None)
    row.attempts_charged -= 1
    _requeue(session, row, pause=timedelta(0))
    _end_attempt(session, lease, "drained", {"code": "drained", "message": reason})
    announce(session, row.id, "requeued", {"reason": {"code": "drained", "message": reason}, "pause_seconds": 0.0})
    return _written(session, row, lease.actor, (RunStopped(fence=lease.fence),))


def cancelled(session: OrmSession, lease: Lease) -> Status:
    """Say that the request is cancelled. Call it when no process of it is left. Raises: LeaseLost."""
    return _end_cancelled(session, locked(session, lease), lease, None)


def reap(
    session: OrmSession, request_id: str, fence: int, *, max_attempts: int, reason: str, only_expired: bool
) -> Status | None:
    """Take a request from a worker that fell silent. None: it has moved on meanwhile, or another sweeper has it.

    Args:
        reason: how it was noticed; kept with the attempt.
        only_expired: the lease must have run out; False when the owner is known to be dead.
    """
    row = session.execute(
        select(UnlearnRequest)
        .where(
            UnlearnRequest.id == request_id,
            UnlearnRequest.fence == fence,
            UnlearnRequest.status.in_(sorted(HOLDS_LINEAGE)),
        )
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    ).scalar_one_or_none()
    if row is None:
        return None
    if only_expired and row.lease_expires_at is not None and row.lease_expires_at >= now(session):
        return None
    problem = Problem("worker_lost", "service", reason)
    lost = Lease(request_id, fence, row.lease_owner or "")
    _end_attempt(session, lost, "lost", problem.shown(row.attempts_charged))
    facts: list[Fact] = [RunLost(fence=fence)]
    # a cancellation that reached the row before its status did is still a cancellation
    status: Status = "cancelling" if row.cancel_requested_at is not None else "running"
    end = after_lost_lease(status, attempts=row.attempts_charged, max_attempts=max_attempts)
    if end == "queued":
        pause = pause_after(row.attempts_charged)
        _requeue(session, row, pause=pause)
        reason_shown = problem.shown(row.attempts_charged)
        announce(session, row.id, "requeued", {"reason": reason_shown, "pause_seconds": pause.total_seconds()})
    else:
        error = _exhausted(row.attempts_charged, problem) if end == "failed" else None
        _close(session, row, end, error=error)
        announce(session, row.id, end, {"error": error})
        facts.append(RequestClosed(status=end))
    row.fence += 1
    return _written(session, row, SWEEPER, facts)


def announce(session: OrmSession, request_id: str, what: str, data: dict[str, Any], at: datetime | None = None) -> None:
    """Tell the request's followers: one row of its event stream."""
    session.add(RequestEvent(request_id=request_id, type=f"unlearning_request.{what}", data=data, at=at or now(session)))


def _end_cancelled(session: OrmSession, row: UnlearnRequest, lease: Lease, problem: Problem | None) -> Status:
    detail: dict[str, Any] = {"code": "cancelled", "message": "somebody asked to cancel"}
    if problem is not None:
        detail["meanwhile"] = problem.shown(row.attempts_charged)
    _close(session, row, "cancelled", error=None)
    _end_attempt(session, lease, "cancelled", detail)
    announce(session, row.id, "cancelled", {"phase": row.phase})
    return _written(session, row, lease.actor, (RunStopped(fence=lease.fence), RequestClosed(status="cancelled")))


def _exhausted(attempts: int, problem: Problem) -> dict[str, Any]:
    message = f"all {attempts} attempts died; the last one: {problem.message}"
    extra = (("last_code", problem.code), *problem.extra)
    return Problem("attempts_exhausted", problem.category, message, extra).shown(attempts)


def _close(session: OrmSession, row: UnlearnRequest, status: Status, *, error: dict[str, Any] | None) -> None:
    assert status in TERMINAL
    row.status = status
    row.finished_at = now(session)
    if error is not None:
        row.error = error
    row.estimated_remaining_seconds = None
    row.lease_owner = None
    row.lease_expires_at = None
    row.version += 1


def _requeue(session: OrmSession, row: UnlearnRequest, *, pause: timedelta) -> None:
    at = now(session)
    row.status = "queued"
    row.phase = None
    row.not_before = at + pause
    row.lease_owner = None
    row.lease_expires_at = None
    row.version += 1
    _set_progress(row, Progress(), at)


def _end_attempt(session: OrmSession, lease: Lease, outcome: str, detail: dict[str, Any]) -> None:
    attempt = session.get_one(Attempt, (lease.request_id, lease.fence))
    attempt.outcome = outcome
    attempt.ended_at = now(session)
    attempt.detail = {**(attempt.detail or {}), **{k: v for k, v in detail.items() if v not in (None, "")}}


def _written(session: OrmSession, row: UnlearnRequest, actor: Actor, facts: Iterable[Fact]) -> Status:
    request_id, model_id, status = row.id, row.model_id, row.status
    for fact in facts:
        ledger.append(session, fact, actor=actor, request_id=request_id, model_id=model_id)
    return status  # type: ignore[return-value]  # the column is a plain string, its CHECK constraint is this Literal


def _progress_of(row: UnlearnRequest) -> Progress:
    return Progress(row.progress_completed, row.progress_total, row.progress_unit, row.estimated_remaining_seconds)


def _set_progress(row: UnlearnRequest, progress: Progress, at: datetime) -> None:
    row.progress_completed = progress.completed
    row.progress_total = progress.total
    row.progress_unit = progress.unit
    row.estimated_remaining_seconds = progress.estimated_remaining_seconds
    row.progress_at = at if progress.completed is not None else None


def _shown(row: UnlearnRequest) -> dict[str, Any]:
    return {
        "phase": row.phase,
        "completed": row.progress_completed,
        "total": row.progress_total,
        "unit": row.progress_unit,
        "estimated_remaining_seconds": row.estimated_remaining_seconds,
    }
